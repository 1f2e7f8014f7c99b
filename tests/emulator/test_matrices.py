"""Matrices of a warp: ldmatrix, stmatrix, mma.sync."""

from __future__ import annotations

import pytest
import torch
from machines import Machine
from torch import Tensor


def fragments(matrices: Tensor) -> Tensor:
    """(count, 8, 8) -> (32 lanes, count, 2): row lane / 4, columns 2 (lane % 4) and the next."""
    return matrices.reshape(-1, 32, 2).transpose(0, 1)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("trans", ["", "_trans"])
def test_ldmatrix(machine: Machine, count: int, trans: str) -> None:
    program = machine.compile("matrices.cu")
    rows = torch.arange(32 * 8, dtype=torch.int16).view(4, 8, 8)
    out = machine.zeros(32, count, 2, dtype=torch.int16)
    program.launch(f"ldmatrix_x{count}{trans}", 1, 32, [machine.tensor(rows), out])
    wanted = rows.transpose(1, 2) if trans else rows
    assert torch.equal(out.cpu(), fragments(wanted)[:, :count])


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("trans", ["", "_trans"])
def test_stmatrix(machine: Machine, count: int, trans: str) -> None:
    program = machine.compile("matrices.cu")
    matrices = torch.arange(count * 64, dtype=torch.int16).view(count, 8, 8)
    given = fragments(matrices.transpose(1, 2) if trans else matrices).contiguous()
    out = machine.zeros(4, 8, 8, dtype=torch.int16)
    program.launch(f"stmatrix_x{count}{trans}", 1, 32, [machine.tensor(given), out])
    expected = torch.full((4, 8, 8), -1, dtype=torch.int16)
    expected[:count] = matrices
    assert torch.equal(out.cpu(), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_mma(machine: Machine, dtype: torch.dtype) -> None:
    program = machine.compile("matrices.cu")
    generator = torch.Generator().manual_seed(11)
    a, b, c = (
        torch.randint(-9, 10, shape, generator=generator).to(kind)
        for shape, kind in (((16, 16), dtype), ((8, 16), dtype), ((16, 8), torch.float32))
    )
    d = machine.zeros(16, 8, dtype=torch.float32)
    name = "mma_m16n8k16_bf16" if dtype == torch.bfloat16 else "mma_m16n8k16_f16"
    program.launch(name, 1, 32, [*map(machine.tensor, (a, b, c)), d])
    assert torch.equal(d.cpu(), a.float() @ b.float().T + c)
