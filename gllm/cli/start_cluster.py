"""`gllm start-cluster`: a gateway and a worker for each GPU, as one command that ends them all."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gllm.cli.plan import Here, OnRay

FAILED, MISUSED = 1, 2


def add_to(commands: argparse._SubParsersAction[Any]) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "start-cluster",
        help="start a gateway and a worker for each GPU of this machine",
        usage="gllm start-cluster -p PORT -w GPUS -wp PORT [options] [-- ENGINE_ARGS ...]",
        description="Start a gateway and a worker for each GPU of this machine. Ctrl+C stops all of them.",
        epilog="What follows -- goes to the command line of every engine.",
    )
    parser.add_argument(
        "-p", "--port", type=int, required=True, metavar="PORT", help="the gateway's; 0 takes any free one"
    )
    parser.add_argument(
        "-w",
        "--workers",
        nargs="+",
        required=True,
        metavar="GPUS",
        help="the GPUs, with one worker for each: 3, 0:3 (0 to 3), 0,2,5, 0:1,4:5, or several such words; "
        "UUIDs are fine too. With --launcher ray: how many workers, or all, for as many as there is room for",
    )
    parser.add_argument(
        "-wp",
        "--worker-port-range-start",
        type=int,
        metavar="PORT",
        help="required unless --launcher ray; the first worker's: the next ones are 100 apart, each engine is 10 after "
        "its worker, a taken port is skipped",
    )
    parser.add_argument(
        "--ip",
        help="address to listen on (default: 0.0.0.0 where TENANTS_FILE or ALLOW_ANONYMOUS says who may call, else "
        "127.0.0.1)",
    )
    parser.add_argument("--load-model", metavar="MODEL", help="a folder or a hub name, loaded on all workers")
    parser.add_argument(
        "--engine",
        choices=("vllm", "transformers", "command"),
        default="vllm",
        help="what workers start: vllm, transformers (also without GPUs) or command (ENGINE_COMMAND); default: vllm",
    )
    parser.add_argument(
        "--gpus-per-worker",
        type=int,
        default=1,
        metavar="N",
        help="GPUs of each worker, over which vLLM shards its model (default: 1)",
    )
    parser.add_argument(
        "--launcher",
        choices=("local", "ray"),
        default="local",
        help="where workers run: on this machine, or on the nodes of a Ray cluster that exists (default: local)",
    )
    parser.add_argument(
        "--ray-address",
        default="auto",
        metavar="HOST:PORT",
        help="the head of that cluster (default: auto, that is RAY_ADDRESS or the one of this machine's node)",
    )
    parser.set_defaults(run=run, engine_args=())


def run(args: argparse.Namespace) -> int:
    from app.gateway.listener import CannotListen
    from app.settings import BadSetting
    from gllm.cli import cluster
    from gllm.cli.gpus import BadGpus
    from gllm.cli.listening import listening
    from gllm.cli.plan import BadPlan

    try:
        wish = _on_ray(args) if args.launcher == "ray" else _here(args)
        at = listening(args.ip, args.port)
        plan = wish.plan(at, args.load_model)
    except (BadGpus, BadSetting, BadPlan) as error:
        print(f"gllm: {error}", file=sys.stderr)
        return MISUSED
    except CannotListen as error:
        print(f"gllm: {error}", file=sys.stderr)
        return FAILED
    return cluster.run(plan, at.settings.storage.state_dir)


def _here(args: argparse.Namespace) -> Here:
    from app.cluster.launchers.plan import Machine
    from gllm.cli import gpus
    from gllm.cli.plan import BadPlan, Here

    shares = gpus.workers(args.workers, args.gpus_per_worker)
    if args.worker_port_range_start is None:
        raise BadPlan("--worker-port-range-start says where the workers listen: give the first one's port.")
    return Here(shares, args.worker_port_range_start, args.engine, tuple(args.engine_args), Machine.here())


def _on_ray(args: argparse.Namespace) -> OnRay:
    from gllm.cli.plan import BadPlan, OnRay

    given = " ".join(args.workers)
    if given != "all" and not (given.isdecimal() and int(given)):
        raise BadPlan(f"With --launcher ray, --workers is how many there shall be, or 'all', not {given!r}.")
    if args.gpus_per_worker < 0:
        raise BadPlan(f"--gpus-per-worker must be at least 0, not {args.gpus_per_worker}.")
    count = None if given == "all" else int(given)
    return OnRay(count, args.gpus_per_worker, args.ray_address, args.engine, tuple(args.engine_args))
