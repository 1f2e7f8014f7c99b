"""Selective activation checkpointing of attention: a policy, and a count of what ran."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy


class CountForwards(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts what reaches the kernels, below every checkpointing mode inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.forwards = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.forwards += func is torch.ops.fa4.fwd.default
        return func(*args, **(kwargs or {}))


def save_attention(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    if op is torch.ops.fa4.fwd.default:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE
