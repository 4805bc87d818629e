"""Numbers as a panel's unit writes them, short enough for an axis."""

from math import floor, log, log10

BYTES = ("B", "KiB", "MiB", "GiB", "TiB")
LARGE = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
TIMES = ((60, "min", 60), (1, "s", 1), (1e-3, "ms", 1e-3), (0, "µs", 1e-6))
PER_SECOND = {"reqps": " /s", "cps": " /s", "tps": " /s"}


def written(value: float, unit: str) -> str:
    if unit == "percentunit":
        return f"{_short(value * 100)} %"
    if unit == "bytes":
        size = 0
        while abs(value) >= 1_024 and size < len(BYTES) - 1:
            value, size = value / 1_024, size + 1
        return f"{_short(value)} {BYTES[size]}"
    if unit == "s":
        if value == 0:
            return "0 s"
        each, name = next((scale, name) for least, name, scale in TIMES if abs(value) >= least)
        return f"{_short(value / each)} {name}"
    for least, letter in LARGE:
        if abs(value) >= least:
            return f"{_short(value / least)}{letter}{PER_SECOND.get(unit, '')}"
    return _short(value) + PER_SECOND.get(unit, "")


def _short(value: float) -> str:
    """Three digits, and no more than two after the point."""
    if value == 0:
        return "0"
    digits = max(0, min(2, 2 - floor(log10(abs(value)))))
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def ticks(most: float, unit: str, about: int = 4) -> list[float]:
    """Round numbers from 0 up to the first that is not below `most`."""
    if most <= 0:
        return [0.0, 1.0]
    scale = 1_024.0 ** floor(log(most, 1_024)) if unit == "bytes" and most >= 1 else 1.0
    rough = most / scale / about
    power = 10.0 ** floor(log10(rough))
    step = next(nice * power for nice in (1, 2, 2.5, 5, 10) if nice * power >= rough * 0.999)
    count = 1
    while step * count < most / scale * 0.999:
        count += 1
    return [round(step * number * scale, 12) for number in range(count + 1)]
