"""What can go wrong with a job, each with a stable code that clients may match on.

ServiceError
├── InvalidRequest        the request can't be served as it is
│   ├── InvalidSource     a file that can't be used
│   ├── InvalidCodes      codes out of range, of a wrong grid, or of another tokenizer
│   ├── InvalidLatents    latents of a wrong shape or type, or of another tokenizer
│   └── UnknownPipeline   no such pipeline, or no such class in it
├── ModerationRefused     the operator's hook refused it
│   └── ModerationFailed    or did not say, which refuses, too
├── IdempotencyKeyReused  the key has made a job of another request
├── QueueFull             too many jobs wait
│   └── QueueShareExceeded  too many jobs of one API key wait
├── RateLimitExceeded     the API key has submitted as many jobs as it may, for now
├── QueueUnavailable      the queue server does not answer
├── JobNotFound           no such job, or its result has expired
├── JobNotRetryable       it has not failed, or its request is not kept
├── JobCancelled          cancelled by its client
├── DeadlineExceeded      not done within its deadline_s
├── OutOfMemory           too large for this worker, even alone
├── NotFinite             the model made NaN or infinity for this sample
├── StorageUnavailable    the data folder, or the bucket of results, can't be written
│   ├── StorageFull       its disk is full
│   └── NotPrivate        others could read or change it
├── PipelineNotServed     no living worker has the pipeline
├── WorkerLost            the workers that ran it died, num_tries times
└── InternalError         anything else; the traceback is in the worker's log
"""


class ServiceError(Exception):
    """A failure that its client may see: ``code`` is stable, the message says what to do."""

    code: str = "internal_error"


class InvalidRequest(ServiceError):
    code = "invalid_request"


class InvalidSource(InvalidRequest):
    """A file that came in can't be used; its code names the medium: ``invalid_image``, say."""

    def __init__(self, medium: str, message: str) -> None:
        super().__init__(message)
        self.code = f"invalid_{medium}"


class InvalidCodes(InvalidRequest):
    code = "invalid_codes"


class InvalidLatents(InvalidRequest):
    code = "invalid_latents"


class UnknownPipeline(InvalidRequest):
    code = "unknown_pipeline"


class ModerationRefused(ServiceError):
    code = "moderation_refused"


class ModerationFailed(ModerationRefused):
    """The hook raised, hung or talked nonsense; a row of a batch is tried again.

    The code is that of a refusal, as for a client it is one; the message is always the same.
    """

    message = "it could not be checked, and so is refused; the operator's log says more"

    def __init__(self) -> None:
        super().__init__(self.message)


class IdempotencyKeyReused(ServiceError):
    code = "idempotency_key_reused"

    def __init__(self, made: str) -> None:
        super().__init__(
            f"Idempotency-Key: it has made {made} of another request; send a new key with each new request"
        )


class QueueFull(ServiceError):
    code = "queue_full"

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueShareExceeded(QueueFull):
    code = "queue_share_exceeded"


class RateLimitExceeded(ServiceError):
    code = "rate_limit_exceeded"

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueUnavailable(ServiceError):
    code = "queue_unavailable"


class JobNotFound(ServiceError):
    code = "job_not_found"


class JobNotRetryable(ServiceError):
    code = "job_not_retryable"


class JobCancelled(ServiceError):
    code = "job_cancelled"


class DeadlineExceeded(ServiceError):
    code = "deadline_exceeded"


class OutOfMemory(ServiceError):
    code = "out_of_memory"


class NotFinite(ServiceError):
    code = "not_finite"


class StorageUnavailable(ServiceError):
    code = "storage_unavailable"


class StorageFull(StorageUnavailable):
    code = "storage_full"


class NotPrivate(StorageUnavailable):
    """The data folder is another user's, or everyone's."""


class WorkerLost(ServiceError):
    code = "worker_lost"


class PipelineNotServed(ServiceError):
    code = "pipeline_not_served"

    def __init__(self, pipeline: str, reason: str = "") -> None:
        self.pipeline = pipeline
        super().__init__(
            f"pipeline: {pipeline!r} could not be loaded: {reason}"
            if reason
            else f"pipeline: no worker has {pipeline!r} now; start one that does, or try again later"
        )


class InternalError(ServiceError):
    code = "internal_error"
