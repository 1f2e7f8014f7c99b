"""Merging attention over parts of the keys."""

from __future__ import annotations

import pytest
import reference
import torch
from conftest import Device

from flash_attn4 import flash_attn_combine, flash_attn_func

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def make_partials(shape: tuple[int, ...], dtype: torch.dtype, device: Device) -> tuple:
    generator = torch.Generator().manual_seed(len(shape))
    out = torch.randn(*shape, generator=generator).to(dtype)
    lse = 5 * torch.randn(*shape[:-1], generator=generator)
    return out.to(device.torch), lse.to(device.torch)


@pytest.mark.parametrize(
    "shape",
    [(1, 2, 3, 4, 64), (5, 2, 37, 4, 64), (256, 1, 3, 2, 8), (3, 50, 6, 128), (4, 0, 2, 64)],
)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_combine(shape: tuple[int, ...], dtype: torch.dtype, device: Device) -> None:
    out_partial, lse_partial = make_partials(shape, dtype, device)
    out, lse = flash_attn_combine(out_partial, lse_partial)
    assert out.dtype == dtype
    assert lse.dtype == torch.float32
    assert out.is_contiguous()
    assert lse.is_contiguous()
    expected, expected_lse = reference.combine(out_partial.cpu(), lse_partial.cpu())
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(out.cpu().double(), expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(lse.cpu().double(), expected_lse, atol=4e-6, rtol=1e-6)


@pytest.mark.parametrize("out_dtype", TOLERANCE, ids=str)
def test_combine_out_dtype(out_dtype: torch.dtype, device: Device) -> None:
    out_partial, lse_partial = make_partials((3, 2, 9, 4, 64), torch.float32, device)
    out, _ = flash_attn_combine(out_partial, lse_partial, out_dtype)
    exact, _ = flash_attn_combine(out_partial, lse_partial)
    assert out.dtype == out_dtype
    assert torch.equal(out, exact.to(out_dtype))


def test_combine_strided_and_transposed_lse(device: Device) -> None:
    out_partial, lse_partial = make_partials((3, 2, 9, 4, 64), torch.float32, device)
    expected = flash_attn_combine(out_partial, lse_partial)
    heads_first = lse_partial.transpose(-1, -2).contiguous()
    frame = torch.full((3, 2, 11, 4, 80), torch.nan, device=device.torch)
    frame[:, :, 1:10, :, 8:72] = out_partial
    got = flash_attn_combine(frame[:, :, 1:10, :, 8:72], heads_first.transpose(-1, -2))
    for x, y in zip(got, expected, strict=True):
        assert torch.equal(x, y)


def test_combine_unseen_splits_are_selected_away(device: Device) -> None:
    """A split at -inf has weight 0 even when its output is NaN; all splits at -inf give 0, -inf."""
    out_partial, lse_partial = make_partials((4, 2, 9, 3, 32), torch.float32, device)
    lse_partial[1] = -torch.inf
    out_partial[1] = torch.nan
    lse_partial[:, 0, 2] = -torch.inf
    out_partial[:, 0, 2] = torch.nan
    out, lse = flash_attn_combine(out_partial, lse_partial)
    expected, expected_lse = flash_attn_combine(out_partial[[0, 2, 3]], lse_partial[[0, 2, 3]])
    seen = torch.isfinite(expected_lse)
    torch.testing.assert_close(out[seen], expected[seen], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(lse[seen], expected_lse[seen], atol=1e-6, rtol=1e-6)
    assert not out[0, 2].any()
    assert bool(torch.isneginf(lse[0, 2]).all())


def test_combine_completes_attention(device: Device) -> None:
    """Attention over parts of the keys, merged, is attention over all keys."""
    generator = torch.Generator().manual_seed(9)
    q, k, v = (
        torch.randn(2, n, 4, 64, generator=generator).to(device.torch, device.dtype)
        for n in (50, 120, 120)
    )
    parts = [
        flash_attn_func(q, k[:, rows], v[:, rows], return_lse=True)
        for rows in (slice(0, 10), slice(10, 70), slice(70, 120))
    ]
    out, lse = flash_attn_combine(
        torch.stack([out for out, _ in parts]),
        torch.stack([lse for _, lse in parts]).transpose(-1, -2),
    )
    expected, expected_lse = flash_attn_func(q, k, v, return_lse=True)
    torch.testing.assert_close(out, expected, **device.tolerance(2e-6))
    allowed = 2e-6 + 2 * device.exp2_error  # both come from the kernel
    torch.testing.assert_close(lse.transpose(-1, -2), expected_lse, atol=allowed, rtol=1e-6)


def test_combine_gradients(device: Device) -> None:
    """Closed form against automatic differentiation in float64, unseen splits included."""
    out_partial, lse_partial = make_partials((3, 2, 5, 4, 8), torch.float32, device)
    lse_partial[1, 0] = -torch.inf
    lse_partial[:, 1, 2] = -torch.inf
    dout, dlse = make_partials((2, 5, 4, 8), torch.float32, device)
    leaves = [x.requires_grad_() for x in (out_partial, lse_partial)]
    out, lse = flash_attn_combine(*leaves)
    grads = torch.autograd.grad([out, lse], leaves, [dout, dlse])

    exact = [x.detach().cpu().double().requires_grad_() for x in leaves]
    seen = torch.isfinite(exact[1].detach())
    weights = torch.softmax(torch.where(seen, exact[1], -1e9), dim=0) * seen
    expected_out = (weights[..., None] * exact[0]).sum(0)
    expected_lse = torch.logsumexp(torch.where(seen, exact[1], -1e9), dim=0)
    row_seen = seen.any(0)
    expected = torch.autograd.grad(
        [expected_out, expected_lse[row_seen]],
        exact,
        [dout.cpu().double(), dlse.cpu().double()[row_seen]],
    )
    for got, want in zip(grads, expected, strict=True):
        torch.testing.assert_close(got.cpu().double(), want, atol=2e-6, rtol=1e-5)
