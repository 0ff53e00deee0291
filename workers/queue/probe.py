"""Whether a queue server answers at an address, asked before anything is started that needs it."""

import ssl

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from workers.errors import QueueUnavailable
from workers.redis_url import shown

_TIMEOUT_S = 5.0


class QueueRefused(QueueUnavailable):
    """Something answers at the address, but not a queue that can be used; waiting does not help."""


def connect_once(url: str) -> "redis.Redis":
    """Return a connection that gives up soon."""
    return redis.Redis.from_url(
        url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S, retry=Retry(NoBackoff(), 0)
    )


def require_queue(url: str) -> None:
    """Check that a queue server answers at an address.

    Raises: QueueRefused when something else does, or it refuses the login; QueueUnavailable when none does.
    """
    place = f"{shown(url)} (REDIS_URL)"
    try:
        with connect_once(url) as client:
            client.ping()
    except (ValueError, TypeError) as error:
        raise QueueRefused(f"{place} has an option after ? that can't be used: {error}") from error
    except redis.BusyLoadingError:
        return  # it is there
    except redis.AuthenticationError as error:
        raise QueueRefused(
            f"the queue server at {place} refuses user or password: give them as in redis://:password@host:6379/0"
        ) from error
    except (redis.ResponseError, redis.InvalidResponse) as error:
        raise QueueRefused(f"{place} is not a queue server that can be used: {error}") from error
    except redis.TimeoutError as error:
        hint = "; without TLS it is redis://" if url.startswith("rediss:") else ""
        raise QueueUnavailable(f"{place} does not answer within {_TIMEOUT_S:.0f} s{hint}") from error
    except (redis.RedisError, OSError) as error:
        if _is_about_tls(error):
            raise QueueRefused(f"no TLS with {place}: {error}. Without TLS it is redis://") from error
        if "closed by server" in str(error):
            raise QueueRefused(f"{place} closes the connection at once; with TLS it is rediss://") from error
        raise QueueUnavailable(f"no queue server answers at {place}: {error}") from error


def _is_about_tls(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    return error is not None
