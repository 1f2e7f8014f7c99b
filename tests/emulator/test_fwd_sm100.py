"""The SM100 forward kernels in every schedule of the emulator: the same bits, and right ones.

Those of one CTA per tile; those of pairs have test_fwd_sm100_pair.py.
"""

from __future__ import annotations

from dataclasses import replace

import cases
import fwd_schedules
import pytest
import reference
from cases import Case
from fwd_schedules import Call, Options, Packed

EXP2_ERROR = fwd_schedules.EXP2_ERROR["sm100"]

pytestmark = pytest.mark.cpu_only("switches the emulator on itself")

HD96 = {"head_dim": 96, "head_dim_v": 96}
HD128 = {"head_dim": 128, "head_dim_v": 128}
HD192 = {"head_dim": 192, "head_dim_v": 128}

# Several tiles per block of threads: 148 of them, and borders of tiles in all positions.
PERSISTENT: list[Call] = [
    Case(batch=1, seqlen_q=300, seqlen_k=300, heads_q=80, heads_k=80, causal=True, **HD128),
    Case(batch=900, seqlen_q=2, seqlen_k=70, heads_q=2, heads_k=1, dtype="float16"),
    Case(batch=150, seqlen_q=5, seqlen_k=140, heads_q=2, causal=True, **HD192),
    Case(batch=150, seqlen_q=30, seqlen_k=200, window=(60, 9), heads_q=2, seqused=True, **HD96),
]
# Rings of keys and values go round more than once.
LONG: list[Call] = [
    Case(batch=1, seqlen_q=300, seqlen_k=1200, heads_q=1, heads_k=1, **HD128),
    Case(batch=1, seqlen_q=700, seqlen_k=900, heads_q=1, heads_k=1, causal=True, dtype="float16"),
    Case(batch=1, seqlen_q=520, seqlen_k=777, heads_q=1, heads_k=1, causal=True, **HD96),
    Case(batch=1, seqlen_q=130, seqlen_k=800, heads_q=2, dtype="float16", **HD192),
]
FEATURES: list[Call] = [
    Case(seqlen_q=200, seqlen_k=333, window=(70, 20), softcap=4.0, sink="float32", data="hot"),
    Case(seqlen_q=260, seqlen_k=300, causal=True, seqused=True, dtype="float16", **HD128),
    Case(seqlen_q=257, seqlen_k=260, window=(128, 0), sink="bfloat16", **HD192),
    Case(seqlen_q=140, seqlen_k=400, softcap=9.0, causal=True, dtype="float16", **HD96),
]
# Peaked rows move the reference often, outliers at once; one-hot values return the weights.
DATA: list[Call] = [
    Case(seqlen_q=270, seqlen_k=390, data="hot", heads_q=2, **HD128),
    Case(seqlen_q=140, seqlen_k=500, data="hot", causal=True, dtype="float16", **HD192),
    Case(seqlen_q=256, seqlen_k=512, data="outlier", heads_q=2, dtype="float16", **HD96),
    Case(seqlen_q=190, seqlen_k=300, data="one_hot", causal=True, heads_q=2, **HD128),
    Case(seqlen_q=190, seqlen_k=300, data="one_hot", heads_q=2, dtype="float16"),
]
# NaN behind what counts, in either half of a step's values and behind whole sequences.
PACKED: list[Call] = [
    Packed((70, 260, 1), (200, 300, 129), (170, 257, 128), Case(causal=True, **HD128)),
    Packed((40, 140, 90), (50, 260, 300), (30, 200, 289), Case(dtype="float16", **HD192)),
    Packed((3, 0, 300), (300, 40, 150), (0, 40, 150), Case(causal=True, heads_q=10)),
    Packed((129, 64), (127, 333), (127, 321), Case(window=(90, -1), sink="float32", **HD96)),
]

SMALL = [*FEATURES, *DATA, *PACKED, *cases.GROUPED]


def alone(options: Options) -> Options:
    """Dispatch would take pairs where they pay."""
    return replace(options, ctas=1)


@pytest.mark.parametrize("call", [*PERSISTENT, *LONG, *SMALL], ids=str)
def test_schedules_give_the_same_bits(call: Call, request: pytest.FixtureRequest) -> None:
    schedules = [Options(), *fwd_schedules.SCHEDULES]
    if request.config.getoption("--full"):
        schedules += fwd_schedules.MORE_SCHEDULES
    elif call in PERSISTENT:  # seconds each
        schedules = schedules[::2]
    fwd_schedules.check_schedules("sm100", call, [*map(alone, schedules)], EXP2_ERROR)


@pytest.mark.parametrize("call", [*LONG, *SMALL], ids=str)
@pytest.mark.parametrize("rounding", fwd_schedules.ROUNDING)
def test_undocumented_rounding_makes_no_difference(call: Call, rounding: str) -> None:
    work = fwd_schedules.problem(call)
    out, lse = fwd_schedules.run("sm100", work, alone(fwd_schedules.ROUNDING[rounding]))
    fwd_schedules.check(work, out, lse, EXP2_ERROR)


@pytest.mark.parametrize("case", cases.SMOKE, ids=str)
def test_smoke_in_a_random_schedule(case: Case) -> None:
    if case.dtype == "float32":
        case = replace(case, dtype="bfloat16")
    work = fwd_schedules.problem(case)
    out, lse = fwd_schedules.run("sm100", work, alone(fwd_schedules.random_schedule(9)))
    fwd_schedules.check(work, out, lse, EXP2_ERROR)


def test_thousands_of_tokens(request: pytest.FixtureRequest) -> None:
    """64 steps per tile: sums and phases far from where they began."""
    if not request.config.getoption("--full"):
        pytest.skip("takes half a minute: only with --full")
    case = Case(batch=1, seqlen_q=8192, seqlen_k=8192, heads_q=1, heads_k=1, causal=True, **HD128)
    whole = fwd_schedules.problem(case)
    out, lse = fwd_schedules.run("sm100", whole, alone(fwd_schedules.random_schedule(7)))
    # Rows in parts, each with the keys that it sees: the reference would take gigabytes at once.
    spans = [
        reference.Span(
            q=(0, slice(last - 512, last)),
            k=(0, slice(0, last)),
            lse=(0, slice(None), slice(last - 512, last)),
        )
        for last in range(512, 8193, 512)
    ]
    fwd_schedules.check(replace(whole, spans=spans), out, lse, EXP2_ERROR)
