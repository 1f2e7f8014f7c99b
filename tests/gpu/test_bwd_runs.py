"""Forward and backward on a real GPU as programs run them: graphs, streams, devices, threads.

The gradients are tested in tests/ops, and training steps in tests/ops/test_training_modes.py; here
are the ways to call. What depends on the first launch of a process runs in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import reference
import tolerances
import torch
from conftest import Device
from test_fwd_runs import busy, no_synchronisation, normal, packed_lengths, run_fresh
from torch import Tensor
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from flash_attn4 import flash_attn_func, flash_attn_varlen_func

REPEATS = 100
LOAD_COPIES, LOAD_MATMULS = 4, 16  # per repeat: each keeps a fast GPU busy for about 4 ms


@pytest.fixture(autouse=True)
def _gpu_only(device: Device) -> None:
    if device.name != "cuda":
        pytest.skip(f"ways to call a real GPU (--device cuda), not {device.name}")


def problem(
    seed: int, *rows: int, heads: tuple[int, int] = (4, 2), dim: int = 128, device: str = "cuda"
) -> list[Tensor]:
    """q, k, v and the gradient of out; rows: batch and seqlen, or one number of packed rows."""
    counts = (heads[0], heads[1], heads[1], heads[0])
    return [normal(4 * seed + i, *rows, n, dim, device=device) for i, n in enumerate(counts)]


Step = Callable[[], list[Tensor]]


def step(tensors: list[Tensor], **options: Any) -> list[Tensor]:
    """One training step of dense attention: out, dq, dk, dv."""
    *inputs, dout = tensors
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = flash_attn_func(*leaves, **options)
    return [out.detach(), *torch.autograd.grad(out, leaves, dout)]


def packed_step(
    tensors: list[Tensor], cu_seqlens: Tensor, longest: int, **options: Any
) -> list[Tensor]:
    """One training step of packed sequences: out, dq, dk, dv."""
    *inputs, dout = tensors
    leaves = [x.detach().requires_grad_() for x in inputs]
    lengths = cu_seqlens, cu_seqlens, longest, longest
    out = flash_attn_varlen_func(*leaves, *lengths, **options)
    return [out.detach(), *torch.autograd.grad(out, leaves, dout)]


def check_step(
    results: list[Tensor],
    tensors: list[Tensor],
    *,
    causal: bool = False,
    spans: list[reference.Span] | None = None,
) -> None:
    """Rule A of tolerances.py, on the device, for out and all gradients."""
    q, k, v, dout = tensors
    spans = spans or list(reference.dense_spans(q.shape[0], q.shape[1], k.shape[1]))
    options = reference.Options(causal=causal)
    wanted, of_eager = (
        reference.attention_and_gradients((q, k, v), spans, options, dout, eager=eager)
        for eager in (False, True)
    )
    for name, got, want, plain in zip(
        ("out", "dq", "dk", "dv"), results, flat(wanted), flat(of_eager), strict=True
    ):
        # A row with one key has dq = 0, but for a float32 rounding of its terms.
        tolerances.check_largest_error(name, got, want, plain, extra=1e-4)


def flat(results: tuple[Tensor, Tensor, reference.Gradients]) -> list[Tensor]:
    out, _, grads = results
    return [out, grads.q, grads.k, grads.v]


def assert_bit_equal(results: list[Tensor], expected: list[Tensor], when: str) -> None:
    names = ("out", "dq", "dk", "dv") * (len(expected) // 4)
    for name, got, want in zip(names, results, expected, strict=True):
        assert torch.equal(got, want), f"{name} differs {when}"


# ---- Determinism --------------------------------------------------------------------------------


class Load:
    """Copies from the host on one stream and matmuls on another."""

    def __init__(self) -> None:
        self.streams = torch.cuda.Stream(), torch.cuda.Stream()
        self.host = torch.zeros(64 << 20, dtype=torch.uint8).pin_memory()
        self.copy = self.host.cuda()
        self.a, self.b = (normal(90 + i, 4096, 4096) for i in range(2))
        self.product = self.a @ self.b
        torch.cuda.synchronize()

    def add(self) -> None:
        with torch.cuda.stream(self.streams[0]):
            for _ in range(LOAD_COPIES):
                self.copy.copy_(self.host, non_blocking=True)
        with torch.cuda.stream(self.streams[1]):
            for _ in range(LOAD_MATMULS):
                torch.mm(self.a, self.b, out=self.product)

    def busy(self) -> bool:
        return not any(stream.query() for stream in self.streams)


@pytest.mark.parametrize("dim", [64, 128])
def test_deterministic_repeats_beside_other_work(dim: int) -> None:
    """Bit for bit, however the blocks of a tile are spread in time by what else runs."""
    dense = problem(1, 4, 2000, dim=dim)
    lengths = [5, 2000, 0, 3001, 777, 128, 2089]
    packed = problem(2, sum(lengths), heads=(6, 1), dim=dim)
    cu_seqlens = packed_lengths(lengths, len(lengths))

    def results() -> list[Tensor]:
        return [
            *step(dense, causal=True, deterministic=True),
            *packed_step(packed, cu_seqlens, 3001, window_size=(700, 50), deterministic=True),
        ]

    first = results()
    load = Load()
    beside = 0
    for repeat in range(REPEATS):
        load.add()
        assert_bit_equal(results(), first, f"in repeat {repeat}")
        beside += load.busy()
    torch.cuda.synchronize()
    assert beside > REPEATS // 2, f"both streams were busy after only {beside} of {REPEATS} repeats"


def test_fast_mode_is_right_beside_other_work() -> None:
    tensors = problem(3, 2, 1000)
    step(tensors, causal=True)  # loads the kernels
    load = Load()
    load.add()
    results = step(tensors, causal=True)
    assert load.busy(), "the other work ended before the step was launched"
    torch.cuda.synchronize()
    check_step(results, tensors, causal=True)


# ---- CUDA graphs --------------------------------------------------------------------------------


def capture(run: Step) -> tuple[Any, list[Tensor]]:
    """The graph of what `run` launches, and its results, which a replay writes anew."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run()
    return graph, results


