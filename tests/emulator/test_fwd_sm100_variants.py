"""What SM100 forward kernels trade accuracy for, one by one, and what each of their waits is for.

Variants of a kernel are compiled here and run through its launch code.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, replace
from pathlib import Path

import fwd_schedules
import fwd_variants
import pytest
import tolerances
import torch
from cases import Case
from fwd_schedules import Call, Options, Packed, Problem, problem, random_schedule
from machines import ROOT
from torch import Tensor

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


def run(work: Problem, kernel: str, ptx: str, options: Options) -> tuple[Tensor, Tensor]:
    return fwd_schedules.run("sm100", work, replace(options, images={kernel: ptx}))


SCHEDULES = [Options(), *fwd_schedules.SCHEDULES]


def test_plain_softmax(head_dim: int, dtype: str) -> None:
    """Without slack, polynomials and early weights: the same bits, and a better lse."""
    kernel = kernel_name(head_dim, dtype)
    plain = fwd_variants.compiled(kernel, defines=(fwd_variants.PLAIN,))
    schedules = [replace(options, images={kernel: plain}) for options in SCHEDULES]
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
        out, lse = fwd_schedules.run("sm100", work, Options())
        other, other_lse = run(work, kernel, fwd_variants.compiled(kernel), Options())
        assert torch.equal(other, out)
        assert torch.equal(other_lse, lse)


# ---- Mutations -----------------------------------------------------------------------------------
#
# Every wait, arrival and commit of the kernel is left out once. Where nothing objects, either the
# statement is superfluous or the schedules are too tame to tell.

FILES = [
    "csrc/common/fwd_schedule.cuh",
    *(f"csrc/sm100/fwd/{role}.cuh" for role in ("correction", "load", "mma", "softmax", "store")),
]
STATEMENTS = re.compile(
    r"\bb\.template (?:wait|arrive|release)<\w+>\([^;]*\);"
    r"|\bsignal_weights<\w+>\(\);"
    r"|\bptx::tcgen05_(?:commit\([^;]*\)|wait_st\(\));"
    r"|\bptx::bulk_wait_group_read<0>\(\);"
)


@dataclass(frozen=True)
class Site:
    """A statement that hands something over."""

    file: str
    first: int
    last: int

    @property
    def text(self) -> str:
        return (ROOT / self.file).read_text()

    def __str__(self) -> str:
        line = self.text.count("\n", 0, self.first) + 1
        return f"{Path(self.file).name}:{line}:{self.text[self.first : self.last - 1]}"

    def without(self) -> tuple[str, str]:
        """The file and its text with an empty statement."""
        return self.file, f"{self.text[: self.first]};{self.text[self.last :]}"


def sites() -> list[Site]:
    return [
        Site(name, *match.span())
        for name in FILES
        for match in STATEMENTS.finditer((ROOT / name).read_text())
    ]


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


@functools.cache
def right_bits(kernel: str, call: Call) -> tuple[Tensor, Tensor]:
    return run(problem(call), kernel, fwd_variants.compiled(kernel), Options())


def objection(kernel: str, ptx: str, call: Call, options: Options) -> str:
    """How the emulator or the result shows that the kernel is broken; empty: not at all."""
    try:
        out, lse = run(problem(call), kernel, ptx, options)
    except RuntimeError as error:
        return str(error)
    right, right_lse = right_bits(kernel, call)
    return "" if torch.equal(out, right) and torch.equal(lse, right_lse) else "other bits"


@pytest.mark.sampled("site", sites(), 4)
def test_every_statement_that_hands_over_is_needed(site: Site) -> None:
    """With head dim 128, or with 192, whose values come in parts, where 128 does not have it."""
    for head_dim in (128, 192):
        kernel = kernel_name(head_dim, "bfloat16")
        ptx = fwd_variants.compiled(kernel, replaced=(site.without(),))
        if ptx != fwd_variants.compiled(kernel):
            break
    for call in killers(head_dim):
        # Random schedules delay copies by a few turns, not by as long as a softmax takes: that
        # values are waited for shows by the order of events alone.
        for options in (
            Options(policy="lazy"),
            *map(random_schedule, (1, 2, 3)),
            Options(check="strict"),
        ):
            if objection(kernel, ptx, call, options):
                return
    raise AssertionError(f"{site}: nothing tells that it is missing")
