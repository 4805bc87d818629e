"""What can go wrong, whose doing it is, and whether trying again can help.

Lower floors raise these; `app.wire.errors` translates them to HTTP once. Every message is ours and safe to show.
"""

from enum import StrEnum

from app.tenant import Standing


class Outcome(StrEnum):
    """The one vocabulary for how a request ended, in logs, metrics and the journal."""

    OK = "ok"
    CLIENT_ERROR = "client_error"
    RATE_LIMITED = "rate_limited"
    QUEUE_FULL = "queue_full"
    DEADLINE = "deadline"
    UPSTREAM_FAILED = "upstream_failed"
    INTERRUPTED = "interrupted"
    CLIENT_GONE = "client_gone"
    DRAINING = "draining"


class GatewayError(Exception):
    """The root. A leaf says its outcome, and whether another replica may be tried before the commit point."""

    outcome = Outcome.UPSTREAM_FAILED
    retryable = False
    """By us, elsewhere."""
    should_retry: bool | None = None
    """By the client: `None` leaves it to what the status says."""
    default = "The request failed."

    def __init__(
        self,
        message: str | None = None,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        self.message = message or self.default
        self.param = param
        self.code = code
        """Narrows the error table's code, never widens it: `invalid_value` may become `invalid_type`."""
        self.retry_after = retry_after
        super().__init__(self.message)


class Unforeseen(GatewayError):
    """A defect of ours. The caller learns the request id and nothing else."""

    default = "The gateway failed to handle this request. The request id identifies it in the logs."


# --- the client's doing -------------------------------------------------------------------------------------------


class ClientError(GatewayError):
    outcome = Outcome.CLIENT_ERROR


class InvalidRequest(ClientError):
    """A body or a parameter that cannot be accepted; `param` names it where one can be named."""

    default = "The request is not valid."


class MissingKey(ClientError):
    default = "This gateway needs an API key: send it as 'Authorization: Bearer KEY'."


class WrongKey(ClientError):
    default = "The API key is not known."


class NotAllowed(ClientError):
    default = "This is not allowed here."


class UnknownPath(ClientError):
    default = "There is nothing at this path."


class UnknownModel(ClientError):
    default = "No model of this name is served here."


class WrongMethod(ClientError):
    default = "This path does not take this method."

    def __init__(self, *, allow: str) -> None:
        super().__init__()
        self.allow = allow


class BodyTooSlow(ClientError):
    default = "The body did not arrive in time."


class BodyTooLarge(ClientError):
    default = "The body is larger than this gateway accepts."


class WrongMediaType(ClientError):
    default = "Send JSON: 'Content-Type: application/json', UTF-8, without a content encoding."


class HeadersTooLarge(ClientError):
    default = "The request's headers are larger than this gateway accepts."


class MalformedHttp(ClientError):
    default = "This is not a valid HTTP/1.1 request."


class TooManyFailedLogins(ClientError):
    outcome = Outcome.RATE_LIMITED
    default = "Too many wrong API keys came from this address. Try again later."


class RateLimited(ClientError):
    """The tenant has used up what it may have; `code` says of what, `retry_after` when there will be more."""

    outcome = Outcome.RATE_LIMITED
    default = "The rate limit is reached."

    def __init__(
        self,
        message: str | None = None,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        standing: tuple[Standing, ...] = (),
    ) -> None:
        super().__init__(message, param=param, code=code, retry_after=retry_after)
        self.standing = standing
        """How all limits stand that this request met, for the answer's headers."""


class LargerThanLimit(RateLimited):
    """No waiting helps: the request alone is more than the limit ever allows at once."""

    should_retry = False
    default = "This request alone is larger than the token limit allows: ask for fewer tokens."


class KeyReused(ClientError):
    default = "This idempotency key was used for another request."


class KeyInFlight(ClientError):
    default = "A request with this idempotency key is being answered."


class NotReplayable(ClientError):
    """It was answered, and must not be answered anew; but its answer was too large to be kept."""

    should_retry = False
    default = "The request with this idempotency key was answered, but its answer is not kept."


class ClientGone(GatewayError):
    """Nobody is left to answer: the client hung up, or stopped reading for too long."""

    outcome = Outcome.CLIENT_GONE
    default = "The client is gone."


class ClientStalled(ClientGone):
    """It is there, and took nothing of its answer for too long."""

    default = "The client has stopped reading its answer."


# --- our doing ----------------------------------------------------------------------------------------------------


class NoReplica(GatewayError):
    """The model is known, but no replica that serves it is ready."""

    default = "No replica of this model is ready to answer."


class Draining(GatewayError):
    outcome = Outcome.DRAINING
    default = "This gateway is shutting down."


class QueueFull(GatewayError):
    outcome = Outcome.QUEUE_FULL
    default = "Too many requests are waiting already."


class TooManyConnections(GatewayError):
    outcome = Outcome.QUEUE_FULL
    default = "This gateway has as many connections as it can hold."


class WouldMissDeadline(GatewayError):
    """Its turn would come too late, or did not come in time: nothing was sent to an engine."""

    outcome = Outcome.DEADLINE
    default = "The queue is too long for this request's time limit."


class StoreDown(GatewayError):
    """What must be remembered for this request cannot be, at the moment."""

    outcome = Outcome.QUEUE_FULL
    default = "Idempotency keys cannot be checked at the moment; without one the request would be answered."


class DeadlinePassed(GatewayError):
    outcome = Outcome.DEADLINE
    default = "The request did not finish within its time limit."


# --- the cluster's doing ------------------------------------------------------------------------------------------


class ClusterError(GatewayError):
    """What operators ask of workers, and cannot have. The text may name workers and models: it is for operators."""


class UnknownWorker(ClusterError):
    outcome = Outcome.CLIENT_ERROR
    default = "No worker of this name is known here."


class NoWorkers(ClusterError):
    """Nobody is there who could do it."""

    default = "No worker is known here that could do this."


class NotAccepted(ClusterError):
    """What was announced as a worker is none that this gateway can have, and why."""

    outcome = Outcome.CLIENT_ERROR
    default = "There is no worker of ours at this address."


class NameTaken(NotAccepted):
    default = "Another worker is known under this name."


class UnknownAdapter(ClusterError):
    outcome = Outcome.CLIENT_ERROR
    default = "No adapter of this name is loaded here."


class LoadInProgress(ClusterError):
    """Two changes at once would mix: the second comes again later."""

    outcome = Outcome.CLIENT_ERROR
    default = "Another change of models is being carried out."


class LoadFailed(ClusterError):
    """What was served before is served again."""

    should_retry = False
    default = "The model could not be loaded."

    def __init__(
        self,
        message: str | None = None,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        tail: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message, param=param, code=code, retry_after=retry_after)
        self.tail = tail
        """The engine's own last lines."""


class NotReleased(ClusterError):
    default = "The memory of the GPUs did not come back."


class WorkerUnreachable(ClusterError):
    default = "The worker does not answer."


class WorkerRefused(ClusterError):
    """It wants another secret, or is none of our workers."""

    default = "The worker refused the gateway."


class NotOffered(ClusterError):
    outcome = Outcome.CLIENT_ERROR
    should_retry = False
    default = "This worker's engine does not offer this."


# --- an engine's doing --------------------------------------------------------------------------------------------


class EngineError(GatewayError):
    """An engine did not do its part."""

    blames_engine = True
    """It speaks against the replica; too much of that and it gets a pause."""
    draws_on_budget = True
    """Another try is work on top of work, for a fleet that may have too much of it."""
    detail: str = ""
    """What the engine itself said, cut short. For the log only: it may carry stacks and addresses."""

    def __init__(
        self,
        message: str | None = None,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        detail: str = "",
    ) -> None:
        super().__init__(message, param=param, code=code, retry_after=retry_after)
        self.detail = detail


class EngineUnreachable(EngineError):
    retryable = True
    draws_on_budget = False  # nothing was begun
    default = "The engine could not be reached."


class EngineConnectTimeout(EngineUnreachable):
    default = "The engine did not accept a connection in time."


class EngineFailed(EngineError):
    """It answered with a 5xx."""

    retryable = True
    default = "The engine failed."


class EngineLost(EngineFailed):
    """The connection broke before it had answered."""

    draws_on_budget = False  # of a replica that dies there are never more than it had slots
    default = "The connection to the engine broke before it had answered."


class EngineNonsense(EngineError):
    """It spoke something other than the wire format."""

    retryable = True
    default = "The engine's answer could not be understood."


class EngineSilent(EngineError):
    """No first byte within the time allowed for it."""

    retryable = True
    default = "The engine did not begin to answer in time."


class EngineStalled(EngineError):
    """It began to answer, then sent nothing for too long."""

    retryable = True
    default = "The engine stopped in the middle of its answer."


class EngineBroken(EngineError):
    """The connection broke, or the engine gave up, in the middle of its answer."""

    retryable = True
    default = "The engine's answer broke off."


class EngineBusy(EngineError):
    """Backpressure (its 429 or 503): alive, full, and no fault of its own."""

    outcome = Outcome.QUEUE_FULL
    retryable = True
    blames_engine = False
    default = "Every engine that serves this model is busy."


class EngineRefused(EngineError):
    """It refused the request itself (its 4xx): the client's doing, and the same on every replica."""

    outcome = Outcome.CLIENT_ERROR
    blames_engine = False
    default = "The engine that serves this model refused the request."


class ContextTooLong(EngineRefused):
    default = "The prompt and the tokens asked for do not fit into the model's context."


class EngineLacks(EngineRefused):
    """This engine has no such endpoint or ability."""

    should_retry = False
    default = "The engine that serves this model does not offer this."


class EngineOutOfReach(EngineError):
    """This process may open no more files, or has no memory for a socket: nothing is known of the engine."""

    outcome = Outcome.QUEUE_FULL
    blames_engine = False
    draws_on_budget = False  # nothing was begun
    default = "The gateway cannot open another connection at the moment."


class EngineForgot(EngineError):
    """It does not know the model that it listed a moment ago: well, and about to tell what it serves now."""

    retryable = True
    blames_engine = False
    draws_on_budget = False  # nothing was begun
    default = "The engine has just stopped serving this model."


class EngineMisconfigured(EngineError):
    """It refused our credentials: the operator's doing, not the client's."""

    retryable = True
    default = "The engine refused the gateway."
