"""The SM90 forward kernels in every schedule of the emulator: the same bits, and right ones."""

from __future__ import annotations

from dataclasses import replace

import cases
import fwd_schedules
import pytest
from cases import Case
from fwd_schedules import Options

EXP2_ERROR = fwd_schedules.EXP2_ERROR["sm90"]

pytestmark = pytest.mark.cpu_only("switches the emulator on itself")

CASES = [
    # Several tiles per block of threads: 132 of them, and borders of tiles in all positions.
    Case(batch=1, seqlen_q=700, seqlen_k=700, heads_q=40, heads_k=40, causal=True),
    Case(batch=1, seqlen_q=300, seqlen_k=500, heads_q=2, head_dim=128, head_dim_v=128),
    Case(batch=150, seqlen_q=20, seqlen_k=70, heads_q=2, heads_k=1, dtype="float16"),
    Case(seqlen_q=260, seqlen_k=300, causal=True, head_dim=128, head_dim_v=128, seqused=True),
    Case(seqlen_q=200, seqlen_k=333, window=(70, 20), softcap=4.0, sink="float32", data="hot"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_schedules_give_the_same_bits(case: Case, request: pytest.FixtureRequest) -> None:
    more = fwd_schedules.MORE_SCHEDULES if request.config.getoption("--full") else []
    schedules = [Options(), *fwd_schedules.SCHEDULES, *more]
    fwd_schedules.check_schedules("sm90", case, schedules, EXP2_ERROR)


@pytest.mark.parametrize("case", CASES[1:], ids=str)
@pytest.mark.parametrize("rounding", fwd_schedules.ROUNDING)
def test_undocumented_rounding_makes_no_difference(case: Case, rounding: str) -> None:
    work = fwd_schedules.problem(case)
    out, lse = fwd_schedules.run("sm90", work, fwd_schedules.ROUNDING[rounding])
    fwd_schedules.check(work, out, lse, EXP2_ERROR)


@pytest.mark.parametrize("case", cases.SMOKE, ids=str)
def test_smoke_in_a_random_schedule(case: Case) -> None:
    if case.dtype == "float32":
        case = replace(case, dtype="bfloat16")
    work = fwd_schedules.problem(case)
    out, lse = fwd_schedules.run("sm90", work, fwd_schedules.random_schedule(9))
    fwd_schedules.check(work, out, lse, EXP2_ERROR)
