from pathlib import Path

import pytest
from pydantic import ValidationError

from app.settings import BadSetting, Engine, Settings, Timeouts, otel
from app.settings.parts import parts_of


def load(env: dict[str, str] | None = None, **flags: object) -> Settings:
    return Settings.load(env or {}, None, **flags)


def refusal(env: dict[str, str], **flags: object) -> str:
    with pytest.raises(BadSetting) as caught:
        load(env, **flags)
    return str(caught.value)


def test_everything_has_a_default() -> None:
    settings = load()
    assert (settings.listen.host, settings.listen.port) == ("127.0.0.1", 8000)
    assert settings.engine.type == "transformers"
    assert settings.sampling.max_tokens is settings.sampling.temperature is None


def test_the_default_model_is_the_embedded_one() -> None:
    assert (Path(load().engine.model) / "config.json").is_file()
    assert load().engine.served_name == "demo"


def test_a_hub_name_is_served_under_itself() -> None:
    assert load({"MODEL_NAME": "Qwen/Qwen3-0.6B"}).engine.served_name == "Qwen/Qwen3-0.6B"


def test_a_folder_is_known_by_its_name_however_its_path_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "qwen" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "qwen")
    for model in (".", "./sub/..", f"{tmp_path}/qwen/sub/..", f"{tmp_path}/qwen/."):
        assert load({"MODEL_NAME": model}).engine.served_name == "qwen"
    assert load({"MODEL_NAME": "/"}).engine.served_name == "/"


def test_flags_win_over_the_environment_and_the_environment_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("PORT=1\nCONNECT_TIMEOUT=1\nIDLE_TIMEOUT=1  # a comment\n")
    settings = Settings.load({"PORT": "2", "connect_timeout": "2"}, file, port=3)
    assert settings.listen.port == 3
    assert settings.timeouts == Timeouts(connect_s=2, idle_s=1)


def test_a_flag_that_was_not_given_changes_nothing() -> None:
    assert load({"PORT": "2"}, port=None, host=None).listen.port == 2


def test_an_empty_value_is_no_value(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("PORT=\nMAX_TOKENS=\n")
    assert Settings.load({}, file) == load()


def test_nothing_can_be_changed_afterwards() -> None:
    settings = load()
    with pytest.raises(ValidationError):
        settings.timeouts = Timeouts()
    with pytest.raises(AttributeError):
        settings.listen.port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("env", "sentence"),
    [
        ({"PORT": "http"}, "PORT must be a whole number, not 'http'."),
        ({"PORT": "65536"}, "PORT must be at most 65535, not '65536'."),
        ({"CONNECT_TIMEOUT": "0"}, "CONNECT_TIMEOUT must be more than 0, not '0'."),
        ({"REQUEST_TIMEOUT": "inf"}, "REQUEST_TIMEOUT must be a number, not 'inf'."),
        ({"TEMPERATURE": "2.5"}, "TEMPERATURE must be at most 2, not '2.5'."),
        ({"ENABLE_METRICS": "maybe"}, "ENABLE_METRICS must be true or false, not 'maybe'."),
        (
            {"ENGINE_TYPE": "sglang"},
            "ENGINE_TYPE must be 'transformers', 'vllm', 'command', 'external' or 'workers', not 'sglang'.",
        ),
        ({"ENGINE_TYPE": "external"}, "ENGINE_TYPE=external needs ENGINE_URLS: the base URLs of the servers to use."),
        ({"ENGINE_REPLICAS": "2", "GPUS": "0,1,2"}, "3 GPUS cannot be shared out evenly to ENGINE_REPLICAS=2."),
        ({"GPUS": "0,0"}, "GPUS names a GPU twice."),
        ({"ENGINE_ARGS": "--name 'x"}, "ENGINE_ARGS has a quotation that does not end."),
        (
            {"ALLOW_ANONYMOUS": "true", "TENANTS_FILE": "t.toml"},
            "ALLOW_ANONYMOUS=true and TENANTS_FILE contradict each other: with tenants every call needs a key. "
            "Remove one of them.",
        ),
        (
            {"PORT": "a", "MAX_TOKENS": "0"},
            "PORT must be a whole number, not 'a'.\nMAX_TOKENS must be at least 1, not '0'.",
        ),
    ],
)
def test_an_impossible_value_is_refused_in_a_sentence(env: dict[str, str], sentence: str) -> None:
    assert refusal(env) == sentence


