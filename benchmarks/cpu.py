"""`run.py cpu`: attention on the CPU beside torch's, with torch's matmul as the yardstick."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import baselines
import report
import torch
from timing import interleave

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# torch has no fast float16 matmul on CPUs without instructions for it.
MATMUL_DTYPES = {**DTYPES, "fp16": torch.float32}
LENGTHS = (128, 512, 2048, 4096)
TOKENS = 4096  # batch * seqlen of the square cases
WIDTH = 256  # heads_q * head_dim of the square cases


@dataclass(frozen=True)
class Case:
    dtype: str
    batch: int
    seqlen_q: int
    seqlen_k: int
    heads_q: int
    heads_k: int
    head_dim: int
    causal: bool = False
    backward: bool = False

    def __str__(self) -> str:
        shape = f"b{self.batch} q{self.seqlen_q} k{self.seqlen_k} h{self.heads_q}/{self.heads_k}"
        kind = "fwd+bwd" if self.backward else "fwd"
        return f"{kind} {self.dtype} {shape} d{self.head_dim} {'causal' if self.causal else 'full'}"

    @property
    def flops(self) -> float:
        """Two matmuls forward, five backward; a causal mask leaves half of each."""
        one = 2.0 * self.batch * self.heads_q * self.seqlen_q * self.seqlen_k * self.head_dim
        return one * (7 if self.backward else 2) / (2 if self.causal else 1)


def cases(dtypes: list[str], lengths: list[int]) -> Iterator[Case]:
    for dtype in dtypes:
        for head_dim in (64, 128):
            heads = WIDTH // head_dim
            for length in lengths:
                shape = dtype, TOKENS // length, length, length, heads, heads, head_dim
                for causal in (False, True):
                    yield Case(*shape, causal)
                    yield Case(*shape, causal, backward=True)
        for backward in (False, True):  # eight query heads share two key heads
            yield Case(dtype, 2, 1024, 1024, 8, 2, 64, causal=True, backward=backward)
        for seqlen_k in (1024, 4096):  # one new token per sequence
            yield Case(dtype, 4, 1, seqlen_k, 16, 4, 128)


def calls(case: Case) -> dict[str, Callable[[], object]]:
    """The functions that compute the case."""
    from flash_attn4 import flash_attn_func

    torch.manual_seed(0)
    dtype = DTYPES[case.dtype]
    rows_q = case.batch, case.seqlen_q, case.heads_q, case.head_dim
    rows_k = case.batch, case.seqlen_k, case.heads_k, case.head_dim
    q, k, v, dout = (torch.randn(rows).to(dtype) for rows in (rows_q, rows_k, rows_k, rows_q))
    inputs = q, k, v
    for x in inputs:
        x.requires_grad_(case.backward)

    def call(function: Callable[..., torch.Tensor]) -> object:
        out = function(*inputs, causal=case.causal)
        return torch.autograd.grad(out, inputs, dout) if case.backward else out

    return {"fa4": lambda: call(flash_attn_func), "sdpa": lambda: call(baselines.sdpa)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--lengths", nargs="+", type=int, default=list(LENGTHS))


def run(args: argparse.Namespace) -> Iterator[report.Record]:
    for case in cases(args.dtypes, args.lengths):
        matmul, matmul_flops = baselines.matmul(MATMUL_DTYPES[case.dtype], "cpu")
        timings = interleave({**calls(case), "matmul": matmul})
        flops = {"fa4": case.flops, "sdpa": case.flops, "matmul": matmul_flops}
        yield {"case": str(case), **report.timing_record(timings, "fa4", flops)}
