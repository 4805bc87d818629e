"""A run: who is measured, and in which order. Repeats are interleaved: a slow spell of the machine hits all alike."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from bench.cost import measures
from bench.cost.gateway import ALL, POLICIES
from bench.cost.lag import Lag
from bench.cost.lengths import idle_streams
from bench.cost.measures import Bench, Figures
from bench.cost.peers import Peer
from bench.cost.results import DIRECT, GLLM, Repeats, Results
from bench.cost.standing import Ended, Standing, Start, started

HALF, MUCH = 0.5, 0.8

Say = Callable[[str], None]
Measure = Callable[[Bench, Standing], Figures]


class Run:
    def __init__(self, bench: Bench, folder: Path, results: Results, open_files: int, say: Say) -> None:
        self._bench = bench
        self._folder = folder
        self._results = results
        self._open_files = open_files
        self._say = say

    def gateways(self, peers: Sequence[Peer]) -> None:
        """gllm with all policies, and its peers."""
        bench, results = self._bench, self._results
        starts = {GLLM: ALL.start(bench.engine), **{peer.name: peer.start(bench.engine) for peer in peers}}
        lag = Lag()
        with ExitStack() as stack:
            standing = self._all_started(stack, starts)
            for each in standing:
                results.gateways[each.name] = [self._idle(each)]
            results.gateways[DIRECT] = []
            for number in range(bench.lengths.repeats):
                for each in (*standing, Standing(DIRECT, bench.engine.ports[0], self._folder)):
                    try:
                        with each.awake():
                            figures = self._gllm(each, lag) if each.name == GLLM else self._basics(each)
                    except Ended as error:
                        if each.name == GLLM:
                            raise
                        self._say(str(error))  # a peer that does not live through it has fewer repeats
                        continue
                    self._keep(results.gateways[each.name], number, figures)
                    self._say(f"{each.name}, repeat {number + 1}: {_short(figures)}")
        results.gateway["lag_p99_ms"], results.gateway["lag_beats"] = lag.p99_ms(), lag.beats

    def _idle(self, standing: Standing) -> Figures:
        lengths = self._bench.lengths
        count = lengths.idle if standing.name == GLLM else lengths.idle_of_peers
        with standing.awake():
            few = measures.idle(self._bench, standing, lengths.idle_of_peers)
            if standing.name == GLLM:
                many = measures.idle(self._bench, standing, idle_streams(count, self._open_files))
                self._results.gateway |= {f"many_{name}": value for name, value in many.items()}
        self._say(f"{standing.name}, idle streams: {few}")
        return few

    def _basics(self, standing: Standing) -> Figures:
        bench = self._bench
        measures.closed(replace_window(bench, 0.4), standing)  # warm
        figures = measures.alone(bench, standing)
        figures |= measures.closed(bench, standing)
        figures |= measures.streams(bench, standing)
        figures |= measures.paced(bench, standing)
        return figures

    def _gllm(self, standing: Standing, lag: Lag) -> Figures:
        bench = self._bench
        figures = self._basics(standing)
        with lag.watched(standing):
            again = measures.closed(bench, standing)
        most = again["requests_per_s"]
        figures |= measures.long_prompt(bench, standing)
        for part in (HALF, MUCH):
            figures |= measures.open_loop(bench, standing, part, most)
        return figures

    def policies(self) -> None:
        """Each switched on alone, the others off."""
        starts = {policy.name: policy.setup.start(self._bench.engine) for policy in POLICIES}
        self._results.policies = self._interleaved(starts)

    def scale(self) -> None:
        engine, lengths, scale = self._bench.engine, self._bench.lengths, self._results.scale
        starts = {str(count): replace(ALL, replicas=count).start(engine) for count in lengths.replicas}
        scale["replicas"] = self._interleaved(starts)
        starts = {str(count): replace(ALL, tenants=count).start(engine) for count in lengths.tenants}
        scale["tenants"] = self._interleaved(starts)
        self._waiting()

    def _waiting(self) -> None:
        """As many more connections as are to wait: their requests stand in the line until a slot is free. That many
        connections cost something by themselves, so the same are measured where none of their requests waits.
        """
        bench, lengths = self._bench, self._bench.lengths
        narrow = replace(ALL, slots=lengths.concurrency).start(bench.engine)
        with ExitStack() as stack:
            line, free = self._all_started(stack, {"waiting": narrow, "not waiting": ALL.start(bench.engine)})
            repeats = self._results.scale.setdefault("waiting", {})
            for number in range(lengths.repeats):
                for count in lengths.waiting:
                    for each in (line, free):
                        crowd = replace(lengths, concurrency=lengths.concurrency + count)
                        with each.awake():
                            figures = measures.closed(replace(bench, lengths=crowd), each)
                        self._keep(repeats.setdefault(f"{count} {each.name}", []), number, figures)
                        self._say(f"{count} {each.name}: {_short(figures)}")

    def _interleaved(self, starts: Mapping[str, Start], measure: Measure = measures.closed) -> dict[str, Repeats]:
        """In turns, every other time the other way round: a machine that grows slower does so for all of them alike."""
        found: dict[str, Repeats] = {name: [] for name in starts}
        lengths = self._bench.lengths
        with ExitStack() as stack:
            standing = self._all_started(stack, starts)
            for each in standing:
                with each.awake():
                    measure(replace_window(self._bench, 0.4), each)  # warm
            for turn in range(lengths.turns):
                for each in standing[:: -1 if turn % 2 else 1]:
                    with each.awake():
                        found[each.name].append(measure(replace_window(self._bench, lengths.turn_s), each))
                self._say(f"turn {turn + 1} of {lengths.turns}")
        return found

    def _all_started(self, stack: ExitStack, starts: Mapping[str, Start]) -> list[Standing]:
        cores = self._bench.cores
        standing = []
        for name, start in starts.items():
            folder = self._folder / f"{time.monotonic_ns()}"
            standing.append(stack.enter_context(started(name, start, cores.gateway, folder, cores.load)))
        return standing

    def _keep(self, repeats: Repeats, number: int, figures: Figures) -> None:
        if number < len(repeats):
            repeats[number] |= figures
        else:
            repeats.append(figures)


def replace_window(bench: Bench, window_s: float) -> Bench:
    return replace(bench, lengths=replace(bench.lengths, window_s=window_s))


def _short(figures: Figures) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
