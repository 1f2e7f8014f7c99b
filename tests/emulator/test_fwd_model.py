"""Rule C: the SM100 forward kernels against a model of themselves, block of keys by block of keys.

The model does what the kernels do, in the same order, in torch: keys in blocks of 128 from the last
to the first, a reference that lags up to 2^8, the polynomial for the same columns, weights rounded
to 16 bit for the product alone. What is left are the roundings inside a product: far less than the
rules against float64 allow, so a wrong factor or a lost column shows where those are blind.
"""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from torch import Tensor

from flash_attn4 import flash_attn_func

emulator = pytest.importorskip(
    "flash_attn4.emulator", reason="no emulator in this build", exc_type=ImportError
)

pytestmark = pytest.mark.cpu_only("switches the emulator on itself")

BLOCK = 128
SLACK = 8.0
# Pairs of 16 in a fragment of 32 columns, and the first fragment: csrc/sm100/fwd/plan.h.
EMULATION = {64: (6, 0), 96: (5, 0), 128: (6, 1), 192: (2, 1)}
POLYNOMIAL = (0.0770670623, 0.227644965, 0.695116818, 1.0)
ROUNDING = {torch.bfloat16: 1.65e-3, torch.float16: 2.07e-4}  # root mean square, relative


def emulated_columns(head_dim: int) -> Tensor:
    pairs, first = EMULATION[head_dim]
    columns = torch.zeros(BLOCK, dtype=torch.bool)
    for column in range(first * 32, 96):
        pair = column % 32 // 2
        columns[column] = (pair + 1) * pairs // 16 != pair * pairs // 16
    return columns


def exp2_polynomial(x: Tensor) -> Tensor:
    clamped = x.clamp(min=-127.0)
    whole = clamped.floor()
    p = torch.zeros_like(x)
    for coefficient in POLYNOMIAL:
        p = p * (clamped - whole) + coefficient
    return torch.where(clamped > -127.0, p * torch.exp2(whole), 0.0)


def model(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> tuple[Tensor, Tensor]:
    """One head; rows are queries. Sums in float64, rounded where the kernel holds float32.

    Returns out and, for each row, what its largest weight moves when it rounds the other way.
    """
    rows, keys = q.shape[0], k.shape[0]
    scale = torch.tensor(q.shape[1] ** -0.5 * math.log2(math.e), dtype=torch.float32).double()
    scores = (q.double() @ k.double().T).float()
    if causal:
        hidden = torch.ones(rows, keys, dtype=torch.bool).triu(keys - rows + 1)
        scores = scores.masked_fill(hidden, -math.inf)
    emulated = emulated_columns(q.shape[1])
    reference = torch.full((rows, 1), -math.inf)
    total, out = torch.zeros(rows, 1), torch.zeros(rows, v.shape[1])
    for first in reversed(range(0, keys, BLOCK)):
        block = scores[:, first : first + BLOCK].double() * scale
        largest = block.amax(1, keepdim=True).float()
        moves = ~(largest - reference <= SLACK) & (largest > -math.inf)
        after = torch.where(moves, largest, reference)
        factor = torch.where(moves, torch.exp2((reference - after).double()).float(), 1.0)
        reference = after
        x = (block - reference.nan_to_num(neginf=0.0).double()).float().double()
        columns = emulated[: x.shape[1]]
        weights = torch.where(columns, exp2_polynomial(x), torch.exp2(x)).float()
        total = total * factor + weights.sum(1, keepdim=True)
        product = weights.to(q.dtype).double() @ v[first : first + BLOCK].double()
        out = (out * factor).double().add(product).float()
    largest = scores.double().amax(1, keepdim=True) * scale
    share = torch.exp2(largest - reference.double()) / total.double()
    flip = torch.finfo(q.dtype).eps * share * v.double().abs().max()
    return (out / total).to(q.dtype), flip


def check(result: Tensor, expected: Tensor, flip: Tensor) -> None:
    difference = (result.double() - expected.double()).abs()
    allowed = 0.5 * ROUNDING[result.dtype] * expected.double().square().mean().sqrt()
    assert difference.square().mean().sqrt() <= allowed
    ulp = (
        torch.finfo(result.dtype).eps
        * 2.0
        ** torch.maximum(result.double().abs(), expected.double().abs())
        .clamp(min=1e-30)
        .log2()
        .floor()
    )
    # A weight at the middle of two 16-bit values rounds either way; two of them in a row at most.
    allowed = torch.maximum(4 * ulp, 2 * flip)
    beyond = (difference > allowed).any(-1)
    assert not beyond.any(), f"rows {beyond.nonzero().flatten().tolist()}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("head_dims", "ctas"),
    [
        *((dims, 1) for dims in ((64, 64), (96, 96), (128, 128), (192, 128))),
        *((dims, 2) for dims in ((128, 128), (192, 128))),
    ],
    ids=str,
)
@pytest.mark.parametrize(("heat", "causal"), [(1.0, False), (1.0, True), (8.0, True)])
def test_kernel_is_its_model(
    head_dims: tuple[int, int], ctas: Literal[1, 2], dtype: torch.dtype, heat: float, causal: bool
) -> None:
    generator = torch.Generator().manual_seed(sum(head_dims))
    q, k, v = (
        torch.randn(1, rows, 1, dim, generator=generator).to(dtype)
        for rows, dim in ((300, head_dims[0]), (500, head_dims[0]), (500, head_dims[1]))
    )
    q = q * heat
    with emulator.use("sm100", emulator.Options(ctas=ctas)):
        out = flash_attn_func(q, k, v, causal=causal)
    check(out[0, :, 0], *model(q[0, :, 0], k[0, :, 0], v[0, :, 0], causal=causal))
