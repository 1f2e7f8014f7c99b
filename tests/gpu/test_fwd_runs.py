"""The forward on a real GPU as programs run it: graphs, streams, devices, threads, compilers.

Its results are tested in tests/ops; here are the ways to call it. What depends on the first launch
of a process runs in a process of its own.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import reference
import tolerances
import torch
from conftest import Device
from torch import Tensor

from flash_attn4 import flash_attn_func, flash_attn_varlen_func

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _gpu_only(device: Device) -> None:
    if device.name != "cuda":
        pytest.skip(f"ways to call a real GPU (--device cuda), not {device.name}")


def normal(seed: int, *shape: int, device: str = "cuda") -> Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(*shape, generator=generator, device=device).to(torch.bfloat16)


def qkv(seed: int, *, batch: int = 2, seqlen: int = 300, device: str = "cuda") -> list[Tensor]:
    shapes = (batch, seqlen, 4, 128), (batch, seqlen, 2, 128), (batch, seqlen, 2, 128)
    return [normal(3 * seed + i, *shape, device=device) for i, shape in enumerate(shapes)]


def check_dense(out: Tensor, q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> None:
    """Rule A of tolerances.py, on the device."""
    spans = list(reference.dense_spans(q.shape[0], q.shape[1], k.shape[1]))
    options = reference.Options(causal=causal)
    expected, _ = reference.attention(q.double(), k.double(), v.double(), iter(spans), options)
    eager, _ = reference.attention(q, k, v, iter(spans), options)
    tolerances.check_largest_error("out", out, expected, eager)


def run_fresh(body: str) -> None:
    """Runs `body` in a new process that sees the names of this file."""
    program = (
        f"import sys; sys.path[:0] = [{str(TESTS)!r}, {str(Path(__file__).parent)!r}]\n"
        "import os, torch\n"
        "from test_fwd_runs import *\n"
    ) + textwrap.dedent(body)
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


# ---- CUDA graphs --------------------------------------------------------------------------------


def packed_lengths(lengths: list[int], sequences: int) -> Tensor:
    """cu_seqlens with empty sequences at the end, as a graph of fixed batch size has them."""
    lengths = lengths + [0] * (sequences - len(lengths))
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32).cuda()


def test_graph_replays_with_other_lengths() -> None:
    """Captured once; lengths, then their number, change between replays."""
    sequences, rows = 8, 1500
    q, k, v = (normal(i, rows, n, 128) for i, n in enumerate((4, 2, 2)))
    cu_seqlens = packed_lengths([rows], sequences)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, lse = flash_attn_varlen_func(
            q, k, v, cu_seqlens, cu_seqlens, rows, rows, causal=True, return_lse=True
        )
    for step, lengths in enumerate(([300, 1, 700], [64] * 8, [1500], [], [128, 0, 130, 900])):
        q.copy_(normal(100 + step, *q.shape))
        cu_seqlens.copy_(packed_lengths(lengths, sequences))
        out.fill_(torch.nan)
        graph.replay()
        first = 0
        for length in lengths:
            part = slice(first, first + length)
            check_dense(out[None, part], q[None, part], k[None, part], v[None, part], causal=True)
            first += length
        assert not out[first:].any(), "rows of no sequence"
        assert bool(torch.isneginf(lse[:, first:]).all())


def test_graph_replays_with_other_used_keys() -> None:
    q, k, v = qkv(1)
    used = torch.tensor([300, 300], dtype=torch.int32, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = flash_attn_func(q, k, v, seqused_k=used)
    for lengths in ([1, 300], [129, 64], [0, 256]):
        used.copy_(torch.tensor(lengths, dtype=torch.int32))
        graph.replay()
        for i, length in enumerate(lengths):
            check_dense(out[i : i + 1], q[i : i + 1], k[i : i + 1, :length], v[i : i + 1, :length])


def test_first_launch_inside_graph_capture() -> None:
    run_fresh("""
        q, k, v = qkv(2)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = flash_attn_func(q, k, v, causal=True)
        for seed in (3, 4):
            for old, new in zip((q, k, v), qkv(seed)):
                old.copy_(new)
            graph.replay()
            torch.cuda.synchronize()
            check_dense(out, q, k, v, causal=True)
    """)


# ---- Streams and the host -----------------------------------------------------------------------


def busy(milliseconds: float) -> None:
    """Keeps the current stream busy for at least that long, at up to 2 GHz."""
    torch.cuda._sleep(int(milliseconds * 2e6))


def test_stream_of_the_caller_orders() -> None:
    """Inputs change behind a long kernel of the stream; on another one they were read before."""
    q, k, v = qkv(5)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        busy(50)
        for x in (q, k, v):
            x.mul_(0.5)
        out = flash_attn_func(q, k, v)
        doubled = out + out  # behind it on the stream as well
    stream.synchronize()
    check_dense(out, q, k, v)
    assert torch.equal(doubled, out + out)


@contextmanager
def no_synchronisation() -> Iterator[None]:
    """torch raises where it would wait for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_host_does_not_wait() -> None:
    """Neither through torch nor through the driver: the stream is still busy after the calls."""
    q, k, v = qkv(6)
    packed = [x.flatten(0, 1) for x in (q, k, v)]
    cu_seqlens = packed_lengths([200, 400], 2)
    used = torch.tensor([17, 250], dtype=torch.int32, device="cuda")
    sink = torch.randn(4, device="cuda")
    for first_launch in (True, False):  # the first one loads the kernels, which may take longer
        with no_synchronisation():
            busy(300)
            dense = flash_attn_func(q, k, v, causal=True, seqused_k=used, learnable_sink=sink)
            varlen = flash_attn_varlen_func(*packed, cu_seqlens, cu_seqlens, 400, 400)
            still_busy = not torch.cuda.current_stream().query()
        assert first_launch or still_busy
    assert dense.isfinite().all()
    check_dense(varlen[None, 200:], *(x[None, 200:] for x in packed))


