"""PTX of another front end: what Triton compiles for both architectures runs in the emulator.

Needs the package triton; no GPU. Triton's matrix product uses wgmma on sm_90 and tcgen05 on sm_100.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flash_attn4 import emulator

pytestmark = pytest.mark.cpu_only("these kernels run in the emulator in any case")
triton = pytest.importorskip("triton", reason="no package triton")
import triton.language as tl  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

OPTIONS = [
    {},
    {"policy": "lazy"},
    {"policy": "random", "seed": 1},
    {"policy": "random", "seed": 2, "order": "descending", "accumulate": "exact"},
]


@triton.jit
def matmul(a, b, c, m, n, k, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    sums = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, k, BK):
        at = start + tl.arange(0, BK)
        a_inside = (rows[:, None] < m) & (at[None, :] < k)
        b_inside = (at[:, None] < k) & (columns[None, :] < n)
        left = tl.load(a + rows[:, None] * k + at[None, :], mask=a_inside, other=0.0)
        right = tl.load(b + at[:, None] * n + columns[None, :], mask=b_inside, other=0.0)
        sums = tl.dot(left, right, sums)
    inside = (rows[:, None] < m) & (columns[None, :] < n)
    tl.store(c + rows[:, None] * n + columns[None, :], sums, mask=inside)


@triton.jit
def softmax(x, y, columns, BLOCK: tl.constexpr):
    at = tl.program_id(0) * columns + tl.arange(0, BLOCK)
    inside = tl.arange(0, BLOCK) < columns
    value = tl.load(x + at, mask=inside, other=-float("inf"))
    weight = tl.exp(value - tl.max(value, 0))
    tl.store(y + at, weight / tl.sum(weight, 0), mask=inside)


def compiled(function: Any, capability: int, types: str, **constants: int) -> Any:
    names = function.arg_names
    signature = dict(zip(names, types.split(), strict=False)) | dict.fromkeys(
        constants, "constexpr"
    )
    source = ASTSource(fn=function, signature=signature, constexprs=constants)
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options={"num_warps": 4})


def launch(kernel: Any, name: str, grid: Any, args: list[Any], options: dict[str, Any]) -> None:
    module = emulator.Module(kernel.asm["ptx"], name)
    # Behind the kernel's own parameters Triton has pointers to scratch memory, unused here.
    unused = len(module.kernels[name].parameters) - len(args)
    module.launch(
        name,
        grid,
        128,
        [*args, *[0] * unused],
        shared_bytes=kernel.metadata.shared,
        options=emulator.Options(**options),
    )


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("capability", [90, 100])
def test_matmul(capability: int, options: dict[str, Any]) -> None:
    m, n, k = 200, 264, 160
    generator = torch.Generator().manual_seed(1)
    a = torch.randint(-3, 4, (m, k), generator=generator).bfloat16()
    b = torch.randint(-3, 4, (k, n), generator=generator).bfloat16()
    c = torch.full((m, n), float("nan"))
    kernel = compiled(matmul, capability, "*bf16 *bf16 *fp32 i32 i32 i32", BM=128, BN=128, BK=64)
    assert ("tcgen05.mma" if capability == 100 else "wgmma") in kernel.asm["ptx"]
    launch(kernel, "matmul", (2, 3), [a, b, c, m, n, k], options)
    assert torch.equal(c, a.float() @ b.float())


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("capability", [90, 100])
def test_softmax(capability: int, options: dict[str, Any]) -> None:
    x = torch.randn(7, 777, generator=torch.Generator().manual_seed(2))
    y = torch.full_like(x, float("nan"))
    kernel = compiled(softmax, capability, "*fp32 *fp32 i32", BLOCK=1024)
    launch(kernel, "softmax", 7, [x, y, 777], options)
    torch.testing.assert_close(y, x.softmax(1), rtol=1e-6, atol=1e-7)
