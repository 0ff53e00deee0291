"""What the exit status of a command says, in one place: ``docs/cli.md`` has the table."""

import sys
from enum import IntEnum


class ExitStatus(IntEnum):
    """Why a command ended. 2 is the command line's own: an option or a command that there is not."""

    DONE = 0
    REFUSED = 1  # an option, a file, a setting or a field can't be used; the line says which
    USAGE = 2
    UNAVAILABLE = 3  # no service answers, or it is full or not ready, for longer than it was tried
    FAILED = 4  # the job failed or was cancelled, or some of its outputs did
    NOT_ALLOWED = 5  # the service wants another key
    NOT_IN_TIME = 6  # the job goes on
    FAULT = 70  # that nobody foresaw, as sysexits.h numbers it
    INTERRUPTED = 130


def status_of(error: Exception) -> ExitStatus:
    """Return the exit status of a command that ended with an error."""
    from models.options import ConfigError
    from workers.errors import (
        DeadlineExceeded,
        InternalError,
        JobCancelled,
        ModerationRefused,
        NotFinite,
        OutOfMemory,
        ServiceError,
        WorkerLost,
    )
    from workers.settings import SettingsError

    if isinstance(status := getattr(error, "exit_status", None), ExitStatus):
        return status
    if (status := _status_at_a_service(error)) is not None:
        return status
    failures = (DeadlineExceeded, InternalError, JobCancelled, NotFinite, OutOfMemory, WorkerLost)
    match error:
        case _ if isinstance(error, (*failures, ModerationRefused)):
            return ExitStatus.FAILED
        case ServiceError() | ConfigError() | SettingsError() | OSError() | ModuleNotFoundError():
            return ExitStatus.REFUSED
    return ExitStatus.FAULT


def _status_at_a_service(error: Exception) -> ExitStatus | None:
    """Return what an error of the client means; None for any other."""
    if (client := sys.modules.get("smalti")) is None or not isinstance(error, client.SmaltiError):
        return None
    for kinds, status in (
        ((client.JobFailed,), ExitStatus.FAILED),
        ((client.WaitTimeout,), ExitStatus.NOT_IN_TIME),
        ((client.NotAllowed,), ExitStatus.NOT_ALLOWED),
        ((client.Unavailable, client.ConnectionFailed, client.AnswerUnreadable), ExitStatus.UNAVAILABLE),
    ):
        if isinstance(error, kinds):
            return status
    return ExitStatus.REFUSED