def test_repeated_runs_are_bit_equal() -> None:
    """Many tiles per block, uneven work: whoever computes a tile, in the same order of keys."""
    q, k, v = qkv(7, batch=8, seqlen=1111)
    cu_seqlens = packed_lengths([5, 2000, 0, 3001, 777, 128, 2977], 7)
    packed = [x.flatten(0, 1) for x in (q, k, v)]

    def results() -> list[Tensor]:
        dense = flash_attn_func(q, k, v, causal=True, return_lse=True)
        varlen = flash_attn_varlen_func(
            *packed, cu_seqlens, cu_seqlens, 3001, 3001, window_size=(700, 50), return_lse=True
        )
        return [*dense, *varlen]

    first = results()
    for _ in range(20):
        for got, want in zip(results(), first, strict=True):
            assert torch.equal(got, want)


# ---- Devices, threads, processes ----------------------------------------------------------------


def test_second_device() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip(f"needs two CUDA devices, found {torch.cuda.device_count()}")
    run_fresh("""
        for device in ("cuda:1", "cuda:0"):
            q, k, v = qkv(8, device=device)
            assert torch.cuda.current_device() == 0
            out = flash_attn_func(q, k, v, causal=True)
            assert str(out.device) == device and torch.cuda.current_device() == 0
            check_dense(out, q, k, v, causal=True)
    """)


def test_threads_call_at_once() -> None:
    """Every thread on a stream of its own, the first launches of the process among them."""
    run_fresh("""
        from concurrent.futures import ThreadPoolExecutor

        torch.zeros(1, device="cuda")
        cases = [qkv(seed, batch=1 + seed % 3, seqlen=100 + 57 * seed) for seed in range(8)]
        torch.cuda.synchronize()

        def work(case):
            outs = []
            with torch.cuda.stream(torch.cuda.Stream()):
                for _ in range(50):
                    outs.append(flash_attn_func(*case, causal=True))
                torch.cuda.current_stream().synchronize()
            return outs

        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(work, cases))
        for case, outs in zip(cases, results):
            check_dense(outs[0], *case, causal=True)
            assert all(torch.equal(out, outs[0]) for out in outs)
    """)


def test_fork_before_the_first_cuda_call() -> None:
    """Importing the package leaves CUDA alone, so workers may be forked after it.

    Forking after CUDA was used is refused by torch itself.
    """
    run_fresh("""
        assert not torch.cuda.is_initialized(), "importing flash_attn4 must not initialise CUDA"
        child = os.fork()
        q, k, v = qkv(9)
        check_dense(flash_attn_func(q, k, v), q, k, v)
        if child == 0:
            os._exit(0)  # an exception above ends the child with another status
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
    """)


# ---- torch.compile ------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_without_graph_breaks(backend: str) -> None:
    if backend == "inductor" and importlib.util.find_spec("triton") is None:
        pytest.skip("inductor needs the package triton on a GPU")

    def block(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, lse = flash_attn_func(q * 0.5, k, v, causal=True, return_lse=True)
        return out * torch.sigmoid(lse).transpose(1, 2)[..., None].to(out.dtype)

    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True, backend=backend)
    for seqlen in (300, 301, 513):  # the second one makes sizes dynamic
        tensors = qkv(10, seqlen=seqlen)
        torch.testing.assert_close(compiled(*tensors), block(*tensors), atol=2e-2, rtol=2e-2)
    torch._dynamo.reset()
    plain = torch.compile(flash_attn_func, fullgraph=True, backend=backend)
    assert torch.equal(plain(*tensors, causal=True), flash_attn_func(*tensors, causal=True))