@pytest.mark.parametrize(
    "origin",
    ["chat.example.com", "https://chat.example.com/", "https://Chat.example.com", "https://*", "http://", "http://a b"],
)
def test_an_origin_is_what_a_browser_would_say(origin: str) -> None:
    wanted = "must be origins like https://chat.example.com or http://localhost:3000, or *"
    assert refusal({"ALLOWED_ORIGINS": origin}) == f"ALLOWED_ORIGINS {wanted}."
    named = "https://chat.example.com, http://[::1]:3000, tauri://localhost"
    assert load({"ALLOWED_ORIGINS": named}).listen.allowed_origins == tuple(named.split(", "))


def test_every_page_may_ask_only_where_a_key_is_asked_for_or_it_is_meant_so() -> None:
    assert refusal({"ALLOWED_ORIGINS": "*"}).startswith("ALLOWED_ORIGINS=* lets every page")
    for meant in ({"TENANTS_FILE": "t.toml"}, {"ALLOW_ANONYMOUS": "true"}):
        assert load({"ALLOWED_ORIGINS": "*", **meant}).listen.allowed_origins == ("*",)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "gateway.example"])
def test_listening_beyond_loopback_takes_a_second_word(host: str) -> None:
    assert refusal({"HOST": host}).startswith(f"HOST={host} is reachable from other machines")
    assert load({"HOST": host, "ALLOW_ANONYMOUS": "true"}).listen.host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_none(host: str) -> None:
    assert load({"HOST": host}).listen.host == host


def test_in_a_container_it_counts_where_the_port_is_published() -> None:
    inside = load({"HOST": "0.0.0.0", "PUBLISHED_HOST": "127.0.0.1"}).listen
    assert inside.takes_anybody
    assert not load({"HOST": "127.0.0.1"}).listen.takes_anybody
    assert refusal({"HOST": "127.0.0.1", "PUBLISHED_HOST": "0.0.0.0"}).startswith("PUBLISHED_HOST (GATEWAY_BIND for")
    assert not load({"PUBLISHED_HOST": "0.0.0.0", "TENANTS_FILE": "t.toml"}).listen.takes_anybody


def test_a_secret_may_be_in_a_file_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("hunter2\n")
    secret = load({"CLUSTER_SECRET_FILE": str(file)}).cluster.secret
    assert secret is not None
    assert secret.get_secret_value() == "hunter2"
    said = load({"CLUSTER_SECRET_FILE": str(file), "CLUSTER_SECRET": "said"}).cluster.secret
    assert said is not None
    assert said.get_secret_value() == "said"


@pytest.mark.parametrize(
    ("content", "why"), [(None, "cannot be read: No such file or directory."), ("\n", "is empty.")]
)
def test_a_secret_that_is_not_in_its_file_stops_the_start(tmp_path: Path, content: str | None, why: str) -> None:
    file = tmp_path / "secret"
    if content is not None:
        file.write_text(content)
    assert refusal({"CLUSTER_SECRET_FILE": str(file)}) == f"CLUSTER_SECRET_FILE {file} {why}"


def test_what_is_for_compose_may_stand_beside(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("GRAFANA_PASSWORD=x\nCOMPOSE_PROFILES=scale\n")
    assert Settings.load({"GATEWAY_BIND": "0.0.0.0"}, file) == load()
    file.write_text("GRAFANA_PASWORD=x\n")
    with pytest.raises(BadSetting, match=r"did you mean GRAFANA_PASSWORD\?"):
        Settings.load({}, file)


def test_engine_urls_are_base_urls_and_imply_external_engines() -> None:
    engine = load({"ENGINE_URLS": "http://127.0.0.1:8100/v1/, https://models.example.com"}).engine
    assert engine.type == "external"
    assert engine.urls == ("http://127.0.0.1:8100", "https://models.example.com")


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8100", "ftp://a", "http://", "http://a:99999", "http://a/?b=c", "http://[x"]
)
def test_what_is_no_base_url_is_refused(url: str) -> None:
    assert refusal({"ENGINE_URLS": url}).startswith("ENGINE_URLS must be base URLs like http://")


SEVERAL = {
    "PROCESSES": "2",
    "REDIS_URL": "redis://127.0.0.1",
    "ENGINE_URLS": "http://127.0.0.1:1",
    "METRICS_PORT": "9100",
}


