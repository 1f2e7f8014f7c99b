"""Results that repeat bit for bit: between runs, numbers of threads, and neighbours in a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from cases import SMOKE, Case
from conftest import Device
from test_bwd import gradients
from torch import Tensor

from flash_attn4 import flash_attn_func

CASES = [
    *SMOKE,
    Case(batch=1, heads_q=1, heads_k=1, seqlen_q=700, seqlen_k=900),
    Case(batch=1, heads_q=8, heads_k=1, seqlen_q=3, seqlen_k=2000, num_splits=4),
    Case(batch=1, heads_q=8, heads_k=1, seqlen_q=3, seqlen_k=2000, head_dim=128, head_dim_v=128),
]


@pytest.fixture
def restored_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def forward(case: Case, device: Device) -> list[Tensor]:
    inputs = case.inputs().to(device.torch)
    return list(
        flash_attn_func(inputs.q, inputs.k, inputs.v, **inputs.arguments(), return_lse=True)
    )


def backward(case: Case, device: Device) -> list[Tensor]:
    inputs = case.inputs().to(device.torch)
    grads = gradients(inputs, through_lse=False, deterministic=True)
    return [grads.q, grads.k, grads.v, *([] if grads.sink is None else [grads.sink])]


@pytest.mark.parametrize("results", [forward, backward])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_repeats_bit_for_bit(
    case: Case, results: Callable[[Case, Device], list[Tensor]], device: Device
) -> None:
    first = results(case, device)
    for _ in range(3):
        for x, y in zip(results(case, device), first, strict=True):
            assert torch.equal(x, y)


@pytest.mark.cpu_only("threads of the CPU")
@pytest.mark.usefixtures("restored_threads")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_threads_do_not_matter(case: Case, device: Device) -> None:
    torch.set_num_threads(1)
    first = forward(case, device) + backward(case, device)
    for threads in (2, 3, 7):
        torch.set_num_threads(threads)
        results = forward(case, device) + backward(case, device)
        for x, y in zip(results, first, strict=True):
            assert torch.equal(x, y), threads


def test_batch_does_not_matter(device: Device) -> None:
    """A sequence gives the same alone as in company, with one number of splits."""
    inputs = Case(batch=5, causal=True).inputs().to(device.torch)
    out, lse = flash_attn_func(inputs.q, inputs.k, inputs.v, causal=True, return_lse=True)
    for i in range(5):
        alone = (x[i : i + 1] for x in (inputs.q, inputs.k, inputs.v))
        out_alone, lse_alone = flash_attn_func(*alone, causal=True, return_lse=True)
        assert torch.equal(out_alone[0], out[i])
        assert torch.equal(lse_alone[0], lse[i])


def test_rows_do_not_matter(device: Device) -> None:
    """The last query of a causal sequence gives the same alone (decoding) as in company."""
    inputs = Case(batch=2, causal=True, dtype="float32").inputs().to(device.torch)
    q, k, v = (x.to(device.dtype) for x in (inputs.q, inputs.k, inputs.v))
    out = flash_attn_func(q, k, v, causal=True)
    alone = flash_attn_func(q[:, -1:], k, v, causal=True)
    torch.testing.assert_close(alone, out[:, -1:], **device.tolerance(1e-6))
