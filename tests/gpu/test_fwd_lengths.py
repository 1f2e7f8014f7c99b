"""Lengths one by one: every length up to several tiles on a GPU and with --full, else some of them
and those around tile sizes.

Operands lie in front of NaN and results in front of a pattern, so that a tile that reads or writes
past a length shows. The reference runs on the device: thousands of calls take seconds on a GPU.
"""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass

import pytest
import reference
import tolerances
import torch
from conftest import Device
from torch import Tensor

import flash_attn4  # noqa: F401  (registers torch.ops.fa4)

LONGEST = 700
AROUND_TILES = (1, 2, 63, 64, 65, 127, 128, 129, 255, 256, 257, 300, 383, 385, 512, 513, 700)
PATTERN = 7.0


@dataclass(frozen=True)
class Shape:
    """Everything of a call but its lengths."""

    heads_q: int = 2
    heads_k: int = 2
    head_dim: int = 128
    head_dim_v: int = 128
    dtype: torch.dtype = torch.bfloat16
    causal: bool = False


@functools.lru_cache(maxsize=4)
def operands(shape: Shape, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v of the longest sequence; the shorter ones are their beginnings."""
    generator = torch.Generator(device).manual_seed(shape.head_dim)
    sizes = (
        (shape.heads_q, shape.head_dim),
        (shape.heads_k, shape.head_dim),
        (shape.heads_k, shape.head_dim_v),
    )
    return tuple(
        torch.randn(LONGEST, *size, generator=generator, device=device).to(shape.dtype)
        for size in sizes
    )


def framed(x: Tensor) -> Tensor:
    """(rows, heads, dim) as a dense batch of one sequence with NaN behind it."""
    frame = torch.full((1, x.shape[0] + 192, *x.shape[1:]), torch.nan, dtype=x.dtype).to(x.device)
    frame[0, : x.shape[0]] = x
    return frame[:, : x.shape[0]]


def forward(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> tuple[Tensor, Tensor]:
    """out (rows, heads, dim) and lse (heads, rows), written into larger buffers."""
    rows, heads, _ = q.shape
    out = torch.full((1, rows + 192, heads, v.shape[2]), PATTERN, dtype=q.dtype).to(q.device)
    lse = torch.full((1, heads, rows + 192), PATTERN).to(q.device)
    results = out[:, :rows], lse[:, :, :rows]
    torch.ops.fa4.fwd_out(
        framed(q), framed(k), framed(v), causal=causal, out=results[0], lse=results[1]
    )
    assert bool((out[:, rows:] == PATTERN).all()), "wrote behind out"
    assert bool((lse[:, :, rows:] == PATTERN).all()), "wrote behind lse"
    return results[0][0], results[1][0]


def check(shape: Shape, seqlen_q: int, seqlen_k: int, device: Device) -> None:
    q, k, v = operands(shape, device.torch)
    q, k, v = q[:seqlen_q], k[:seqlen_k], v[:seqlen_k]
    name = f"out of {seqlen_q} x {seqlen_k}"
    out, lse = forward(q, k, v, causal=shape.causal)
    options = reference.Options(causal=shape.causal)
    expected, expected_lse = reference.attend(q.double(), k.double(), v.double(), options)
    eager, _ = reference.attend(q, k, v, options)
    tolerances.check_largest_error(name, out, expected, eager)
    spans = [reference.Span(q=(slice(None),), k=(slice(None),), lse=(slice(None),))]
    score = reference.largest_score(q, k, spans, options)
    tolerances.check_lse(lse, expected_lse, score, device.exp2_error)
    # The rows that see enough keys; fewer than 16 of them are no sample.
    first = 0
    if shape.causal:
        first = max(0, seqlen_q - seqlen_k + tolerances.FEWEST_KEYS_FOR_RMSE - 1)
    if seqlen_k >= tolerances.FEWEST_KEYS_FOR_RMSE and seqlen_q - first >= 16:
        parts = out[first:], expected[first:], eager[first:]
        tolerances.check_rmse(name, *parts, normal_data=True)


def chunks() -> list[range]:
    """Lengths in groups of 50: a test per length would be 1400 lines of report."""
    return [range(first, first + 50) for first in range(1, LONGEST, 50)]


@pytest.fixture
def thorough(device: Device, request: pytest.FixtureRequest) -> bool:
    """Whether all lengths are run: thousands of calls."""
    return device.name == "cuda" or request.config.getoption("--full")


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", chunks(), ids=lambda x: f"{x[0]}..{x[-1]}")
def test_every_length(lengths: range, causal: bool, device: Device, thorough: bool) -> None:
    chosen = lengths if thorough else [n for n in lengths if n in AROUND_TILES or n % 19 == 0]
    heads = 2 if device.name == "cuda" else 1
    for length in chosen:
        check(Shape(heads_q=heads, heads_k=heads, causal=causal), length, length, device)


HEAD_DIMS = ((64, 64), (96, 96), (192, 128))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("head_dim", "head_dim_v"), HEAD_DIMS)
def test_lengths_of_other_head_dims(
    head_dim: int, head_dim_v: int, dtype: torch.dtype, causal: bool, device: Device, thorough: bool
) -> None:
    """Their tiles differ in what they hold, not in their rows: a sparser choice of lengths."""
    shape = Shape(1, 1, head_dim, head_dim_v, dtype, causal)
    for length in sorted({*AROUND_TILES, *range(3, 400, 7)} if thorough else AROUND_TILES[4::3]):
        check(shape, length, length, device)


ODD_SHAPES = [
    Shape(heads_q=6, heads_k=2),
    Shape(heads_q=6, heads_k=2, causal=True),
    Shape(head_dim=64, head_dim_v=64, dtype=torch.float16),
    Shape(head_dim=64, head_dim_v=64, causal=True),
    Shape(heads_q=5, heads_k=1, head_dim=64, head_dim_v=64, causal=True),
    Shape(heads_q=4, heads_k=1, head_dim=96, head_dim_v=96, dtype=torch.float16, causal=True),
    Shape(heads_q=7, heads_k=1, head_dim=192, causal=True),
]
PAIRS_AROUND_TILES = ((1, 129), (129, 1), (65, 200), (200, 65), (130, 257), (257, 130), (3, 300))


@pytest.mark.parametrize("shape", ODD_SHAPES, ids=str)
def test_odd_pairs_of_lengths(shape: Shape, device: Device, thorough: bool) -> None:
    """Queries and keys of different lengths: aligned to the end, rows without keys among them."""
    more = 150 if device.name == "cuda" else 20 if thorough else 0
    source = random.Random(shape.head_dim)
    odd = range(1, LONGEST, 2)
    random_pairs = [(source.choice(odd), source.choice(odd)) for _ in range(more)]
    for seqlen_q, seqlen_k in [*PAIRS_AROUND_TILES, *random_pairs]:
        check(shape, seqlen_q, seqlen_k, device)
