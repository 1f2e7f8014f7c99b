"""The SM100 backward of CTA pairs: right in every schedule, clean, and what only pairs get wrong.

Which form dispatch would take is no matter here: every call takes pairs.
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
from bwd_pair_calls import HD128
from cases import Case
from fwd_mutations import Site
from fwd_schedules import Call, Options, emulator, problem, random_schedule
from test_fwd_sm100_pair import Hazard

from flash_attn4 import _C

pytestmark = pytest.mark.cpu_only("switches the emulator on itself")

PLANS = emulator.kernel_plans()
KERNEL = "fa4_bwd_sm100_hd128_pair_bf16"

ONE = bwd_pair_calls.ONE | HD128
BLOCKS = bwd_pair_calls.blocks(HD128)
MASKS = bwd_pair_calls.masks(HD128)
FEATURES = bwd_pair_calls.features(HD128, {"head_dim": 104, "head_dim_v": 88})
PACKED = bwd_pair_calls.packed(HD128)
SMALL = [*BLOCKS, *MASKS, *FEATURES, *PACKED]
ORDERED = bwd_pair_calls.ordered(HD128)


def pairs(options: Options) -> Options:
    return replace(options, ctas=2)


SCHEDULES = [
    Options(),
    Options(policy="lazy", order="descending"),
    *map(random_schedule, (1, 2)),
]
MORE_SCHEDULES = [Options(policy="lazy"), *map(random_schedule, range(3, 19))]


def test_calls_take_pairs() -> None:
    """A kernel of that name that ends at once is noticed."""
    ptx = fwd_variants.compiled(KERNEL)
    broken = re.sub(r"(\.maxntid[^{]*\{)", r"\1 trap;", ptx, count=1)
    assert broken != ptx
    work = problem(BLOCKS[0])
    one, two = (Options(ctas=ctas, images={KERNEL: broken}) for ctas in (1, 2))
    bwd_schedules.gradients("sm100", work, one, deterministic=False)
    with pytest.raises(RuntimeError, match="trap"):
        bwd_schedules.gradients("sm100", work, two, deterministic=False)


@pytest.mark.sampled("call", SMALL, 8)
def test_schedules_give_the_same_bits(call: Call, request: pytest.FixtureRequest) -> None:
    """In deterministic mode all of them; dk and dv always."""
    schedules = SCHEDULES
    if request.config.getoption("--full"):
        schedules = SCHEDULES + MORE_SCHEDULES
    bwd_schedules.check_schedules("sm100", problem(call), [*map(pairs, schedules)])


@pytest.mark.parametrize("call", [*BLOCKS[::2], FEATURES[0], PACKED[0]], ids=str)
@pytest.mark.parametrize("rounding", fwd_schedules.ROUNDING)
def test_undocumented_rounding_makes_no_difference(call: Call, rounding: str) -> None:
    work = problem(call)
    options = pairs(fwd_schedules.ROUNDING[rounding])
    bwd_schedules.check(work, bwd_schedules.gradients("sm100", work, options, deterministic=False))


@pytest.mark.parametrize("call", [*BLOCKS, MASKS[0], PACKED[0]], ids=str)
def test_both_forms_give_the_same_dk_and_dv(call: Call) -> None:
    """A key meets the same queries in the same order. dq is the sum over other tiles."""
    work = problem(call)
    one, pair = (
        bwd_schedules.gradients("sm100", work, Options(ctas=ctas), deterministic=True)
        for ctas in (1, 2)
    )
    assert torch.equal(one.k, pair.k)
    assert torch.equal(one.v, pair.v)


# ---- Clean ---------------------------------------------------------------------------------------


@pytest.mark.sampled("call", SMALL, 7)
def test_strict(call: Call, request: pytest.FixtureRequest) -> None:
    """At the letter of the PTX ISA and as the plan says, under 20 seeds with --full."""
    seeds = range(1, 21 if request.config.getoption("--full") else 2)
    schedules = [Options(), Options(policy="lazy"), *map(random_schedule, seeds)]
    schedules = [replace(x, check="strict", plans=PLANS, ctas=2) for x in schedules]
    bwd_schedules.check_schedules("sm100", problem(call), schedules)


# ---- Deterministic -------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ORDERED, ids=str)
def test_ordered_additions_need_one_pair_at_a_time(call: Call) -> None:
    """No pair waits for one that begins behind it: pairs pass one by one, with the same bits as
    many at once in other orders."""
    one = Options(threads=1, resident_clusters=1)
    others = [Options(order="descending"), random_schedule(11)]
    schedules = [replace(options, ctas=2) for options in (one, *others)]
    bwd_schedules.check_schedules("sm100", problem(call), schedules)


def test_pairs_do_wait_for_each_other() -> None:
    """Otherwise the test above could not fail: against the order of the grid one pair hangs."""
    options = Options(threads=1, resident_clusters=1, order="descending", stall_steps=200_000)
    with pytest.raises(RuntimeError, match="fa4_bwd_sm100_hd128_pair_bf16"):
        bwd_schedules.gradients("sm100", problem(ORDERED[0]), pairs(options), deterministic=True)


def test_half_the_turns() -> None:
    """Of a part of dq: as many as tiles of 256 keys. Half of the queries and of the columns each,
    and a counter for each part."""
    tiles = 3
    work = problem(Case(seqlen_q=128, seqlen_k=256 * tiles, **ONE))
    counts = {}
    for ctas in (1, 2):
        with emulator.use("sm100", Options(ctas=ctas)) as session:
            out, lse = work.forward()
            x = work.inputs
            torch.ops.fa4.bwd(x.dout, x.q, x.k, x.v, out, lse, deterministic=True)
        counts[ctas] = session.statistics["reduce_bytes"]
    assert counts[1] == 2 * tiles * 4 * 128 * 128
    assert counts[2] == tiles * 4 * 128 * 128


# ---- What a pair alone can get wrong -------------------------------------------------------------

FILES = "csrc/sm100/bwd/"
HAZARDS = [
    Hazard(
        "a CTA exits while its peer may still read its shared memory",
        FILES + "kernel.cuh",
        "    meet_tile<true>();\n",
        "    block.rank() == 0 ? meet_tile<true>() : __syncthreads();\n",
        r"CTA [01] exits while warp \d+ of CTA [01] .*, may still use its shared memory",
    ),
    Hazard(
        "a CTA frees tensor memory while its peer still multiplies",
        FILES + "kernel.cuh",
        "    meet_tile<true>();\n",
        "",
        "tensor memory|may still use its shared memory",
    ),
    Hazard(
        "barriers of the peer are used before they are there",
        FILES + "kernel.cuh",
        "  meet_tile<Plan::kPair>();\n",
        "  __syncthreads();\n",
        "no barrier orders the init before the use|is no mbarrier|not initialised",
    ),
    Hazard(
        "dQ lies over scores that are still read",
        FILES + "pair_mma.cuh",
        "    if (!last) b.template wait<kBwdSRead>(0, whole_parity);\n",
        "",
        "tcgen05.ld|tensor memory",
    ),
    Hazard(
        "scores lie over dQ that is still read",
        FILES + "pair_mma.cuh",
        "    b.template wait<kBwdDqEmpty>(0, dq_parity);\n",
        "",
        "tcgen05.ld|tensor memory",
    ),
    Hazard(
        "dQ multiplies dS that has not crossed",
        FILES + "pair_mma.cuh",
        "    b.template wait<kBwdDsWhole>(0, whole_parity);\n",
        "",
        "shared memory",
    ),
    Hazard(
        "dS of the next step is stored over what is still sent and multiplied",
        FILES + "compute.cuh",
        "    if (Plan::kAhead && step > 0) b.template wait<kBwdDqFull>(0, (step - 1) % 2);\n",
        "",
        "shared memory",
    ),
    Hazard(
        "dS is sent before it is stored for the copy engine",
        FILES + "compute.cuh",
        "    ptx::fence_proxy_async();  // dq reads what these stores wrote\n",
        "",
        "shared memory",
    ),
    Hazard(
        "half of the bytes of dS are announced",
        FILES + "compute.cuh",
        "expect_tx_cluster(bar, Plan::kSentWarpBytes)",
        "expect_tx_cluster(bar, Plan::kSentWarpBytes / 2)",
        "mbarrier|copy",
    ),
    Hazard(
        "dS is sent beside the wrong keys",
        FILES + "compute.cuh",
        "const uint32_t first = b.rank() * Plan::kBlockN + 32 * warp;",
        "const uint32_t first = (b.rank() ^ 1) * Plan::kBlockN + 32 * warp;",
        "shared memory",
    ),
    Hazard(
        "a relay tells its own CTA",
        "csrc/sm100/barriers.cuh",
        "return ptx::cluster_address(Own::template bar<kBar>(stage), 0);",
        "return ptx::cluster_address(Own::template bar<kBar>(stage), rank());",
        r"plan: .*: warp \d+ of CTA 1 .* at the one of CTA 1, the plan says the leader",
    ),
    Hazard(
        "one relay is enough",
        FILES + "plan.h",
        '{"ds_whole",    kOfPair,     kCtas,      kBwdRelay,',
        '{"ds_whole",    kOfPair,     1,          kBwdRelay,',
        "plan: ds_whole expects 2 arrivals",
    ),
    Hazard(
        "dS of one CTA is enough",
        FILES + "plan.h",
        '{"ds_full",     1,           kComputers, ',
        '{"ds_full",     1,           8,          ',
        "plan: ds_full expects 16 arrivals",
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
        "csrc/sm100/barriers.cuh",
        "Plan::kCtas * bytes",
        "bytes",
        "mbarrier|copy",
    ),
    Hazard(
        "lse2 and D are read before they have come",
        FILES + "compute.cuh",
        "    b.template wait<kStats>(stat_stage(step), step / Plan::kStatStages % 2);",
        "   ",
        "shared memory",
    ),
    Hazard(
        "rows are cleaned before they have landed",
        FILES + "compute.cuh",
        "    b.template wait<kBwdLanded>(0, clean_parity);\n",
        "",
        "a copy",
    ),
    Hazard(
        "only its own CTA's keys are cleaned in kt",
        FILES + "compute.cuh",
        "clear_keys<Plan::kTileKeys, Plan::kOwnColumns>",
        "clear_keys<Plan::kBlockN, Plan::kOwnColumns>",
        "other bits",
    ),
]


@pytest.mark.sampled("hazard", HAZARDS, 7)
def test_a_hazard_is_found(hazard: Hazard) -> None:
    ptx = fwd_variants.compiled(KERNEL, replaced=(hazard.replaced(),))
    options = Options(check="strict", plans=PLANS, max_findings=3)
    for call, deterministic in bwd_pair_calls.killers(HD128)[:2]:
        report = bwd_mutations.objection(KERNEL, ptx, call, deterministic, options)
        if report:
            break
    assert re.search(hazard.says, report), report or "nothing"


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("name", ["one relay is enough", "dS of one CTA is enough"])
def test_counts_of_one_cta_race_without_a_plan(name: str, steps: int) -> None:
    """The order of events alone tells that the other CTA was not waited for, in every number of
    steps."""
    hazard = next(x for x in HAZARDS if x.name == name)
    ptx = fwd_variants.compiled(KERNEL, replaced=(hazard.replaced(),))
    call = Case(seqlen_q=128 * steps, seqlen_k=256, **ONE)
    assert bwd_mutations.objection(KERNEL, ptx, call, True, Options(check="strict"))


@pytest.mark.sampled("site", bwd_mutations.sites(), 4)
def test_every_statement_that_hands_over_is_needed(site: Site) -> None:
    if site.without_effect(KERNEL):
        pytest.skip(f"{site}: is not in the kernel of a pair")
    bwd_mutations.check_needed(site, KERNEL, bwd_pair_calls.killers(HD128))


# ---- Traffic -------------------------------------------------------------------------------------


@pytest.mark.parametrize("ctas", [1, 2])
def test_traffic_is_that_of_the_plan(ctas: int) -> None:
    """What docs/kernels/bwd_sm100.md computes with, per CTA and block of 128 queries."""
    blocks, tiles, heads = 3, 2, 2
    keys = 256 * tiles
    work = problem(
        Case(batch=1, seqlen_q=128 * blocks, seqlen_k=keys, heads_q=heads, heads_k=1, **HD128)
    )
    x = work.inputs
    out, lse = work.forward()
    with emulator.use("sm100", Options(ctas=ctas)) as session:
        torch.ops.fa4.bwd(x.dout, x.q, x.k, x.v, out, lse)
    found = session.statistics
    plan = _C.kernel_plans()[KERNEL if ctas == 2 else "fa4_bwd_sm100_hd128_bf16"]
    parts = keys // 128  # tiles of CTAs
    steps = parts * heads * blocks
    tile = 2 * 128 * 128  # bytes of 128 rows
    once = 3 if ctas == 2 else 2  # K and V; a pair's kt
    assert found["shared_operand_bytes"] == steps * plan["operand_bytes"]
    assert found["global_load_bytes"] == steps * plan["copy_bytes"] + parts * once * tile
    # dk and dv, and what describes the tile, once.
    assert found["shared_store_bytes"] == steps * plan["store_bytes"] + parts * (2 * tile + 64)
    assert found["cluster_copy_bytes"] == steps * plan["exchange_bytes"]
    assert found["reduce_bytes"] == steps * plan["reduce_bytes"]
    assert found["fma"] == steps * 5 * 128 * 128 * 128