@pytest.mark.parametrize(
    ("lacking", "said"),
    [
        (
            "REDIS_URL",
            "PROCESSES=2 needs REDIS_URL: without it each process would count limits, keys and usage for itself.",
        ),
        (
            "ENGINE_URLS",
            "PROCESSES=2 needs engines that run already, as each process would start its own: name them in "
            "ENGINE_URLS, or set ENGINE_TYPE=workers.",
        ),
        (
            "METRICS_PORT",
            "PROCESSES=2 needs METRICS_PORT: each process tells its own metrics on a port of its own, from that one "
            "on.",
        ),
    ],
)
def test_several_processes_need_what_they_are_to_share(lacking: str, said: str) -> None:
    assert load(SEVERAL).listen.processes == 2
    assert refusal({name: value for name, value in SEVERAL.items() if name != lacking}) == said


@pytest.mark.parametrize(
    ("metrics_port", "said"),
    [
        ("65534", "take the ports 65534 to 65536, and there is none above 65535: choose another METRICS_PORT."),
        ("7998", "take the ports 7998 to 8000, and PORT is 8000: choose another METRICS_PORT."),
    ],
)
def test_several_processes_need_ports_that_there_are(metrics_port: str, said: str) -> None:
    refused = refusal({**SEVERAL, "PROCESSES": "3", "METRICS_PORT": metrics_port})
    assert refused == f"PROCESSES=3 and METRICS_PORT={metrics_port} {said}"


@pytest.mark.parametrize(("whole", "of", "parts"), [(32, 3, [11, 11, 10]), (2, 4, [1, 1, 1, 1]), (0, 2, [0, 0])])
def test_several_processes_share_out_what_is_set(whole: int, of: int, parts: list[int]) -> None:
    settings = load({**SEVERAL, "PROCESSES": str(of), "QUEUE_CAPACITY": str(whole)})
    assert [parts_of(settings, number)["QUEUE_CAPACITY"] for number in range(of)] == parts


def test_engine_urls_with_an_engine_to_start_are_a_contradiction() -> None:
    assert "contradict" in refusal({"ENGINE_URLS": "http://a", "ENGINE_TYPE": "vllm"})


def test_secrets_are_not_shown() -> None:
    assert "hunter2" not in refusal({"ENGINE_URLS": "http://me:hunter2@a"})
    assert "hunter2" not in repr(load({"ENGINE_API_KEY": "hunter2"}))


@pytest.mark.parametrize(
    ("given", "meant"), [("simple", "transformers"), (" vLLM ", "vllm"), ("Transformers", "transformers")]
)
def test_the_ancestors_words_for_engines_are_understood(given: str, meant: str) -> None:
    assert load({"ENGINE_TYPE": given}).engine.type == meant


def test_gpus_are_ids_or_none_at_all() -> None:
    assert load().engine.gpus is None
    assert load({"GPUS": "0, GPU-8f"}).engine.gpus == ("0", "GPU-8f")
    assert load({"GPUS": "none"}).engine.gpus == ()


def test_engine_arguments_are_split_as_a_shell_would() -> None:
    assert load({"ENGINE_ARGS": "--dtype bfloat16 --name 'a b'"}).engine.args == (
        "--dtype",
        "bfloat16",
        "--name",
        "a b",
    )


def test_an_unknown_name_in_the_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("MODEL_NAM=x\n")
    with pytest.raises(BadSetting, match=r"sets MODEL_NAM, which is not a setting \(did you mean MODEL_NAME\?\)\.$"):
        Settings.load({}, file)


