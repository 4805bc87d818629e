"""Real processes: started on a free port, awaited until they answer, looked at from outside, and ended by their pid."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]
PROMPTLY_S = 10.0


def clean_environment(**added: str) -> dict[str, str]:
    """Ours without what would change a test's meaning: proxies, and settings of a gateway that this machine runs."""
    kept = {name: value for name, value in os.environ.items() if name in _KEPT or name.startswith("LC_")}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", **added}


_KEPT = {"PATH", "HOME", "LANG", "TMPDIR", "VIRTUAL_ENV", "COVERAGE_PROCESS_START"}


class Process:
    """One process of ours, in a group of its own, with its words in a file."""

    def __init__(self, name: str, argv: list[str], log: Path, env: Mapping[str, str], cwd: Path = ROOT) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as out:
            self._popen = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=dict(env), cwd=cwd, start_new_session=True
            )
        self.pid = self._popen.pid

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """To this process only. Nobody else can have its number: it has not been waited for."""
        if self.running:
            self._popen.send_signal(number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.wait()

    def wait(self, limit_s: float = PROMPTLY_S) -> int:
        """Its exit code."""
        return self._popen.wait(limit_s)

    def end(self) -> None:
        """However it is: stopped by SIGSTOP, hung, or gone."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        try:
            self.wait()
        except subprocess.TimeoutExpired:
            self.kill()

    def tail(self, lines: int = 15) -> str:
        said = self.log.read_text(errors="replace").splitlines()[-lines:]
        return f"--- {self.name} (pid {self.pid}, {self.log})\n" + "\n".join(said)

    # --- seen from outside ----------------------------------------------------------------------------------------

    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def resident_mb(self) -> float:
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def children(self) -> set[int]:
        return below(self.pid)


def below(pid: int) -> set[int]:
    """All processes that it started, and those that they did."""
    found: set[int] = set()
    todo = [pid]
    while todo:
        with suppress(OSError):
            for task in Path(f"/proc/{todo.pop()}/task").iterdir():
                children = {int(pid) for pid in (task / "children").read_text().split()}
                todo += children - found
                found |= children
    return found


def alive(pid: int) -> bool:
    """A zombie is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Site:
    """What answers HTTP on a loopback port, whoever started it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=self.url, trust_env=False, timeout=30)

    def answers(self, path: str) -> bool:
        with suppress(httpx.HTTPError):
            return self.http.get(path, timeout=2).status_code == 200
        return False

    # --- its metrics ----------------------------------------------------------------------------------------------

    def samples(self) -> dict[str, float]:
        """All of them, by name and labels as they stand on the page."""
        page = self.http.get("/metrics").raise_for_status().text
        lines = [line.rpartition(" ") for line in page.splitlines() if line and not line.startswith("#")]
        return {name: float(value) for name, _, value in lines}

    def sum_of(self, name: str) -> float:
        """Over all labels."""
        return sum(value for key, value in self.samples().items() if key.partition("{")[0] == name)


class EngineSite(Site):
    """An engine, by the metrics that vLLM and ours have in common."""

    def at_work(self) -> int:
        """Sequences that run or wait in it."""
        seen = self.samples()
        return int(sum(value for key, value in seen.items() if key.partition("{")[0] in _AT_WORK))

    def taken(self) -> int:
        """Sequences that it ever took, however they ended."""
        return int(self.sum_of("vllm:request_success_total")) + self.at_work()


_AT_WORK = ("vllm:num_requests_running", "vllm:num_requests_waiting")


class Server(Process, Site):
    """A process that answers HTTP on loopback."""

    def __init__(
        self, name: str, argv: list[str], port: int, log: Path, env: Mapping[str, str], cwd: Path = ROOT
    ) -> None:
        Process.__init__(self, name, argv, log, env, cwd)
        Site.__init__(self, port)

    def await_ready(self, path: str = "/health", limit_s: float = 120) -> None:
        def there() -> bool:
            assert self.running, f"it ended\n{self.tail()}"
            return self.answers(path)

        assert comes_true(there, limit_s), f"not ready after {limit_s} s\n{self.tail()}"

    def end(self) -> None:
        self.http.close()
        super().end()


class Engine(Server, EngineSite):
    """`python -m app.engines.transformers` on the demo model."""

    MODEL = "demo"

    def __init__(self, name: str, port: int, logs: Path, *args: str) -> None:
        argv = [sys.executable, "-m", "app.engines.transformers", "--model", str(ROOT / "models" / "demo")]
        argv += ["--served-model-name", self.MODEL, "--port", str(port), *args]
        Server.__init__(self, name, argv, port, logs / f"{name}.log", clean_environment())

    def aborted(self) -> int:
        return int(sum(value for key, value in self.samples().items() if 'finished_reason="abort"' in key))


class GatewayProcess(Server):
    """`gllm serve`, as an operator starts it. Where no ENGINE_URLS are given it starts its own engine."""

    SERVE = (sys.executable, "-c", "import sys; from gllm.cli import main; sys.exit(main())", "serve")

    def __init__(self, name: str, port: int, logs: Path, argv: Sequence[str] = SERVE, **settings: str) -> None:
        env = clean_environment(PORT=str(port), LOG_FORMAT="json", **settings)
        folder = logs / name
        folder.mkdir(exist_ok=True)  # without a `.env`; and its `.state` is its own
        super().__init__(name, list(argv), port, logs / f"{name}.log", env, folder)

    @classmethod
    def under_plain_uvicorn(cls, name: str, port: int, logs: Path, **settings: str) -> "GatewayProcess":
        """`uvicorn app.main:app`, for those who bring a server of their own."""
        argv = [sys.executable, "-m", "uvicorn", "app.main:app", "--port", str(port), "--log-level", "warning"]
        return cls(name, port, logs, argv, **settings)

    def in_flight(self) -> int:
        """By both of its own accounts: what is inside, and the gauge. The scrape itself is one of the latter."""
        inside: int = self.http.get("/health").json()["requests_active"]
        return inside + int(self.sum_of("llm_requests_in_progress")) - 1


def comes_true(true: Callable[[], bool], limit_s: float, every_s: float = 0.05) -> float:
    """How long it took until it was true; 0.0 if it never was within the limit."""
    began = time.monotonic()
    while (passed := time.monotonic() - began) < limit_s:
        if true():
            return passed + 1e-9
        time.sleep(every_s)
    return 0.0
