"""Rule C: the SM100 backward kernels against a model of themselves.

The model rounds where the kernels do: D from the rounded output, weights and dS to 16 bit for the
products, the gradients at the end. Sums are in float64. What is left are the roundings inside a
product and of float32 sums: far less than the rules against float64 allow.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import reference
import torch
from torch import Tensor

emulator = pytest.importorskip(
    "flash_attn4.emulator", reason="no emulator in this build", exc_type=ImportError
)

pytestmark = pytest.mark.cpu_only("switches the emulator on itself")

ROUNDING = {torch.bfloat16: 1.65e-3, torch.float16: 2.07e-4}  # root mean square, relative


def model(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    visible: Tensor,
    softcap: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv of one head."""
    scale = q.shape[1] ** -0.5
    scores = (q.double() @ k.double().T).float()
    slope = torch.ones_like(scores)  # softcap: derivative of the tanh
    if softcap:
        scores = torch.tanh(scores.double() * scale / softcap).float()
        slope = 1 - scores.square()
    scores = scores.masked_fill(~visible, -math.inf)
    log2e = math.log2(math.e)
    to_log2 = torch.tensor((softcap or scale) * log2e, dtype=torch.float32).double()
    lse2 = (lse * torch.tensor(log2e, dtype=torch.float32)).double()[:, None]
    x = (scores.double() * to_log2 - lse2).float()
    weights = torch.exp2(x.double()).float()
    delta = (out.double() * dout.double()).sum(1, keepdim=True).float()
    ds = weights * ((dout.double() @ v.double().T).float() - delta) * slope
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


CALLS: list[tuple[float, dict[str, Any]]] = [
    (1.0, {}),
    (1.0, {"causal": True}),
    (8.0, {"causal": True}),
    (1.0, {"window_left": 130, "window_right": 40}),
    (1.0, {"window_left": 90, "softcap": 2.0}),
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("head_dim", [64, 96, 128])
@pytest.mark.parametrize(("heat", "options"), CALLS, ids=str)
def test_kernel_is_its_model(
    head_dim: int, dtype: torch.dtype, heat: float, options: dict[str, Any]
) -> None:
    generator = torch.Generator().manual_seed(head_dim)
    q, k, v, dout = (
        torch.randn(1, rows, 1, head_dim, generator=generator).to(dtype)
        for rows in (300, 500, 500, 300)
    )
    q = q * heat
    with emulator.use("sm100"):
        out, lse = torch.ops.fa4.fwd(q, k, v, **options)
        result = torch.ops.fa4.bwd(dout, q, k, v, out, lse, **options)[:3]
    window = options.get("window_left", -1), options.get("window_right", -1)
    visible = reference.visible_mask(300, 500, options.get("causal", False), window)
    rows = [x[0, :, 0] for x in (dout, q, k, v, out)]
    expected = model(*rows, lse[0, 0], visible, options.get("softcap", 0.0))
    for name, got, want in zip(("dq", "dk", "dv"), result, expected, strict=True):
        check(name, got[0, :, 0], want)
