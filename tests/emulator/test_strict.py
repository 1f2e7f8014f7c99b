"""Kernels for Hopper and Blackwell, all of them, at the letter of the PTX ISA and of their plans.

test_kernel_plans.py and the tests of pairs look closer at calls; here no kernel is forgotten.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import bwd_schedules
import fwd_schedules
import pytest
import torch
from cases import Case
from fwd_schedules import Call, Options, Packed, emulator, problem, random_schedule
from test_use import GENERATED, partials
from torch import Tensor

from flash_attn4 import _C, flash_attn_combine

pytestmark = pytest.mark.cpu_only("switches the emulator on itself")

PLANS = emulator.kernel_plans()
KERNELS = [kernel["name"] for kernel in _C.kernels() if kernel["target"] != "cpu"]
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}

Run = Callable[[Options], Sequence[Tensor]]


def attention_calls(dtype: str, dim: int, dim_v: int) -> list[Call]:
    """Several tiles with and without masks, queries that share tiles, NaN behind what counts."""
    dims = {"dtype": dtype, "head_dim": dim, "head_dim_v": dim_v}
    return [
        Case(batch=1, seqlen_q=300, seqlen_k=420, causal=True, **dims),
        Case(seqlen_q=9, seqlen_k=300, window=(70, 20), softcap=4.0, sink="float32", **dims),
        Packed((70, 260, 1), (200, 300, 129), (170, 257, 128), Case(causal=True, **dims)),
    ]


def forward(arch: str, ctas: int, call: Call, options: Options) -> Sequence[Tensor]:
    return fwd_schedules.run(arch, problem(call), replace(options, ctas=ctas))


def backward(arch: str, ctas: int, call: Call, options: Options) -> Sequence[Tensor]:
    found = bwd_schedules.gradients(
        arch, problem(call), replace(options, ctas=ctas), deterministic=True, through_lse=True
    )
    return [x for x in (found.q, found.k, found.v, found.sink) if x is not None]


def combine(arch: str, dtype: str, options: Options) -> Sequence[Tensor]:
    with emulator.use(arch, options):
        return flash_attn_combine(*partials(getattr(torch, dtype)))


def runs(kernel: str) -> list[Run]:
    """Calls of which at least one takes the kernel."""
    words = kernel.split("_")
    op = words[1]
    arch = next(word for word in words if word.startswith("sm"))
    dtype = DTYPES.get(words[-1], "bfloat16")
    if op == "combine":
        return [functools.partial(combine, arch, dtype)]
    dim = next((int(word[2:]) for word in words if word.startswith("hd")), 64)
    function = {"fwd": forward, "bwd": backward}[op]
    ctas = 2 if "pair" in words else 1
    calls = attention_calls(dtype, dim, min(dim, 128))
    return [functools.partial(function, arch, ctas, call) for call in calls]


def run_all(kernel: str, options: Options) -> None:
    for run in runs(kernel):
        run(options)


@pytest.mark.sampled("kernel", KERNELS, 12)
def test_calls_take_the_kernel(kernel: str) -> None:
    """One that ends at once is noticed."""
    path = GENERATED / f"{kernel}.ptx"
    if not path.exists():
        pytest.skip(f"no {path}: the build was made elsewhere")
    broken = re.sub(r"(\.entry [^{]*\{)", r"\1 trap;", path.read_text(), count=1)
    with pytest.raises(RuntimeError, match=f"launch of {kernel}: .*trap"):
        run_all(kernel, Options(images={kernel: broken}))


@pytest.mark.sampled("kernel", KERNELS, 4)
def test_strict(kernel: str, request: pytest.FixtureRequest) -> None:
    """Under 20 seeds with --full, and in every schedule the bits of a run without the check."""
    seeds = range(1, 21 if request.config.getoption("--full") else 2)
    plain = [Options(), Options(policy="lazy", order="descending"), *map(random_schedule, seeds)]
    for run in runs(kernel):
        expected = run(Options())
        for options in plain:
            found = run(replace(options, check="strict", plans=PLANS))
            for index, (got, want) in enumerate(zip(found, expected, strict=True)):
                assert torch.equal(got, want), f"result {index}, {options}"
