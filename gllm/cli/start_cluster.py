"""`gllm start-cluster`: a gateway and a worker for each GPU, as one command that ends them all."""

from __future__ import annotations

import argparse
import sys
from typing import Any

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
        "UUIDs are fine too",
    )
    parser.add_argument(
        "-wp",
        "--worker-port-range-start",
        type=int,
        required=True,
        metavar="PORT",
        help="the first worker's; the next ones are 100 apart, each engine is 10 after its worker; a taken port is "
        "skipped",
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
    parser.set_defaults(run=run, engine_args=())


def run(args: argparse.Namespace) -> int:
    from app.cluster.launchers.plan import Machine
    from app.gateway.listener import CannotListen
    from app.settings import BadSetting
    from gllm.cli import cluster, gpus, plan
    from gllm.cli.listening import listening

    try:
        shares = gpus.workers(args.workers, args.gpus_per_worker)
        at = listening(args.ip, args.port)
        wish = plan.Wish(shares, args.worker_port_range_start, args.engine, tuple(args.engine_args))
        planned = plan.with_workers(wish, at, args.load_model, Machine.here())
    except (gpus.BadGpus, BadSetting, plan.BadPlan) as error:
        print(f"gllm: {error}", file=sys.stderr)
        return MISUSED
    except CannotListen as error:
        print(f"gllm: {error}", file=sys.stderr)
        return FAILED
    return cluster.run(planned, at.settings.storage.state_dir / "logs" / "cluster")
