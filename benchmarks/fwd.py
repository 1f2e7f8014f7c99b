"""`run.py fwd`: the forward on a GPU beside FA3, cuDNN and FA2, with the clock it ran at."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import correctness
import gpu_cells
import peers
import report
import torch
from gpu_report import summary_lines

DEFAULT_PEERS = ("fa3", "cudnn", "fa2")
FORWARD = gpu_cells.Pass("fwd", 1.0, correctness.OUTPUT, cell_seconds=1.0)

summary = summary_lines  # what run.py prints at the end


def add_arguments(parser: argparse.ArgumentParser) -> None:
    gpu_cells.add_arguments(parser, gpu_cells.SHAPES, peers.PEERS, DEFAULT_PEERS)


def run(args: argparse.Namespace) -> Iterator[report.Record]:
    chosen = {name: peers.PEERS[name] for name in args.peers}
    with torch.no_grad():
        yield from gpu_cells.run(FORWARD, args, peers.fa4, chosen)
