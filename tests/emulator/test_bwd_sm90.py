"""The SM90 backward kernels in every schedule of the emulator: the same bits.

Deterministic, so that dq does not depend on the order in which blocks of threads add to it; the
values are checked against float64 in tests/ops.
"""

from __future__ import annotations

import pytest
import torch
from cases import Case
from fwd_schedules import MORE_SCHEDULES, SCHEDULES, Options, emulator
from torch import Tensor

from flash_attn4 import flash_attn_func

pytestmark = pytest.mark.cpu_only("switches the emulator on itself")

HD128 = {"head_dim": 128, "head_dim_v": 128}
CASES = [
    Case(batch=1, seqlen_q=300, seqlen_k=420, heads_q=4, heads_k=2, causal=True, **HD128),
    Case(seqlen_q=200, seqlen_k=333, window=(70, 20), softcap=4.0, sink="float32", data="hot"),
    Case(seqlen_q=260, seqlen_k=130, causal=True, seqused=True, dtype="float16", heads_q=2),
    Case(batch=1, seqlen_q=64, seqlen_k=128, heads_q=1, heads_k=1, **HD128),
    Case(batch=1, seqlen_q=129, seqlen_k=300, heads_q=2, heads_k=1, dtype="float16", **HD128),
]


def gradients(case: Case, options: Options) -> list[Tensor]:
    inputs = case.inputs()
    leaves = [x.detach().requires_grad_() for x in (inputs.q, inputs.k, inputs.v)]
    with emulator.use("sm90", options):
        out = flash_attn_func(*leaves, **inputs.arguments(), deterministic=True)
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(3))
        out.backward(weights.to(out.dtype))
    return [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_schedules_give_the_same_bits(case: Case, request: pytest.FixtureRequest) -> None:
    full = request.config.getoption("--full")
    expected = gradients(case, Options())
    for options in [*SCHEDULES, *(MORE_SCHEDULES if full else [])]:
        for name, got, want in zip("qkv", gradients(case, options), expected, strict=True):
            assert torch.equal(got, want), f"d{name}, {options}"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_nothing_is_unordered(case: Case) -> None:
    """No race, missing fence or wait, as the happens-before checker sees it."""
    gradients(case, Options(check="strict"))
    gradients(case, Options(check="strict", policy="random", seed=4, random_election=True))
