"""A run as people read it: on the terminal, and in docs/performance.md between its marks."""

from pathlib import Path

from bench.cost import plot, tables
from bench.cost.results import Results
from bench.figures import Row, table
from bench.machine import ROOT

DOCUMENT = ROOT / "docs" / "performance.md"
PICTURE = ROOT / "docs" / "img" / "performance.svg"
BEGIN, END = "<!-- measured: python -m bench cost --write -->", "<!-- end of what was measured -->"


def text(results: Results) -> str:
    parts = [_on_what(results)]
    for title, rows in _tables(results).items():
        if rows:
            parts.append(f"### {title}\n\n{table(rows)}")
    return "\n\n".join(parts)


def write(results: Results, document: Path = DOCUMENT, picture: Path = PICTURE) -> None:
    before, found, rest = document.read_text(encoding="utf-8").partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not found or not closed:
        raise ValueError(f"{document} has no place for what was measured")
    image = f"![What gateways cost](img/{picture.name})"
    document.write_text(f"{before}{BEGIN}\n\n{image}\n\n{text(results)}\n\n{END}{after}", encoding="utf-8")
    picture.write_text(plot.picture(results), encoding="utf-8")


def _on_what(results: Results) -> str:
    facts, lengths = results.facts, results.lengths
    turns = f"; policies and sizes in turns of {lengths['turn_s']:g} s, for as long" if "turn_s" in lengths else ""
    lines = [
        f"{facts['date']}, commit {facts['commit']}: `{results.command}`, {results.took_s / 60:.1f} minutes; medians "
        f"of {lengths['repeats']} interleaved repeats, {lengths['window_s']:g} s for each figure{turns}.",
        f"{facts['cpu']}, {facts['cores']} cores, {facts['system']}, {facts['python']}.",
    ]
    if results.versions:
        lines.append(
            "; ".join(f"{name} {version} ({results.abouts[name]})" for name, version in results.versions.items()) + "."
        )
    return "\n".join(lines)


def _tables(results: Results) -> dict[str, list[Row]]:
    return {
        "Goals": tables.goal_rows(tables.goals(results)),
        "Requests": tables.peers(results),
        "Streams": tables.streams(results),
        "Open loop, all policies on": tables.steady(results),
        "Each policy alone": tables.policies(results),
        "More replicas": tables.scale(results, "replicas"),
        "More tenants": tables.scale(results, "tenants"),
        "More that wait in the line": tables.waiting(results),
    }
