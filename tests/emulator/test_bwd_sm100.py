"""The SM100 backward kernels in every schedule of the emulator: the same bits, and right ones."""

from __future__ import annotations

from dataclasses import replace

import bwd_schedules
import cases
import fwd_schedules
import pytest
import torch
from cases import Case
from fwd_schedules import Call, Options, Packed

pytestmark = pytest.mark.cpu_only("switches the emulator on itself")

HD64 = {"head_dim": 64, "head_dim_v": 64}
HD96 = {"head_dim": 96, "head_dim_v": 96}
HD128 = {"head_dim": 128, "head_dim_v": 128}

# 1, 2, 3 and many blocks of 128 queries for a tile of keys: every way through the pipeline, and
# rings that go round. Tiles in one, two and several blocks of threads.
BLOCKS: list[Call] = [
    Case(batch=1, seqlen_q=queries, seqlen_k=keys, heads_q=1, heads_k=1, dtype=dtype, **dims)
    for dims in (HD64, HD96, HD128)
    for queries, keys, dtype in (
        (128, 128, "bfloat16"),
        (256, 200, "float16"),
        (300, 130, "bfloat16"),
        (1150, 260, "float16"),
    )
]
MASKS: list[Call] = [
    Case(batch=1, seqlen_q=300, seqlen_k=420, causal=True, heads_q=4, heads_k=2, **HD128),
    Case(batch=1, seqlen_q=420, seqlen_k=300, causal=True, heads_q=1, heads_k=1, **HD64),
    Case(batch=1, seqlen_q=333, seqlen_k=333, causal=True, dtype="float16", heads_q=2, **HD96),
    Case(batch=1, seqlen_q=500, seqlen_k=500, window=(130, 40), heads_q=2, **HD64),
    Case(batch=1, seqlen_q=270, seqlen_k=400, window=(90, -1), heads_q=2, **HD96),
    Case(batch=1, seqlen_q=400, seqlen_k=270, window=(-1, 60), dtype="float16", **HD128),
]
FEATURES: list[Call] = [
    Case(seqlen_q=200, seqlen_k=333, window=(70, 20), softcap=4.0, sink="float32", data="hot"),
    Case(seqlen_q=260, seqlen_k=130, causal=True, seqused=True, dtype="float16", **HD128),
    Case(seqlen_q=140, seqlen_k=270, softcap=9.0, causal=True, dtype="float16", **HD96),
    Case(seqlen_q=150, seqlen_k=150, sink="bfloat16", data="outlier", **HD128),
    Case(seqlen_q=130, seqlen_k=190, data="one_hot", causal=True, heads_q=2, **HD128),
]
# NaN behind what counts; sequences without queries, without keys, without either.
PACKED: list[Call] = [
    Packed((70, 260, 1), (200, 300, 129), (170, 257, 128), Case(causal=True, **HD128)),
    Packed((3, 0, 300), (300, 40, 150), (0, 40, 150), Case(causal=True, heads_q=10)),
    Packed((129, 64), (127, 333), (127, 321), Case(window=(90, -1), sink="float32", **HD96)),
    Packed((0, 200, 0, 131), (150, 0, 0, 140), (150, 0, 0, 133), Case(dtype="float16", **HD64)),
]
SMALL = [*BLOCKS, *MASKS, *FEATURES, *PACKED]
SAMPLE = [
    *(BLOCKS[0], BLOCKS[3], BLOCKS[6], BLOCKS[9], BLOCKS[11]),
    *(MASKS[0], MASKS[1], MASKS[4], *FEATURES[:3], *PACKED),
]

SCHEDULES = [
    Options(),
    Options(policy="lazy", order="descending"),
    *map(fwd_schedules.random_schedule, (1, 2)),
]
MORE_SCHEDULES = [Options(policy="lazy"), *map(fwd_schedules.random_schedule, range(3, 19))]


def whole(request: pytest.FixtureRequest) -> bool:
    return request.config.getoption("--full")


@pytest.mark.parametrize("call", SMALL, ids=str)
def test_schedules_give_the_same_bits(call: Call, request: pytest.FixtureRequest) -> None:
    schedules = SCHEDULES
    if whole(request):
        schedules = SCHEDULES + MORE_SCHEDULES
    elif call not in SAMPLE:
        schedules = SCHEDULES[:1]
    bwd_schedules.check_schedules("sm100", fwd_schedules.problem(call), schedules)


