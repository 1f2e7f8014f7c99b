"""Whether results are right, before their time is taken: wrong answers can be fast.

Coarse on purpose, to find lost tiles and wrong masks; tests/ holds the exact bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peers import Problem
from torch import Tensor

BLOCK = 128  # rows whose error is taken together
SAMPLED_ROWS = 256
# Largest relative errors: about three times what rounding to the type gives.
FLOAT64_ERROR = {torch.bfloat16: 8e-3, torch.float16: 1e-3}
PEER_ERROR = {torch.bfloat16: 1e-2, torch.float16: 1.4e-3}
# The same of gradients. Many probabilities of a long sequence are below float16's normal numbers.
GRADIENT_FLOAT64_ERROR = {torch.bfloat16: 8e-3, torch.float16: 3e-3}
GRADIENT_PEER_ERROR = {torch.bfloat16: 1e-2, torch.float16: 4e-3}
FLOAT64_ROWS = 1024  # queries whose float64 scores are in memory at a time


class WrongResult(Exception):
    """The text says whose, and how wrong."""


def check(name: str, error: float, largest: float) -> None:
    if not error <= largest:  # NaN included
        raise WrongResult(f"{name}: relative error {error:.2e}, allowed {largest:.2e}")


def difference(out: Tensor, reference: Tensor) -> float:
    """Largest relative difference over blocks of BLOCK rows of one head.

    A norm over everything would hide a block: rows that see few keys are larger than others.
    """
    if out.shape != reference.shape:
        raise WrongResult(f"shape {tuple(out.shape)}, expected {tuple(reference.shape)}")
    got, expected = (x.reshape(-1, *x.shape[-2:]) for x in (out, reference))
    whole = len(got) // BLOCK * BLOCK
    blocks = (x[:whole].reshape(-1, BLOCK, *x.shape[1:]) for x in (got, expected))
    errors = [_relative(*blocks), _relative(got[None, whole:], expected[None, whole:])]
    return torch.cat(errors).max().item()


def _relative(got: Tensor, expected: Tensor) -> Tensor:
    """got, expected: (blocks, rows, heads, head_dim); one value per block and head."""
    if got.shape[1] == 0:
        return got.new_zeros(0, dtype=torch.float32)
    got, expected = got.float(), expected.float()
    error = (got - expected).square().sum((1, 3)) / expected.square().sum((1, 3))
    return error.sqrt().flatten()


def float64_error(p: Problem, out: Tensor) -> float:
    """Largest relative error against float64, over a sample of sequences, heads and rows."""
    heads = p.q.shape[-2]
    errors = []
    for i in _sequences(p):
        q, k, v, got = (p.sequence(x, i) for x in (p.q, p.k, p.v, out))
        rows = _sample(len(q)).to(q.device)
        for head in (0, heads - 1):
            key_head = head * k.shape[1] // heads
            expected = _attend(q[rows, head], k[:, key_head], v[:, key_head], rows, p.causal)
            errors.append((got[rows, head].double() - expected).norm() / expected.norm())
    return torch.stack(errors).max().item()


def _sequences(p: Problem) -> list[int]:
    """First, longest and last."""
    return sorted({0, p.lengths.index(p.max_seqlen), len(p.lengths) - 1})


def _sample(length: int) -> Tensor:
    """Both ends, where masks and ragged tiles are, and rows in between."""
    if length <= SAMPLED_ROWS:
        return torch.arange(length)
    third = SAMPLED_ROWS // 3
    middle = torch.linspace(third, length - third - 1, SAMPLED_ROWS - 2 * third).long()
    return torch.cat([torch.arange(third), middle, torch.arange(length - third, length)])


def _attend(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, causal: bool) -> Tensor:
    scores = q.double() @ k.double().T * q.shape[-1] ** -0.5
    if causal:
        keys = torch.arange(len(k), device=k.device)
        scores = scores.masked_fill(keys[None, :] > rows[:, None], -torch.inf)
    return torch.softmax(scores, dim=-1) @ v.double()


# ---- Gradients -----------------------------------------------------------------------------------

Gradients = tuple[Tensor, Tensor, Tensor]  # dq, dk, dv


def gradient_difference(gradients: Gradients, reference: Gradients) -> float:
    """The largest difference() of dq, dk and dv."""
    return max(difference(x, y) for x, y in zip(gradients, reference, strict=True))


def gradient_float64_error(p: Problem, gradients: Gradients) -> float:
    """gradient_difference from float64: all rows of two key heads and of the queries they serve."""
    assert p.dout is not None
    heads_k = p.k.shape[-2]
    group = p.q.shape[-2] // heads_k
    errors = []
    for i in _sequences(p):
        q, k, v, dout, *got = (p.sequence(x, i) for x in (p.q, p.k, p.v, p.dout, *gradients))
        for key_head in sorted({0, heads_k - 1}):
            heads = slice(key_head * group, (key_head + 1) * group)
            one = slice(key_head, key_head + 1)
            expected = _gradients(q[:, heads], k[:, key_head], v[:, key_head], dout[:, heads], p)
            dq, dk, dv = got[0][:, heads], got[1][:, one], got[2][:, one]
            errors.append(gradient_difference((dq, dk, dv), expected))
    return max(errors)


def _gradients(q: Tensor, k: Tensor, v: Tensor, dout: Tensor, p: Problem) -> Gradients:
    """In float64, of the query heads that share one key head.

    q, dout: (seqlen, heads, head_dim); k, v: (seqlen, head_dim). With P the probabilities of a head
    and dP = dout v^T:  dS = P (dP - rowsum(P dP)), dv = P^T dout, dq and dk = dS k and dS^T q,
    scaled.
    """
    q, k, v, dout = (x.double() for x in (q, k, v, dout))
    scale = q.shape[-1] ** -0.5
    keys = torch.arange(len(k), device=k.device)
    dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for head in range(q.shape[1]):
        for first in range(0, len(q), FLOAT64_ROWS):
            rows = slice(first, first + FLOAT64_ROWS)
            scores = q[rows, head] @ k.T * scale
            if p.causal:
                scores.masked_fill_(keys[None, :] > keys[rows, None], -torch.inf)
            probabilities = torch.softmax(scores, dim=-1)
            dscores = dout[rows, head] @ v.T
            dscores -= (probabilities * dscores).sum(-1, keepdim=True)
            dscores *= probabilities
            dq[rows, head] = dscores @ k * scale
            dk += dscores.T @ q[rows, head] * scale
            dv += probabilities.T @ dout[rows, head]
    return dq, dk[:, None], dv[:, None]


# ---- What a call's result is judged by -----------------------------------------------------------


@dataclass(frozen=True)
class Checks:
    float64_error: Callable[[Problem, Any], float]
    difference: Callable[[Any, Any], float]  # a peer's result from ours
    largest_float64_error: dict[torch.dtype, float]
    largest_peer_error: dict[torch.dtype, float]


OUTPUT = Checks(float64_error, difference, FLOAT64_ERROR, PEER_ERROR)
GRADIENTS = Checks(
    gradient_float64_error, gradient_difference, GRADIENT_FLOAT64_ERROR, GRADIENT_PEER_ERROR
)