@pytest.mark.parametrize("deterministic", [False, True])
def test_graph_replays_with_other_lengths(deterministic: bool) -> None:
    """Captured once; data, lengths, then their number, change between replays."""
    sequences, rows = 8, 1500
    tensors = problem(4, rows)
    cu_seqlens = packed_lengths([rows], sequences)
    run = partial(packed_step, tensors, cu_seqlens, rows, causal=True, deterministic=deterministic)
    graph, results = capture(run)
    for seed, lengths in enumerate(([300, 1, 700], [64] * 8, [1500], [], [128, 0, 130, 900]), 10):
        for old, new in zip(tensors, problem(seed, rows), strict=True):
            old.copy_(new)
        cu_seqlens.copy_(packed_lengths(lengths, sequences))
        for result in results:
            result.fill_(torch.nan)
        graph.replay()
        spans = list(reference.packed_spans(cu_seqlens, cu_seqlens))
        check_step(results, tensors, causal=True, spans=spans)
        for result in results:
            assert not result[sum(lengths) :].any(), "rows of no sequence"
        if deterministic:
            assert_bit_equal(results, run(), f"from a call outside, lengths {lengths}")


def test_graph_replays_one_behind_the_other() -> None:
    """Replays share a workspace: the next one must not start before it is free."""
    tensors = problem(5, 2, 700)
    graph, results = capture(partial(step, tensors, causal=True, deterministic=True))
    expected = step(tensors, causal=True, deterministic=True)
    for _ in range(20):
        graph.replay()
    assert_bit_equal(results, expected, "after 20 replays")


def test_first_launch_inside_graph_capture() -> None:
    """The backward's thread is autograd's own: it too first launches while a stream captures."""
    run_fresh("""
        from test_bwd_runs import *

        tensors = problem(6, 2, 300)
        graph, results = capture(partial(step, tensors, causal=True))
        for seed in (7, 8):
            for old, new in zip(tensors, problem(seed, 2, 300)):
                old.copy_(new)
            graph.replay()
            torch.cuda.synchronize()
            check_step(results, tensors, causal=True)
    """)


def test_graphed_callables() -> None:
    """torch.cuda.make_graphed_callables: forward and backward are graphs of their own."""
    sample = [x.detach().requires_grad_() for x in problem(9, 2, 260)[:3]]

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flash_attn_func(q, k, v, causal=True, deterministic=True)

    graphed = torch.cuda.make_graphed_callables(attention, tuple(sample))
    for seed in (10, 11):
        tensors = problem(seed, 2, 260)
        leaves = [x.detach().requires_grad_() for x in tensors[:3]]
        out = graphed(*leaves)
        grads = torch.autograd.grad(out, leaves, tensors[3])
        expected = step(tensors, causal=True, deterministic=True)
        assert_bit_equal([out, *grads], expected, "from a call without graphs")


# ---- Streams and the host -----------------------------------------------------------------------


def test_stream_of_the_caller_orders() -> None:
    """Inputs change behind a long kernel of the stream; on another one they were read before."""
    tensors = problem(12, 2, 300)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        busy(50)
        for x in tensors:
            x.mul_(0.5)
        results = step(tensors)
        doubled = [x + x for x in results]  # behind it on the stream as well
    stream.synchronize()
    check_step(results, tensors)
    assert_bit_equal(doubled, [x + x for x in results], "when it is read on the stream")


