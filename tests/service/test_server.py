"""Starting and ending a server, with small programs for engines."""

import gc
import io
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from gllm import LLMConfig, ServeConfig, VLLMServer, VLLMService
from gllm.service.child import GRACE_S
from gllm.service.errors import StartFailed
from tests.cluster.launchers import scripts
from tests.service.conftest import StandIn, environment, family, keepers, logs, program

MODEL = LLMConfig("stand-in")
SHOWS = scripts.SERVES + "print('hello there', flush=True); serve()"


def server(**said: Any) -> VLLMServer:
    return VLLMServer(MODEL, [0], **{"port": 24_300, "engine": "transformers", **said})


@pytest.mark.usefixtures("nothing_is_left")
def test_ten_rounds_leave_no_process_no_port_and_no_file(stand_in: StandIn) -> None:
    stand_in(scripts.HEALTHY)
    one = server()
    for _ in range(10):
        with one:
            assert one.is_running()
            assert (one.host, one.port) == ("127.0.0.1", 24_300)
        assert not one.is_running()


@pytest.mark.usefixtures("nothing_is_left")
def test_a_second_start_is_refused_and_harms_nothing(stand_in: StandIn) -> None:
    stand_in(scripts.HEALTHY)
    with server() as one:
        with pytest.raises(RuntimeError, match=r"vLLM server is already running\."):
            one.start()
        assert one.is_running()


@pytest.mark.usefixtures("nothing_is_left")
def test_a_second_shutdown_does_nothing_and_so_does_one_without_a_start(stand_in: StandIn) -> None:
    stand_in(scripts.HEALTHY)
    one = server()
    one.shutdown()
    one.start()
    one.shutdown()
    one.shutdown()


@pytest.mark.usefixtures("nothing_is_left")
def test_an_error_inside_the_block_ends_the_server(stand_in: StandIn) -> None:
    stand_in(scripts.HAS_CHILDREN)
    with pytest.raises(ZeroDivisionError), server():
        raise ZeroDivisionError


@pytest.mark.usefixtures("nothing_is_left")
def test_a_forgotten_server_ends_with_its_object(stand_in: StandIn) -> None:
    stand_in(scripts.HEALTHY)
    one = server()
    one.start()
    del one
    gc.collect()


@pytest.mark.usefixtures("nothing_is_left")
def test_a_taken_port_is_skipped_and_told(stand_in: StandIn, caplog: pytest.LogCaptureFixture) -> None:
    stand_in(scripts.HEALTHY)
    with socket.create_server(("127.0.0.1", 24_300)), server() as one:
        assert one.port == 24_301
    assert "Port 24300 is taken; taking 24301." in caplog.messages


@pytest.mark.usefixtures("nothing_is_left")
def test_servers_of_a_service_follow_each_other_over_taken_ports(stand_in: StandIn) -> None:
    stand_in(scripts.HEALTHY)
    serving = ServeConfig(gpu_ids=[0, 1, 2], port=24_300, engine="transformers")
    started = VLLMService(MODEL, serving)._prepared
    with socket.create_server(("127.0.0.1", 24_301)):
        lives = [each.begin() for each in started]
        assert [life.port for life in lives] == [24_300, 24_302, 24_303]
        for each in started:
            each.shutdown()


@pytest.mark.usefixtures("nothing_is_left")
@pytest.mark.parametrize("host", ["10.255.255.1", "no-such-host.invalid", "::1"])
def test_a_host_that_is_not_this_machine_is_told(stand_in: StandIn, host: str) -> None:
    stand_in(scripts.HEALTHY)
    with pytest.raises(RuntimeError, match=r"is not an IPv4 address of this machine"):
        server(host=host).start()


