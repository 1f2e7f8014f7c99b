"""How operands lie in shared and tensor memory: the host's independent account of tensor maps,
matrix descriptors and swizzles, from the tables of the PTX ISA. All for elements of 16 bits.

span: bytes over which 16-byte units are exchanged: 128, 64, 32, or 0 for none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def exchanged(address: Tensor, span: int) -> Tensor:
    """Where the byte at an address lies."""
    if span == 0:
        return address
    units = span // 16 - 1
    return address ^ ((address >> 7 & units) << 4)


def scattered(data: Tensor, span: int, base: int = 0) -> Tensor:
    """Bytes of a buffer that begins at `base` (of a multiple of 1024), exchanged."""
    image = torch.empty_like(data)
    address = torch.arange(len(data)) + base
    image[exchanged(address, span) - base] = data
    return image


def as_bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


# ---- Boxes of tensor maps ------------------------------------------------------------------------


def box_of(tensor: Tensor, at: tuple[int, ...], box: tuple[int, ...], fill: float = 0) -> Tensor:
    """What a load of the box reads. at, box: innermost dimension first, the tensor's last."""
    result, inside = tensor, torch.ones((), dtype=torch.bool)
    for dim, (first, extent) in enumerate(zip(reversed(at), reversed(box), strict=True)):
        index = torch.arange(first, first + extent)
        valid = (index >= 0) & (index < tensor.shape[dim])
        result = result.index_select(dim, index.clamp(0, tensor.shape[dim] - 1))
        inside = inside[..., None] & valid
    return torch.where(inside, result, torch.tensor(fill, dtype=tensor.dtype))


def stored_box(tensor: Tensor, at: tuple[int, ...], box: Tensor) -> Tensor:
    """The tensor after a store of the box; what lies outside is dropped."""
    result = tensor.clone()
    inner, target = [], []
    for first, extent, size in zip(reversed(at), box.shape, tensor.shape, strict=True):
        low, high = max(first, 0), min(first + extent, size)
        if low >= high:
            return result
        target.append(slice(low, high))
        inner.append(slice(low - first, high - first))
    result[tuple(target)] = box[tuple(inner)]
    return result


# ---- Operands of matrix instructions -------------------------------------------------------------


@dataclass(frozen=True)
class Operand:
    """A (M or N) x K matrix as an image of shared memory and the fields of its descriptor."""

    image: Tensor  # bytes
    span: int
    leading_bytes: int
    stride_bytes: int
    step_bytes: tuple[int, ...]  # from the image to each step of 16 along K

    def gmma(self) -> int:
        """Descriptor of wgmma, without the address."""
        code = {0: 0, 128: 1, 64: 2, 32: 3}[self.span]
        return self._offsets() | code << 62

    def umma(self) -> int:
        """Descriptor of tcgen05.mma, without the address."""
        code = {0: 0, 128: 2, 64: 4, 32: 6}[self.span]
        return self._offsets() | 1 << 46 | code << 61

    def _offsets(self) -> int:
        return self.leading_bytes >> 4 << 16 | self.stride_bytes >> 4 << 32


def operand(matrix: Tensor, *, mn_major: bool, span: int) -> Operand:
    """matrix: (M or N) x K, of 16-bit elements."""
    rows = matrix.T if mn_major else matrix
    steps = range(matrix.shape[1] // 16)
    if span == 0:
        return _operand_of_cores(rows, mn_major, steps)
    columns = span // 2
    padded = math.ceil(rows.shape[1] / columns) * columns
    tile = torch.zeros(rows.shape[0], padded, dtype=rows.dtype)
    tile[:, : rows.shape[1]] = rows
    chunks = tile.view(len(tile), -1, columns).transpose(0, 1)
    chunk_bytes = len(tile) * span
    if mn_major:
        step_bytes = tuple(16 * span * step for step in steps)
    else:
        step_bytes = tuple(32 * step // span * chunk_bytes + 32 * step % span for step in steps)
    image = scattered(as_bytes(chunks), span)
    return Operand(image, span, chunk_bytes if mn_major else 16, 8 * span, step_bytes)


def _operand_of_cores(rows: Tensor, mn_major: bool, steps: range) -> Operand:
    """Without swizzle: blocks of 8 rows by 16 bytes, each of 128 bytes, columns of blocks first."""
    blocks = rows.reshape(len(rows) // 8, 8, -1, 8).permute(2, 0, 1, 3)
    down, across = 128, len(rows) // 8 * 128  # from block to block
    if mn_major:  # rows are K
        step_bytes = tuple(2 * down * step for step in steps)
        return Operand(as_bytes(blocks), 0, down, across, step_bytes)
    step_bytes = tuple(2 * across * step for step in steps)
    return Operand(as_bytes(blocks), 0, across, down, step_bytes)


# ---- Tensor memory -------------------------------------------------------------------------------


def umma_instruction(m: int, n: int, dtype: torch.dtype, a_mn_major: bool, b_mn_major: bool) -> int:
    """Instruction descriptor of kind::f16 with a float32 accumulator."""
    operands = 1 if dtype == torch.bfloat16 else 0
    return (
        1 << 4
        | operands << 7
        | operands << 10
        | int(a_mn_major) << 15
        | int(b_mn_major) << 16
        | n >> 3 << 17
        | m >> 4 << 24
    )


def accumulator_cells(d: Tensor, ctas: int) -> Tensor:
    """The accumulator of a CTA or a pair as (CTA, 128 lanes, columns); unused lanes are NaN."""
    m, n = d.shape
    rows = m // ctas
    cells = torch.full((ctas, 128, n), float("nan"))
    if rows == 128:
        cells[:] = d.view(ctas, 128, n)
    elif ctas == 2:  # 64 rows each: the second half of the columns lies in the upper lanes
        cells = cells[..., : n // 2]
        cells[:, :64] = d.view(2, 64, n)[..., : n // 2]
        cells[:, 64:] = d.view(2, 64, n)[..., n // 2 :]
    else:  # 64 rows: 16 lanes of each quarter
        row = torch.arange(64)
        cells[0, row % 16 + 32 * (row // 16)] = d
    return cells


def operand_cells(a: Tensor, ctas: int) -> Tensor:
    """A in tensor memory: (CTA, 128 lanes, K / 2) pairs, the even element in the low half."""
    m, k = a.shape
    rows = m // ctas
    pairs = a.contiguous().view(torch.int32).view(ctas, rows, k // 2)
    cells = torch.zeros(ctas, 128, k // 2, dtype=torch.int32)
    if rows == 128:
        cells[:] = pairs
    elif ctas == 2:  # in both halves of the lanes
        cells[:, :64] = cells[:, 64:] = pairs
    else:
        row = torch.arange(64)
        cells[0, row % 16 + 32 * (row // 16)] = pairs[0]
    return cells
