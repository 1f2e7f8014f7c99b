"""The SM100 backward for head dims (192, 128), whose steps are serial: right in every schedule,
clean, and what it alone can get wrong. A pair of CTAs is its only form.
"""

from __future__ import annotations

import re
from dataclasses import replace

import bwd_mutations
import bwd_pair_calls
import bwd_schedules
import fwd_schedules
import fwd_variants
import pytest
import torch
from bwd_pair_calls import HD192, ONE
from cases import Case
from fwd_mutations import Site
from fwd_schedules import Call, Options, emulator, problem, random_schedule
from test_bwd_sm100_pair import MORE_SCHEDULES, SCHEDULES
from test_fwd_sm100_pair import Hazard

from flash_attn4 import _C

pytestmark = pytest.mark.cpu_only("switches the emulator on itself")

PLANS = emulator.kernel_plans()
KERNEL = "fa4_bwd_sm100_hd192_pair_bf16"

BLOCKS = bwd_pair_calls.blocks(HD192)
MASKS = bwd_pair_calls.masks(HD192)
FEATURES = [
    *bwd_pair_calls.features(HD192, {"head_dim": 136, "head_dim_v": 24}),
    Case(batch=1, seqlen_q=140, seqlen_k=130, head_dim=160, head_dim_v=72, causal=True),
]
PACKED = bwd_pair_calls.packed(HD192)
SMALL = [*BLOCKS, *MASKS, *FEATURES, *PACKED]


@pytest.mark.parametrize("ctas", [0, 1, 2])
def test_calls_take_this_kernel(ctas: int) -> None:
    """Whatever form is asked for: one of that name that ends at once is noticed."""
    ptx = fwd_variants.compiled(KERNEL)
    broken = re.sub(r"(\.maxntid[^{]*\{)", r"\1 trap;", ptx, count=1)
    assert broken != ptx
    options = Options(ctas=ctas, images={KERNEL: broken})
    with pytest.raises(RuntimeError, match="trap"):
        bwd_schedules.gradients("sm100", problem(BLOCKS[0]), options, deterministic=False)


@pytest.mark.sampled("call", SMALL, 8)
def test_schedules_give_the_same_bits(call: Call, request: pytest.FixtureRequest) -> None:
    """In deterministic mode all of them; dk and dv always."""
    schedules = SCHEDULES
    if request.config.getoption("--full"):
        schedules = SCHEDULES + MORE_SCHEDULES
    bwd_schedules.check_schedules("sm100", problem(call), schedules)


@pytest.mark.parametrize("call", [BLOCKS[2], FEATURES[0], PACKED[0]], ids=str)
@pytest.mark.parametrize("rounding", fwd_schedules.ROUNDING)
def test_undocumented_rounding_makes_no_difference(call: Call, rounding: str) -> None:
    work = problem(call)
    options = fwd_schedules.ROUNDING[rounding]
    bwd_schedules.check(work, bwd_schedules.gradients("sm100", work, options, deterministic=False))


@pytest.mark.parametrize("call", [BLOCKS[2], MASKS[0], PACKED[2]], ids=str)
def test_gradients_through_lse(call: Call) -> None:
    work = problem(call)
    found = bwd_schedules.gradients("sm100", work, Options(), deterministic=True, through_lse=True)
    bwd_schedules.check(work, found, through_lse=True)


@pytest.mark.sampled("call", SMALL, 7)
def test_strict(call: Call, request: pytest.FixtureRequest) -> None:
    """At the letter of the PTX ISA and as the plan says, under 20 seeds with --full."""
    seeds = range(1, 21 if request.config.getoption("--full") else 2)
    schedules = [Options(), Options(policy="lazy"), *map(random_schedule, seeds)]
    schedules = [replace(x, check="strict", plans=PLANS) for x in schedules]
    bwd_schedules.check_schedules("sm100", problem(call), schedules)


@pytest.mark.parametrize("call", bwd_pair_calls.ordered(HD192), ids=str)
def test_ordered_additions_need_one_pair_at_a_time(call: Call) -> None:
    """Turns are waited for before dq is staged, and doutt of the next step after: no pair waits for
    one that begins behind it all the same."""
    one = Options(threads=1, resident_clusters=1)
    schedules = [one, Options(order="descending"), random_schedule(11)]
    bwd_schedules.check_schedules("sm100", problem(call), schedules)


# ---- What serial steps alone can get wrong -------------------------------------------------------

