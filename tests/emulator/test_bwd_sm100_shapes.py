"""The SM100 backward kernels where tiles are nearly empty, beside rows that do not count, and with
one block of threads at a time."""

from __future__ import annotations

from dataclasses import replace

import bwd_schedules
import fwd_schedules
import pytest
import torch
from cases import Case
from fwd_schedules import Call, Options, Packed, random_schedule
from test_kernel_plans import PLANS
from torch import Tensor

from flash_attn4 import flash_attn_varlen_func

pytestmark = pytest.mark.cpu_only("switches the emulator on itself")

DIMS = [{"head_dim": x, "head_dim_v": min(x, 128)} for x in (64, 96, 128, 192)]
# Forms of kernels: head dims and CTAs that share a tile.
FORMS = [*((dims, 1) for dims in DIMS[:3]), *((dims, 2) for dims in DIMS[2:])]
STRICT = [
    Options(check="strict", plans=PLANS),
    replace(random_schedule(7), check="strict", plans=PLANS),
    Options(policy="lazy", order="descending"),
]

# One row, one key, rows without a key for more than a block, keys without a query for more than a
# tile, windows of one key, and fewer columns than the kernel has.
ONE = {"batch": 1, "heads_q": 1, "heads_k": 1}
SHAPES = [
    Case(seqlen_q=1, seqlen_k=1, **ONE),
    Case(seqlen_q=1, seqlen_k=300, causal=True, **ONE),
    Case(seqlen_q=300, seqlen_k=1, causal=True, **ONE),
    Case(seqlen_q=400, seqlen_k=20, causal=True, sink="float32", **ONE),
    Case(seqlen_q=30, seqlen_k=500, window=(5, 0), heads_q=2),
    Case(seqlen_q=300, seqlen_k=300, window=(0, 0), softcap=3.0, **ONE),
    Case(seqlen_q=280, seqlen_k=150, window=(0, -1), seqused=True, dtype="float16"),
    Case(seqlen_q=129, seqlen_k=257, window=(-1, 0), layout="padded", dtype="float16", **ONE),
]
NARROW = [
    Case(seqlen_q=150, seqlen_k=270, head_dim=8, head_dim_v=16, causal=True),
    Case(seqlen_q=150, seqlen_k=270, head_dim=72, head_dim_v=40, dtype="float16"),
    Case(seqlen_q=150, seqlen_k=270, head_dim=104, head_dim_v=88, window=(60, 30)),
    Case(seqlen_q=150, seqlen_k=270, head_dim=144, head_dim_v=8, window=(60, 30)),
    Case(seqlen_q=150, seqlen_k=270, head_dim=192, head_dim_v=64, dtype="float16"),
]


@pytest.mark.parametrize(
    "case", [*(replace(x, **dims) for dims in DIMS for x in SHAPES), *NARROW], ids=str
)
def test_nearly_empty_tiles(case: Case) -> None:
    bwd_schedules.check_schedules("sm100", fwd_schedules.problem(case), STRICT)


# ---- Rows that do not count ----------------------------------------------------------------------


def packed_gradients(
    tensors: list[Tensor],
    lengths: list[Tensor],
    used: list[Tensor],
    causal: bool,
    ctas: int,
) -> tuple[Tensor, ...]:
    """Of q, k and v, deterministic. tensors: q, k, v, dout."""
    leaves = [x.detach().requires_grad_() for x in tensors[:3]]
    with fwd_schedules.emulator.use("sm100", Options(ctas=ctas)):
        out = flash_attn_varlen_func(
            *leaves,
            *lengths,
            300,
            300,
            causal=causal,
            seqused_q=used[0],
            seqused_k=used[1],
            deterministic=True,
        )
        return torch.autograd.grad(out, leaves, tensors[3])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("dims", "ctas"), FORMS, ids=str)
def test_what_does_not_count_changes_no_bit(dims: dict[str, int], ctas: int, causal: bool) -> None:
    """A sequence of NaN in q, k, v and dout between two others, and NaN behind what those use."""
    rows = [(100, 300), (90, 70), (210, 140)]  # of queries and of keys
    counts = [(97, 290), (90, 70), (130, 129)]
    generator = torch.Generator().manual_seed(2)
    lengths = [torch.tensor([0, *x]).cumsum(0).to(torch.int32) for x in zip(*rows, strict=True)]
    used = [torch.tensor(x, dtype=torch.int32) for x in zip(*counts, strict=True)]
    places = [(0, 4, "head_dim"), (1, 2, "head_dim"), (1, 2, "head_dim_v"), (0, 4, "head_dim_v")]
    tensors = [
        torch.randn(int(lengths[of_keys][-1]), heads, dims[dim], generator=generator).bfloat16()
        for of_keys, heads, dim in places
    ]
    expected = packed_gradients(tensors, lengths, used, causal, ctas)
    kept = []
    for of_keys in (0, 1):
        keep = torch.zeros(int(lengths[of_keys][-1]), dtype=torch.bool)
        for sequence in (0, 2):
            first = int(lengths[of_keys][sequence])
            keep[first : first + int(used[of_keys][sequence])] = True
        kept.append(keep)
    for x, (of_keys, *_) in zip(tensors, places, strict=True):
        x[~kept[of_keys]] = torch.nan
    result = packed_gradients(tensors, lengths, used, causal, ctas)
    for got, want, of_keys in zip(result, expected, (0, 1, 1), strict=True):
        assert torch.equal(got[kept[of_keys]], want[kept[of_keys]])
        for sequence in (0, 2):  # rows of a sequence behind what it uses
            first, last = (int(lengths[of_keys][sequence + i]) for i in (0, 1))
            assert not got[first + int(used[of_keys][sequence]) : last].any()