def test_backward_called_from_another_stream() -> None:
    """Autograd runs it on the forward's stream and makes both streams wait for each other."""
    tensors = problem(13, 2, 300)
    *inputs, dout = tensors
    leaves = [x.detach().requires_grad_() for x in inputs]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        busy(50)
        out = flash_attn_func(*leaves)
    busy(80)
    dout.mul_(0.5)
    grads = torch.autograd.grad(out, leaves, dout)
    doubled = [x + x for x in grads]
    torch.cuda.synchronize()
    check_step([out.detach(), *grads], tensors)
    for x, twice in zip(grads, doubled, strict=True):
        assert torch.equal(twice, x + x)


@pytest.mark.parametrize("deterministic", [False, True])
def test_host_does_not_wait(deterministic: bool) -> None:
    """Neither through torch nor through the driver: the stream is still busy after the calls."""
    dense, packed = problem(14, 2, 300), problem(15, 600)
    leaves = [x.detach().requires_grad_() for x in dense[:3]]
    sink = torch.randn(4, device="cuda", requires_grad=True)
    dlse = torch.randn(2, 4, 300, device="cuda")
    used = torch.tensor([17, 250], dtype=torch.int32, device="cuda")
    cu_seqlens = packed_lengths([200, 400], 2)
    for first_launch in (True, False):  # the first one loads the kernels, which may take longer
        with no_synchronisation():
            busy(300)
            out, lse = flash_attn_func(
                *leaves,
                causal=True,
                seqused_k=used,
                learnable_sink=sink,
                deterministic=deterministic,
                return_lse=True,
            )
            grads = torch.autograd.grad((out, lse), (*leaves, sink), (dense[3], dlse))
            results = packed_step(packed, cu_seqlens, 400, deterministic=deterministic)
            still_busy = not torch.cuda.current_stream().query()
        assert first_launch or still_busy
    assert all(grad.isfinite().all() for grad in grads)
    check_step(results, packed, spans=list(reference.packed_spans(cu_seqlens, cu_seqlens)))


# ---- Devices and threads ------------------------------------------------------------------------


def test_second_device() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip(f"needs two CUDA devices, found {torch.cuda.device_count()}")
    run_fresh("""
        from test_bwd_runs import *

        for device in ("cuda:1", "cuda:0"):
            tensors = problem(16, 2, 300, device=device)
            for deterministic in (False, True):
                results = step(tensors, causal=True, deterministic=deterministic)
                assert torch.cuda.current_device() == 0
                assert all(str(x.device) == device for x in results)
                check_step(results, tensors, causal=True)
    """)


def test_threads_train_at_once() -> None:
    """Every thread on a stream of its own, all their backwards on autograd's thread."""
    run_fresh("""
        from concurrent.futures import ThreadPoolExecutor
        from test_bwd_runs import *

        torch.zeros(1, device="cuda")
        cases = [problem(20 + i, 1 + i % 3, 100 + 57 * i) for i in range(8)]
        torch.cuda.synchronize()

        def work(tensors):
            with torch.cuda.stream(torch.cuda.Stream()):
                steps = [step(tensors, causal=True, deterministic=True) for _ in range(30)]
                torch.cuda.current_stream().synchronize()
            return steps

        with ThreadPoolExecutor(8) as pool:
            all_steps = list(pool.map(work, cases))
        for tensors, steps in zip(cases, all_steps):
            check_step(steps[0], tensors, causal=True)
            for results in steps:
                assert_bit_equal(results, steps[0], "between calls of a thread")
    """)


# ---- Memory -------------------------------------------------------------------------------------


def held_bytes(run: Callable[[], Tensor]) -> int:
    """What a forward keeps for its backward, beside its result."""
    before = torch.cuda.memory_allocated()
    result = run()
    return torch.cuda.memory_allocated() - before - result.untyped_storage().nbytes()


def test_checkpointing_gives_memory_back() -> None:
    """Recomputing all keeps least, attention's output a little more, no checkpoint most."""
    policy = torch.utils.checkpoint.CheckpointPolicy
    attention = torch.ops.fa4.fwd.default

    def keep_attention(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> Any:
        return policy.MUST_SAVE if op is attention else policy.PREFER_RECOMPUTE

    def block(*tensors: Tensor) -> Tensor:
        q, k, v = (torch.nn.functional.silu(2 * x) for x in tensors)
        out = flash_attn_func(q, k, v, causal=True)
        return torch.nn.functional.silu(out.float()).square().sum()

    leaves = [x.detach().requires_grad_() for x in problem(30, 2, 1000)[:3]]
    contexts = partial(create_selective_checkpoint_contexts, keep_attention)
    ways = {
        "all": partial(checkpoint, block, *leaves, use_reentrant=False),
        "attention": partial(checkpoint, block, *leaves, use_reentrant=False, context_fn=contexts),
        "none": partial(block, *leaves),
    }
    held = {name: held_bytes(run) for name, run in ways.items()}
    out_and_lse = 2 * leaves[0].numel() + 4 * leaves[0].numel() // leaves[0].shape[-1]
    assert held["all"] < out_and_lse <= held["attention"] < held["none"], held