@pytest.mark.parametrize("rounding", fwd_schedules.ROUNDING)
@pytest.mark.parametrize("call", SAMPLE, ids=str)
def test_undocumented_rounding_makes_no_difference(
    call: Call, rounding: str, request: pytest.FixtureRequest
) -> None:
    if not whole(request) and call not in SAMPLE[::4]:
        pytest.skip("only with --full")
    work = fwd_schedules.problem(call)
    options = fwd_schedules.ROUNDING[rounding]
    bwd_schedules.check(work, bwd_schedules.gradients("sm100", work, options, deterministic=False))


@pytest.mark.parametrize("case", cases.GROUPED, ids=str)
def test_groups_of_heads(case: Case) -> None:
    """1 to 8 query heads for a KV head."""
    if case.head_dim > 128:
        case = replace(case, **HD128)
    if case.dtype == "float32":
        case = replace(case, dtype="float16")
    work = fwd_schedules.problem(replace(case, seqlen_q=150))
    bwd_schedules.check_schedules("sm100", work, [Options(), fwd_schedules.random_schedule(5)])


@pytest.mark.parametrize("dims", [HD64, HD96, HD128], ids=str)
def test_through_lse(dims: dict[str, int]) -> None:
    work = fwd_schedules.problem(Case(batch=1, seqlen_q=200, seqlen_k=150, causal=True, **dims))
    result = bwd_schedules.gradients(
        "sm100", work, Options(), deterministic=False, through_lse=True
    )
    bwd_schedules.check(work, result, through_lse=True)


@pytest.mark.parametrize("dims", [HD64, HD96, HD128], ids=str)
def test_very_negative_lse(dims: dict[str, int]) -> None:
    """Every score near -200: keys that a tile has beside the last would weigh e^200."""
    work = fwd_schedules.problem(
        Case(batch=1, seqlen_q=150, seqlen_k=70, heads_q=1, heads_k=1, **dims)
    )
    x = work.inputs
    size = (200 / dims["head_dim"] ** 0.5) ** 0.5
    x.q.mul_(0.1).add_(size)
    x.k.mul_(0.1).sub_(size)
    with fwd_schedules.emulator.use("sm100"):
        assert work.forward()[1].max() < -100
    result = bwd_schedules.gradients("sm100", work, Options(), deterministic=False)
    bwd_schedules.check(replace(work, rule_b=False), result)


@pytest.mark.parametrize("head_dim", [64, 96, 128])
def test_bytes_are_those_of_the_plan(head_dim: int) -> None:
    """What docs/kernels/bwd_sm100.md computes with, per tile of keys and block of queries: bytes
    that products read from shared memory, that copies bring to it, that threads store to it and
    that are added to dq from it; products.
    """
    blocks, tiles, heads = 3, 2, 2
    work = fwd_schedules.problem(
        Case(
            batch=1,
            seqlen_q=128 * blocks,
            seqlen_k=128 * tiles,
            heads_q=heads,
            heads_k=1,
            head_dim=head_dim,
            head_dim_v=head_dim,
        )
    )
    x = work.inputs
    out, lse = work.forward()
    with fwd_schedules.emulator.use("sm100", Options(ctas=1)) as session:
        torch.ops.fa4.bwd(x.dout, x.q, x.k, x.v, out, lse)
    steps = tiles * heads * blocks
    tile = 2 * 128 * head_dim  # bytes of 128 rows
    ds, dq = 2 * 128 * 128, 4 * 128 * head_dim
    found = session.statistics
    # S and dP read two tiles, dV and dK one, their other operand is in tensor memory; dQ dS and K.
    assert found["shared_operand_bytes"] == steps * (2 * 2 * tile + 2 * tile + ds + tile)
    # Q, dO, lse2, delta of each step; K and V once.
    assert found["global_load_bytes"] == steps * (2 * tile + 2 * 4 * 128) + tiles * 2 * tile
    # dS and dq of each step; dk and dv, and what describes the tile, once.
    assert found["shared_store_bytes"] == steps * (ds + dq) + tiles * (2 * tile + 64)
    assert found["reduce_bytes"] == steps * dq
    assert found["fma"] == steps * 5 * 128 * 128 * head_dim
