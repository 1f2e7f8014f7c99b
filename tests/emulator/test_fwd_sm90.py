"""The SM90 forward kernels in every schedule of the emulator: the same bits, and right ones.

An output must not depend on when copies and products take effect, on how warps interleave, on which
lane elect.sync picks, or on the order of blocks. Where a wait is missing, one of these differs, or
the emulator reports a read of memory that was never written.
"""

from __future__ import annotations

from dataclasses import replace

import cases
import pytest
import reference
import tolerances
import torch
from cases import Case
from torch import Tensor

from flash_attn4 import flash_attn_func

emulator = pytest.importorskip(
    "flash_attn4.emulator", reason="no emulator in this build", exc_type=ImportError
)
Options = emulator.Options

pytestmark = pytest.mark.cpu_only("switches the emulator on itself")

SCHEDULES = [
    Options(policy="lazy"),
    Options(policy="lazy", order="descending"),
    *(Options(policy="random", seed=seed, order="random", random_election=True) for seed in (1, 2)),
]
MORE_SCHEDULES = [
    Options(policy="random", seed=seed, order="random", random_election=True)
    for seed in range(3, 21)
]

CASES = [
    # Several tiles per block of threads: 132 of them, and borders of tiles in all positions.
    Case(batch=1, seqlen_q=700, seqlen_k=700, heads_q=40, heads_k=40, causal=True),
    Case(batch=1, seqlen_q=300, seqlen_k=500, heads_q=2, head_dim=128, head_dim_v=128),
    Case(batch=150, seqlen_q=20, seqlen_k=70, heads_q=2, heads_k=1, dtype="float16"),
    Case(seqlen_q=260, seqlen_k=300, causal=True, head_dim=128, head_dim_v=128, seqused=True),
    Case(seqlen_q=200, seqlen_k=333, window=(70, 20), softcap=4.0, sink="float32", data="hot"),
]


def run(case: Case, options: Options) -> tuple[Tensor, Tensor]:
    inputs = case.inputs()
    with emulator.use("sm90", options):
        out, lse = flash_attn_func(
            inputs.q, inputs.k, inputs.v, **inputs.arguments(), return_lse=True
        )
    return out, lse


def check(case: Case, out: Tensor, lse: Tensor) -> None:
    inputs = case.inputs()
    spans, options = inputs.spans(), inputs.options
    expected, expected_lse = reference.attention(
        inputs.q.double(), inputs.k.double(), inputs.v.double(), iter(spans), options
    )
    eager, _ = reference.attention(inputs.q, inputs.k, inputs.v, iter(spans), options)
    factor = 3.0 if case.softcap else 2.0
    tolerances.check_largest_error("out", out, expected, eager, factor=factor)
    score = reference.largest_score(inputs.q, inputs.k, spans, options)
    tolerances.check_lse(lse, expected_lse, score)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_schedules_give_the_same_bits(case: Case, request: pytest.FixtureRequest) -> None:
    full = request.config.getoption("--full")
    out, lse = run(case, Options())
    check(case, out, lse)
    for options in [*SCHEDULES, *(MORE_SCHEDULES if full else [])]:
        other, other_lse = run(case, options)
        assert torch.equal(other, out), options
        assert torch.equal(other_lse, lse), options


@pytest.mark.parametrize("case", CASES[1:], ids=str)
@pytest.mark.parametrize(
    "options",
    [Options(accumulate="exact"), Options(perturbation=1.5e-7, seed=5)],
    ids=["exact-sums", "perturbed-functions"],
)
def test_undocumented_rounding_makes_no_difference(case: Case, options: Options) -> None:
    """Rounding inside a product and errors of ex2, lg2, rcp may be any within their bounds."""
    check(case, *run(case, options))


@pytest.mark.parametrize("case", cases.SMOKE, ids=str)
def test_smoke_in_a_random_schedule(case: Case) -> None:
    if case.dtype == "float32":
        case = replace(case, dtype="bfloat16")
    check(case, *run(case, Options(policy="random", seed=9, random_election=True)))
