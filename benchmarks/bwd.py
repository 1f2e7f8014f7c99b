"""`run.py bwd`: the backward alone on a GPU, fast and deterministic, beside cuDNN and FA2.

FlashAttention's own backwards for Hopper are not on PyPI as binaries. Their figures are published
ones of peers_h100_bwd.json, carried over to the card at hand by cuDNN's in this run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import correctness
import gpu_cells
import gradient_peers
import report
import torch
from gpu_report import DETERMINISTIC, summary_lines
from peers import OURS

SHAPES = ("hd64", "hd128", "gqa128")
PUBLISHED = Path(__file__).with_name("peers_h100_bwd.json")
YARDSTICK = "cudnn"  # the peer that both the published run and this one measure
# Five matmuls beside the forward's two.
BACKWARD = gpu_cells.Pass("bwd", 2.5, correctness.GRADIENTS, cell_seconds=1.5)

summary = summary_lines  # what run.py prints at the end


def add_arguments(parser: argparse.ArgumentParser) -> None:
    names = gradient_peers.BACKWARD_PEERS
    gpu_cells.add_arguments(parser, SHAPES, names, names)


def run(args: argparse.Namespace) -> Iterator[report.Record]:
    published = json.loads(PUBLISHED.read_text())
    if not _may_use(published, args):
        published = None
    others = {DETERMINISTIC: gradient_peers.fa4_deterministic}
    others |= {name: gradient_peers.BACKWARD_PEERS[name] for name in args.peers}
    with torch.no_grad():
        for record in gpu_cells.run(BACKWARD, args, gradient_peers.fa4, others):
            if published:
                add_published(record, published["tflops"])
            yield record


def _may_use(published: report.Record, args: argparse.Namespace) -> bool:
    """Says on the screen what the columns of the published peers are, or why there are none."""
    names = " and ".join(published["peers"])
    for rule, met in (
        (f"needs {YARDSTICK} among --peers", YARDSTICK in args.peers),
        ("needs --dtype bf16", args.dtype == "bf16"),
        ("needs a Hopper card", torch.cuda.get_device_capability()[0] == 9),
    ):
        if not met:
            print(f"no figures of {names}: {rule}")
            return False
    origin = published["origin"]
    print(
        f"{names} are not measured: {YARDSTICK}'s TFLOP/s in this run times their ratio to "
        f"{YARDSTICK} in bursts on {origin['gpu']}, {origin['date']} ({PUBLISHED.name})"
    )
    return True


def add_published(record: report.Record, tflops: report.Record) -> None:
    """Adds "published": TFLOP/s and ratio to ours of the peers that this run cannot measure."""
    figures = tflops.get(record["case"])
    if figures is None or YARDSTICK not in record.get("burst", {}):
        return
    measured = record["burst"][YARDSTICK]
    record["published"] = {}
    for name, figure in figures.items():
        if name in (YARDSTICK, OURS):
            continue
        faster = figure / figures[YARDSTICK]
        record["published"][name] = {
            "tflops": measured["tflops"] * faster,
            "ratio": measured["ratio"] / faster,
        }
