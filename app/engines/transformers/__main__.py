"""`python -m app.engines.transformers --model PATH_OR_NAME`: load a model, say how it goes, and serve it."""

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from app.engines.transformers.engine import Engine
    from app.engines.transformers.tracing import Tracer
    from app.telemetry.tracing.sdk import Sdk

_STARTED = time.perf_counter()

GRACE_S = 5.0

SERVICE = "gllm-engine"
"""Its name in traces, unless OTEL_SERVICE_NAME gives another."""

SPANS_SENT_S = 1.0
"""How long a stop waits for the collector to take the last spans: within what a keeper leaves beyond the grace."""

TRACING = ("ENABLE_TRACING", "OTEL_")
"""Variables that begin so say, as in a gateway, whether spans are sent and where to."""


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s %(message)s", stream=sys.stderr)
    if _missing(args.model):
        return _refuse(f"{args.model} is not a folder with a model in it.")
    try:
        listener = _bound(args.host, args.port)
    except OSError as error:
        return _refuse(f"Cannot listen on {args.host}:{args.port}: {error.strerror}.")
    with listener:
        try:
            sdk = _sdk({name: value for name, value in os.environ.items() if name.startswith(TRACING)})
        except NoTracing as error:
            return _refuse(str(error))
        return _start(args, listener, sdk)


class NoTracing(Exception):
    """It is wanted and cannot be; the text is for the person who starts the engine."""


def _sdk(environment: Mapping[str, str]) -> "Sdk | None":
    """Where it is off, nothing of it is even imported."""
    if not environment:
        return None
    from app.settings import BadSetting, Settings

    try:
        telemetry = Settings.load(environment, env_file=None).telemetry
    except BadSetting as error:
        raise NoTracing(str(error)) from None
    if not telemetry.traced:
        return None
    from app.telemetry.tracing.sdk import NoExporter, Sdk
    from app.version import VERSION

    try:
        return Sdk.configured(telemetry.otel, VERSION, SERVICE)
    except NoExporter as error:
        raise NoTracing(str(error)) from None


def _missing(model: str) -> bool:
    """Whether this can only be a folder, and is none. What is left may be a name in the local cache."""
    path = Path(model).expanduser()
    return not path.is_dir() and (model.startswith(("/", "./", "../", "~")) or path.is_file())


def _bound(host: str, port: int) -> socket.socket:
    """The port is ours from here on, but nobody can connect before the model is there to answer."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(address)
    return listener


def _start(args: argparse.Namespace, listener: socket.socket, sdk: "Sdk | None") -> int:
    tell("importing")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # imported here: `--help` and a taken port are answered without waiting for torch
    import transformers

    from app.engines.transformers import model as models
    from app.engines.transformers.engine import Engine

    transformers.logging.disable_progress_bar()
    name, *aliases = args.served_model_name or [args.model]
    try:
        tell(f"loading model={args.model}")
        loaded = models.load(args.model, device=args.device, dtype=args.dtype, tell=tell)
        limits = models.limits_for(
            loaded,
            max_sequences=args.max_num_seqs,
            max_batch_tokens=args.max_batch_tokens,
            num_blocks=args.num_blocks,
        )
        engine = Engine(loaded, name, limits, args.max_queue, aliases=aliases)
    except models.LoadFailed as error:
        return _refuse(str(error))
    except (ValueError, MemoryError, RuntimeError) as error:
        return _refuse(f"The engine cannot be set up: {str(error).splitlines()[0]}")
    tracer = None if sdk is None else _tracer(sdk, engine)
    with asyncio.Runner(loop_factory=_loop) as runner:
        return runner.run(_serve(args, engine, listener, transformers.__version__, tracer))


def _tracer(sdk: "Sdk", engine: "Engine") -> "Tracer":
    from app.engines.transformers.tracing import Tracer

    return Tracer(sdk, engine.name, time.perf_counter, _unix_now, engine.metrics.spans_dropped.inc)


async def _serve(
    args: argparse.Namespace, engine: "Engine", listener: socket.socket, version: str, tracer: "Tracer | None"
) -> int:
    from app.engines.transformers.server import create_app

    engine.start()
    try:
        tell("warming up")
        await engine.warm_up()
        server = _server(create_app(engine, version=version, api_key=args.api_key, tracer=tracer), args)
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(each, stop.set)
        async with asyncio.TaskGroup() as group:
            group.create_task(_shut_down(stop, engine, server, args.grace))
            await server.serve(sockets=[listener])
            stop.set()
    finally:
        await engine.stop()
        if tracer is not None:
            await asyncio.to_thread(tracer.close, SPANS_SENT_S)
    tell("stopped")
    return 0


async def _shut_down(stop: asyncio.Event, engine: "Engine", server: Any, grace_s: float) -> None:
    """New work is refused at once; what runs may finish; what has not by then ends with an error."""
    await stop.wait()
    tell("stopping")
    await engine.drain(grace_s)
    await engine.stop()
    await asyncio.sleep(0.05)  # the last errors and events leave
    server.should_exit = True


def _server(app: Any, args: argparse.Namespace) -> Any:
    import uvicorn

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            """uvicorn would close the door on a signal; we leave it open and answer 503."""
            yield

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            seconds = time.perf_counter() - _STARTED
            tell(f"ready url=http://{args.host}:{args.port} seconds={seconds:.1f}")

    return Server(
        uvicorn.Config(
            app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1, server_header=False
        )
    )


def _loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _unix_now() -> float:
    return datetime.now(UTC).timestamp()


def tell(what: str) -> None:
    """Progress, one line each, for whoever started this process."""
    print(f"engine: {what} at={time.perf_counter() - _STARTED:.1f}s", flush=True)


def _refuse(why: str) -> int:
    print(f"engine: failed {why}", flush=True)
    print(why, file=sys.stderr, flush=True)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m app.engines.transformers", description=__doc__)
    add = parser.add_argument
    add("--model", required=True, help="a folder, or a name that is in the local cache")
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=8001)
    names = "its names in requests; the first is the one in answers and metrics (default: as given with --model)"
    add("--served-model-name", nargs="+", metavar="NAME", help=names)
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    add("--max-num-seqs", type=_positive, default=64, help="sequences in the batch at once")
    add("--max-queue", type=int, default=64, help="sequences that may wait beside those in the batch")
    add("--max-batch-tokens", type=_positive, help="tokens in one step")
    add("--num-blocks", type=_positive, help="pages of the cache (default: what the memory holds)")
    add("--api-key", default=os.environ.get("GLLM_ENGINE_API_KEY"), help="asked for on all but health and metrics")
    add("--grace", type=float, default=GRACE_S, help="seconds that running requests get after SIGTERM")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


if __name__ == "__main__":
    ended = main()
    sys.stderr.flush()
    os._exit(ended)  # all is given back; taking torch apart piece by piece would last longer than the grace time
