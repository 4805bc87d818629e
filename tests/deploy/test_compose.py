"""docker-compose.yml, as it stands there: nothing is started here (`make compose-smoke` does that)."""

import re
import shutil
import subprocess
import sys
from ipaddress import ip_address
from typing import Any

import pytest
import yaml

from app.settings import Settings
from app.settings.compose import VARIABLES
from app.settings.tree import branches, names_of
from deploy.docker.services import CHECKOUT, run_arguments, services

TEXT = (CHECKOUT / "docker-compose.yml").read_text()
FILE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES = services({})
PROFILES = {"gpu", "scale", "load", "tools"}
ONCE = {"preflight", "keys", "fetch"}
"""They end by themselves."""
WITHOUT_HEALTH = ONCE | {"otel-collector"}
PUBLIC = {"gateway": "GATEWAY_BIND", "balancer": "GATEWAY_BIND", "grafana": "GRAFANA_BIND"}
"""What may be published beyond this machine, and by which word."""
GATEWAYS = ("gateway", "gateway-1", "gateway-2", "gateway-3")
WORKERS = ("engine", "vllm-0", "vllm-1")

each_service = pytest.mark.parametrize("name", sorted(SERVICES))


def test_it_is_what_the_compose_specification_allows() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, "docker-compose.yml"], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("profile", sorted(PROFILES | {"*"}))
def test_compose_itself_takes_every_profile(profile: str) -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("Docker Compose is not here")
    command = [docker, "compose", "--profile", profile, "config", "--quiet"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_profiles_are_those_that_are_told_of() -> None:
    assert {profile for each in SERVICES.values() for profile in each.get("profiles", ())} == PROFILES
    default = {name for name, each in SERVICES.items() if "profiles" not in each}
    assert default == set(
        "preflight gateway engine redis prometheus alertmanager pager grafana otel-collector jaeger".split()
    )


# --- each container is contained --------------------------------------------------------------------------------------


@each_service
def test_it_can_do_nothing_but_its_work(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "devices", "pid", "ipc"} & service.keys()
    assert service.get("network_mode") in (None, "none")
    assert "docker.sock" not in str(service)
    assert service["mem_limit"]
    assert service["pids_limit"]


@each_service
def test_it_is_nobody_special(name: str) -> None:
    """Our images say their user themselves; of others it is said here, by number."""
    service = SERVICES[name]
    if "build" not in service:
        assert re.fullmatch(r"[1-9]\d*:\d+", service["user"])


@each_service
def test_its_image_is_ours_or_has_a_version(name: str) -> None:
    service = SERVICES[name]
    if "build" in service:
        assert service["image"].endswith(":local")
        assert (CHECKOUT / service["build"].get("dockerfile", "Dockerfile")).is_file()
    else:
        assert re.search(r":v?\d+\.\d+\.\d+(-[a-z]+)?$", service["image"])


@each_service
def test_its_health_is_checked(name: str) -> None:
    check = SERVICES[name].get("healthcheck", {})
    assert ("test" in check) == (name not in WITHOUT_HEALTH)
    if "test" in check:
        assert check["test"][0] == "CMD"
        assert {"interval", "timeout", "retries"} <= check.keys()


@each_service
def test_it_comes_back_if_it_is_to_stay(name: str) -> None:
    assert SERVICES[name]["restart"] == ("no" if name in ONCE else "unless-stopped")


# --- who reaches whom -------------------------------------------------------------------------------------------------


def addresses(name: str) -> list[str]:
    return [
        port["host_ip"] if isinstance(port, dict) else port.rpartition(":")[0].rpartition(":")[0]
        for port in SERVICES[name].get("ports", ())
    ]


@each_service
def test_it_is_published_on_this_machine_only_unless_somebody_says_so(name: str) -> None:
    assert all(ip_address(each).is_loopback for each in addresses(name))
    wide = services({"GATEWAY_BIND": "192.0.2.1", "GRAFANA_BIND": "192.0.2.1"})[name].get("ports", ())
    assert ("192.0.2.1" in str(wide)) == (name in PUBLIC)


def test_engines_and_redis_cannot_be_reached_from_the_host_nor_reach_out() -> None:
    for name in (*WORKERS, "redis"):
        assert "ports" not in SERVICES[name]
        assert all(FILE["networks"][network]["internal"] for network in SERVICES[name]["networks"])


def test_only_gateways_share_a_network_with_redis() -> None:
    assert {name for name, each in SERVICES.items() if "state" in each.get("networks", ())} == {*GATEWAYS, "redis"}


@pytest.mark.parametrize("name", GATEWAYS)
def test_a_gateway_asks_for_keys_by_where_it_is_published(name: str) -> None:
    def listen(**environment: str) -> Any:
        given = services(environment)[name]["environment"]
        return Settings.load({k: v for k, v in given.items() if k != "CLUSTER_SECRET_FILE"} | environment, None).listen

    assert listen().takes_anybody
    assert not listen(GATEWAY_BIND="0.0.0.0", TENANTS_FILE="/keys/tenants.toml").takes_anybody
    with pytest.raises(Exception, match=r"GATEWAY_BIND for Compose\)=0\.0\.0\.0 is reachable from other machines"):
        listen(GATEWAY_BIND="0.0.0.0")


def test_secrets_go_to_those_who_need_them() -> None:
    for name in (*GATEWAYS, *WORKERS):
        assert SERVICES[name]["environment"]["GRAFANA_PASSWORD"] == ""
    readers = {name for name, each in SERVICES.items() if "secrets:/secrets:ro" in each.get("volumes", ())}
    writers = {name for name, each in SERVICES.items() if "secrets:/secrets" in each.get("volumes", ())}
    assert (readers, writers) == ({*GATEWAYS, *WORKERS}, {"preflight"})


# --- how it starts and stops ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*GATEWAYS, *WORKERS, "grafana"])
def test_nothing_starts_with_a_wrong_value(name: str) -> None:
    assert SERVICES[name]["depends_on"]["preflight"] == {"condition": "service_completed_successfully"}


def test_the_preflight_sees_what_a_gateway_will_see() -> None:
    seen, given = SERVICES["preflight"]["environment"], SERVICES["gateway"]["environment"]
    assert {name: seen[name] for name in given if name != "GRAFANA_PASSWORD"} == {
        name: value for name, value in given.items() if name != "GRAFANA_PASSWORD"
    }
    assert seen["GRAFANA_PASSWORD"] == SERVICES["grafana"]["environment"]["GF_SECURITY_ADMIN_PASSWORD"]
    assert SERVICES["preflight"]["env_file"] == SERVICES["gateway"]["env_file"] == [{"path": ".env", "required": False}]


@pytest.mark.parametrize("name", GATEWAYS)
def test_engines_and_redis_outlive_the_gateways_that_use_them(name: str) -> None:
    """Compose stops who depends on others before them."""
    assert {"redis", *WORKERS} <= SERVICES[name]["depends_on"].keys()


@pytest.mark.parametrize("drain_s", ["30", "0.5", "600"])
@pytest.mark.parametrize("name", [*GATEWAYS, "balancer"])
def test_a_stop_has_time_for_the_drain(name: str, drain_s: str) -> None:
    grace = services({"DRAIN_SECONDS": drain_s})[name]["stop_grace_period"]
    assert sum(float(each) for each in re.findall(r"([\d.]+)s", grace)) >= float(drain_s) + 15
    assert services({})[name]["stop_grace_period"] == f"15s{Settings.load({}, None).listen.drain_s:g}s"


# --- .env -------------------------------------------------------------------------------------------------------------


def test_what_it_reads_of_the_environment_is_in_the_example() -> None:
    read = {(name, default) for name, default in re.findall(r"\$\{(\w+)(?::-([^}]*))?\}", TEXT)}
    own = {(each.name, each.default) for each in VARIABLES if not each.name.endswith("*")}
    built = {("GLLM_VERSION", "unknown"), ("GLLM_REVISION", "unknown")}
    settings = {("PORT", "8000"), ("DRAIN_SECONDS", "30"), ("MODEL_NAME", "/opt/gllm/models/demo")}
    assert read == own | built | settings


@pytest.mark.parametrize("name", [*GATEWAYS, *WORKERS])
def test_what_it_sets_are_settings(name: str) -> None:
    known = {setting for branch in branches() for setting in names_of(branch)}
    others = {"GRAFANA_PASSWORD", "HF_HUB_OFFLINE", "RES_OPTIONS"}
    assert {each for each in SERVICES[name]["environment"] if not each.startswith("OTEL_")} <= known | others


# --- what is mounted --------------------------------------------------------------------------------------------------


@each_service
def test_what_is_mounted_is_there_and_cannot_be_written_to(name: str) -> None:
    for mounted in SERVICES[name].get("volumes", ()):
        source, target, *mode = mounted.split(":")
        if source.startswith("."):
            assert mode == ["ro"], mounted
            assert (CHECKOUT / source).is_dir(), f"{mounted}: Docker would make an empty folder there"
        else:
            assert source in FILE["volumes"], mounted
        assert target.startswith("/")


@each_service
def test_the_files_that_its_command_names_are_mounted(name: str) -> None:
    service = SERVICES[name]
    mounts = [each.split(":") for each in service.get("volumes", ()) if each.startswith(".")]
    words = [*service.get("entrypoint", ()), *service.get("command", ())]
    for source, target, _ in mounts:
        for word in words:
            path = word.rpartition("=")[2]
            if path.startswith(f"{target}/"):
                assert (CHECKOUT / source / path.removeprefix(f"{target}/")).is_file(), word


def test_every_volume_is_used() -> None:
    used = {each.partition(":")[0] for service in SERVICES.values() for each in service.get("volumes", ())}
    assert FILE["volumes"].keys() <= used


def test_state_is_nobody_elses() -> None:
    """Two gateways, or two workers, on one STATE_DIR would each take the other for its past."""
    states = [each for service in SERVICES.values() for each in service.get("volumes", ()) if each.endswith(":/state")]
    assert len(states) == len(set(states)) == len(GATEWAYS) + len(WORKERS)


def test_each_vllm_worker_has_a_gpu_of_its_own() -> None:
    pinned = [
        device["device_ids"]
        for name in ("vllm-0", "vllm-1")
        for device in SERVICES[name]["deploy"]["resources"]["reservations"]["devices"]
    ]
    assert pinned == [["0"], ["1"]]


# --- without Compose --------------------------------------------------------------------------------------------------


def test_plain_commands_say_what_the_file_says() -> None:
    said = run_arguments("gateway", SERVICES["gateway"], "trial")
    image = said.index("gllm-gateway:local")
    assert {"--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges:true", "--memory=1g"} <= set(
        said[:image]
    )
    assert {"--network=trial", "--network-alias=gateway", "--volume=trial-gateway-state:/state"} <= set(said[:image])
    assert "--env=ENGINE_TYPE=workers" in said[:image]


def test_an_entrypoint_of_several_words_begins_the_command() -> None:
    said = run_arguments("preflight", SERVICES["preflight"], "trial")
    assert "--entrypoint=python" in said
    assert "--network=none" in said
    assert said[-2:] == ["gllm-gateway:local", "/opt/gllm/docker/preflight.py"]
