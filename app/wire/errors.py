"""The one table from errors to HTTP, and the JSON and SSE bytes in which a client reads them."""

from typing import NamedTuple

import msgspec

from app import errors as e
from app.generation import Route
from app.wire.sse import event


class Row(NamedTuple):
    status: int
    type: str
    code: str


_CONFLICT, _LIMIT = "idempotency_error", "rate_limit_error"
_CLIENT, _AUTH, _SERVER, _BUSY = "invalid_request_error", "authentication_error", "api_error", "overloaded_error"

ERRORS: dict[type[e.GatewayError], Row] = {
    e.InvalidRequest: Row(400, _CLIENT, "invalid_value"),
    e.MalformedHttp: Row(400, _CLIENT, "malformed_http"),
    e.ContextTooLong: Row(400, _CLIENT, "context_length_exceeded"),
    e.EngineRefused: Row(400, _CLIENT, "engine_refused"),
    e.MissingKey: Row(401, _AUTH, "missing_api_key"),
    e.WrongKey: Row(401, _AUTH, "invalid_api_key"),
    e.NotAllowed: Row(403, "permission_error", "not_allowed"),
    e.UnknownPath: Row(404, _CLIENT, "not_found"),
    e.UnknownModel: Row(404, _CLIENT, "model_not_found"),
    e.WrongMethod: Row(405, _CLIENT, "method_not_allowed"),
    e.BodyTooSlow: Row(408, _CLIENT, "request_timeout"),
    e.BodyTooLarge: Row(413, _CLIENT, "request_too_large"),
    e.WrongMediaType: Row(415, _CLIENT, "unsupported_media_type"),
    e.NotAccepted: Row(400, _CLIENT, "no_worker_there"),
    e.NameTaken: Row(409, _CLIENT, "worker_name_taken"),
    e.UnknownWorker: Row(404, _CLIENT, "unknown_worker"),
    e.UnknownAdapter: Row(404, _CLIENT, "unknown_adapter"),
    e.LoadInProgress: Row(409, _CLIENT, "load_in_progress"),
    e.KeyInFlight: Row(409, _CONFLICT, "idempotency_in_progress"),
    e.NotReplayable: Row(409, _CONFLICT, "idempotency_not_replayable"),
    e.KeyReused: Row(422, _CONFLICT, "idempotency_key_reused"),
    e.TooManyFailedLogins: Row(429, _LIMIT, "too_many_failed_logins"),
    e.RateLimited: Row(429, _LIMIT, "rate_limit_exceeded"),
    e.LargerThanLimit: Row(429, _LIMIT, "request_larger_than_limit"),
    e.HeadersTooLarge: Row(431, _CLIENT, "headers_too_large"),
    e.ClientGone: Row(499, _CLIENT, "client_gone"),
    e.ClientStalled: Row(499, _CLIENT, "client_stalled"),
    e.Unforeseen: Row(500, _SERVER, "internal_error"),
    e.EngineLacks: Row(501, _CLIENT, "not_supported_by_engine"),
    e.NotOffered: Row(501, _CLIENT, "not_offered_by_worker"),
    e.LoadFailed: Row(502, _SERVER, "load_failed"),
    e.NotReleased: Row(502, _SERVER, "gpus_not_released"),
    e.WorkerUnreachable: Row(502, _SERVER, "worker_unreachable"),
    e.WorkerRefused: Row(502, _SERVER, "worker_refused"),
    e.EngineUnreachable: Row(502, _SERVER, "engine_unreachable"),
    e.EngineConnectTimeout: Row(502, _SERVER, "engine_connect_timeout"),
    e.EngineFailed: Row(502, _SERVER, "engine_failed"),
    e.EngineLost: Row(502, _SERVER, "engine_lost"),
    e.EngineNonsense: Row(502, _SERVER, "engine_nonsense"),
    e.EngineSilent: Row(502, _SERVER, "engine_first_byte_timeout"),
    e.EngineStalled: Row(502, _SERVER, "engine_idle_timeout"),
    e.EngineBroken: Row(502, _SERVER, "engine_interrupted"),
    e.EngineMisconfigured: Row(502, _SERVER, "engine_misconfigured"),
    e.NoWorkers: Row(503, _BUSY, "no_workers"),
    e.NoReplica: Row(503, _BUSY, "no_replica"),
    e.Draining: Row(503, _BUSY, "draining"),
    e.QueueFull: Row(503, _BUSY, "queue_full"),
    e.TooManyConnections: Row(503, _BUSY, "too_many_connections"),
    e.WouldMissDeadline: Row(503, _BUSY, "would_miss_deadline"),
    e.StoreDown: Row(503, _BUSY, "idempotency_unavailable"),
    e.EngineBusy: Row(503, _BUSY, "engine_busy"),
    e.EngineOutOfReach: Row(503, _BUSY, "engine_out_of_reach"),
    e.EngineForgot: Row(503, _BUSY, "model_gone"),
    e.DeadlinePassed: Row(504, _SERVER, "deadline_exceeded"),
}


class ErrorDetail(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(msgspec.Struct):
    """`{"error": {...}}`, as every OpenAI client expects it."""

    error: ErrorDetail


def row_of(error: e.GatewayError) -> Row:
    return ERRORS[type(error)]


def body_of(error: e.GatewayError) -> ErrorBody:
    row = row_of(error)
    return ErrorBody(ErrorDetail(error.message, row.type, error.param, error.code or row.code))


def error_json(error: e.GatewayError) -> bytes:
    return msgspec.json.encode(body_of(error))


def error_event(error: e.GatewayError, route: Route = Route.CHAT, events: int = 0) -> bytes:
    """For a stream that has begun: one event, and no `[DONE]` after it.

    Clients of Responses and Messages go by an event's name and type, and look for the words in two places. Those of
    Responses number their events from 0, and some read none without its number: it is how many `events` came before.
    """
    body = body_of(error)
    if route not in (Route.RESPONSES, Route.MESSAGES):
        return event(body)
    said = msgspec.to_builtins(body.error)
    number = {"sequence_number": events} if route is Route.RESPONSES else {}
    return b"event: error\n" + event({**said, **number, "type": "error", "error": said})
