"""One engine as a child process, with everything that it starts, seen from the gateway."""

import asyncio
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from app.cluster.launchers.logfile import LogFile
from app.cluster.launchers.output import Output, Told

KEEPER = Path(__file__).with_name("keeper.py")
LAST_WORDS_S = 1.0
"""From a keeper's end to that of its pipes. Whoever of an engine outlives a killed keeper may hold them for long."""
SLACK_S = 5.0
"""What a kill may take on top of the grace, before the keeper itself is killed."""


def kept(argv: Sequence[str], grace_s: float) -> tuple[str, ...]:
    """The command of a keeper over that command."""
    return (sys.executable, "-I", "-S", str(KEEPER), str(grace_s), *argv)


class EngineProcess:
    """An `async with` block over a running process: leaving the block ends it, and waits until it has ended."""

    def __init__(self, transport: asyncio.SubprocessTransport, output: "_Reader", grace_s: float) -> None:
        self._transport = transport
        self._output = output
        self._grace_s = grace_s

    @classmethod
    async def start(
        cls,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        log: LogFile,
        told: Told,
        grace_s: float,
        held: Sequence[int] = (),
    ) -> "EngineProcess":
        """`held`: descriptors of a lease, which its keeper is to have too, until nothing of the engine is left."""
        transport, output = await asyncio.get_running_loop().subprocess_exec(
            lambda: _Reader(Output(log, told)),
            *kept(argv, grace_s),
            env=env,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            pass_fds=tuple(held),
        )
        return cls(transport, output, grace_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def pid(self) -> int:
        """The keeper's; the engine is its child."""
        return self._transport.get_pid()

    @property
    def ended(self) -> bool:
        return self._output.gone.done()

    @property
    def tail(self) -> list[str]:
        return list(self._output.said.tail)

    @property
    def buried_error(self) -> str:
        return self._output.said.buried_error

    async def wait(self) -> int:
        """Its exit code as a shell would tell it, once it and everything it started are gone."""
        await asyncio.shield(self._output.gone)
        code = self._transport.get_returncode()
        if code is None:
            return 128 + signal.SIGKILL
        return code if code >= 0 else 128 - code  # the keeper itself was killed

    async def stop(self) -> None:
        """End it and wait until it is gone. Whoever cancels this has no time: then there is no grace."""
        if held := self._transport.get_pipe_transport(0):
            held.close()
        try:
            if not await self._gone_within(self._grace_s + SLACK_S):
                await self._kill()
        except asyncio.CancelledError:
            await self._kill()
            raise
        finally:
            self._transport.close()

    async def _kill(self) -> None:
        with suppress(ProcessLookupError):
            self._transport.terminate()
            if not await self._gone_within(SLACK_S):
                self._transport.kill()
                await self._gone_within(SLACK_S)

    async def _gone_within(self, seconds: float) -> bool:
        done, _ = await asyncio.wait([self._output.gone], timeout=seconds)
        return bool(done)


class _Reader(asyncio.SubprocessProtocol):
    """Reads all that the process says, always: a full pipe would stop it."""

    def __init__(self, said: Output) -> None:
        self.said = said
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._closing: asyncio.TimerHandle | None = None

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self.said.take(data)

    def process_exited(self) -> None:
        self._closing = asyncio.get_running_loop().call_later(LAST_WORDS_S, self._over)

    def connection_lost(self, exc: Exception | None) -> None:
        """The process has ended, and nobody holds its pipes any more."""
        if self._closing is not None:
            self._closing.cancel()
        self._over()

    def _over(self) -> None:
        self.said.end()
        if not self.gone.done():
            self.gone.set_result(None)