def test_of_an_engines_processes_the_first_ones_error_is_told(stand_in: StandIn, where_logs_go: Path) -> None:
    first = "(EngineCore pid=7) ERROR 11-27 16:03:43 [core.py:1510] ValueError: No memory for the cache."
    stand_in(f"import sys; sys.exit({first!r} + 99 * '\\nFile' + '\\nRuntimeError: See root cause above.')")
    with pytest.raises(
        StartFailed, match=r"exit code 1\. Its first error: ValueError: No memory for the cache\."
    ) as caught:
        server().start()
    assert caught.value.tail[-1] == "RuntimeError: See root cause above."


def test_an_engine_that_refuses_is_told_with_its_own_last_words(stand_in: StandIn, where_logs_go: Path) -> None:
    stand_in(scripts.REFUSES)
    one = server()
    with pytest.raises(StartFailed, match=r"did not start: exit code 3\.\n  \| no such model: nowhere") as caught:
        one.start()
    assert caught.value.tail == ("no such model: nowhere/at-all",)
    assert [str(each) for each in logs(where_logs_go)] == [caught.value.log]
    assert not one.is_running()


def test_a_start_has_a_time_limit(stand_in: StandIn) -> None:
    stand_in(scripts.NEVER_READY)
    with pytest.raises(StartFailed, match=r"was not ready after 0\.3 s \(startup_timeout\)\.\n  \| still loading"):
        server(startup_timeout=0.3).start()
    assert keepers() == []


def test_the_default_limit_is_the_services(stand_in: StandIn) -> None:
    assert server().startup_timeout == ServeConfig([0]).startup_timeout == 180


@pytest.mark.usefixtures("nothing_is_left")
def test_one_that_fails_ends_the_others(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    stand_in(scripts.SERVES + "if int(sys.argv[1]) % 2: print('bad GPU'); raise SystemExit(1)\nserve()")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path_factory.mktemp("kept")))  # its log stays
    service = VLLMService(MODEL, ServeConfig([0, 1], port=24_300, engine="transformers"))
    with pytest.raises(StartFailed, match=r"24301 did not start: exit code 1\.\n  \| bad GPU"):
        service.start()
    assert not service.is_running()
    with pytest.raises(RuntimeError, match="not started"):
        service.chat([])


@pytest.mark.usefixtures("nothing_is_left")
def test_an_engine_that_talks_much_is_not_held_up(stand_in: StandIn) -> None:
    stand_in(scripts.CHATTERS)  # 12 MB before it serves
    with server():
        pass


@pytest.mark.usefixtures("nothing_is_left")
def test_what_it_says_is_shown_when_asked_for(stand_in: StandIn, capfd: pytest.CaptureFixture[str]) -> None:
    stand_in(SHOWS)
    with server():
        pass
    assert capfd.readouterr().err == ""
    with server(verbose=True):
        pass
    assert "[24300] hello there" in capfd.readouterr().err


