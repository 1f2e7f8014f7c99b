"""Whether results are right, before their time is taken: wrong answers can be fast.

Coarse on purpose, to find lost tiles and wrong masks; tests/ holds the exact bounds.
"""

from __future__ import annotations

import torch
from peers import Problem
from torch import Tensor

BLOCK = 128  # rows whose error is taken together
SAMPLED_ROWS = 256
# Largest relative errors: about three times what rounding to the type gives.
FLOAT64_ERROR = {torch.bfloat16: 8e-3, torch.float16: 1e-3}
PEER_ERROR = {torch.bfloat16: 1e-2, torch.float16: 1.4e-3}


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
    count, heads = len(p.lengths), p.q.shape[-2]
    longest = p.lengths.index(p.max_seqlen)
    errors = []
    for i in sorted({0, longest, count - 1}):
        q, k, v, got = (p.sequence(x, i) for x in (p.q, p.k, p.v, out))
        rows = _sample(len(q)).to(q.device)
        for head in (0, heads - 1):
            key_head = head * k.shape[1] // heads
            expected = _attend(q[rows, head], k[:, key_head], v[:, key_head], rows, p.causal)
            errors.append((got[rows, head].double() - expected).norm() / expected.norm())
    return torch.stack(errors).max().item()


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