@pytest.mark.parametrize(("dims", "ctas"), FORMS, ids=str)
def test_rows_without_keys_change_no_bit(dims: dict[str, int], ctas: int) -> None:
    """More than a block of queries that see no key: q and dout are NaN there."""
    options = Options(ctas=ctas)
    work = fwd_schedules.problem(
        Case(batch=1, seqlen_q=400, seqlen_k=230, causal=True, heads_q=2, heads_k=1, **dims)
    )
    x = work.inputs
    expected = bwd_schedules.gradients("sm100", work, options, deterministic=True)
    x.q[:, :170] = torch.nan
    x.dout[:, :170] = torch.nan
    result = bwd_schedules.gradients("sm100", work, options, deterministic=True)
    for name in ("q", "k", "v"):
        assert torch.equal(getattr(result, name), getattr(expected, name)), name
    assert not result.q[:, :170].any()


# ---- Deterministic -------------------------------------------------------------------------------

# Tiles that see several blocks and blocks that several tiles see, in both orders of tiles; heads
# that share their keys; sequences without queries, without keys and without either between others.
HEADS = {"heads_q": 6, "heads_k": 2}
MIX: tuple[tuple[int, ...], ...] = ((0, 257, 1, 300, 5, 0), (130, 400, 0, 513, 3, 0))
ORDERED: list[Call] = [
    Case(batch=2, seqlen_q=400, seqlen_k=400, **HEADS),
    Case(batch=2, seqlen_q=400, seqlen_k=400, causal=True, **HEADS),
    Case(batch=1, seqlen_q=300, seqlen_k=700, window=(200, 50), heads_q=8, heads_k=1),
    Case(batch=1, seqlen_q=700, seqlen_k=300, window=(150, -1), **HEADS, **DIMS[2]),
    Case(batch=1, seqlen_q=300, seqlen_k=700, window=(-1, 130), seqused=True, **HEADS, **DIMS[1]),
    Packed(*MIX, (130, 390, 0, 513, 2, 0), Case(**HEADS)),
    Packed(*MIX, (100, 400, 0, 400, 3, 0), Case(causal=True, **HEADS, **DIMS[2])),
    Packed(*MIX, (130, 257, 0, 1, 0, 0), Case(window=(100, -1), **HEADS, **DIMS[1])),
    Packed(*MIX, (130, 400, 0, 500, 3, 0), Case(window=(150, 100), dtype="float16", **HEADS)),
]


@pytest.mark.parametrize("call", ORDERED, ids=str)
def test_ordered_additions_need_one_block_at_a_time(call: Call) -> None:
    """No block waits for one that begins behind it: blocks pass one by one, with the same bits as
    many at once in other orders."""
    one = Options(threads=1, resident_clusters=1)
    others = [Options(order="descending"), random_schedule(11)]
    bwd_schedules.check_schedules("sm100", fwd_schedules.problem(call), [one, *others])


def test_blocks_do_wait_for_each_other() -> None:
    """Otherwise the test above could not fail: against the order of the grid one block hangs."""
    options = Options(threads=1, resident_clusters=1, order="descending", stall_steps=200_000)
    work = fwd_schedules.problem(ORDERED[0])
    with pytest.raises(RuntimeError, match="fa4_bwd_sm100_hd64_bf16"):
        bwd_schedules.gradients("sm100", work, options, deterministic=True)


def test_order_of_additions_shows() -> None:
    """... and with many tiles the bits of dq tell in which order they were added."""
    case = Case("float16", 1, 300, 1100, 4, 1)
    work = fwd_schedules.problem(case)
    orders = [Options(threads=1, order=order) for order in ("ascending", "descending")]
    for deterministic in (False, True):
        first, second = (
            bwd_schedules.gradients("sm100", work, options, deterministic=deterministic)
            for options in orders
        )
        assert torch.equal(first.q, second.q) == deterministic