# ---- What must not be read, and how far --------------------------------------------------------


def test_nan_outside_of_the_lengths() -> None:
    """NaN behind used keys and queries, between sequences and behind the last one."""
    lengths, used_q, used_k = [200, 77, 300], [130, 77, 1], [65, 77, 257]
    rows = sum(lengths) + 50
    q, k, v = (normal(20 + i, rows, n, 128) for i, n in enumerate((4, 2, 2)))
    cu_seqlens = packed_lengths(lengths, 3)
    first = cu_seqlens.tolist()
    for tensors, used in (((q,), used_q), ((k, v), used_k)):
        for x in tensors:
            for i in range(3):
                x[first[i] + used[i] : first[i + 1]] = torch.nan
            x[first[3] :] = torch.nan
    seqused = [torch.tensor(x, dtype=torch.int32, device="cuda") for x in (used_q, used_k)]
    for causal in (False, True):
        out, lse = flash_attn_varlen_func(
            *(q, k, v, cu_seqlens, cu_seqlens, 300, 300),
            causal=causal,
            seqused_q=seqused[0],
            seqused_k=seqused[1],
            return_lse=True,
        )
        counted = torch.zeros(rows, dtype=torch.bool, device="cuda")
        for i in range(3):
            part_q = slice(first[i], first[i] + used_q[i])
            part_k = slice(first[i], first[i] + used_k[i])
            counted[part_q] = True
            part = q[None, part_q], k[None, part_k], v[None, part_k]
            check_dense(out[None, part_q], *part, causal=causal)
        assert not out[~counted].any()
        assert bool(torch.isneginf(lse[:, ~counted]).all())


def test_nan_behind_used_keys_of_a_dense_batch() -> None:
    q, k, v = qkv(30, batch=5)
    used = [0, 1, 128, 200, 300]
    for i, length in enumerate(used):
        k[i, length:] = torch.nan
        v[i, length:] = torch.nan
    out = flash_attn_func(q, k, v, seqused_k=torch.tensor(used, dtype=torch.int32, device="cuda"))
    for i, length in enumerate(used):
        check_dense(out[i : i + 1], q[i : i + 1], k[i : i + 1, :length], v[i : i + 1, :length])


LARGE = (65, 8256, 64, 64)  # 2.2e9 elements, more than 2^31


@pytest.fixture
def large() -> Iterator[Tensor]:
    """A tensor of 4.4 GB, where there is memory for a few of them."""
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0]
    if free < 20e9:
        pytest.skip(f"needs 20 GB of free GPU memory, found {free / 1e9:.1f}")
    tensor = torch.empty(LARGE, dtype=torch.bfloat16, device="cuda").normal_()
    assert tensor.numel() > 2**31
    yield tensor
    del tensor
    torch.cuda.empty_cache()


def test_queries_of_more_than_2_to_the_31_elements(large: Tensor) -> None:
    batch, seqlen, _, dim = LARGE
    k, v = (normal(40 + i, batch, 200, 1, dim) for i in range(2))
    out = flash_attn_func(large, k, v)
    for i, rows, head in ((0, slice(0, 99), 0), (64, slice(8200, 8256), 63), (32, slice(4000), 7)):
        part = (slice(i, i + 1), rows, slice(head, head + 1))
        check_dense(out[part], large[part], k[i : i + 1], v[i : i + 1])
    # Packed: rows, not batches, lie that far apart.
    lengths_q, lengths_k = (
        torch.arange(batch + 1, dtype=torch.int32, device="cuda") * n for n in (seqlen, 200)
    )
    packed = flash_attn_varlen_func(
        large.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), lengths_q, lengths_k, seqlen, 200
    )
    for i in range(batch):
        assert torch.equal(packed[i * seqlen : (i + 1) * seqlen], out[i]), f"sequence {i}"


def test_keys_of_more_than_2_to_the_31_elements(large: Tensor) -> None:
    batch, _, heads, dim = LARGE
    q = normal(50, batch, 3, heads, dim)
    out = flash_attn_func(q, large, large, causal=True)
    for i, head in ((0, 0), (64, 63), (40, 5)):
        keys = large[i : i + 1, :, head : head + 1]
        part = (slice(i, i + 1), slice(None), slice(head, head + 1))
        check_dense(out[part], q[part], keys, keys, causal=True)
