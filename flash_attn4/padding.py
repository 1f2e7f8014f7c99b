"""From padded batches to packed ones and back. Both directions are differentiable."""

from __future__ import annotations

import torch
from torch import Tensor


def unpad_input(
    hidden_states: Tensor, attention_mask: Tensor, unused_mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, int, Tensor]:
    """Packs the rows that a mask selects, for flash_attn_varlen_func.

    hidden_states: (batch, seqlen, ...).
    attention_mask: (batch, seqlen), bool or integer; nonzero rows are attended to.
    unused_mask: (batch, seqlen), like attention_mask and disjoint from it; nonzero rows are packed
        too, but not counted as used.

    Returns
        hidden_states: (total, ...), the selected rows, batch by batch.
        indices: (total,), int64, their positions in the flattened (batch * seqlen).
        cu_seqlens: (batch + 1,), int32, running sum of the packed rows per sequence.
        max_seqlen: int, most packed rows of any sequence. Reading it waits for the device.
        used_seqlens: (batch,), int32, attended rows per sequence.

    Raises ValueError when a mask is not (batch, seqlen).
    """
    for name, mask in (("attention_mask", attention_mask), ("unused_mask", unused_mask)):
        if mask is not None and mask.shape != hidden_states.shape[:2]:
            raise ValueError(
                f"unpad_input: {name}: must have shape (batch, seqlen) like hidden_states, "
                f"{tuple(hidden_states.shape[:2])}, got {tuple(mask.shape)}"
            )
    used = attention_mask != 0
    packed = used if unused_mask is None else used | (unused_mask != 0)
    seqlens = packed.sum(dim=1, dtype=torch.int32)
    cu_seqlens = torch.nn.functional.pad(seqlens.cumsum(0, dtype=torch.int32), (1, 0))
    max_seqlen = int(seqlens.max()) if seqlens.numel() else 0
    indices = packed.flatten().nonzero().flatten()
    hidden_packed = hidden_states.flatten(0, 1).index_select(0, indices)
    return hidden_packed, indices, cu_seqlens, max_seqlen, used.sum(dim=1, dtype=torch.int32)


def pad_input(hidden_states: Tensor, indices: Tensor, batch: int, seqlen: int) -> Tensor:
    """Puts packed rows back into a padded batch: the inverse of unpad_input.

    hidden_states: (total, ...).
    indices: (total,), int64, as returned by unpad_input.

    Returns (batch, seqlen, ...), 0 where no row was packed.
    """
    padded = hidden_states.new_zeros(batch * seqlen, *hidden_states.shape[1:])
    padded = padded.index_copy(0, indices, hidden_states)
    return padded.view(batch, seqlen, *hidden_states.shape[1:])