@pytest.mark.usefixtures("nothing_is_left")
def test_a_closed_stderr_does_not_hold_it_up(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(scripts.CHATTERS)
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    with server(verbose=True):
        pass


def test_an_engine_that_dies_is_not_running_and_leaves_its_log(stand_in: StandIn, where_logs_go: Path) -> None:
    stand_in(SHOWS)
    with server() as one:
        keepers()[0].children()[0].kill()
        assert one.life is not None
        assert one.life.ends_within(10)
        assert not one.is_running()
        assert one.life.ending == "killed by SIGKILL"
        one.start()  # again
        assert one.is_running()
    assert [each.read_text() for each in logs(where_logs_go)] == ["hello there\n"]


# --- the end of the program that uses it ------------------------------------------------------------------------------

HOLDS = "server = VLLMServer(LLMConfig('m'), [0], port=24_400, engine='transformers'); server.start(); print('up')\n"


def begun(code: str, tmp_path: Path) -> "tuple[subprocess.Popen[str], list[psutil.Process]]":
    """It is up: the program, and all that it started."""
    process = subprocess.Popen(
        program(code), env=environment(TMPDIR=str(tmp_path)), stdout=subprocess.PIPE, text=True, cwd=tmp_path
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process, family(psutil.Process(process.pid))


def all_gone(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=15)
    return not alive


def test_a_killed_program_leaves_no_engine(tmp_path: Path) -> None:
    process, started = begun(HOLDS + "import time; time.sleep(60)", tmp_path)
    with process:
        process.kill()
    assert len(started) == 2
    assert all_gone(started)


@pytest.mark.parametrize(
    ("ending", "code"),
    [("", 0), ("raise SystemExit(3)", 3), ("import os\nif os.fork() == 0: raise SystemExit\nos.wait()", 0)],
    ids=["runs to its end", "exits", "has forked"],
)
def test_a_program_that_forgets_to_shut_down_leaves_nothing(tmp_path: Path, ending: str, code: int) -> None:
    process, started = begun(HOLDS + ending, tmp_path)
    with process:
        assert process.wait(20) == code
    assert all_gone(started)
    assert logs(tmp_path) == []


def test_a_fork_that_ends_leaves_its_parent_all_it_has(tmp_path: Path) -> None:
    forks = "import os\nif os.fork() == 0: raise SystemExit\nos.wait()\n"
    process, started = begun(HOLDS + forks + "print(server.is_running(), server.life.log.exists())", tmp_path)
    with process:
        assert process.communicate(timeout=20)[0] == "True True\n"
    assert all_gone(started)


def test_a_fork_that_lives_does_not_hold_up_the_end(tmp_path: Path) -> None:
    forks = (
        "import os, time\n"
        "fork = os.fork()\n"
        "if fork == 0: time.sleep(60)\n"
        "began = time.monotonic()\n"
        "server.shutdown()\n"
        "print(time.monotonic() - began)\n"
        "os.kill(fork, 9)\n"
    )
    process, started = begun(HOLDS + forks, tmp_path)
    with process:
        took_s = float(process.communicate(timeout=30)[0])
    assert took_s < GRACE_S
    assert all_gone(started)


def test_ctrl_c_ends_the_engine_too(tmp_path: Path) -> None:
    block = "with VLLMServer(LLMConfig('m'), [0], port=24_400, engine='transformers'):\n    print('up')\n"
    process, started = begun(block + "    import time; time.sleep(600)", tmp_path)
    with process:
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == -signal.SIGINT
    assert all_gone(started)
    assert logs(tmp_path) == []


def test_ctrl_c_while_it_loads_ends_the_engine_too(tmp_path: Path) -> None:
    loads = (
        "plan.BUILDS['transformers'] = scripts.running(scripts.NEVER_READY)\n"
        "import threading\n"
        "service = VLLMService(LLMConfig('m'), ServeConfig([0, 1], port=24_400, engine='transformers'))\n"
        "def tell():\n"
        "    import psutil, time\n"
        "    while len(psutil.Process().children(recursive=True)) < 4: time.sleep(0.01)\n"
        "    print('up')\n"
        "threading.Thread(target=tell).start()\n"
        "service.start()\n"
    )
    process, started = begun(loads, tmp_path)
    with process:
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == -signal.SIGINT
    assert len(started) == 4
    assert all_gone(started)
    assert logs(tmp_path) == []


def test_importing_the_package_imports_nothing_else() -> None:
    code = (
        "import sys; before = set(sys.modules); import gllm\n"
        "print({each.partition('.')[0] for each in set(sys.modules) - before} - set(sys.stdlib_module_names))\n"
        "from gllm import LLMConfig, ResponseOutput, ServeConfig, VLLMClient, VLLMServer, VLLMService, setup_logging\n"
        "print({'torch', 'vllm', 'transformers', 'numpy'} & set(sys.modules))\n"
        "try: gllm.nonsense\nexcept AttributeError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout == "{'gllm'}\nset()\nmodule 'gllm' has no attribute 'nonsense'\n"
