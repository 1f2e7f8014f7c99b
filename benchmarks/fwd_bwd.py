"""`run.py fwd_bwd`: forward and backward through autograd on a GPU beside torch's attention.

First what a step costs the host, on a problem that the GPU solves faster; then GPU time per cell.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping

import correctness
import gpu_cells
import gradient_peers
import host_gpu
import report
import torch
from gpu_report import summary_lines
from host_gpu import FREE, Context, Function, backend
from peers import OURS, Problem
from timing import Timing
from torch.nn.attention import SDPBackend
from torch.nn.functional import scaled_dot_product_attention

SHAPES = ("hd64", "hd128", "gqa128")
DEFAULT_PEERS = ("cudnn", "fa2")
STEP = gpu_cells.Pass("fwd_bwd", 3.5, correctness.GRADIENTS, cell_seconds=1.5)

summary = summary_lines  # what run.py prints at the end


def add_arguments(parser: argparse.ArgumentParser) -> None:
    gpu_cells.add_arguments(parser, SHAPES, gradient_peers.STEP_PEERS, DEFAULT_PEERS)


def run(args: argparse.Namespace) -> Iterator[report.Record]:
    record = host_time(host_steps("cuda"))
    if record:
        yield record
    chosen = {name: gradient_peers.STEP_PEERS[name] for name in args.peers}
    yield from gpu_cells.run(STEP, args, gradient_peers.fa4_step, chosen)


# ---- Host time -----------------------------------------------------------------------------------


def host_steps(device: str) -> dict[str, tuple[Function, Context]]:
    """Steps on host_gpu's problem, and what their calls stand in. torch's gets its own layout."""
    batch, seqlen, _, _ = host_gpu.SHAPE
    q, k, v, dout = (torch.randn(host_gpu.SHAPE, device=device).bfloat16() for _ in range(4))
    problem = Problem(q, k, v, True, (seqlen,) * batch, None, dout)
    q, k, v, dout = (x.transpose(1, 2).detach() for x in (q, k, v, dout))
    for x in (q, k, v):
        x.requires_grad_()

    def sdpa() -> object:
        out = scaled_dot_product_attention(q, k, v, is_causal=True)
        return torch.autograd.grad(out, (q, k, v), dout)

    return {
        OURS: (gradient_peers.fa4_step(problem), FREE),
        "sdpa": (sdpa, FREE),
        "sdpa, FA2": (sdpa, backend(SDPBackend.FLASH_ATTENTION)),
        "sdpa, cuDNN": (sdpa, backend(SDPBackend.CUDNN_ATTENTION)),
    }


def host_time(steps: Mapping[str, tuple[Function, Context]]) -> report.Record | None:
    """Time of a step by the host's clock, the GPU waited for after many; None where ours fails."""
    working = host_gpu.warmed_up(steps)
    if OURS not in working:
        return None
    rounds = host_gpu.interleave(working, torch.cuda.synchronize)
    timings = {name: Timing(tuple(us), host_gpu.CALLS) for name, us in rounds.items()}
    case = f"host time of a step, {host_gpu.SHAPE[1]} tokens"
    return {"case": case, "pass": STEP.name, **report.timing_record(timings, OURS, {})}
