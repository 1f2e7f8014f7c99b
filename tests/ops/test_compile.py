"""torch.compile, torch.export, AOTInductor and selective activation checkpointing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpointing import CountForwards, save_attention
from conftest import Device
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

import flash_attn4
from flash_attn4 import flash_attn_combine, flash_attn_func, flash_attn_varlen_func


@pytest.fixture(autouse=True)
def _compile_anew() -> Iterator[None]:
    """No graph from an earlier test, and none from a cache on disk: it may hold older formulas."""
    torch._dynamo.reset()
    with (
        torch._inductor.config.patch(fx_graph_cache=False),
        torch._functorch.config.patch(enable_autograd_cache=False),
    ):
        yield
    torch._dynamo.reset()


def make_qkv(
    device: Device, *, batch: int = 2, seqlen: int = 12, grad: bool = True
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seqlen)
    shapes = (batch, seqlen, 4, 16), (batch, seqlen, 2, 16), (batch, seqlen, 2, 24)
    return [
        torch.randn(*shape, generator=generator).to(device.torch, device.dtype).requires_grad_(grad)
        for shape in shapes
    ]


def block(q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None, **options: Any) -> Tensor:
    """Attention between element-wise operations, as in a model; uses out and lse."""
    out, lse = flash_attn_func(q * 1.5, k + 0.5, v, learnable_sink=sink, return_lse=True, **options)
    return torch.nn.functional.silu(out).sum(-1) * torch.exp(-0.01 * lse.transpose(1, 2))


def run(function: Any, leaves: list[Tensor], *arguments: Any, **options: Any) -> list[Tensor]:
    result = function(*leaves, *arguments, **options)
    return [result, *torch.autograd.grad(result.square().sum(), leaves)]


def assert_same(got: list[Tensor], expected: list[Tensor]) -> None:
    """The result and the gradients of run(). In 16 bit a graph rounds fewer sums, or others."""
    wide = expected[1].dtype == torch.float32
    for x, y in zip(got, expected, strict=True):
        atol = 2e-5 if wide else 1e-2 * y.abs().max().item()
        torch.testing.assert_close(x, y, atol=atol, rtol=1e-4 if wide else 1e-2)


@pytest.mark.parametrize(("backend", "dynamic"), [("aot_eager", False), ("inductor", True)])
def test_compile_dense(backend: str, dynamic: bool, device: Device) -> None:
    """Full graph, forward and backward, every option."""
    leaves = make_qkv(device)
    leaves.append(torch.randn(4, device=device.torch, requires_grad=True))
    options = {"causal": True, "window_size": (5, 2), "softcap": 3.0, "softmax_scale": 0.3}
    compiled = torch.compile(block, fullgraph=True, backend=backend, dynamic=dynamic)
    assert_same(run(compiled, leaves, **options), run(block, leaves, **options))


def test_compile_deterministic(device: Device) -> None:
    """deterministic=True takes another road through Dynamo, with one tensor passed twice."""

    def twice(x: Tensor, y: Tensor) -> Tensor:
        lengths = torch.tensor([0, 5, 24], dtype=torch.int32, device=x.device)
        dense = flash_attn_func(x, y, y, causal=True, deterministic=True)
        packed = (x.flatten(0, 1), y.flatten(0, 1), y.flatten(0, 1))
        varlen = flash_attn_varlen_func(*packed, lengths, lengths, 19, 19, deterministic=True)
        return dense.flatten(0, 1) + varlen

    leaves = make_qkv(device)[:2]
    compiled = torch.compile(twice, fullgraph=True, backend="aot_eager")
    assert_same(run(compiled, leaves), run(twice, leaves))


def test_compile_varlen_and_combine(device: Device) -> None:
    def both(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> Tensor:
        parts = [
            flash_attn_varlen_func(q, k, v, lengths, lengths, 8, 8, causal=causal, return_lse=True)
            for causal in (False, True)
        ]
        out, lse = flash_attn_combine(
            torch.stack([part[0] for part in parts]),
            torch.stack([part[1] for part in parts]).transpose(-1, -2),
        )
        return out * lse[..., None].sigmoid()

    leaves = [
        x.detach().flatten(0, 1).requires_grad_() for x in make_qkv(device, batch=1, seqlen=20)
    ]
    lengths = torch.tensor([0, 5, 5, 12, 20], dtype=torch.int32, device=device.torch)
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    assert_same(run(compiled, leaves, lengths), run(both, leaves, lengths))


def test_compile_same_tensor_three_times(device: Device) -> None:
    def function(x: Tensor) -> Tensor:
        return flash_attn_func(x, x, x, causal=True)

    leaves = make_qkv(device)[:1]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert_same(run(compiled, leaves), run(function, leaves))


def test_compile_out_variant(device: Device) -> None:
    """Caller's buffers inside a graph, under no_grad."""

    def function(q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor) -> Tensor:
        torch.ops.fa4.fwd_out(q, k, v, causal=True, out=out, lse=lse)
        return out * 2

    q, k, v = make_qkv(device)
    out = torch.zeros(2, 12, 4, 24, device=device.torch, dtype=device.dtype)
    lse = torch.zeros(2, 4, 12, device=device.torch)
    with torch.no_grad():
        result = torch.compile(function, fullgraph=True)(q, k, v, out, lse)
    expected, expected_lse = flash_attn_func(q, k, v, causal=True, return_lse=True)
    assert torch.equal(result, expected * 2)
    assert torch.equal(out, expected)
    assert torch.equal(lse, expected_lse)