def test_a_line_that_sets_nothing_is_refused(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("PORT 8000\n")
    with pytest.raises(BadSetting, match="line 1, sets nothing"):
        Settings.load({}, file)


@pytest.mark.parametrize("content", [b"\xff\xfe", None])
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / ".env"
    file.mkdir() if content is None else file.write_bytes(content)
    with pytest.raises(BadSetting, match="cannot be read"):
        Settings.load({}, file)


@pytest.mark.parametrize("name", ["QUEUE_CAPCITY", "ENGINE_REPLICA", "LOGLEVEL", "model_nam"])
def test_a_misspelt_name_in_the_environment_is_refused(name: str) -> None:
    assert refusal({name: "1"}).startswith(
        f"The environment sets {name.upper()}, which is not a setting; did you mean "
    )


@pytest.mark.parametrize(
    "name", ["PATH", "HOSTNAME", "PORTS", "GPU", "LOGNAME", "SHELL", "ENGINE_PORT", "MODEL", "OLDPWD"]
)
def test_the_environments_other_names_are_left_alone(name: str) -> None:
    assert load({name: "x"}) == load()


def test_a_name_without_effect_is_told_and_does_no_harm(caplog: pytest.LogCaptureFixture) -> None:
    assert load({"WORKERS": "7", "APP_NAME": "x"}) == load()
    assert caplog.messages == [
        "APP_NAME has no effect: this product has its own name.",
        "WORKERS has no effect: here that is PROCESSES.",
    ]


def test_opentelemetrys_own_variables_are_taken_together_from_everywhere(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("OTEL_SERVICE_NAME=from-the-file\nOTEL_BSP_SCHEDULE_DELAY=100\nOTEL_TRACES_SAMPLER=\n")
    settings = Settings.load(
        {"OTEL_SERVICE_NAME": "from-the-environment", "PATH": "x"}, file, otel_resource_attributes="a=b"
    )
    assert settings.telemetry.otel == {
        "OTEL_SERVICE_NAME": "from-the-environment",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "OTEL_RESOURCE_ATTRIBUTES": "a=b",
    }


COLLECTOR = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}


@pytest.mark.parametrize(
    ("given", "traced"),
    [
        ({}, False),
        (COLLECTOR, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"}, True),
        ({"ENABLE_TRACING": "true"}, True),
        (COLLECTOR | {"ENABLE_TRACING": "false"}, False),
        (COLLECTOR | {"OTEL_SDK_DISABLED": "true"}, False),
        (COLLECTOR | {"OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_requests_are_traced_where_a_collector_is_named_or_where_it_is_said_so(
    given: dict[str, str], traced: bool
) -> None:
    assert load(given).telemetry.traced is traced


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318", "a URL like http://127.0.0.1:4318"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://[", "a URL like http://127.0.0.1:4318"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "'http/protobuf'"),
        ("OTEL_TRACES_EXPORTER", "zipkin", "'otlp' or 'none'"),
        ("OTEL_TRACES_SAMPLER_ARG", "10%", "a share between 0 and 1"),
        ("OTEL_TRACES_SAMPLER_ARG", "1.5", "a share between 0 and 1"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:99999", "a URL like http://127.0.0.1:4318"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0", "a whole number above 0, of 9 digits at most"),
        ("OTEL_BSP_SCHEDULE_DELAY", "9" * 14, "a whole number above 0, of 9 digits at most"),
        ("OTEL_BSP_SCHEDULE_DELAY", "9" * 5_000, "a whole number above 0, of 9 digits at most"),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "many", "a whole number of 9 digits at most"),
        ("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "-1", "a whole number of 9 digits at most"),
    ],
)
def test_what_keeps_traces_from_being_sent_stops_the_start(name: str, value: str, wanted: str) -> None:
    assert refusal({"ENABLE_TRACING": "true", name: value}) == (
        f"{name} must be {wanted}, not {value!r}. Or set ENABLE_TRACING=false."
    )
    assert load({"ENABLE_TRACING": "false", name: value}).telemetry.otel == {name: value}


@pytest.mark.parametrize("tracing", ["true", "false"])
def test_a_propagator_that_is_not_installed_stops_the_start(tracing: str) -> None:
    """Whoever imports OpenTelemetry's API ends there, traced or not."""
    told = refusal({"ENABLE_TRACING": tracing, "OTEL_PROPAGATORS": "tracecontext, b4"})
    assert told.startswith("OTEL_PROPAGATORS names 'b4', which is not installed; there are ")


@pytest.mark.parametrize("value", ["tracecontext,baggage", "none", "b4"])
def test_propagators_that_are_there_or_that_nobody_looks_for_are_taken(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if value == "b4":
        monkeypatch.setattr(otel, "entry_points", lambda group: ())  # OpenTelemetry is not installed
    assert load({"OTEL_PROPAGATORS": value}).telemetry.otel == {"OTEL_PROPAGATORS": value}


def test_what_a_collector_is_shown_is_not_shown_elsewhere() -> None:
    assert "s3cret" not in repr(load({"OTEL_EXPORTER_OTLP_HEADERS": "authorization=s3cret"}))


def test_a_flag_must_be_a_setting() -> None:
    assert refusal({}, modl_name="x") == "There is no setting MODL_NAME (did you mean MODEL_NAME?)."


def test_a_branch_can_be_made_by_hand_and_is_checked_too() -> None:
    assert Engine(model="a", replicas=2).replicas == 2
    with pytest.raises(ValidationError):
        Timeouts(connect_s=-1)


@pytest.mark.parametrize("name", ["ENGINE_API_KEY", "CLUSTER_SECRET"])
@pytest.mark.parametrize("secret", ["cl\u00e9", "two\nlines"])
def test_a_secret_that_fits_into_no_header_is_refused_without_being_shown(name: str, secret: str) -> None:
    assert refusal({name: secret}) == f"{name} must be printable ASCII."
