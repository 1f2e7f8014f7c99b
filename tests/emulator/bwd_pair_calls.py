"""Calls for tests of the SM100 backward of CTA pairs, by head dims."""

from __future__ import annotations

from cases import Case
from fwd_schedules import Call, Packed

HD128 = {"head_dim": 128, "head_dim_v": 128}
HD192 = {"head_dim": 192, "head_dim_v": 128}  # serial steps
ONE = {"batch": 1, "heads_q": 1, "heads_k": 1}


def blocks(dims: dict[str, int]) -> list[Call]:
    """1, 2, 3 and many blocks of 128 queries for a tile of 256 keys: every way through the
    pipeline. Tiles in one and several pairs; keys for the second CTA: all, some, none."""
    one = ONE | dims
    return [
        Case(seqlen_q=128, seqlen_k=256, **one),
        Case(seqlen_q=256, seqlen_k=128, dtype="float16", **one),
        Case(seqlen_q=300, seqlen_k=130, **one),
        Case(seqlen_q=1150, seqlen_k=520, dtype="float16", **one),
    ]


def masks(dims: dict[str, int]) -> list[Call]:
    return [
        Case(batch=1, seqlen_q=300, seqlen_k=420, causal=True, heads_q=4, heads_k=2, **dims),
        Case(batch=1, seqlen_q=420, seqlen_k=300, causal=True, **dims),
        Case(batch=1, seqlen_q=500, seqlen_k=700, window=(130, 40), dtype="float16", **dims),
        Case(batch=1, seqlen_q=270, seqlen_k=400, window=(90, -1), **dims),
        Case(batch=1, seqlen_q=30, seqlen_k=900, window=(5, 0), **dims),
    ]


def features(dims: dict[str, int], smaller: dict[str, int]) -> list[Call]:
    """smaller: head dims that the kernel pads."""
    return [
        Case(seqlen_q=200, seqlen_k=333, window=(70, 20), softcap=4.0, sink="float32", **dims),
        Case(seqlen_q=260, seqlen_k=130, causal=True, seqused=True, dtype="float16", **dims),
        Case(seqlen_q=130, seqlen_k=390, data="one_hot", causal=True, heads_q=2, **dims),
        Case(seqlen_q=150, seqlen_k=270, dtype="float16", **smaller),
        Case(batch=1, seqlen_q=1, seqlen_k=1, **dims),
    ]


def packed(dims: dict[str, int]) -> list[Call]:
    """NaN behind what counts, in the keys of either CTA and of both; sequences without queries,
    without keys, without either."""
    window = Case(window=(90, -1), sink="float32", **dims)
    return [
        Packed((70, 260, 1), (200, 300, 129), (170, 257, 128), Case(causal=True, **dims)),
        Packed((3, 0, 300), (300, 40, 150), (0, 40, 150), Case(causal=True, heads_q=10, **dims)),
        Packed((129, 64), (127, 560), (127, 321), window),
    ]


MIX: tuple[tuple[int, ...], ...] = ((0, 257, 1, 300, 5, 0), (130, 600, 0, 513, 3, 0))


def ordered(dims: dict[str, int]) -> list[Call]:
    """Several tiles that add to a block of queries."""
    heads = {"heads_q": 6, "heads_k": 2} | dims
    window = {"window": (200, 50), "heads_q": 4, "heads_k": 1} | dims
    return [
        Case(batch=2, seqlen_q=300, seqlen_k=600, **heads),
        Case(batch=1, seqlen_q=600, seqlen_k=800, causal=True, **heads),
        Case(batch=1, seqlen_q=300, seqlen_k=900, **window),
        Packed(*MIX, (100, 600, 0, 400, 3, 0), Case(causal=True, **heads)),
    ]


def killers(dims: dict[str, int]) -> list[tuple[Call, bool]]:
    """For kernels with a mistake, and whether in deterministic mode: ragged keys and NaN; two
    heads; many tiles that add to a block."""
    one = ONE | dims
    return [
        (Packed((300,), (400,), (300,), Case(causal=True, **one)), True),
        (Case(seqlen_q=600, seqlen_k=300, **(one | {"heads_q": 2})), False),
        (Case(seqlen_q=300, seqlen_k=2200, **(one | {"heads_q": 4})), True),
    ]
