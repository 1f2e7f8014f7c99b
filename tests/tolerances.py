"""Acceptance rules: how far a result may be from float64, measured by the error of plain torch.

A  largest error: at most twice that of eager attention in the working precision, plus rounding.
B  root mean square error: at most 0.75 of eager attention's where rows see at least 64 keys, and
   close to the format's own rounding on normally distributed data. Finds what A lets pass, such as
   8 lost keys of 4096.
C  the kernel against a model of itself, block by block: tests/emulator/test_fwd_model.py.
D  lse: the error of 2^x, of the logarithm, and float32 rounding of the largest score.

E (masks, by V = one-hot) and F (determinism) are exact comparisons: they stand in the tests.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Root mean square error relative to the result, for normally distributed data. 16 bit: sqrt(2)
# times the rounding of the format, plus a fifth. float32: rounding of sums, no model.
RELATIVE_RMSE = {torch.bfloat16: 2.8e-3, torch.float16: 3.5e-4, torch.float32: 1e-6}
# Largest relative error of 2^x: of the special function unit, and of the polynomial of degree 3
# that takes a share of the exponentials on SM100 (core/exp2.h).
EXP2_ERROR = 1.6e-7
EXP2_POLYNOMIAL_ERROR = 8.6e-5
FEWEST_KEYS_FOR_RMSE = 64
# The rules are made for 16 bit, where eager attention rounds more often than a kernel. In float32
# both round equally often, and of two equal distributions either may have the larger maximum.
FLOAT32_FACTOR = 2.0
# Weights are exponentials of float32 differences of scores: a few units of 2^-24 times the score.
FLOAT32_RELATIVE = 2**-20


def check_special_values(name: str, result: Tensor, reference: Tensor) -> None:
    """Same shape, and NaN and infinities at the same places."""
    assert result.shape == reference.shape, (
        f"{name}: shape {tuple(result.shape)}, expected {tuple(reference.shape)}"
    )
    for kind, test in (("NaN", torch.isnan), ("+inf", torch.isposinf), ("-inf", torch.isneginf)):
        wrong = test(result) != test(reference)
        if wrong.any():
            index = tuple(wrong.nonzero()[0].tolist())
            raise AssertionError(
                f"{name}: {kind} at the wrong places ({int(wrong.sum())} of {wrong.numel()}), "
                f"first {index}: got {result[index].item()}, expected {reference[index].item()}"
            )


def check_largest_error(
    name: str,
    result: Tensor,
    reference: Tensor,
    eager: Tensor,
    *,
    factor: float = 2.0,
    extra: float = 0.0,
) -> None:
    """Rule A."""
    check_special_values(name, result, reference)
    if result.numel() == 0:
        return
    rounded = reference.to(result.dtype)
    rounding = 2 * ((rounded + 0.3) - 0.3 - rounded).abs().max().item()
    if result.dtype == torch.float32:
        factor *= FLOAT32_FACTOR
        rounding += FLOAT32_RELATIVE * rounded.nan_to_num().abs().max().item()
    allowed = factor * _error(eager, reference).max().item() + rounding + extra
    worst = _error(result, reference).max().item()
    assert worst <= allowed, (
        f"{name}: largest error {worst:.3e}, allowed {allowed:.3e}\n{describe(result, reference)}"
    )


def cancellation(q: Tensor, k: Tensor, v: Tensor, dout: Tensor, scale: float) -> dict[str, float]:
    """Bound of what rounding leaves in dq and dk where they should cancel; 0 for dv.

    dS = P * (dP - D) is 0 for a row with one key, in exact arithmetic and in eager attention; where
    dP and D are summed in different orders, a float32 rounding of dP stays.
    """
    if q.numel() == 0 or k.numel() == 0:
        return dict.fromkeys("qkv", 0.0)
    largest = [x.double().nan_to_num().norm(dim=-1).max().item() for x in (dout, v)]
    left = 2**-23 * largest[0] * largest[1] * scale
    of_q, of_k = (left * x.nan_to_num().abs().max().item() for x in (k, q))
    return {"q": of_q, "k": of_k, "v": 0.0}


def check_rmse(
    name: str,
    result: Tensor,
    reference: Tensor,
    eager: Tensor,
    *,
    normal_data: bool,
    extra: float = 0.0,
) -> None:
    """Rule B, for rows that see at least FEWEST_KEYS_FOR_RMSE keys at the usual softmax_scale.

    With a small scale eager attention rounds all weights to one value, an error that cancels.
    extra: error of a step that eager attention does not have.
    """
    check_special_values(name, result, reference)
    if result.numel() == 0:
        return
    got, of_eager = _rms(_error(result, reference)), _rms(_error(eager, reference))
    size = _rms(reference)
    if result.dtype != torch.float32:
        assert got <= 0.75 * of_eager + extra, (
            f"{name}: RMSE {got:.3e}, eager attention has {of_eager:.3e}, extra {extra:.3e}\n"
            f"{describe(result, reference)}"
        )
    if normal_data:
        allowed = RELATIVE_RMSE[result.dtype] * size
        assert got <= allowed, (
            f"{name}: RMSE {got:.3e}, allowed {allowed:.3e}\n{describe(result, reference)}"
        )


def check_lse(
    result: Tensor, reference: Tensor, largest_score: float, exp2_error: float = EXP2_ERROR
) -> None:
    """Rule D."""
    check_special_values("lse", result, reference)
    finite = torch.isfinite(reference)
    if not finite.any():
        return
    allowed = 1.2 * exp2_error + 5e-6 + 2e-6 * largest_score
    error = torch.where(finite, (result.double() - reference).abs(), 0.0)
    worst = error.max().item()
    index = tuple(torch.unravel_index(error.argmax(), error.shape))
    assert worst <= allowed, (
        f"lse: error {worst:.3e} at {tuple(map(int, index))}, allowed {allowed:.3e}: "
        f"got {result[index].item()}, expected {reference[index].item()}"
    )


def describe(result: Tensor, reference: Tensor) -> str:
    """The worst element, and rows that differ by a common factor: the mark of a wrong rescale."""
    result, reference = result.double(), reference.double()
    error = _error(result, reference)
    index = tuple(int(i) for i in torch.unravel_index(error.argmax(), error.shape))
    lines = [f"  worst at {index}: got {result[index]:.6g}, expected {reference[index]:.6g}"]
    rows, expected = (x.reshape(-1, x.shape[-1]).nan_to_num() for x in (result, reference))
    square = (expected * expected).sum(-1)
    factor = torch.where(square > 0, (rows * expected).sum(-1) / square, 1.0)
    leftover = (rows - factor[:, None] * expected).norm(dim=-1) / square.sqrt()
    for row in (factor - 1).abs().argsort(descending=True)[:4].tolist():
        position = tuple(
            int(i) for i in torch.unravel_index(torch.tensor(row), reference.shape[:-1])
        )
        lines.append(
            f"  row {position}: best-fit factor {factor[row]:.6f}, rest {leftover[row]:.1e}"
        )
    return "\n".join(lines)


def _error(value: Tensor, reference: Tensor) -> Tensor:
    difference = (value.double() - reference.double()).abs()
    return torch.where(torch.isfinite(reference), difference, 0.0)


def _rms(value: Tensor) -> float:
    return value.double().square().mean().sqrt().item()
