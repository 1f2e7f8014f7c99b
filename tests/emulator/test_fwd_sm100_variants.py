"""What SM100 forward kernels trade accuracy for, one by one, and what each of their waits is for.

Variants of a kernel are compiled here and run through its launch code.
"""

from __future__ import annotations

from dataclasses import replace

import fwd_mutations
import fwd_schedules
import fwd_variants
import pytest
import tolerances
import torch
from cases import Case
from fwd_mutations import run
from fwd_schedules import Call, Options, Packed, problem

pytestmark = pytest.mark.cpu_only("switches the emulator on itself")

POLYNOMIAL_ERROR = tolerances.EXP2_POLYNOMIAL_ERROR
EARLY = "config.early_fragments = 3"
LATE = "config.early_fragments = 4"
NO_SLACK = "config.slack_log2 = 0"
NO_EMULATION = "config.emulation.pairs = 0"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One kernel stands for all, which differ in sizes and shares alone."""
    full = metafunc.config.getoption("--full")
    if "head_dim" in metafunc.fixturenames:
        dims = [128, 64, 96, 192] if full else [128]
        dtypes = ["bfloat16", "float16"] if full else ["bfloat16"]
        metafunc.parametrize("head_dim", dims)
        metafunc.parametrize("dtype", dtypes)


def kernel_name(head_dim: int, dtype: str) -> str:
    return f"fa4_fwd_sm100_hd{head_dim}_{'bf16' if dtype == 'bfloat16' else 'fp16'}"


def calls(head_dim: int, dtype: str) -> list[Call]:
    """Several steps of ordinary rows, and of peaked ones, whose reference moves often."""
    case = Case(dtype, 1, 270, 500, 2, 2, head_dim, min(head_dim, 128))
    return [replace(case, seqlen_q=500, causal=True), replace(case, data="hot")]


SCHEDULES = [Options(), *fwd_schedules.SCHEDULES]


def test_plain_softmax(head_dim: int, dtype: str) -> None:
    """Without slack, polynomials and early weights: the same bits, and a better lse."""
    kernel = kernel_name(head_dim, dtype)
    plain = fwd_variants.compiled(kernel, defines=(fwd_variants.PLAIN,))
    schedules = [replace(options, images={kernel: plain}, ctas=1) for options in SCHEDULES]
    for call in calls(head_dim, dtype):
        fwd_schedules.check_schedules("sm100", call, schedules, tolerances.EXP2_ERROR)


@pytest.mark.parametrize("defines", [(fwd_variants.PLAIN,), ()], ids=["plain", "as-built"])
def test_early_weights_change_no_bit(defines: tuple[str, ...], head_dim: int, dtype: str) -> None:
    """Rule G: products take the same weights in the same order."""
    kernel = kernel_name(head_dim, dtype)
    early, late = (fwd_variants.compiled(kernel, (x,), defines) for x in (EARLY, LATE))
    assert early != late
    for work in map(problem, calls(head_dim, dtype)):
        for options in SCHEDULES:
            out, lse = run(work, kernel, early, options)
            other, other_lse = run(work, kernel, late, options)
            assert torch.equal(other, out), options
            assert torch.equal(other_lse, lse), options


@pytest.mark.parametrize("change", [NO_SLACK, NO_EMULATION])
def test_slack_and_polynomials_cost_no_more_than_allowed(
    change: str, head_dim: int, dtype: str
) -> None:
    """They change bits of lse, so each of them does something; both sides keep the rules."""
    kernel = kernel_name(head_dim, dtype)
    built, changed = fwd_variants.compiled(kernel), fwd_variants.compiled(kernel, (change,))
    error = tolerances.EXP2_ERROR if change == NO_EMULATION else POLYNOMIAL_ERROR
    for work in map(problem, calls(head_dim, dtype)):
        out, lse = run(work, kernel, built, Options())
        fwd_schedules.check(work, out, lse, POLYNOMIAL_ERROR)
        other, other_lse = run(work, kernel, changed, Options())
        fwd_schedules.check(work, other, other_lse, error)
        assert not torch.equal(other_lse, lse)
        assert not torch.equal(other, out)


def test_a_variant_without_change_is_the_kernel(head_dim: int, dtype: str) -> None:
    """What is compiled here and what is in the library give the same bits."""
    kernel = kernel_name(head_dim, dtype)
    for work in map(problem, calls(head_dim, dtype)):
        out, lse = fwd_schedules.run("sm100", work, Options(ctas=1))
        other, other_lse = run(work, kernel, fwd_variants.compiled(kernel), Options())
        assert torch.equal(other, out)
        assert torch.equal(other_lse, lse)


# ---- Mutations -----------------------------------------------------------------------------------


def killers(head_dim: int) -> list[Call]:
    """What objects fastest comes first: ragged values, rescaling and staged output, two tiles per
    block, more tiles per block than slots."""
    dims = {"head_dim": head_dim, "head_dim_v": 128}
    one_head = {"heads_q": 1, "heads_k": 1}
    return [
        Packed((70, 260, 1), (200, 300, 129), (170, 257, 128), Case(causal=True, **dims)),
        Case(batch=1, seqlen_q=500, seqlen_k=900, heads_q=2, data="hot", **dims),
        Case(batch=160, seqlen_q=5, seqlen_k=300, **one_head, **dims),
        Case(batch=900, seqlen_q=2, seqlen_k=70, **one_head, **dims),
    ]


@pytest.mark.sampled("site", fwd_mutations.sites(), 4)
def test_every_statement_that_hands_over_is_needed(site: fwd_mutations.Site) -> None:
    """With head dim 128, or with 192, whose values come in parts, where 128 does not have it. Those
    of pairs alone have test_fwd_sm100_pair.py."""
    calls = {kernel_name(head_dim, "bfloat16"): killers(head_dim) for head_dim in (128, 192)}
    if all(site.without_effect(kernel) for kernel in calls):
        pytest.skip(f"{site}: is in kernels of pairs alone")
    fwd_mutations.check_needed(site, [*calls], calls)
