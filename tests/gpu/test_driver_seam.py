"""The driver seam on a real GPU, through the combine kernel: every kind of thread and capture that
torch launches from. The image is loaded at its first launch, so each place of a first launch is a
process of its own."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch
from kernel_list import KERNELS

import flash_attn4

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

PRELUDE = """
import threading
import torch, flash_attn4

def inputs(seed, splits=5, shape=(2, 7, 3), dim=64, device="cuda:0"):
    generator = torch.Generator(device=device).manual_seed(seed)
    out = torch.randn(splits, *shape, dim, device=device, generator=generator)
    lse = torch.randn(splits, *shape, device=device, generator=generator)
    return out, lse

def expected(out, lse):
    weight = torch.softmax(lse.double(), dim=0)
    return (weight[..., None] * out.double()).sum(0), torch.logsumexp(lse.double(), dim=0)

def check(result, out, lse):
    for got, want in zip(result, expected(out, lse)):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
"""


def run_fresh(body: str) -> None:
    """Runs `body` after PRELUDE in a new process."""
    program = PRELUDE + textwrap.dedent(body)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]


def test_first_launch_on_main_thread() -> None:
    run_fresh("""
        out, lse = inputs(1)
        check(flash_attn4.flash_attn_combine(out, lse), out, lse)
    """)


def test_first_launch_on_fresh_thread() -> None:
    run_fresh("""
        out, lse = inputs(2)
        torch.cuda.synchronize()
        results = []
        thread = threading.Thread(target=lambda: results.append(torch.ops.fa4.combine(out, lse)))
        thread.start()
        thread.join()
        assert results, "the thread's call failed"
        check(results[0], out, lse)
    """)


def test_first_launch_inside_backward() -> None:
    run_fresh("""
        out, lse = inputs(3)
        main, threads, results = threading.get_ident(), [], []

        class Probe(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x.clone()

            @staticmethod
            def backward(ctx, grad):
                threads.append(threading.get_ident())
                results.append(torch.ops.fa4.combine(out, lse))
                return grad

        x = torch.ones(3, device="cuda", requires_grad=True)
        Probe.apply(x).sum().backward()
        assert threads[0] != main, "CUDA backwards run on a thread of autograd's own"
        check(results[0], out, lse)
    """)


def test_first_launch_inside_graph_capture_then_replay() -> None:
    run_fresh("""
        out, lse = inputs(4)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = torch.ops.fa4.combine(out, lse)
        for seed in (5, 6, 7):
            fresh_out, fresh_lse = inputs(seed)
            out.copy_(fresh_out)
            lse.copy_(fresh_lse)
            graph.replay()
            torch.cuda.synchronize()
            check(result, fresh_out, fresh_lse)
    """)


def test_side_stream_orders_with_torch() -> None:
    out = torch.randn(8, 4, 128, 8, 128, device="cuda")
    lse = torch.randn(8, 4, 128, 8, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(
            20_000_000
        )  # a launch on the wrong stream would read out before it is doubled
        out.mul_(2)
        result, _ = flash_attn4.flash_attn_combine(out, lse)
    stream.synchronize()
    want = (torch.softmax(lse.double(), 0)[..., None] * out.double()).sum(0)
    torch.testing.assert_close(result.double(), want, rtol=1e-5, atol=1e-5)


def test_second_device() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    run_fresh("""
        out, lse = inputs(8, device="cuda:1")
        assert torch.cuda.current_device() == 0
        result = flash_attn4.flash_attn_combine(out, lse)
        assert result[0].device.index == 1 and torch.cuda.current_device() == 0
        check(result, out, lse)
        out, lse = inputs(9, device="cuda:0")
        check(flash_attn4.flash_attn_combine(out, lse), out, lse)
    """)


def test_forward_without_a_kernel_gives_every_reason() -> None:
    q = torch.randn(1, 16, 2, 512, device="cuda", dtype=torch.bfloat16)
    with pytest.raises(NotImplementedError) as error:
        flash_attn4.flash_attn_func(q, q, q)
    text = str(error.value)
    assert "flash_attn_func: no fwd kernel for this call on cuda:0 (" in text
    for kernel in KERNELS:
        if kernel.op == "fwd":
            assert f"{kernel.name}: " in text
    assert "fwd_cpu: runs on cpu, head_dim is 512 (serves 8..256)" in text
