"""Rule C: the SM100 backward kernels against a model of themselves.

The model rounds where the kernels do: D from the rounded output, weights and dS to 16 bit for the
products, the gradients at the end. Sums are in float64. What is left are the roundings inside a
product and of float32 sums: far less than the rules against float64 allow.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

emulator = pytest.importorskip(
    "flash_attn4.emulator", reason="no emulator in this build", exc_type=ImportError
)

pytestmark = pytest.mark.cpu_only("switches the emulator on itself")

ROUNDING = {torch.bfloat16: 1.65e-3, torch.float16: 2.07e-4}  # root mean square, relative


def model(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv of one head."""
    scale = q.shape[1] ** -0.5
    scores = (q.double() @ k.double().T).float()
    if causal:
        hidden = torch.ones_like(scores, dtype=torch.bool).triu(k.shape[0] - q.shape[0] + 1)
        scores = scores.masked_fill(hidden, -math.inf)
    to_log2 = torch.tensor(scale * math.log2(math.e), dtype=torch.float32).double()
    lse2 = (lse * torch.tensor(math.log2(math.e), dtype=torch.float32)).double()[:, None]
    x = (scores.double() * to_log2 - lse2).float()
    weights = torch.exp2(x.double()).float()
    delta = (out.double() * dout.double()).sum(1, keepdim=True).float()
    ds = weights * ((dout.double() @ v.double().T).float() - delta)
    rounded, ds = (y.to(q.dtype).double() for y in (weights, ds))
    dq, dk, dv = ds @ k.double() * scale, ds.T @ q.double() * scale, rounded.T @ dout.double()
    return dq.to(q.dtype), dk.to(q.dtype), dv.to(q.dtype)


def check(name: str, result: Tensor, expected: Tensor) -> None:
    difference = (result.double() - expected.double()).abs()
    size = expected.double().square().mean().sqrt()
    rmse = difference.square().mean().sqrt()
    allowed = 0.5 * ROUNDING[result.dtype] * size
    assert rmse <= allowed, f"{name}: RMSE {rmse:.2e}, allowed {allowed:.2e}"
    larger = torch.maximum(result.double().abs(), expected.double().abs()).clamp(min=1e-30)
    ulp = torch.finfo(result.dtype).eps * 2.0 ** larger.log2().floor()
    # A weight or dS at the middle of two 16-bit values rounds either way: a part of the largest.
    beyond = difference > torch.maximum(4 * ulp, 2e-4 * expected.double().abs().max())
    assert not beyond.any(), f"{name}: {beyond.nonzero()[:4].tolist()}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("head_dim", [64, 96, 128])
@pytest.mark.parametrize(("heat", "causal"), [(1.0, False), (1.0, True), (8.0, True)])
def test_kernel_is_its_model(head_dim: int, dtype: torch.dtype, heat: float, causal: bool) -> None:
    generator = torch.Generator().manual_seed(head_dim)
    q, k, v, dout = (
        torch.randn(1, rows, 1, head_dim, generator=generator).to(dtype)
        for rows in (300, 500, 500, 300)
    )
    q = q * heat
    with emulator.use("sm100"):
        out, lse = torch.ops.fa4.fwd(q, k, v, causal=causal)
        result = torch.ops.fa4.bwd(dout, q, k, v, out, lse, causal=causal)[:3]
    rows = [x[0, :, 0] for x in (dout, q, k, v, out)]
    expected = model(*rows, lse[0, 0], causal=causal)
    for name, got, want in zip(("dq", "dk", "dv"), result, expected, strict=True):
        check(name, got[0, :, 0], want)
