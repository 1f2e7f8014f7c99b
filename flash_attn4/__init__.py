"""Exact attention without the score matrix: FlashAttention-4 as ops of torch.

flash_attn_func and flash_attn_varlen_func are differentiable and compile with torch.compile; the
same computations are registered as torch.ops.fa4.fwd, varlen_fwd, bwd, varlen_bwd and combine.
"""

from flash_attn4._library import load as _load

_load()

from flash_attn4.interface import (  # noqa: E402  (the ops exist only once the library is loaded)
    flash_attn_combine,
    flash_attn_func,
    flash_attn_varlen_func,
)
from flash_attn4.padding import pad_input, unpad_input  # noqa: E402

__version__ = "0.1.0"

__all__ = [
    "flash_attn_combine",
    "flash_attn_func",
    "flash_attn_varlen_func",
    "pad_input",
    "unpad_input",
]
