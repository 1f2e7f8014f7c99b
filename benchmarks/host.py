"""`run.py host`: what a call costs the host, on tensors with next to nothing to compute."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import host_gpu
import report
import torch
from timing import interleave
from torch.nn.functional import scaled_dot_product_attention

SHAPE = 1, 4, 4, 64  # batch, seqlen, heads, head_dim; for torch the middle two change places
MAX_CALLS = 200  # per round: a GPU's launch queue must not fill up


def calls(device: str) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """By case: the call that is measured, and the same in torch's attention."""
    from flash_attn4 import flash_attn_func

    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    x = torch.randn(SHAPE, device=device, dtype=dtype)
    q, k, v = (x.clone().requires_grad_() for _ in range(3))
    inputs = q, k, v
    op = torch.ops.fa4.fwd

    def backward(function: Callable[..., torch.Tensor]) -> object:
        return torch.autograd.grad(function(*inputs), inputs, x)

    def sdpa() -> object:
        return scaled_dot_product_attention(x, x, x)

    def sdpa_grad() -> object:
        return scaled_dot_product_attention(*inputs)

    return {
        "torch.ops.fa4.fwd, no grad": (lambda: op(x, x, x), sdpa),
        "flash_attn_func, no grad": (lambda: flash_attn_func(x, x, x), sdpa),
        "torch.ops.fa4.fwd, grad": (lambda: op(*inputs), sdpa_grad),
        "flash_attn_func, grad": (lambda: flash_attn_func(*inputs), sdpa_grad),
        "flash_attn_func, forward + backward": (
            lambda: backward(flash_attn_func),
            lambda: backward(scaled_dot_product_attention),
        ),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")


def run(args: argparse.Namespace) -> Iterator[report.Record]:
    if args.device == "cuda":
        yield from host_gpu.run()
    number = torch.zeros(1, device=args.device)
    for name, (ours, sdpa) in calls(args.device).items():
        functions = {"fa4": ours, "sdpa": sdpa, "add_": lambda: number.add_(1)}
        try:
            timings = interleave(functions, MAX_CALLS)
        except (NotImplementedError, RuntimeError) as error:  # no kernel serves it on this device
            print(f"{name} missing: {error}")
            continue
        yield {"case": name, **report.timing_record(timings, "fa4", {})}
