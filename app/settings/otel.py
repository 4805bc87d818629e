"""OpenTelemetry's own variables (`OTEL_*`): its SDK reads them, and forgives what should rather stop the start."""

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from urllib.parse import urlsplit

FAMILY = "OTEL_*"
"""One setting for all of them."""

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

DEFAULT_ENDPOINT = "http://localhost:4318"

SERVICE_NAME, ATTRIBUTES, INSTANCE = "OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "service.instance.id"
GATEWAY, ENGINES = "gllm", "-engine"
"""How a gateway is called unless it is told otherwise, and what its engines have behind that."""

PROPAGATORS = "OTEL_PROPAGATORS"

SAMPLERS = (
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
)


def names_a_collector(given: Mapping[str, str]) -> bool:
    return any(given.get(name) for name in ENDPOINTS)


def switched_off(given: Mapping[str, str]) -> bool:
    return given.get("OTEL_SDK_DISABLED", "").lower() == "true" or given.get("OTEL_TRACES_EXPORTER") == "none"


def traces_endpoint(given: Mapping[str, str]) -> str:
    """Where its SDK would send them."""
    base, own = (given.get(name, "") for name in ENDPOINTS)
    return own or f"{(base or DEFAULT_ENDPOINT).rstrip('/')}/v1/traces"


def of_engine(given: Mapping[str, str], name: str) -> dict[str, str]:
    """What an engine is told that is started here: all the same, under a name of its own. `name`: which one it is."""
    service = given.get(SERVICE_NAME) or GATEWAY
    attributes = [each for each in given.get(ATTRIBUTES, "").split(",") if each.strip()]
    if not any(each.partition("=")[0].strip() == INSTANCE for each in attributes):
        attributes.append(f"{INSTANCE}={name}")
    return {
        **given,
        SERVICE_NAME: service if service.endswith(ENGINES) else service + ENGINES,
        ATTRIBUTES: ",".join(attributes),
    }


def fatal(given: Mapping[str, str]) -> str | None:
    """What ends whoever imports OpenTelemetry's API, as FastAPI does where it is installed."""
    installed = {each.name for each in entry_points(group="opentelemetry_propagator")} if PROPAGATORS in given else ()
    for name in (each.strip() for each in given.get(PROPAGATORS, "").split(",")):
        if name.lower() == "none":
            return None
        if installed and name not in installed:
            return f"{PROPAGATORS} names {name!r}, which is not installed; there are {', '.join(sorted(installed))}."
    return None


def fault(given: Mapping[str, str]) -> str | None:
    """What keeps traces from being sent as these say, in one sentence."""
    for name, (is_well, wanted) in _CHECKS.items():
        if name in given and not is_well(given[name]):
            return f"{name} must be {wanted}, not {given[name]!r}."
    return None


Check = tuple[Callable[[str], bool], str]


def _one_of(*texts: str) -> Check:
    return (lambda text: text.lower() in texts), " or ".join(repr(text) for text in texts)


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def _is_share(text: str) -> bool:
    try:
        return 0 <= float(text) <= 1
    except ValueError:
        return False


_URL: Check = (_is_url, "a URL like http://127.0.0.1:4318")
_PROTOCOL = _one_of("http/protobuf")
_DIGITS = 9
"""Of milliseconds, eleven days; the SDK takes more, and its threads end of it."""


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _DIGITS


_COUNT: Check = (lambda text: _is_count(text) and int(text) > 0, f"a whole number above 0, of {_DIGITS} digits at most")
_LIMIT: Check = (lambda text: text == "unset" or _is_count(text), f"a whole number of {_DIGITS} digits at most")

_CHECKS: dict[str, Check] = {
    "OTEL_EXPORTER_OTLP_ENDPOINT": _URL,
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": _URL,
    "OTEL_EXPORTER_OTLP_PROTOCOL": _PROTOCOL,
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": _PROTOCOL,
    "OTEL_TRACES_EXPORTER": _one_of("otlp", "none"),
    "OTEL_TRACES_SAMPLER": _one_of(*SAMPLERS),
    "OTEL_TRACES_SAMPLER_ARG": (_is_share, "a share between 0 and 1"),
    "OTEL_BSP_SCHEDULE_DELAY": _COUNT,
    "OTEL_BSP_MAX_QUEUE_SIZE": _COUNT,
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": _COUNT,
    "OTEL_ATTRIBUTE_COUNT_LIMIT": _LIMIT,
    "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": _LIMIT,
    "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT": _LIMIT,
    "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT": _LIMIT,
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": _LIMIT,
    "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT": _LIMIT,
    "OTEL_SPAN_EVENT_COUNT_LIMIT": _LIMIT,
    "OTEL_SPAN_LINK_COUNT_LIMIT": _LIMIT,
}
