"""Two ways to a gradient: autograd.Function in flash_attn_func, register_autograd in the ops."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import SMOKE, Case, Inputs
from conftest import Device
from torch import Tensor

from flash_attn4 import flash_attn_func, flash_attn_varlen_func


def leaves_of(inputs: Inputs) -> list[Tensor]:
    tensors = [inputs.q, inputs.k, inputs.v]
    if inputs.sink is not None:
        tensors.append(inputs.sink)
    return [x.detach().requires_grad_() for x in tensors]


def through_function(inputs: Inputs, leaves: list[Tensor]) -> tuple[Tensor, Tensor]:
    arguments = inputs.arguments()
    if inputs.sink is not None:
        arguments["learnable_sink"] = leaves[3]
    return flash_attn_func(*leaves[:3], **arguments, return_lse=True)


def through_op(inputs: Inputs, leaves: list[Tensor]) -> tuple[Tensor, Tensor]:
    case = inputs.case
    return torch.ops.fa4.fwd(
        *leaves[:3],
        case.softmax_scale,
        case.causal,
        *case.window,
        case.softcap,
        leaves[3] if inputs.sink is not None else None,
        seqused_k=inputs.seqused_k,
    )


PATHS = [through_function, through_op]
RESULTS: dict[str, Callable[[Tensor, Tensor, Inputs], Tensor]] = {
    "out": lambda out, lse, inputs: (out * inputs.dout).sum(),
    "lse": lambda out, lse, inputs: (lse * inputs.dlse).nan_to_num().sum(),
    "both": lambda out, lse, inputs: (out * inputs.dout).sum() + lse.exp().sum(),
}


@pytest.mark.parametrize("result", RESULTS)
@pytest.mark.parametrize("case", SMOKE, ids=str)
def test_paths_agree(case: Case, result: str, device: Device) -> None:
    inputs = case.inputs().to(device.torch)
    grads = []
    for path in PATHS:
        leaves = leaves_of(inputs)
        out, lse = path(inputs, leaves)
        grads.append(torch.autograd.grad(RESULTS[result](out, lse, inputs), leaves))
    for function_grad, op_grad in zip(*grads, strict=True):
        assert torch.equal(function_grad, op_grad)


@pytest.mark.parametrize("path", PATHS)
def test_finite_differences(path: Callable[..., tuple[Tensor, Tensor]], device: Device) -> None:
    """The slope of out and lse along random directions, in float32."""
    case = Case(
        dtype="float32",
        seqlen_q=20,
        seqlen_k=30,
        causal=True,
        softcap=2.0,
        sink="float32",
        head_dim=16,
        head_dim_v=8,
    )
    inputs = case.inputs().to(device.torch)
    leaves = leaves_of(inputs)

    def loss(tensors: list[Tensor]) -> Tensor:
        out, lse = path(inputs, tensors)
        return (out * inputs.dout).double().sum() + (lse * inputs.dlse).double().sum()

    grads = torch.autograd.grad(loss(leaves), leaves)
    generator = torch.Generator().manual_seed(4)
    for i, grad in enumerate(grads):
        direction = torch.randn(grad.shape, generator=generator).to(device.torch)
        direction /= direction.norm()
        step = 0.03
        with torch.no_grad():
            ahead, behind = list(leaves), list(leaves)
            ahead[i], behind[i] = leaves[i] + step * direction, leaves[i] - step * direction
            slope = (loss(ahead) - loss(behind)) / (2 * step)
        expected = (grad * direction).double().sum()
        torch.testing.assert_close(slope, expected, atol=2e-3 * float(grad.norm()), rtol=0)


def test_no_grad_paths_agree(device: Device) -> None:
    """Recording, no_grad, inference_mode and plain inputs compute the same, recorded or not."""
    inputs = SMOKE[4].inputs().to(device.torch)
    leaves = leaves_of(inputs)
    out, lse = through_function(inputs, leaves)
    assert out.requires_grad
    assert lse.requires_grad
    plain = [x.detach() for x in leaves]
    with torch.no_grad():
        results = [through_function(inputs, leaves)]
    with torch.inference_mode():
        results.append(through_function(inputs, leaves))
    results.append(through_function(inputs, plain))
    results.append(through_op(inputs, plain))
    for other_out, other_lse in results:
        assert not other_out.requires_grad
        assert not other_lse.requires_grad
        assert torch.equal(other_out, out)
        assert torch.equal(other_lse, lse)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (3,), (0, 3)])
@pytest.mark.parametrize("path", PATHS)
def test_some_inputs_need_no_gradient(
    path: Callable[..., tuple[Tensor, Tensor]], wanted: tuple[int, ...], device: Device
) -> None:
    inputs = SMOKE[4].inputs().to(device.torch)
    leaves = leaves_of(inputs)
    expected = torch.autograd.grad((path(inputs, leaves)[0] * inputs.dout).sum(), leaves)
    for i, leaf in enumerate(leaves):
        leaf.requires_grad_(i in wanted)
    (path(inputs, leaves)[0] * inputs.dout).sum().backward()
    for i, leaf in enumerate(leaves):
        if i in wanted:
            assert torch.equal(leaf.grad, expected[i])
        else:
            assert leaf.grad is None


@pytest.mark.parametrize("path", PATHS)
def test_retain_graph(path: Callable[..., tuple[Tensor, Tensor]], device: Device) -> None:
    inputs = SMOKE[0].inputs().to(device.torch)
    leaves = leaves_of(inputs)
    out, _ = path(inputs, leaves)
    first = torch.autograd.grad(out, leaves, inputs.dout, retain_graph=True)
    second = torch.autograd.grad(out, leaves, inputs.dout)
    for x, y in zip(first, second, strict=True):
        assert torch.equal(x, y)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(out, leaves, inputs.dout)


@pytest.mark.parametrize("path", PATHS)
def test_gradient_layouts(path: Callable[..., tuple[Tensor, Tensor]], device: Device) -> None:
    """dout expanded from one element, transposed, or with a strided last dimension."""
    inputs = SMOKE[2].inputs().to(device.torch)
    leaves = leaves_of(inputs)
    out, lse = path(inputs, leaves)
    dout = inputs.dout
    layouts = {
        "transposed": dout.transpose(0, 2).contiguous().transpose(0, 2),
        "strided": torch.stack([dout, dout], dim=-1)[..., 1],
    }
    expected = torch.autograd.grad(out, leaves, dout, retain_graph=True)
    for name, layout in layouts.items():
        for x, y in zip(
            torch.autograd.grad(out, leaves, layout, retain_graph=True), expected, strict=True
        ):
            assert torch.equal(x, y), name
    expected = torch.autograd.grad(
        [out, lse], leaves, [torch.ones_like(out), torch.ones_like(lse)], retain_graph=True
    )
    for x, y in zip(torch.autograd.grad(out.sum() + lse.sum(), leaves), expected, strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("path", PATHS)
def test_second_derivative_is_refused(
    path: Callable[..., tuple[Tensor, Tensor]], device: Device
) -> None:
    inputs = SMOKE[0].inputs().to(device.torch)
    leaves = leaves_of(inputs)
    out, _ = path(inputs, leaves)
    grads = torch.autograd.grad(out, leaves, inputs.dout, create_graph=True)
    plain = torch.autograd.grad(path(inputs, leaves)[0], leaves, inputs.dout)
    for x, y in zip(grads, plain, strict=True):
        assert torch.equal(x, y)
    with pytest.raises(NotImplementedError, match="attention has no second derivative"):
        grads[0].square().sum().backward()


def test_forward_mode_is_refused(device: Device) -> None:
    """A tangent is not dropped in silence; without one, a dual level does not matter."""
    x = torch.randn(1, 4, 2, 16, device=device.torch, dtype=device.dtype)
    with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        torch.func.jvp(lambda q: flash_attn_func(q, x, x), (x,), (x,))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
            flash_attn_func(x, x, dual)
        assert torch.equal(flash_attn_func(x, x, x), flash_attn_func(x, x, dual.detach().clone()))


def test_varlen_paths_agree(device: Device) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v, dout = (torch.randn(30, 4, 16, generator=generator).to(device.torch) for _ in range(4))
    cu_seqlens = torch.tensor([0, 11, 30], dtype=torch.int32, device=device.torch)
    grads = []
    for function in (flash_attn_varlen_func, lambda *x: torch.ops.fa4.varlen_fwd(*x)[0]):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out = function(*leaves, cu_seqlens, cu_seqlens, 19, 19, None, True)
        grads.append(torch.autograd.grad(out, leaves, dout))
    for x, y in zip(*grads, strict=True):
        assert torch.equal(x, y)


def test_same_tensor_three_times(device: Device) -> None:
    x = torch.randn(2, 20, 2, 16, device=device.torch, requires_grad=True)
    flash_attn_func(x, x, x, causal=True).square().sum().backward()
    parts = [x.detach().clone().requires_grad_() for _ in range(3)]
    flash_attn_func(*parts, causal=True).square().sum().backward()
    torch.testing.assert_close(x.grad, sum(part.grad for part in parts))


def test_flags_reach_the_backward(device: Device) -> None:
    """deterministic, as an argument or from torch, is what the backward op is called with."""
    seen = []

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.fa4.bwd.default:
                names = [argument.name for argument in func._schema.arguments]
                given = dict(zip(names, args, strict=False), **(kwargs or {}))
                seen.append(given.get("deterministic", False))
            return func(*args, **(kwargs or {}))

    x = torch.randn(1, 9, 2, 16, device=device.torch, requires_grad=True)
    with Spy():
        flash_attn_func(x, x, x).sum().backward()
        flash_attn_func(x, x, x, deterministic=True).sum().backward()
        torch.use_deterministic_algorithms(True)
        try:
            flash_attn_func(x, x, x).sum().backward()
            torch.ops.fa4.fwd(x, x, x)[0].sum().backward()
        finally:
            torch.use_deterministic_algorithms(False)
    assert seen == [False, True, True, True]


def test_out_variants_refuse_gradients(device: Device) -> None:
    """Where a gradient would be lost, an error; where none is recorded, the result."""
    q = torch.randn(2, 5, 2, 16, device=device.torch, dtype=device.dtype, requires_grad=True)
    out, lse = (x.detach() for x in torch.ops.fa4.fwd(q, q, q))
    buffers = {"out": torch.empty_like(out), "lse": torch.empty_like(lse)}
    with pytest.raises(RuntimeError, match="fa4::fwd_out: functions that write to given buffers"):
        torch.ops.fa4.fwd_out(q, q, q, **buffers)
    for mode in (torch.no_grad, torch.inference_mode):
        buffers["out"].zero_()
        with mode():
            torch.ops.fa4.fwd_out(q, q, q, **buffers)
        assert torch.equal(buffers["out"], out)
    plain = q.detach()
    torch.ops.fa4.fwd_out(plain, plain, plain, **buffers)
    with pytest.raises(RuntimeError, match="fa4::fwd_out: functions that write to given buffers"):
        torch.ops.fa4.fwd_out(
            plain, plain, plain, out=out.clone().requires_grad_(), lse=buffers["lse"]
        )
    grads = {name: torch.empty_like(plain) for name in ("dq", "dk", "dv")}
    with pytest.raises(RuntimeError, match="fa4::bwd_out: functions that write to given buffers"):
        torch.ops.fa4.bwd_out(out, q, q, q, out, lse, **grads)


def test_out_variants_invalidate_saved_tensors(device: Device) -> None:
    """Autograd notices that a tensor it needs was overwritten."""
    plain = torch.randn(2, 5, 2, 16, device=device.torch, dtype=device.dtype)
    out, lse = torch.ops.fa4.fwd(plain, plain, plain)
    weight = torch.ones_like(out, requires_grad=True)
    product = weight * out
    torch.ops.fa4.fwd_out(plain, plain, plain, out=out, lse=lse)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()
