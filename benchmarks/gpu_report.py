"""Cells of the GPU benchmarks as table rows, and the geometric means that the goals are about."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

from peers import OURS

Record = dict[str, Any]

DETERMINISTIC = "deterministic"  # ours as well: no peer
# By pass and shape: geometric mean, per mask, of the ratio to the best peer.
GOALS: dict[str, dict[str, float]] = {
    "fwd": {"hd64": 1.10, "hd128": 1.05, "gqa128": 1.05},
    "bwd": {"hd64": 1.08, "hd128": 1.08, "gqa128": 1.08},
    "fwd_bwd": {},
}
LONG = 4096  # forward: causal hd128 meets its goal from here up as well
LEAST_RATIO = 0.97  # in every cell of a pass with goals
DETERMINISTIC_GOAL = 0.88  # its speed, as a share of the fast mode's
HOST_GOAL = 1.0  # time of torch's step on the host over that of ours


# ---- One cell ------------------------------------------------------------------------------------


def ratio(record: Record, kind: str = "burst") -> float | None:
    """Peer's time over ours: of the fastest peer, for packed sequences of FA3. None without one."""
    figures: Record = record.get(kind, {})
    peers: dict[str, float] = {name: x["ratio"] for name, x in figures.items() if _is_peer(name)}
    if record["shape"] == "varlen":
        return peers.get("fa3")
    return min(peers.values()) if peers else None


def ratio_to_all(record: Record, kind: str = "burst") -> float | None:
    """ratio, with the peers of which only published figures exist; those are of bursts."""
    published: Record = record.get("published", {}) if kind == "burst" else {}
    measured = ratio(record, kind)
    if measured is None or not published:
        return None
    ratios: list[float] = [x["ratio"] for x in published.values()]
    return min(measured, *ratios)


def speed_of_deterministic(record: Record, kind: str = "burst") -> float | None:
    """As a share of the fast mode's."""
    figures = record.get(kind, {}).get(DETERMINISTIC)
    return 1 / float(figures["ratio"]) if figures else None


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
    peers = [name for name in record["peers"] if _is_peer(name)]
    if DETERMINISTIC in record["peers"]:
        cells["det/fast"] = _or_dash(speed_of_deterministic(record), ".3f")
    cells |= {name: _tflops(burst, name) for name in peers}
    cells["ratio"] = _or_dash(ratio(record), ".3f")
    if "published" in record:
        for name in record["published"]:
            cells[f"{name} (via cudnn)"] = _tflops(record["published"], name)
        cells["ratio to all"] = _or_dash(ratio_to_all(record), ".3f")
    if "sustained" in record:
        for name in (OURS, *peers):
            cells[f"hot {name}"] = _tflops(record["sustained"], name)
        if DETERMINISTIC in record["peers"]:
            cells["hot det/fast"] = _or_dash(speed_of_deterministic(record, "sustained"), ".3f")
        cells["hot ratio"] = _or_dash(ratio(record, "sustained"), ".3f")
    return cells


def notes(record: Record) -> list[str]:
    """Which peers took no part, and why."""
    missing: dict[str, str] = record.get("missing", {})
    return [f"{name} missing: {_one_line(reason)}" for name, reason in missing.items()]


# ---- All cells -----------------------------------------------------------------------------------


def summary_lines(records: list[Record]) -> list[str]:
    """Geometric means of the ratios over the cells of each shape and mask, beside the goals.

    records: of one run; those that are neither cells nor a step's host time are passed over.
    """
    measured = [record for record in records if "flops" in record]
    done = [record for record in measured if "failed" not in record]
    lines = []
    for (shape, mask), group in itertools.groupby(done, key=lambda r: (r["shape"], r["mask"])):
        cells = list(group)
        goal = _goals(cells[0]).get(shape)
        lines.append(_mean_line(f"{shape} {mask}", cells, goal))
        if (_pass(cells[0]), shape, mask) == ("fwd", "hd128", "causal"):
            cells = [cell for cell in cells if cell["seqlen"] >= LONG]
            lines.append(_mean_line(f"{shape} {mask} from {LONG}", cells, goal))
    lines += _least_lines(done)
    if any(lines):
        peers = {name: None for cell in done for name in cell["burst"] if _is_peer(name)}
        lines.insert(0, f"geometric means: time of the fastest of {', '.join(peers)} over ours")
    lines += [_deterministic_line(done)]
    lines += [_host_line(x) for x in records if "pass" in x and "functions" in x]
    if len(done) < len(measured):
        lines.append(f"failed cells: {len(measured) - len(done)}")
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
        if kind == "burst":
            text += _verdict(mean, goal)
            to_all = [r for cell in cells if (r := ratio_to_all(cell)) is not None]
            if to_all:
                mean = geometric_mean(to_all)
                text += f"; {mean:.3f}  with published peers{_verdict(mean, goal)}"
        parts.append(text)
    return f"{title:<24} {'; '.join(parts)}" if parts else ""


def _least_lines(done: list[Record]) -> list[str]:
    lines = []
    with_goal = [cell for cell in done if cell["shape"] in _goals(cell)]
    for title, of in (("least", ratio), ("least with published", ratio_to_all)):
        ratios = [(r, cell["case"]) for cell in with_goal if (r := of(cell)) is not None]
        if ratios:
            least, case = min(ratios)
            lines.append(f"{title:<24} {least:.3f}  {case}{_verdict(least, LEAST_RATIO)}")
    return lines


def _deterministic_line(done: list[Record]) -> str:
    """The goal is about bursts."""
    parts = []
    for kind in ("burst", "sustained"):
        speeds = [
            (s, x["case"]) for x in done if (s := speed_of_deterministic(x, kind)) is not None
        ]
        if not speeds:
            continue
        least, case = min(speeds)
        mean = geometric_mean(speed for speed, _ in speeds)
        goal = DETERMINISTIC_GOAL if kind == "burst" else None
        parts.append(
            f"{mean:.3f}  {kind}, {len(speeds)} cells{_verdict(mean, goal)}; "
            f"least {least:.3f}  {case}{_verdict(least, goal)}"
        )
    return f"{'deterministic / fast':<24} {'; '.join(parts)}" if parts else ""


def _host_line(record: Record) -> str:
    """Torch's choice is the one that the goal is about."""
    functions = record["functions"]
    if "sdpa" not in functions:
        return ""
    value = functions["sdpa"]["ratio"]
    return f"{'host, sdpa / ours':<24} {value:.3f}  {record['case']}{_verdict(value, HOST_GOAL)}"


def geometric_mean(values: Iterable[float]) -> float:
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms))


# ---- Parts ---------------------------------------------------------------------------------------


def _is_peer(name: str) -> bool:
    return name not in (OURS, DETERMINISTIC)


def _pass(record: Record) -> str:
    """The first files of results are the forward's, and do not say so."""
    return str(record.get("pass", "fwd"))


def _goals(record: Record) -> dict[str, float]:
    return GOALS[_pass(record)]


def _verdict(value: float, goal: float | None) -> str:
    if goal is None:
        return ""
    return f", goal {goal:.2f} {'met' if value >= goal else 'missed'}"


def _tflops(figures: Record, name: str) -> str:
    return f"{figures[name]['tflops']:.0f}" if name in figures else "-"


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
