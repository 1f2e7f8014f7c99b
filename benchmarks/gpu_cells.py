"""Cells of the GPU benchmarks, one shape, mask and length each: their data, checks and timings.

A cell's results are checked first, then its time is taken. fwd.py, bwd.py and fwd_bwd.py say whose.
"""

from __future__ import annotations

import argparse
import faulthandler
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import correctness
import peers
import report
import torch
from gpu_timing import Measurement, Reading, Stopwatch, interleave
from peers import OURS, Peer, Problem
from timing import Timing

TOKENS = 16384  # of all sequences of a cell
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
QUICK_LENGTHS = (512, 2048, 16384)
SHAPES = {  # heads_q, heads_k, head_dim
    "hd64": (32, 32, 64),
    "hd128": (16, 16, 128),
    "gqa128": (32, 8, 128),
    "varlen": (16, 16, 128),
}
VARLEN_SEQUENCES = (8, 32, 128)  # that the tokens are cut into, at random
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
MASKS = ("causal", "full")
BURST_SECONDS, SUSTAINED_SECONDS = 0.07, 0.12  # rough, for the estimate that is printed first
HANG_SECONDS = 60  # beyond the time limit, after which the process ends itself


# ---- Cells ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    shape: str
    mask: str
    lengths: tuple[int, ...]

    def __str__(self) -> str:
        if self.packed:
            span = f"{len(self.lengths)} x {min(self.lengths)}-{max(self.lengths)}"
            return f"{self.shape} {self.mask} {span}"
        return f"{self.shape} {self.mask} {self.lengths[0]}"

    @property
    def packed(self) -> bool:
        return self.shape == "varlen"

    @property
    def flops(self) -> float:
        """Of the forward: two matmuls; a causal mask leaves half of each."""
        heads, _, head_dim = SHAPES[self.shape]
        full = sum(4.0 * heads * n * n * head_dim for n in self.lengths)
        return full / (2 if self.mask == "causal" else 1)

    def problem(self, dtype: torch.dtype, device: str) -> Problem:
        """Standard normal data: a GPU's clock depends on it, and zeros run faster."""
        heads_q, heads_k, head_dim = SHAPES[self.shape]
        rows: tuple[int, ...] = len(self.lengths), self.lengths[0]
        cu_seqlens = None
        if self.packed:
            rows = (sum(self.lengths),)
            cu_seqlens = torch.tensor((0, *self.lengths)).cumsum(0).to(device, torch.int32)
        generator = torch.Generator(device).manual_seed(0)
        q, k, v, dout = (
            torch.randn(*rows, heads, head_dim, device=device, generator=generator).to(dtype)
            for heads in (heads_q, heads_k, heads_k, heads_q)
        )
        return Problem(q, k, v, self.mask == "causal", self.lengths, cu_seqlens, dout)


