"""Shapes nobody thought of: random calls against float64, and laws that hold for all of them."""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch
from cases import DTYPES, Case
from conftest import Device, skip_without_kernel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_bwd import check_backward
from test_fwd import check_forward

from flash_attn4 import flash_attn_combine, flash_attn_func, flash_attn_varlen_func

# The device fixture is the same for all examples of a test. Fixed examples: runs can be compared.
SETTINGS = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

lengths = st.integers(0, 150)
head_dims = st.integers(1, 16).map(lambda n: 8 * n)
windows = st.tuples(st.integers(-1, 160), st.integers(-1, 160))


@st.composite
def any_case(draw: st.DrawFn) -> Case:
    heads_k = draw(st.integers(1, 3))
    return Case(
        dtype=draw(st.sampled_from(DTYPES)),
        batch=draw(st.integers(0, 3)),
        seqlen_q=draw(lengths),
        seqlen_k=draw(lengths),
        heads_q=heads_k * draw(st.integers(1, 3)),
        heads_k=heads_k,
        head_dim=draw(head_dims),
        head_dim_v=draw(head_dims),
        causal=draw(st.booleans()),
        window=draw(st.one_of(st.just((-1, -1)), windows)),
        softcap=draw(st.sampled_from([0.0, 0.0, 3.0])),
        sink=draw(st.sampled_from(["", "", "float32", "bfloat16"])),
        seqused=draw(st.booleans()),
        num_splits=draw(st.sampled_from([1, 1, 0, 3])),
        layout=draw(st.sampled_from(["contiguous", "bhsd", "padded"])),
    )


def served(case: Case, device: Device) -> Case:
    """On a GPU in 16 bit, and with the number of splits left to the kernel."""
    if device.name == "cpu":
        return case
    dtype = "bfloat16" if case.dtype == "float32" else case.dtype
    return replace(case, dtype=dtype, num_splits=min(case.num_splits, 1))


@SETTINGS
@given(case=any_case())
def test_any_forward(case: Case, device: Device) -> None:
    check_forward(served(case, device), device)


@SETTINGS
@given(case=any_case(), through_lse=st.booleans())
def test_any_backward(case: Case, through_lse: bool, device: Device) -> None:
    with skip_without_kernel(device.name):  # here: hypothesis would look for smaller examples
        check_backward(served(case, device), device, through_lse=through_lse)


@SETTINGS
@given(
    lengths_q=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    extra_k=st.lists(st.integers(0, 40), min_size=5, max_size=5),
    causal=st.booleans(),
    window=windows,
)
def test_packed_equals_one_by_one(
    lengths_q: list[int],
    extra_k: list[int],
    causal: bool,
    window: tuple[int, int],
    device: Device,
) -> None:
    lengths_k = extra_k[: len(lengths_q)]
    generator = torch.Generator().manual_seed(sum(lengths_q) + sum(lengths_k))
    q = torch.randn(sum(lengths_q), 2, 16, generator=generator).to(device.torch, device.dtype)
    k = torch.randn(sum(lengths_k), 1, 16, generator=generator).to(device.torch, device.dtype)
    offsets = [
        torch.tensor([0, *x]).cumsum(0).to(torch.int32).to(device.torch)
        for x in (lengths_q, lengths_k)
    ]
    options = {"causal": causal, "window_size": window, "return_lse": True}
    out, lse = flash_attn_varlen_func(q, k, k, *offsets, max(lengths_q), max(lengths_k), **options)
    first_q = first_k = 0
    for length_q, length_k in zip(lengths_q, lengths_k, strict=True):
        rows_q, rows_k = slice(first_q, first_q + length_q), slice(first_k, first_k + length_k)
        part = q[None, rows_q], k[None, rows_k], k[None, rows_k]
        out_alone, lse_alone = flash_attn_func(*part, **options)
        torch.testing.assert_close(out[rows_q], out_alone[0], **device.tolerance(2e-6))
        torch.testing.assert_close(lse[:, rows_q], lse_alone[0], atol=2e-6, rtol=1e-6)
        first_q, first_k = rows_q.stop, rows_k.stop


@SETTINGS
@given(
    cuts=st.lists(st.integers(0, 90), min_size=1, max_size=6),
    seqlen_q=st.integers(1, 40),
    softcap=st.sampled_from([0.0, 2.0]),
)
def test_parts_of_the_keys_combine(
    cuts: list[int], seqlen_q: int, softcap: float, device: Device
) -> None:
    """Attention over pieces of the keys, empty ones too, merges to attention over all keys."""
    generator = torch.Generator().manual_seed(seqlen_q)
    q = torch.randn(1, seqlen_q, 2, 24, generator=generator).to(device.torch, device.dtype)
    k = torch.randn(1, 90, 2, 24, generator=generator).to(device.torch, device.dtype)
    edges = [0, *sorted(cuts), 90]
    parts = [
        flash_attn_func(q, k[:, first:last], k[:, first:last], softcap=softcap, return_lse=True)
        for first, last in itertools.pairwise(edges)
    ]
    out, lse = flash_attn_combine(
        torch.stack([part[0] for part in parts]),
        torch.stack([part[1] for part in parts]).transpose(-1, -2),
    )
    expected, expected_lse = flash_attn_func(q, k, k, softcap=softcap, return_lse=True)
    torch.testing.assert_close(out, expected, **device.tolerance(3e-6))
    allowed = 3e-6 + 2 * device.exp2_error  # both come from the kernel
    torch.testing.assert_close(lse.transpose(-1, -2), expected_lse, atol=allowed, rtol=1e-6)
