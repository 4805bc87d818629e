"""Every setting: its flat name, its default, its bounds and its sentence, in the branch of the object that gets it."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from app.settings import otel, values
from app.settings.reading import BadSetting, read, secret_in
from app.settings.sentences import sentence

BY_EITHER_NAME = ConfigDict(validate_by_name=True, validate_by_alias=True)

Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
LAST_PORT = 65_535
Port = Annotated[int, Field(ge=0, le=LAST_PORT)]
Bytes = Annotated[int, Field(ge=1_024, le=2**31)]
EngineType = Annotated[
    Literal["transformers", "vllm", "command", "external", "workers"], BeforeValidator(values.engine_type)
]
Policy = Annotated[
    Literal["session", "prefix", "power_of_two", "least_load", "round_robin"], BeforeValidator(values.lowered)
]
Level = Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(values.lowered)]
Format = Annotated[Literal["auto", "json", "text"], BeforeValidator(values.lowered)]
Urls = Annotated[tuple[str, ...], AfterValidator(values.base_urls), BeforeValidator(values.listed)]
Origins = Annotated[tuple[str, ...], AfterValidator(values.origins), BeforeValidator(values.listed)]
Gpus = Annotated[tuple[str, ...] | None, BeforeValidator(values.gpus)]
Secret = Annotated[SecretStr, AfterValidator(values.presentable)]
Words = Annotated[tuple[str, ...], BeforeValidator(values.words)]


def setting(name: str, default: Any, description: str, **bounds: Any) -> Any:
    given = {"default_factory": default} if callable(default) else {"default": default}
    return Field(**given, validation_alias=name, description=description, **bounds)


def demo_model() -> str:
    """The embedded model: inside the installed package, or in the checkout that the package stands in."""
    package = Path(__file__).parents[1]
    inside = package / "models" / "demo"
    return str(inside if inside.is_dir() else package.parent / "models" / "demo")


@dataclass(frozen=True, kw_only=True, config=BY_EITHER_NAME)
class Listen:
    """Where the gateway listens, and how it stops."""

    host: str = setting(
        "HOST", "127.0.0.1", "Address to listen on; beyond loopback it also takes TENANTS_FILE or ALLOW_ANONYMOUS=true."
    )
    port: Port = setting("PORT", 8000, "Port to listen on; 0 takes any free one.")
    processes: int = setting(
        "PROCESSES",
        1,
        "Gateway processes that share PORT, each with a core of its own. More than one take REDIS_URL, through which "
        "they share limits, keys and usage; engines that run already (`external` or `workers`); and METRICS_PORT: each "
        "has that listener for itself, from that port on. They share out MAX_CONCURRENT_REQUESTS, QUEUE_CAPACITY, "
        "QUEUE_CAPACITY_TOKENS and JOURNAL_REQUESTS.",
        ge=1,
        le=64,
    )
    published_host: str | None = setting(
        "PUBLISHED_HOST",
        None,
        "For a gateway in a container: the address outside at which its port is published. Instead of HOST it then "
        "decides whether callers need keys. docker-compose.yml sets it.",
    )
    allow_anonymous: bool = setting(
        "ALLOW_ANONYMOUS", False, "Let callers without a key use a gateway beyond loopback."
    )
    tenants_file: Path | None = setting(
        "TENANTS_FILE", None, "TOML file of tenants and their keys; with one, every call needs a key."
    )
    allowed_origins: Origins = setting(
        "ALLOWED_ORIGINS",
        (),
        "Origins whose pages in browsers may use /v1, comma-separated, such as https://chat.example.com; `*` is any, "
        "and takes TENANTS_FILE or ALLOW_ANONYMOUS=true. Whoever uses a page can read the key that it shows.",
    )
    drain_s: Seconds = setting("DRAIN_SECONDS", 30.0, "Seconds that a stop waits for running answers to finish.")

    @model_validator(mode="after")
    def _open_only_on_purpose(self) -> Self:
        if self.allow_anonymous and self.tenants_file is not None:
            raise ValueError(
                "ALLOW_ANONYMOUS=true and TENANTS_FILE contradict each other: with tenants every call needs a key. "
                "Remove one of them."
            )
        if not self.allow_anonymous and self.tenants_file is None and not values.is_loopback(self._reached_at):
            named = "HOST" if self.published_host is None else "PUBLISHED_HOST (GATEWAY_BIND for Compose)"
            raise ValueError(
                f"{named}={self._reached_at} is reachable from other machines and nothing asks callers for a key: "
                "set TENANTS_FILE, listen on 127.0.0.1, or set ALLOW_ANONYMOUS=true if that is what you want."
            )
        if "*" in self.allowed_origins and not self.allow_anonymous and self.tenants_file is None:
            raise ValueError(
                "ALLOWED_ORIGINS=* lets every page that somebody here opens use a gateway that asks for no key: name "
                "the origins, set TENANTS_FILE, or set ALLOW_ANONYMOUS=true if that is what you want."
            )
        return self

    @property
    def takes_anybody(self) -> bool:
        """Without a key, from beyond loopback too: it was said, or what is published there ends on this machine."""
        return self.allow_anonymous or (self.published_host is not None and values.is_loopback(self.published_host))

    @property
    def _reached_at(self) -> str:
        return self.host if self.published_host is None else self.published_host


@dataclass(frozen=True, kw_only=True, config=BY_EITHER_NAME)
class Engine:
    """Which engines answer, and how they are started."""

    type: EngineType = setting(
        "ENGINE_TYPE",
        "transformers",
        "`transformers` and `vllm` are started by the gateway, and so is any other server by its ENGINE_COMMAND "
        "(`command`); `external` uses the servers in ENGINE_URLS, and is the default once those are set; with "
        "`workers` a gateway starts none, and uses those of workers. `simple` means transformers.",
    )
    model: str = setting(
        "MODEL_NAME",
        demo_model,
        "The model to load: a local folder, or a name on the model hub. The default is the embedded demo model.",
        min_length=1,
    )
    replicas: int = setting("ENGINE_REPLICAS", 1, "How many engines of the model to start.", ge=1, le=256)
    gpus: Gpus = setting(
        "GPUS",
        None,
        "GPUs for the engines, by index or UUID, shared out evenly (`0,1,2,3` with two replicas: `0,1` and `2,3`); "
        "`none` keeps them on the CPU. Unset leaves the choice to the engine.",
    )
    command: Words = setting(
        "ENGINE_COMMAND",
        (),
        "Command of an OpenAI-compatible server, quoted as in a shell; `{model}`, `{name}`, `{host}` and `{port}` "
        "stand for what it is to serve, and where.",
    )
    args: Words = setting("ENGINE_ARGS", (), "Further arguments for the engine's command line, quoted as in a shell.")
    urls: Urls = setting("ENGINE_URLS", (), "Base URLs of OpenAI-compatible servers to use, comma-separated.")
    api_key: Secret | None = setting(
        "ENGINE_API_KEY", None, "Key that the gateway shows to the servers in ENGINE_URLS."
    )
    port_start: int = setting(
        "ENGINE_PORT_START", 8100, "First port tried for a started engine; a taken one is skipped.", ge=1, le=65_535
    )
    start_timeout_s: Seconds = setting(
        "ENGINE_START_TIMEOUT", 600.0, "Seconds in which a started engine must have loaded its model."
    )

    exact_usage: bool | None = setting(
        "EXACT_USAGE",
        None,
        "Have engines count with each event of a stream (`continuous_usage_stats`), so that a stream which its client "
        "leaves is charged to the token, too. Unset: those that the gateway starts are asked to, others are not.",
    )

    @property
    def counts_along(self) -> bool:
        return self.type in ("transformers", "vllm", "workers") if self.exact_usage is None else self.exact_usage

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if self.type == "external" and not self.urls:
            raise ValueError("ENGINE_TYPE=external needs ENGINE_URLS: the base URLs of the servers to use.")
        if (self.type == "command") != bool(self.command):
            raise ValueError("ENGINE_TYPE=command and ENGINE_COMMAND go together: set both or neither.")
        if self.type != "external" and self.urls:
            raise ValueError(
                f"ENGINE_URLS and ENGINE_TYPE={self.type} contradict each other: remove ENGINE_URLS, or set "
                "ENGINE_TYPE=external."
            )
        if self.gpus and len(self.gpus) % self.replicas:
            raise ValueError(f"{len(self.gpus)} GPUS cannot be shared out evenly to ENGINE_REPLICAS={self.replicas}.")
        return self

    @property
    def served_name(self) -> str:
        """The model's name for callers: a folder is known by its last part, a link to one by its own. Gateways, which
        cannot see where it leads, expect it so."""
        folder = Path(self.model).expanduser()
        return (Path(os.path.abspath(folder)).name if folder.is_dir() else "") or self.model


@dataclass(frozen=True, kw_only=True, config=BY_EITHER_NAME)
class Sampling:
    """What a request gets that does not say."""

    max_tokens: int | None = setting(
        "MAX_TOKENS", None, "Limit for requests that name none. Unset leaves it to the engine.", ge=1, le=10_000_000
    )
    temperature: float | None = setting(
        "TEMPERATURE", None, "For requests that name none. Unset leaves it to the engine.", ge=0, le=2
    )


@dataclass(frozen=True, kw_only=True, config=BY_EITHER_NAME)
class Edge:
    """What a client may send, and how long it may take."""

    request_timeout_s: Seconds = setting("REQUEST_TIMEOUT", 600.0, "Seconds for a whole request, waiting included.")
    body_timeout_s: Seconds = setting("BODY_TIMEOUT", 30.0, "Seconds in which a client must have sent its body.")
    write_timeout_s: Seconds = setting("WRITE_TIMEOUT", 30.0, "Seconds until a client that stopped reading is cut off.")
    max_body_bytes: Bytes = setting("MAX_BODY_BYTES", 10 * 2**20, "Largest body accepted.")
    max_header_bytes: Bytes = setting("MAX_HEADER_BYTES", 32 * 2**10, "Largest request line plus headers accepted.")
    max_connections: int | None = setting(
        "MAX_CONNECTIONS",
        None,
        "Connections of clients at once, for each gateway process; whoever comes then is told 503. Unset, as many as "
        "open files allow (`ulimit -n`), two for each, and some to spare.",
        ge=1,
    )
    max_choices: int = setting("MAX_CHOICES", 16, "Most answers (`n`) that one request may ask for.", ge=1, le=128)


@dataclass(frozen=True, kw_only=True, config=BY_EITHER_NAME)
class Timeouts:
    """How long an engine may take."""

    connect_s: Seconds = setting("CONNECT_TIMEOUT", 5.0, "Seconds for an engine to accept a connection.")
    first_byte_s: Seconds = setting("FIRST_BYTE_TIMEOUT", 120.0, "Seconds for an engine to begin a streamed answer.")
    idle_s: Seconds = setting("IDLE_TIMEOUT", 60.0, "Seconds an engine may be silent in the middle of an answer.")


@dataclass(frozen=True, kw_only=True, config=BY_EITHER_NAME)
class Routing:
    """Which replica a request goes to."""

    policy: Policy = setting(
        "ROUTING_POLICY",
        "session",
        "How a replica is chosen. `session`: calls with one `X-Session-Id` meet the same one, others go as with "
        "`power_of_two`. `prefix`: like that, and prompts that begin alike meet too. `power_of_two`: of two at random "
        "the one with fewer tokens to work on. `least_load`: the one with fewest of all. `round_robin`: in turn.",
    )
    max_attempts: int = setting(
        "MAX_ATTEMPTS", 3, "Replicas tried for a request before its error is told.", ge=1, le=10
    )
    retry_share: float = setting(
        "RETRY_BUDGET",
        0.2,
        "Attempts on a second replica, as a share of recent requests, where a first one has worked or was busy. "
        "Those whose replica is gone may always move. 0: nobody is tried twice.",
        ge=0,
        le=1,
    )
    takeover: bool = setting(
        "TAKEOVER",
        True,
        "A stream of plain text whose replica dies goes on at another one, from the text so far, within "
        "`MAX_ATTEMPTS`. For engines that count along (`EXACT_USAGE`) and know `continue_final_message`.",
    )
    circuit_failures: int = setting(
        "CIRCUIT_FAILURES", 5, "Failures in a row after which a replica gets no requests for a while.", ge=1, le=1_000
    )
    circuit_pause_s: Seconds = setting(
        "CIRCUIT_PAUSE", 5.0, "Seconds of that while; then one request tries, and each failure doubles it."
    )
    hedge_share: float = setting(
        "HEDGE_SHARE",
        0.0,
        "Share of streams that may be started on a second replica when the first is unusually slow to begin; 0 is off.",
        ge=0,
        le=0.2,
    )
    probe_interval_s: Seconds = setting("PROBE_INTERVAL", 2.0, "Seconds between two looks at a replica's health.")


@dataclass(frozen=True, kw_only=True, config=BY_EITHER_NAME)
class Admission:
    """How many requests run, how many wait, and who goes first."""

    slots: int = setting(
        "MAX_CONCURRENT_REQUESTS", 32, "Requests that one replica answers at once; more wait.", ge=1, le=100_000
    )
    adaptive: bool = setting(
        "ADAPTIVE_CONCURRENCY",
        False,
        "Move each replica's limit by what its engine tells of its own queue and cache; MAX_CONCURRENT_REQUESTS is "
        "where it starts.",
    )
    backpressure: bool = setting(
        "ENABLE_BACKPRESSURE",
        True,
        "Fair order, bounded queue, early refusals. `false`: first come, first served, without bound.",
    )
    places: int = setting("QUEUE_CAPACITY", 128, "Requests that may wait for one model.", ge=0, le=1_000_000)
    token_places: int = setting(
        "QUEUE_CAPACITY_TOKENS", 1_000_000, "Prompt tokens that may wait for one model.", ge=1, le=10**12
    )
    interactive_share: float = setting(
        "INTERACTIVE_SHARE",
        0.0,
        "Share of a replica's requests that only interactive ones may take, even if others wait meanwhile.",
        ge=0,
        le=0.9,
    )
    promote_after_s: Seconds = setting(
        "BATCH_PROMOTED_AFTER", 60.0, "Seconds after which a waiting batch request counts as a normal one."
    )


@dataclass(frozen=True, kw_only=True, config=BY_EITHER_NAME)
class Idempotency:
    """Answers kept for requests with an Idempotency-Key."""

    kept_s: Seconds = setting("IDEMPOTENCY_KEPT", 86_400.0, "Seconds for which a finished answer is kept.")
    grace_s: float = setting(
        "IDEMPOTENCY_GRACE",
        30.0,
        "Seconds for which a request with a key goes on when nobody is left to read its answer.",
        ge=0,
        le=86_400,
        allow_inf_nan=False,
    )
    attach: bool = setting(
        "IDEMPOTENCY_ATTACH", True, "A second request with a running one's key gets the same answer; `false`: 409."
    )
    max_bytes: Bytes = setting("IDEMPOTENCY_MAX_BYTES", 2 * 2**20, "Largest answer that is kept.")
    max_events: int = setting("IDEMPOTENCY_MAX_EVENTS", 20_000, "Longest stream that is kept.", ge=1, le=10_000_000)
    disk_bytes: Bytes = setting(
        "IDEMPOTENCY_DISK_BYTES",
        2**30,
        "What kept answers take on disk at most (without REDIS_URL); then the oldest are refused with 409.",
    )
    lease_s: Seconds = setting(
        "IDEMPOTENCY_LEASE", 10.0, "Seconds after which a dead gateway's keys are free again (with REDIS_URL)."
    )


@dataclass(frozen=True, kw_only=True, config=BY_EITHER_NAME)
class Cluster:
    """Workers on this machine and on others, and who may command them."""

    worker_urls: Urls = setting(
        "WORKER_URLS", (), "Workers that a gateway looks for from its start, comma-separated; others register."
    )
    gateway_urls: Urls = setting("GATEWAY_URLS", (), "Gateways that a worker registers with, comma-separated.")
    secret: Secret | None = setting(
        "CLUSTER_SECRET", None, "What gateways and workers show each other; beyond loopback workers need one."
    )
    secret_file: Path | None = setting(
        "CLUSTER_SECRET_FILE", None, "File with that secret, for where CLUSTER_SECRET is unset."
    )
    heartbeat_s: Seconds = setting("HEARTBEAT_INTERVAL", 2.0, "Seconds between two words of a worker to its gateways.")
    lease_s: Seconds = setting(
        "WORKER_LEASE", 10.0, "Seconds after which a worker that does not answer is no longer counted on."
    )
    drain_s: Seconds = setting(
        "SWAP_DRAIN_SECONDS", 120.0, "Seconds that running answers get before their engine stops for another model."
    )


@dataclass(frozen=True, kw_only=True, config=BY_EITHER_NAME)
class Storage:
    """Where things are kept that outlive a request."""

    state_dir: Path = setting(
        "STATE_DIR", Path(".state"), "Folder for what outlives a process: engines' logs, kept answers, usage."
    )
    redis_url: SecretStr | None = setting(
        "REDIS_URL", None, "Redis through which several gateways share limits, keys and usage."
    )
    redis_timeout_s: Seconds = setting("REDIS_TIMEOUT", 0.05, "Seconds that a request waits for Redis to answer.")
    ledger_flush_s: Seconds = setting(
        "LEDGER_FLUSH_INTERVAL", 1.0, "Seconds between two writes of the usage ledger; a kill loses at most these."
    )


@dataclass(frozen=True, kw_only=True, config=BY_EITHER_NAME)
class Telemetry:
    """What is measured, and what is traced."""

    metrics: bool = setting("ENABLE_METRICS", True, "Serve Prometheus metrics at /metrics.")
    metrics_port: Port | None = setting(
        "METRICS_PORT",
        None,
        "Port of a listener beside the main one, for machines: /metrics, /livez and /readyz, answered even while the "
        "gateway is overloaded, and without a key. 0 takes any free one; unset there is none.",
    )
    metrics_host: str = setting("METRICS_HOST", "127.0.0.1", "Address that METRICS_PORT listens on.")
    journal: int = setting(
        "JOURNAL_REQUESTS",
        1_000,
        "Ended requests that are kept in memory to be explained (`gllm explain`), 1 to 2 KB each; 0 keeps none.",
        ge=0,
        le=10_000,
    )
    tracing: bool | None = setting(
        "ENABLE_TRACING",
        None,
        "Send traces to an OpenTelemetry collector. Unset: if OTEL_EXPORTER_OTLP_ENDPOINT says where one is.",
    )
    otel: Mapping[str, str] = setting(
        otel.FAMILY,
        dict,
        "OpenTelemetry's own variables, such as OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_HEADERS, "
        "OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER, OTEL_TRACES_SAMPLER_ARG and OTEL_BSP_*. "
        "Traces are sent over HTTP (`http/protobuf`). Engines that are started here get all of them, and a name of "
        "their own.",
        repr=False,
    )

    @property
    def traced(self) -> bool:
        wanted = otel.names_a_collector(self.otel) if self.tracing is None else self.tracing
        return wanted and not otel.switched_off(self.otel)

    @model_validator(mode="after")
    def _can_be_traced(self) -> Self:
        if fault := otel.fatal(self.otel):
            raise ValueError(fault)
        if self.traced and (fault := otel.fault(self.otel)):
            raise ValueError(f"{fault} Or set ENABLE_TRACING=false.")
        return self


@dataclass(frozen=True, kw_only=True, config=BY_EITHER_NAME)
class Logs:
    """What is written, and in which shape."""

    level: Level = setting("LOG_LEVEL", "info", "`debug`, `info`, `warning` or `error`.")
    format: Format = setting("LOG_FORMAT", "auto", "`json`, `text`, or `auto`: text on a terminal, else JSON.")


class Settings(BaseSettings):
    model_config = SettingsConfigDict(frozen=True, extra="forbid")

    listen: Listen = Field(default_factory=Listen)
    engine: Engine = Field(default_factory=Engine)
    sampling: Sampling = Field(default_factory=Sampling)
    edge: Edge = Field(default_factory=Edge)
    timeouts: Timeouts = Field(default_factory=Timeouts)
    routing: Routing = Field(default_factory=Routing)
    admission: Admission = Field(default_factory=Admission)
    idempotency: Idempotency = Field(default_factory=Idempotency)
    cluster: Cluster = Field(default_factory=Cluster)
    storage: Storage = Field(default_factory=Storage)
    telemetry: Telemetry = Field(default_factory=Telemetry)
    logs: Logs = Field(default_factory=Logs)

    @model_validator(mode="after")
    def _several_agree(self) -> Self:
        """Several processes, each of which would otherwise do as if it were alone."""
        many = self.listen.processes
        if many > 1:
            if self.storage.redis_url is None:
                raise ValueError(
                    f"PROCESSES={many} needs REDIS_URL: without it each process would count limits, keys and usage for "
                    "itself."
                )
            if self.engine.type not in ("external", "workers"):
                raise ValueError(
                    f"PROCESSES={many} needs engines that run already, as each process would start its own: name them "
                    "in ENGINE_URLS, or set ENGINE_TYPE=workers."
                )
            if not self.telemetry.metrics_port:
                raise ValueError(
                    f"PROCESSES={many} needs METRICS_PORT: each process tells its own metrics on a port of its own, "
                    "from that one on."
                )
            first, last = self.telemetry.metrics_port, self.telemetry.metrics_port + many - 1
            if last > LAST_PORT or first <= self.listen.port <= last:
                why_not = f"there is none above {LAST_PORT}" if last > LAST_PORT else f"PORT is {self.listen.port}"
                raise ValueError(
                    f"PROCESSES={many} and METRICS_PORT={first} take the ports {first} to {last}, and {why_not}: "
                    "choose another METRICS_PORT."
                )
        return self

    @classmethod
    def load(cls, env: Mapping[str, str] | None = None, env_file: str | Path | None = ".env", **overrides: Any) -> Self:
        """Overrides (flags, by flat name) before the environment before `env_file` before the defaults.

        Raises `BadSetting`, whose text is for the person who starts the gateway.
        """
        names = {branch: names_of(branch) for branch in cls.model_fields}
        given = read([name for branch in names.values() for name in branch], env, env_file, overrides)
        if "ENGINE_URLS" in given:
            given.setdefault("ENGINE_TYPE", "external")
        if "CLUSTER_SECRET" not in given and (file := given.get("CLUSTER_SECRET_FILE")):
            given["CLUSTER_SECRET"] = secret_in(Path(file), "CLUSTER_SECRET_FILE")
        try:
            return cls.model_validate(
                {branch: {name: given[name] for name in known if name in given} for branch, known in names.items()}
            )
        except ValidationError as error:
            raise BadSetting("\n".join(sentence(each) for each in error.errors())) from None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *others: PydanticBaseSettingsSource,
        **more: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `load` has read, so that nothing reads the environment by the way."""
        return (init_settings,)


def branches() -> dict[str, type]:
    return {name: cast(type, info.annotation) for name, info in Settings.model_fields.items()}


def names_of(branch: str) -> dict[str, FieldInfo]:
    """The flat names of a branch, in their order."""
    fields: dict[str, FieldInfo] = vars(branches()[branch])["__pydantic_fields__"]
    return {str(info.validation_alias): info for info in fields.values()}