FILES = "csrc/sm100/bwd/"
MMA, LOAD = FILES + "serial_mma.cuh", FILES + "serial_load.cuh"
HAZARDS = [
    Hazard(
        "dP lies over scores that are still read",
        MMA,
        "    b.template wait<kBwdSRead>(0, parity);\n",
        "",
        "tcgen05.ld|tensor memory",
    ),
    Hazard(
        "scores of one CTA alone are read",
        FILES + "plan.h",
        '{"s_read",      kOfPair,     kComputers,',
        '{"s_read",      kOfPair,     8,',
        "plan: s_read expects 16 arrivals",
    ),
    Hazard(
        "scores lie over dQ that is still read",
        MMA,
        "    b.template wait<kBwdDqEmpty>(0, parity ^ kWriter);\n",
        "",
        "tcgen05.ld|tensor memory",
    ),
    Hazard(
        "P lies over scores that the other warpgroup reads",
        FILES + "plan.h",
        "kSerial ? 2 * query + kQRows * group : query + kGroupQueries * group",
        "query + kGroupQueries * group",
        "dP and dQ leave P alone|tensor memory|other bits",
    ),
    Hazard(
        "queries are in their usual order",
        FILES + "plan.h",
        "return rank * kQRows + part * kGroupQueries;",
        "return rank * kOwnRows + part * kQRows;",
        "other bits",
    ),
    Hazard(
        "qt is loaded over Q that is still multiplied",
        LOAD,
        "    b.template wait<kBwdQEmpty>(0, parity);  // qt lies over it\n",
        "",
        "a copy|shared memory",
    ),
    Hazard(
        "Q is loaded over qt that is still multiplied",
        LOAD,
        "    b.template wait<kBwdQtEmpty>(0, parity);  // the statistics have been read, too\n",
        "",
        "a copy|shared memory",
    ),
    Hazard(
        "dO is loaded over dS that is still sent",
        LOAD,
        "    b.template wait<kBwdDoutEmpty>(0, parity);  // what is sent of dS lies over it\n",
        "",
        "a copy|shared memory",
    ),
    Hazard(
        "dO is loaded when dP has read it",
        MMA,
        "    b.template commit<kBwdDpFull>(0);\n",
        "    b.template commit<kBwdDpFull>(0);\n    b.template commit<kBwdDoutEmpty>(0);\n",
        "shared memory|mbarrier",
    ),
    Hazard(
        "doutt is loaded over dq that is still sent",
        LOAD,
        "    b.template wait<kBwdDqSent>(0, parity);  // dq on its way lies over it\n",
        "",
        "a copy|shared memory",
    ),
    Hazard(
        "dq has been sent before the copy engine has read it",
        FILES + "reduce.cuh",
        "      ptx::bulk_wait_group_read<0>();\n      b.template arrive<kBwdDqSent>(0);\n",
        "      b.template arrive<kBwdDqSent>(0);\n",
        "shared memory",
    ),
    Hazard(
        "dS is stored over dO and dS that are still multiplied",
        FILES + "compute.cuh",
        "    b.template wait<kBwdDpFull>(0, step % 2);\n",
        "",
        "shared memory|tensor memory",
    ),
    Hazard(
        "dQ multiplies dS that has not crossed",
        MMA,
        "    b.template wait<kBwdDsWhole>(0, parity);\n",
        "",
        "shared memory",
    ),
]


@pytest.mark.parametrize("hazard", HAZARDS, ids=str)
def test_a_hazard_is_found(hazard: Hazard) -> None:
    """By the report, or by other bits, of calls that have rows to clean and of others."""
    try:
        ptx = fwd_variants.compiled(KERNEL, replaced=(hazard.replaced(),))
    except AssertionError as error:  # of the plan
        report = str(error)
    else:
        options = Options(check="strict", plans=PLANS, max_findings=3)
        for call, deterministic in bwd_pair_calls.killers(HD192):
            report = bwd_mutations.objection(KERNEL, ptx, call, deterministic, options)
            if report:
                break
    assert re.search(hazard.says, report), report or "nothing"


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_scores_of_one_cta_race_without_a_plan(steps: int) -> None:
    """The order of events alone tells that the other CTA was not waited for, in every number of
    steps."""
    hazard = next(x for x in HAZARDS if x.name == "scores of one CTA alone are read")
    ptx = fwd_variants.compiled(KERNEL, replaced=(hazard.replaced(),))
    call = Case(seqlen_q=128 * steps, seqlen_k=256, **ONE, **HD192)
    assert bwd_mutations.objection(KERNEL, ptx, call, True, Options(check="strict"))


@pytest.mark.sampled("site", bwd_mutations.sites(), 4)
def test_every_statement_that_hands_over_is_needed(site: Site) -> None:
    if site.without_effect(KERNEL):
        pytest.skip(f"{site}: is not in this kernel")
    bwd_mutations.check_needed(site, KERNEL, bwd_pair_calls.killers(HD192))


# ---- Traffic -------------------------------------------------------------------------------------


def test_traffic_is_that_of_the_plan() -> None:
    """What docs/kernels/bwd_sm100.md computes with, per CTA and block of 128 queries."""
    blocks, tiles, heads = 3, 2, 2
    keys = 256 * tiles
    dims = {"heads_q": heads, "heads_k": 1, **HD192}
    work = problem(Case(batch=1, seqlen_q=128 * blocks, seqlen_k=keys, **dims))
    x = work.inputs
    out, lse = work.forward()
    with emulator.use("sm100", Options()) as session:
        torch.ops.fa4.bwd(x.dout, x.q, x.k, x.v, out, lse)
    found = session.statistics
    plan = _C.kernel_plans()[KERNEL]
    parts = keys // 128  # tiles of CTAs
    steps = parts * heads * blocks
    k, v = 2 * 128 * 192, 2 * 128 * 128  # bytes of 128 rows
    assert found["shared_operand_bytes"] == steps * plan["operand_bytes"]
    assert found["global_load_bytes"] == steps * plan["copy_bytes"] + parts * (2 * k + v)  # kt
    assert found["shared_store_bytes"] == steps * plan["store_bytes"] + parts * (k + v + 64)
    assert found["cluster_copy_bytes"] == steps * plan["exchange_bytes"]
    assert found["reduce_bytes"] == steps * plan["reduce_bytes"]
    assert found["fma"] == steps * 128 * 128 * (3 * 192 + 2 * 128)
