"""Cells of `run.py fwd` as table rows, and the geometric means that the goals are about."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

from peers import OURS

Record = dict[str, Any]

GOALS = {"hd64": 1.10, "hd128": 1.05, "gqa128": 1.05}  # ratio to the best peer, per mask
LONG = 4096  # causal hd128 meets its goal from here up as well
LEAST_RATIO = 0.97  # in every cell


def ratio(record: Record, kind: str = "burst") -> float | None:
    """Peer's time over ours: of the fastest peer, for packed sequences of FA3. None without one."""
    peers = {name: x["ratio"] for name, x in record.get(kind, {}).items() if name != OURS}
    if record["shape"] == "varlen":
        return peers.get("fa3")
    return min(peers.values(), default=None)


def columns(record: Record) -> dict[str, str]:
    if "failed" in record:
        return {"case": record["case"], "failed": _one_line(record["failed"])}
    burst = record["burst"]
    ours = burst[OURS]
    cells = {
        "case": record["case"],
        "us": f"{ours['us']:.1f}",
        "TFLOP/s": f"{ours['tflops']:.0f}",
        "MHz": _or_dash(ours["mhz"], ".0f"),
        "share": _or_dash(ours["share"], ".3f"),
    }
    cells |= {name: _tflops(burst, name) for name in record["peers"]}
    cells["ratio"] = _or_dash(ratio(record), ".3f")
    if "sustained" in record:
        for name in (OURS, *record["peers"]):
            cells[f"hot {name}"] = _tflops(record["sustained"], name)
        cells["hot ratio"] = _or_dash(ratio(record, "sustained"), ".3f")
    return cells


def notes(record: Record) -> list[str]:
    """Which peers took no part, and why."""
    missing: dict[str, str] = record.get("missing", {})
    return [f"{name} missing: {_one_line(reason)}" for name, reason in missing.items()]


def summary_lines(records: list[Record]) -> list[str]:
    """Geometric means of the ratios over the cells of each shape and mask, beside the goals."""
    done = [record for record in records if "failed" not in record]
    lines = []
    for (shape, mask), group in itertools.groupby(done, key=lambda r: (r["shape"], r["mask"])):
        cells = list(group)
        lines.append(_mean_line(f"{shape} {mask}", cells, GOALS.get(shape)))
        if (shape, mask) == ("hd128", "causal"):
            cells = [cell for cell in cells if cell["seqlen"] >= LONG]
            lines.append(_mean_line(f"{shape} {mask} from {LONG}", cells, GOALS[shape]))
    dense = (cell for cell in done if cell["shape"] in GOALS)
    with_goal = [(r, cell["case"]) for cell in dense if (r := ratio(cell)) is not None]
    if with_goal:
        least, case = min(with_goal)
        lines.append(f"{'least':<24} {least:.3f}  {case}, {_verdict(least, LEAST_RATIO)}")
    if any(lines):
        peers = {name: None for cell in done for name in cell["burst"] if name != OURS}
        lines.insert(0, f"geometric means: time of the fastest of {', '.join(peers)} over ours")
    if len(done) < len(records):
        lines.append(f"failed cells: {len(records) - len(done)}")
    return [line for line in lines if line]


def _mean_line(title: str, cells: list[Record], goal: float | None) -> str:
    parts = []
    for kind in ("burst", "sustained"):
        ratios = [r for cell in cells if (r := ratio(cell, kind)) is not None]
        if not ratios:
            continue
        mean = geometric_mean(ratios)
        ours = geometric_mean(cell[kind][OURS]["tflops"] for cell in cells)
        text = f"{mean:.3f}  {kind}, {len(ratios)} cells, {ours:.0f} TFLOP/s"
        if kind == "burst" and goal is not None:
            text += f", {_verdict(mean, goal)}"
        parts.append(text)
    return f"{title:<24} {'; '.join(parts)}" if parts else ""


def geometric_mean(values: Iterable[float]) -> float:
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms))


def _verdict(value: float, goal: float) -> str:
    return f"goal {goal:.2f} {'met' if value >= goal else 'missed'}"


def _tflops(figures: Record, name: str) -> str:
    return f"{figures[name]['tflops']:.0f}" if name in figures else "-"


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
