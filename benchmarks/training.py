"""`run.py training`: a GPT trained through flash_attn4 and through torch's attention, on a GPU.

Each case is one run of examples/train_gpt.py in a process of its own, both attentions in turn: same
seed, same batches, autocast to bfloat16, fused AdamW. Curves that agree are part of the result.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Record = dict[str, Any]

ROOT = Path(__file__).resolve().parent.parent
OURS, THEIRS = "fa4", "sdpa"
CONTEXTS = (1024, 8192)
MODES = ("eager", "compile")
# What the losses of two right attentions may differ by, nats per token. Both round to bfloat16 at
# other places, and training amplifies that; attention without dk leaves the curve within 60 steps.
HELD_OUT_TOLERANCE = 0.02  # at the end of the training
CURVE_TOLERANCE = 0.05  # means over CURVE_STEPS steps, anywhere
CURVE_STEPS = 20
# 28 million parameters.
SIZES = {"width": 512, "layers": 8, "heads": 8, "kv-heads": 2, "vocabulary": 8192}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--device", choices=("cuda", "cpu"), default="cuda")
    add("--contexts", type=_contexts, default=[*CONTEXTS], help=",".join(map(str, CONTEXTS)))
    add("--modes", type=_modes, default=[*MODES], help=",".join(MODES))
    add("--steps", type=int, default=300, help="300")
    add("--tokens", type=int, default=32768, help="of a step: 32768")
    add("--lr", type=float, default=5e-4, help="peak learning rate: 5e-4")
    add("--case-limit", type=float, default=300, metavar="SECONDS", help="ends a case: 300")
    add("--time-limit", type=float, metavar="SECONDS", help="stop before the case beyond it")
    for name, default in SIZES.items():
        add(f"--{name}", type=int, default=default, metavar="N", help=f"{default}")


def _contexts(text: str) -> list[int]:
    return [int(length) for length in text.split(",")]


def _modes(text: str) -> list[str]:
    modes = text.split(",")
    for mode in modes:
        if mode not in MODES:
            raise argparse.ArgumentTypeError(f"must be among {', '.join(MODES)}, got {mode!r}")
    return modes


# ---- Cases ---------------------------------------------------------------------------------------


def run(
    args: argparse.Namespace,
    work: Callable[[int, str, argparse.Namespace], Record] | None = None,
    now: Callable[[], float] = time.monotonic,
) -> Iterator[Record]:
    """work: what makes the record of a case, train_both unless a test says otherwise."""
    for context in args.contexts:
        if args.tokens % context:
            raise SystemExit(
                f"training: --tokens must be a multiple of {context}, got {args.tokens}"
            )
    todo = [(context, mode) for context in args.contexts for mode in args.modes]
    started, longest = now(), 0.0
    for done, (context, mode) in enumerate(todo):
        begin = now()
        if args.time_limit is not None and begin - started + longest > args.time_limit:
            print(f"time limit of {args.time_limit:g} s: {len(todo) - done} cases left out")
            return
        record = (work or train_both)(context, mode, args)
        longest = max(longest, now() - begin)
        yield record


def train_both(context: int, mode: str, args: argparse.Namespace) -> Record:
    """The record of one case. Where the example fails it has "failed", the end of its output."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
        try:
            done = subprocess.run(
                command(context, mode, args, folder),
                env=os.environ | {"PYTHONPATH": path},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=args.case_limit,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return failed(context, mode, f"no end within {args.case_limit:g} s")
        if done.returncode != 0:
            return failed(context, mode, done.stdout[-2000:])
        results = json.loads((Path(folder) / "results.json").read_text())
    return record_of(context, mode, results) | {"seconds": round(time.monotonic() - started, 1)}


def command(context: int, mode: str, args: argparse.Namespace, folder: str) -> list[str]:
    options = {name: getattr(args, name.replace("-", "_")) for name in SIZES}
    options |= {"device": args.device, "dtype": "bfloat16", "steps": args.steps, "lr": args.lr}
    options["optimizer"] = "adamw"
    options |= {"context": context, "batch": args.tokens // context, "out": folder}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    example = str(ROOT / "examples" / "train_gpt.py")
    return [sys.executable, example, *words, *(["--compile"] if mode == "compile" else [])]


def failed(context: int, mode: str, reason: str) -> Record:
    return {"case": name_of(context, mode), "pass": "training", "failed": reason}


def name_of(context: int, mode: str) -> str:
    return f"context {context} {mode}"


def record_of(context: int, mode: str, results: Record) -> Record:
    """The figures that are kept, and whether the curves agree."""
    runs: dict[str, Record] = results["runs"]
    for run in runs.values():
        run["losses"] = [round(loss, 4) for loss in run["losses"]]
        run["held_out"] = [[step, round(loss, 4)] for step, loss in run["held_out"]]
    return {
        "case": name_of(context, mode),
        "pass": "training",
        "parameters": results["parameters"],
        # The folder of --out is gone by now.
        "options": {name: x for name, x in results["options"].items() if name != "out"},
        "unigram_entropy": results["unigram_entropy"],
        "runs": runs,
        "ratio": runs[OURS]["tokens_per_second"] / runs[THEIRS]["tokens_per_second"],
        "gaps": gaps(runs),
    }


def gaps(runs: dict[str, Record]) -> Record:
    """Distances of the two loss curves; "agree": within the tolerances, NaN is not."""
    ours, theirs = runs[OURS], runs[THEIRS]
    differences = [a - b for a, b in zip(ours["losses"], theirs["losses"], strict=True)]
    parts = [differences[i : i + CURVE_STEPS] for i in range(0, len(differences), CURVE_STEPS)]
    curve = _largest([statistics.fmean(part) for part in parts])
    held_out = abs(ours["held_out"][-1][1] - theirs["held_out"][-1][1])
    return {
        "held_out": held_out,
        f"means_of_{CURVE_STEPS}": curve,
        "single_step": _largest(differences),
        "agree": held_out <= HELD_OUT_TOLERANCE and curve <= CURVE_TOLERANCE,
    }


def _largest(differences: list[float]) -> float:
    """NaN if there is one."""
    if any(math.isnan(x) for x in differences):
        return math.nan
    return max(abs(x) for x in differences)


# ---- Results -------------------------------------------------------------------------------------


def columns(record: Record) -> dict[str, str]:
    """The cells of one case, by column title."""
    if "failed" in record:
        return {"case": record["case"], "failed": " ".join(record["failed"].split())[-300:]}
    cells = {"case": record["case"]}
    for name in (OURS, THEIRS):
        cells[f"{name} tokens/s"] = f"{record['runs'][name]['tokens_per_second']:.0f}"
    cells["ratio"] = f"{record['ratio']:.3f}"
    for name in (OURS, THEIRS):
        cells[f"{name} GiB"] = f"{record['runs'][name]['peak_memory_bytes'] / 2**30:.2f}"
    for name in (OURS, THEIRS):
        cells[f"{name} loss"] = f"{record['runs'][name]['held_out'][-1][1]:.3f}"
    return cells | {"curves": "agree" if record["gaps"]["agree"] else "DIFFER"}


def summary(records: list[Record]) -> list[str]:
    """What run.py prints at the end."""
    done = [record for record in records if "failed" not in record]
    lines = []
    if done:
        tolerances = f"tolerance {HELD_OUT_TOLERANCE} at the end, {CURVE_TOLERANCE} on the way"
        held_out = _largest([record["gaps"]["held_out"] for record in done])
        curve = _largest([record["gaps"][f"means_of_{CURVE_STEPS}"] for record in done])
        agree = all(record["gaps"]["agree"] for record in done)
        lines += [
            f"{done[0]['parameters']:,} parameters; loss is held-out, nats per token",
            f"loss curves: apart by {held_out:.4f} at the end, {curve:.4f} in means over "
            f"{CURVE_STEPS} steps ({tolerances}): {'agree' if agree else 'DIFFER'}",
            f"speed: {statistics.geometric_mean(record['ratio'] for record in done):.3f} of "
            f"{THEIRS}'s tokens per second, {len(done)} cases",
        ]
    if len(done) < len(records):
        lines.append(f"failed cases: {len(records) - len(done)}")
    return lines
