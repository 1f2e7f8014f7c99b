"""The SM100 forward of CTA pairs: right in every schedule, clean, and what only pairs get wrong.

Dispatch takes pairs where they pay; here every call takes them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import fwd_mutations
import fwd_schedules
import fwd_variants
import pytest
import tolerances
import torch
from cases import Case
from fwd_schedules import Call, Options, Packed, emulator, problem, random_schedule
from machines import ROOT

from flash_attn4 import _C

pytestmark = pytest.mark.cpu_only("switches the emulator on itself")

EXP2_ERROR = fwd_schedules.EXP2_ERROR["sm100"]
PLANS = emulator.kernel_plans()
KERNEL = "fa4_fwd_sm100_hd128_pair_bf16"

HD128 = {"head_dim": 128, "head_dim_v": 128}
HD192 = {"head_dim": 192, "head_dim_v": 128}

# Several tiles per pair, of which there are 74; lengths that leave the second CTA some rows, one,
# or none.
PERSISTENT: list[Call] = [
    Case(batch=1, seqlen_q=300, seqlen_k=300, heads_q=80, heads_k=80, causal=True, **HD128),
    Case(batch=150, seqlen_q=257, seqlen_k=140, heads_q=1, heads_k=1, dtype="float16", **HD128),
    Case(batch=80, seqlen_q=5, seqlen_k=140, heads_q=2, causal=True, **HD192),
    Case(batch=80, seqlen_q=30, seqlen_k=200, window=(60, 9), heads_q=2, seqused=True, **HD192),
]
# Rings of keys and values go round more than once, and more than one tile per head.
LONG: list[Call] = [
    Case(batch=1, seqlen_q=600, seqlen_k=1200, heads_q=1, heads_k=1, **HD128),
    Case(batch=1, seqlen_q=1100, seqlen_k=900, heads_q=1, heads_k=1, causal=True, **HD128),
    Case(batch=1, seqlen_q=520, seqlen_k=777, heads_q=1, heads_k=1, causal=True, **HD192),
    Case(batch=1, seqlen_q=513, seqlen_k=800, heads_q=2, dtype="float16", **HD192),
]
FEATURES: list[Call] = [
    Case(seqlen_q=200, seqlen_k=333, window=(70, 20), softcap=4.0, sink="float32", **HD128),
    Case(seqlen_q=540, seqlen_k=300, causal=True, seqused=True, dtype="float16", **HD128),
    Case(seqlen_q=257, seqlen_k=260, window=(128, 0), sink="bfloat16", **HD192),
    Case(seqlen_q=140, seqlen_k=400, softcap=9.0, causal=True, dtype="float16", **HD192),
    Case(seqlen_q=300, seqlen_k=200, head_dim=112, head_dim_v=40),
    Case(batch=1, seqlen_q=7, seqlen_k=1, heads_q=2, heads_k=1, **HD128),
]
DATA: list[Call] = [
    Case(seqlen_q=470, seqlen_k=390, data="hot", heads_q=2, **HD128),
    Case(seqlen_q=340, seqlen_k=500, data="hot", causal=True, dtype="float16", **HD192),
    Case(seqlen_q=400, seqlen_k=512, data="outlier", heads_q=2, dtype="float16", **HD128),
    Case(seqlen_q=390, seqlen_k=300, data="one_hot", causal=True, heads_q=2, **HD128),
]
# NaN behind what counts, in the columns of either CTA and behind whole sequences.
PACKED: list[Call] = [
    Packed((70, 560, 1), (200, 300, 129), (170, 257, 128), Case(causal=True, **HD128)),
    Packed((40, 340, 90), (50, 260, 300), (30, 200, 289), Case(dtype="float16", **HD192)),
    Packed((3, 0, 300), (300, 40, 150), (0, 40, 150), Case(causal=True, heads_q=10, **HD128)),
]
# Heads packed into tiles of 4 x 128 rows, with and without rows that no query fills.
GROUPED: list[Call] = [
    Case(
        batch=1,
        seqlen_q=50,
        seqlen_k=200,
        heads_q=2 * group,
        heads_k=2,
        causal=group % 2 == 0,
        **dims,
    )
    for group, dims in ((3, HD128), (4, HD192), (7, HD128), (8, HD128))
]
SMALL = [*FEATURES, *DATA, *PACKED, *GROUPED]


def pairs(options: Options) -> Options:
    return replace(options, ctas=2)


def test_calls_take_pairs() -> None:
    """A kernel of that name that ends at once leaves the output as it was."""
    ptx = fwd_variants.compiled(KERNEL)
    broken = re.sub(r"(\.maxntid[^{]*\{)", r"\1 trap;", ptx, count=1)
    assert broken != ptx
    work = problem(LONG[0])
    with pytest.raises(RuntimeError, match="trap"):
        fwd_schedules.run("sm100", work, Options(ctas=2, images={KERNEL: broken}))
    fwd_schedules.run("sm100", work, Options(ctas=1, images={KERNEL: broken}))


@pytest.mark.sampled("call", [*PERSISTENT, *LONG, *SMALL], 9)
def test_schedules_give_the_same_bits(call: Call, request: pytest.FixtureRequest) -> None:
    schedules = [Options(), *fwd_schedules.SCHEDULES]
    if request.config.getoption("--full"):
        schedules += fwd_schedules.MORE_SCHEDULES
    elif call in PERSISTENT:  # seconds each
        schedules = schedules[::2]
    fwd_schedules.check_schedules("sm100", call, [*map(pairs, schedules)], EXP2_ERROR)


@pytest.mark.sampled("call", [*LONG, *SMALL], 5)
@pytest.mark.parametrize("rounding", fwd_schedules.ROUNDING)
def test_undocumented_rounding_makes_no_difference(call: Call, rounding: str) -> None:
    work = problem(call)
    out, lse = fwd_schedules.run("sm100", work, pairs(fwd_schedules.ROUNDING[rounding]))
    fwd_schedules.check(work, out, lse, EXP2_ERROR)


@pytest.mark.sampled("call", [*LONG, *SMALL], 9)
def test_both_forms_give_the_same_bits(call: Call) -> None:
    """Rows meet the same keys in the same order, whoever else is in their tile, and blocks that
    they do not see change nothing: which form dispatch takes shows in no result."""
    work = problem(call)
    out, lse = fwd_schedules.run("sm100", work, Options(ctas=2))
    other, other_lse = fwd_schedules.run("sm100", work, Options(ctas=1))
    assert torch.equal(out, other)
    assert torch.equal(lse, other_lse)


def test_plain_softmax() -> None:
    """Without slack, polynomials and early weights: the same bits, and a better lse."""
    plain = fwd_variants.compiled(KERNEL, defines=(fwd_variants.PLAIN,))
    schedules = [Options(), *fwd_schedules.SCHEDULES]
    schedules = [replace(options, images={KERNEL: plain}, ctas=2) for options in schedules]
    for call in (LONG[0], DATA[0]):
        fwd_schedules.check_schedules("sm100", call, schedules, tolerances.EXP2_ERROR)


# ---- Clean ---------------------------------------------------------------------------------------


@pytest.mark.sampled("call", [PERSISTENT[0], PERSISTENT[2], *LONG, *SMALL], 7)
def test_strict(call: Call, request: pytest.FixtureRequest) -> None:
    """At the letter of the PTX ISA and as the plan says, under 20 seeds with --full."""
    seeds = range(1, 21 if request.config.getoption("--full") else 2)
    schedules = [Options(), Options(policy="lazy"), *map(random_schedule, seeds)]
    schedules = [replace(options, check="strict", plans=PLANS, ctas=2) for options in schedules]
    fwd_schedules.check_schedules("sm100", call, schedules, EXP2_ERROR)


# ---- What a pair alone can get wrong -------------------------------------------------------------


@dataclass(frozen=True)
class Hazard:
    """A change of a header, and what the check reports of it."""

    name: str
    file: str
    old: str
    new: str
    says: str

    def __str__(self) -> str:
        return self.name

    def replaced(self) -> tuple[str, str]:
        text = (ROOT / self.file).read_text()
        assert text.count(self.old) == 1, f"{self.file}: {self.old}: {text.count(self.old)} times"
        return self.file.removeprefix("include/"), text.replace(self.old, self.new)


BARRIERS, KERNEL_FILE = "csrc/sm100/barriers.cuh", "csrc/sm100/fwd/kernel.cuh"
PLAN = "csrc/sm100/fwd/plan.h"
HAZARDS = [
    Hazard(
        "a CTA exits while its peer may still reach it",
        KERNEL_FILE,
        "    meet<true>();\n",
        "    block.rank() == 0 ? meet<true>() : __syncthreads();\n",
        r"CTA [01] exits while warp \d+ of CTA [01] .*, may still use its shared memory",
    ),
    Hazard(
        "a CTA frees tensor memory while its peer still multiplies",
        KERNEL_FILE,
        "    meet<true>();\n",
        "",
        "tensor memory: columns .* are not allocated\n *in tcgen05.mma",
    ),
    Hazard(
        "barriers of the peer are used before they are there",
        KERNEL_FILE,
        "  meet<Plan::kPair>();\n",
        "  __syncthreads();\n",
        "no barrier orders the init before the use|is no mbarrier|not initialised",
    ),
    Hazard(
        "commits reach the leader alone",
        "include/flash_attn4/device/ptx/tcgen05.cuh",
        "static_cast<uint16_t>(3))",
        "static_cast<uint16_t>(1))",
        r"CTA 1.*waits for|waits for the end of phase",
    ),
    Hazard(
        "the leader expects the bytes of one CTA",
        BARRIERS,
        "Plan::kCtas * bytes",
        "bytes",
        "mbarrier|copy",
    ),
    Hazard(
        "both CTAs announce bytes",
        BARRIERS,
        "    if (rank() == 0)\n",
        "",
        r"plan: .*: warp 13 of CTA 1 .load. .* at the one of CTA 1, the plan says the leader",
    ),
    Hazard(
        "weights of one CTA are enough",
        PLAN,
        '{"p_early",    kHalves,     4 * kCtas, ',
        '{"p_early",    kHalves,     4,         ',
        "plan: p_early.* expects 8 arrivals",
    ),
    Hazard(
        "the peer signals itself",
        BARRIERS,
        "return leader + ",
        "return Own::address + ",
        r"plan: .*: warp \d+ of CTA 1 .* at the one of CTA 1, the plan says the leader",
    ),
    Hazard(
        "values are cleaned before they have landed",
        "csrc/sm100/fwd/correction.cuh",
        "        b.template wait<kVLanded>(0, landed_parity);\n",
        "",
        "a copy",
    ),
]


@pytest.mark.sampled("hazard", HAZARDS, 5)
def test_a_hazard_is_found(hazard: Hazard) -> None:
    ptx = fwd_variants.compiled(KERNEL, replaced=(hazard.replaced(),))
    options = Options(check="strict", plans=PLANS, max_findings=3)
    report = fwd_mutations.objection(KERNEL, ptx, PACKED[0], options)
    assert re.search(hazard.says, report), report or "nothing"


def test_counts_of_one_cta_race_without_a_plan() -> None:
    """The order of events alone tells that the weights of the peer were not waited for."""
    hazard = next(x for x in HAZARDS if x.name == "weights of one CTA are enough")
    ptx = fwd_variants.compiled(KERNEL, replaced=(hazard.replaced(),))
    report = fwd_mutations.objection(KERNEL, ptx, LONG[0], Options(check="strict"))
    assert report
    assert report != "other bits"


def killers() -> list[Call]:
    """Ragged values, rescaling and staged output, two tiles per pair, more tiles than slots."""
    one_head = {"heads_q": 1, "heads_k": 1}
    return [
        PACKED[0],
        Case(batch=1, seqlen_q=600, seqlen_k=900, heads_q=2, data="hot", **HD128),
        Case(batch=80, seqlen_q=5, seqlen_k=300, **one_head, **HD128),
        Case(batch=450, seqlen_q=2, seqlen_k=70, **one_head, **HD128),
    ]


@pytest.mark.sampled("site", fwd_mutations.sites(), 4)
def test_every_statement_that_hands_over_is_needed(site: fwd_mutations.Site) -> None:
    if site.without_effect(KERNEL):
        pytest.skip(f"{site}: is not in the kernel of a pair")
    fwd_mutations.check_needed(site, [KERNEL], {KERNEL: killers()})


# ---- Traffic -------------------------------------------------------------------------------------


@pytest.mark.parametrize("head_dim", [128, 192])
@pytest.mark.parametrize("ctas", [1, 2])
def test_bytes_are_those_of_the_plan(ctas: int, head_dim: int) -> None:
    """Of products in shared memory, and of keys and values from global memory, per step and CTA."""
    tiles, steps = 3, 5
    rows = 256 * ctas * tiles
    case = Case("bfloat16", 1, rows, 128 * steps, 1, 1, head_dim, 128)
    form = "_pair" if ctas == 2 else ""
    plan = _C.kernel_plans()[f"fa4_fwd_sm100_hd{head_dim}{form}_bf16"]
    work = problem(case)
    with emulator.use("sm100", Options(ctas=ctas)) as session:
        work.forward()
    counted = session.statistics
    count = tiles * ctas * steps
    queries = rows * head_dim * 2
    assert counted["shared_operand_bytes"] == count * plan["operand_bytes"]
    assert counted["global_load_bytes"] - queries == count * plan["copy_bytes"]