def test_no_recompile_when_numbers_change(device: Device) -> None:
    """Windows, splits, lengths, batch: one graph for all of them."""
    counter = CompileCounter()

    def function(q: Tensor, k: Tensor, v: Tensor, left: int, right: int, splits: int) -> Tensor:
        return flash_attn_func(q, k, v, window_size=(left, right), num_splits=splits)

    compiled = torch.compile(function, backend=counter, fullgraph=True, dynamic=True)
    for batch, seqlen, left, right, splits in (
        (3, 12, 8, 5, 6),  # no two equal: Dynamo takes equal sizes for one
        (2, 40, 100, 2, 5),
        (5, 23, 7, 9, 3),
        (3, 9, -1, 4, 2),
    ):
        q, k, v = make_qkv(device, batch=batch, seqlen=seqlen, grad=False)
        got = compiled(q, k, v, left, right, splits)
        assert torch.equal(got, function(q, k, v, left, right, splits))
    assert counter.frame_count == 1


def test_no_recompile_when_packed_lengths_change(device: Device) -> None:
    """Training steps with other lengths and another max_seqlen: one graph."""
    counter = CompileCounter()

    def function(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, longest: int) -> Tensor:
        return flash_attn_varlen_func(q, k, v, lengths, lengths, longest, longest, causal=True)

    compiled = torch.compile(function, backend=counter, fullgraph=True, dynamic=True)
    for offsets in ([0, 5, 12], [0, 30, 33, 60, 61], [0, 0, 9]):
        q, k, v = (
            x.flatten(0, 1) for x in make_qkv(device, batch=1, seqlen=offsets[-1], grad=False)
        )
        lengths = torch.tensor(offsets, dtype=torch.int32, device=device.torch)
        longest = int(lengths.diff().max())
        got = compiled(q, k, v, lengths, longest)
        assert torch.equal(got, function(q, k, v, lengths, longest))
    assert counter.frame_count == 1


def test_errors_inside_a_graph_keep_their_text(device: Device) -> None:
    compiled = torch.compile(flash_attn_func, backend="aot_eager", fullgraph=True)
    q, k, v = make_qkv(device, grad=False)
    with pytest.raises(RuntimeError, match="fa4::fwd: TypeError: k: must have the dtype of q"):
        compiled(q, k.half(), v)
    with pytest.raises(Exception, match=r"ValueError: q: must have shape \(batch, seqlen_q, heads"):
        compiled(q[0], k, v)