def cells(args: argparse.Namespace) -> Iterator[Cell]:
    for shape in args.shapes:
        if shape == "varlen":
            mixes = [random_lengths(count) for count in VARLEN_SEQUENCES]
        else:
            mixes = [(length,) * (TOKENS // length) for length in args.lengths]
        for mask in args.mask:
            for lengths in mixes:
                yield Cell(shape, mask, lengths)


def random_lengths(count: int) -> tuple[int, ...]:
    """TOKENS cut into `count` sequences at random places, the same ones each time."""
    cuts = sorted(random.Random(count).sample(range(1, TOKENS), count - 1))
    ends = zip([0, *cuts], [*cuts, TOKENS], strict=True)
    return tuple(last - first for first, last in ends)


# ---- One cell ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pass:
    """What of attention is measured."""

    name: str
    flops: float  # operations, as a multiple of the forward's
    checks: correctness.Checks
    cell_seconds: float  # rough time of a cell's checks and captures


@dataclass
class Setup:
    """What all cells share."""

    ours: Peer
    others: Mapping[str, Peer]
    stopwatch: Any  # a gpu_timing.Stopwatch
    rounds: int = 3
    sustained: bool = False
    dtype: str = "bf16"
    device: str = "cuda"


def measure(part: Pass, cell: Cell, setup: Setup) -> report.Record:
    """The record of the cell. Where ours fails or a result is wrong it has "failed", the reason."""
    record: report.Record = {
        "case": str(cell),
        "pass": part.name,
        "shape": cell.shape,
        "mask": cell.mask,
        "seqlen": max(cell.lengths),
        "sequences": len(cell.lengths),
        "dtype": setup.dtype,
        "flops": part.flops * cell.flops,
        "peers": [name for name in setup.others if not cell.packed or name in peers.PACKED_PEERS],
        "missing": {},
    }
    if setup.stopwatch.no_clock:
        record["no_clock"] = setup.stopwatch.no_clock
    try:
        functions = _checked(part.checks, cell, setup, record)
        record["burst"] = _take(setup.stopwatch.burst, functions, setup, record)
        if setup.sustained:
            record["sustained"] = _take(setup.stopwatch.sustained, functions, setup, record)
    except Exception as error:
        record["failed"] = f"{type(error).__name__}: {error}"
    return record


def _checked(
    checks: correctness.Checks, cell: Cell, setup: Setup, record: report.Record
) -> dict[str, peers.Call]:
    """The calls that give the right result, ours first."""
    problem = cell.problem(DTYPES[setup.dtype], setup.device)
    functions = {OURS: setup.ours(problem)}
    ours = functions[OURS]()
    errors = record["errors"] = {OURS: checks.float64_error(problem, ours)}
    correctness.check(OURS, errors[OURS], checks.largest_float64_error[problem.q.dtype])
    for name in record["peers"]:
        try:
            functions[name] = setup.others[name](problem)
            result = functions[name]()
        except correctness.WrongResult:
            raise
        except Exception as error:
            functions.pop(name, None)
            record["missing"][name] = f"{type(error).__name__}: {error}"
            continue
        errors[name] = checks.difference(result, ours)
        largest = checks.largest_peer_error[problem.q.dtype]
        correctness.check(f"{name} beside {OURS}", errors[name], largest)
    return functions


def _take(
    prepare: Callable[[peers.Call], Measurement],
    functions: dict[str, peers.Call],
    setup: Setup,
    record: report.Record,
) -> report.Record:
    measurements: dict[str, Measurement] = {}
    setup.stopwatch.new_graphs()
    for name, function in functions.items():
        try:
            measurements[name] = prepare(function)
        except Exception as error:
            if name == OURS:
                raise
            record["missing"][name] = f"{type(error).__name__}: {error}"
    readings = interleave(measurements, setup.rounds)
    timings = {name: Timing(tuple(r.us for r in got), 1) for name, got in readings.items()}
    per_clock = setup.stopwatch.flops_per_clock
    return {
        name: _figures(got, record["flops"], per_clock)
        | ({"ratio": timings[OURS].ratio(timings[name])} if name != OURS else {})
        for name, got in readings.items()
    }


def _figures(readings: list[Reading], flops: float, per_clock: int | None) -> report.Record:
    """Medians of the rounds, and the rounds. share: of the clocks of all tensor cores."""
    us = statistics.median(r.us for r in readings)
    clocks = [r.mhz for r in readings if r.mhz is not None]
    mhz = statistics.median(clocks) if clocks else None
    share = flops / (per_clock * us * mhz) if mhz is not None and per_clock else None
    return {
        "us": us,
        "tflops": flops / us / 1e6,
        "mhz": mhz,
        "share": share,
        "rounds_us": [round(r.us, 3) for r in readings],
        "rounds_mhz": [round(mhz, 1) for mhz in clocks],
    }


# ---- Arguments -----------------------------------------------------------------------------------


def comma_list(choices: Iterable[str]) -> Callable[[str], list[str]]:
    """An argparse type: names separated by commas."""
    allowed = list(choices)

    def parse(text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        for name in names:
            if name not in allowed:
                known = ", ".join(allowed)
                raise argparse.ArgumentTypeError(f"must be among {known}, got {name!r}")
        return names

    return parse


def _lengths(text: str) -> list[int]:
    lengths = [int(length) for length in text.split(",")]
    for length in lengths:
        if length < 1 or TOKENS % length:
            raise argparse.ArgumentTypeError(f"must divide {TOKENS}, got {length}")
    return lengths


def add_arguments(
    parser: argparse.ArgumentParser,
    shapes: Iterable[str],
    others: Iterable[str],
    chosen: Iterable[str],
) -> None:
    """shapes, others: what may be asked for, all shapes by default; chosen: peers by default."""
    shapes, others = list(shapes), list(others)
    parser.set_defaults(device="cuda")
    add = parser.add_argument
    add("--shapes", type=comma_list(shapes), default=shapes, help=",".join(shapes))
    add("--lengths", type=_lengths, help=",".join(map(str, LENGTHS)))
    add("--mask", type=comma_list(MASKS), default=[*MASKS], help=",".join(MASKS))
    add("--peers", type=comma_list(others), default=[*chosen], help=",".join(others))
    add("--dtype", choices=DTYPES, default="bf16")
    add("--rounds", type=int, help="default: 3, with --quick 1")
    add("--sustained", action="store_true", help="time on a hot card as well")
    add("--quick", action="store_true", help="one round of three lengths")
    add("--time-limit", type=float, metavar="SECONDS", help="stop before the cell beyond it")


# ---- The run -------------------------------------------------------------------------------------


def run(
    part: Pass, args: argparse.Namespace, ours: Peer, others: Mapping[str, Peer]
) -> Iterator[report.Record]:
    """The records of all cells that were asked for."""
    args.lengths = args.lengths or list(QUICK_LENGTHS if args.quick else LENGTHS)
    args.rounds = args.rounds or (1 if args.quick else 3)
    setup = Setup(ours, others, Stopwatch(), args.rounds, args.sustained, args.dtype)
    if setup.stopwatch.no_clock:
        print("no SM clock:", setup.stopwatch.no_clock)
    todo = list(cells(args))
    print(f"{len(todo)} cells, about {estimate_seconds(part, len(todo), setup):.0f} s")
    if args.time_limit:  # a kernel that never ends cannot be stopped from here otherwise
        faulthandler.dump_traceback_later(args.time_limit + HANG_SECONDS, exit=True)
    yield from within(args.time_limit, todo, lambda cell: measure(part, cell, setup))
    faulthandler.cancel_dump_traceback_later()


def estimate_seconds(part: Pass, count: int, setup: Setup) -> float:
    round_seconds = BURST_SECONDS + (SUSTAINED_SECONDS if setup.sustained else 0)
    return count * (part.cell_seconds + (1 + len(setup.others)) * setup.rounds * round_seconds)


def within(
    limit: float | None,
    todo: list[Cell],
    work: Callable[[Cell], report.Record],
    now: Callable[[], float] = time.monotonic,
) -> Iterator[report.Record]:
    """work of each cell, as long as another one like the longest so far fits into the limit."""
    started, longest = now(), 0.0
    for done, cell in enumerate(todo):
        start = now()
        if limit is not None and start - started + longest > limit:
            print(f"time limit of {limit:g} s: {len(todo) - done} cells left out, from {cell} on")
            return
        record = work(cell)
        longest = max(longest, now() - start)
        yield record
        if not _gpu_works():
            print(f"the GPU no longer answers after {cell}: {len(todo) - done - 1} cells left out")
            return


def _gpu_works() -> bool:
    """A kernel that reads where it must not leaves a context in which every call fails."""
    if not torch.cuda.is_available():
        return True
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True