class Model(torch.nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, lse = flash_attn_func(q, k, v, causal=True, window_size=(7, -1), return_lse=True)
        return out + lse.transpose(1, 2)[..., None]


def exported(device: Device) -> torch.export.ExportedProgram:
    rows = torch.export.Dim("rows", min=2, max=64)
    shapes = {name: {1: rows} for name in "qkv"}
    tensors = tuple(make_qkv(device, grad=False))
    return torch.export.export(Model(), tensors, dynamic_shapes=shapes)


def test_export(device: Device, tmp_path: Path) -> None:
    """The graph holds the op by name, takes other lengths, and survives saving."""
    program = exported(device)
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert torch.ops.fa4.fwd.default in targets
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    for seqlen in (12, 50):
        tensors = make_qkv(device, seqlen=seqlen, grad=False)
        assert torch.equal(loaded(*tensors), Model()(*tensors))


def loads_packages(folder: Path) -> bool:
    """Whether this torch can load any package: one of a model without custom ops."""
    package = folder / "plain.pt2"
    plain = torch.export.export(torch.nn.Linear(4, 4), (torch.zeros(2, 4),))
    torch._inductor.aoti_compile_and_package(plain, package_path=str(package))
    load = "import sys, torch, torch._inductor.codecache; "
    load += "torch._inductor.aoti_load_package(sys.argv[1])"
    command = [sys.executable, "-c", load, str(package)]
    return subprocess.run(command, capture_output=True, check=False, cwd=folder).returncode == 0


RUN_PACKAGE = """
import sys
import torch
import torch._inductor.codecache  # aoti_load_package of torch 2.10 uses it without importing it
torch.ops.load_library(sys.argv[1])
model = torch._inductor.aoti_load_package(sys.argv[2])
for tensors, expected in torch.load(sys.argv[3]):
    torch.testing.assert_close(model(*tensors), expected, atol=float(sys.argv[4]), rtol=1e-6)
assert "flash_attn4" not in sys.modules
print("package runs")
"""


def test_aot_inductor_package(device: Device, tmp_path: Path) -> None:
    """The package runs in a process that has the op library but not the Python package."""
    package, data = tmp_path / "model.pt2", tmp_path / "data.pt"
    torch._inductor.aoti_compile_and_package(exported(device), package_path=str(package))
    calls = []
    for seqlen in (12, 50):
        tensors = make_qkv(device, seqlen=seqlen, grad=False)
        calls.append((tensors, Model()(*tensors)))
    torch.save(calls, data)
    library = Path(flash_attn4.__file__).with_name("libfa4_ops.so")
    # An emulated device is this process's alone: the package runs on the CPU there.
    atol = str(device.tolerance(1e-6)["atol"])
    command = [sys.executable, "-c", RUN_PACKAGE, str(library), str(package), str(data), atol]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    if done.returncode < 0 and not loads_packages(tmp_path):  # killed by a signal
        pytest.skip(f"torch {torch.__version__} here crashes when it loads any package")
    assert done.returncode == 0, done.stderr
    assert "package runs" in done.stdout


def recompute_all(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.PREFER_RECOMPUTE


@pytest.mark.parametrize(("policy", "forwards"), [(save_attention, 1), (recompute_all, 2)])
def test_selective_checkpointing(policy: Any, forwards: int, device: Device) -> None:
    """A policy that names torch.ops.fa4.fwd.default keeps it from running twice."""

    def checkpointed(*tensors: Tensor) -> Tensor:
        return checkpoint(
            block,
            *tensors,
            None,
            use_reentrant=False,
            context_fn=partial(create_selective_checkpoint_contexts, policy),
        )

    leaves = make_qkv(device)
    expected = run(block, leaves, None)
    with CountForwards() as counter:
        got = run(checkpointed, leaves)
    assert_same(got, expected)
    assert counter.forwards == forwards


@pytest.mark.parametrize(("policy", "forwards"), [(save_attention, 0), (recompute_all, 1)])
def test_selective_checkpointing_compiled(policy: Any, forwards: int, device: Device) -> None:
    """The same under torch.compile: whether the backward graph contains the forward op."""
    backward_graphs = []

    def keep(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        backward_graphs.append(graph)
        return make_boxed_func(graph)

    backend = torch._dynamo.backends.common.aot_autograd(
        fw_compiler=lambda graph, inputs: make_boxed_func(graph),
        bw_compiler=keep,
        partition_fn=torch._functorch.partitioners.min_cut_rematerialization_partition,
    )

    def checkpointed(*tensors: Tensor) -> Tensor:
        return checkpoint(
            block,
            *tensors,
            None,
            use_reentrant=False,
            context_fn=partial(create_selective_checkpoint_contexts, policy),
        )

    leaves = make_qkv(device)
    compiled = torch.compile(checkpointed, backend=backend, fullgraph=True)
    assert_same(run(compiled, leaves), run(block, leaves, None))
    (graph,) = backward_graphs
    targets = [node.target for node in graph.graph.nodes]
    assert targets.count(torch.ops.fa4.fwd.default) == forwards
    assert targets.count(torch.ops.fa4.bwd.default) == 1
