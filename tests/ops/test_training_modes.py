"""Training steps: autocast, accumulated gradients, activation checkpointing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import reference
import tolerances
import torch
from checkpointing import CountForwards, save_attention
from conftest import Device
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from flash_attn4 import flash_attn_func

BATCH, ROWS, HEADS, HEADS_K, DIM = 2, 80, 4, 2, 64
WIDTH = HEADS * DIM

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
ours: Attention = partial(flash_attn_func, causal=True, deterministic=True)


def eager(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    spans = reference.dense_spans(q.shape[0], q.shape[1], k.shape[1])
    return reference.attention(q, k, v, spans, reference.Options(causal=True))[0]


class Block(nn.Module):
    """Attention between linear layers, whose weights stay in float32 under autocast."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.attention = attention
        self.qkv = nn.Linear(WIDTH, (HEADS + 2 * HEADS_K) * DIM, bias=False)
        self.proj = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv(x).unflatten(-1, (-1, DIM))
        q, k, v = heads.split((HEADS, HEADS_K, HEADS_K), dim=2)
        return x + self.proj(self.attention(q, k, v).flatten(2))


def model_of(attention: Attention, device: Device, blocks: int = 1) -> nn.Sequential:
    """The same weights for every attention."""
    torch.manual_seed(3)
    return nn.Sequential(*(Block(attention) for _ in range(blocks))).to(device.torch)


def inputs_of(device: Device, batch: int = BATCH) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, ROWS, WIDTH, generator=generator).to(device.torch)


def loss_of(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Of a size that float16's gradients survive."""
    return model(x).float().square().sum() / 64


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.grad for name, weight in model.named_parameters()}


# ---- Autocast -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype: torch.dtype, device: Device) -> None:
    """Gradients of float32 weights, as close to float64 as with eager attention."""
    x = inputs_of(device)
    grads = []
    for attention in (ours, eager):
        model = model_of(attention, device)
        with torch.autocast(device.torch.type, dtype=dtype):
            loss = loss_of(model, x)
        loss.backward()
        grads.append(gradients(model))
    exact = model_of(eager, device).double()
    loss_of(exact.forward, x.double()).backward()
    for name, expected in gradients(exact).items():
        got, of_eager = (each[name] for each in grads)
        assert got.dtype == torch.float32
        # Both have what rounding q, k, v and the products of the layers leaves: without the
        # factor for float32 results.
        error, allowed = ((g.double() - expected).norm().item() for g in (got, of_eager))
        assert error <= 1.2 * allowed, f"{name}: error {error:.3e}, of eager {allowed:.3e}"
        assert error > 0
        tolerances.check_special_values(name, got, expected)


def test_autocast_runs_attention_in_its_type(device: Device) -> None:
    seen: list[torch.dtype] = []

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = ours(q, k, v)
        seen.extend(x.dtype for x in (q, k, v, out))
        return out

    with torch.autocast(device.torch.type, dtype=torch.bfloat16):
        model_of(attention, device)(inputs_of(device))
    assert seen == 4 * [torch.bfloat16]


def test_gradient_scaler_sees_an_overflow(device: Device) -> None:
    """A loss scale beyond float16 ends as inf or NaN in the weights' gradients, and not as 0."""
    model = model_of(ours, device)
    with torch.autocast(device.torch.type, dtype=torch.float16):
        loss = loss_of(model, inputs_of(device))
    (loss * 2.0**40).backward()
    for name, grad in gradients(model).items():
        assert not grad.isfinite().all(), name


# ---- Accumulated gradients ----------------------------------------------------------------------


def test_gradients_accumulate(device: Device) -> None:
    """backward() adds to .grad, and leaves gradients alone that are held from before."""
    generator = torch.Generator().manual_seed(8)

    def normal(heads: int) -> Tensor:
        x = torch.randn(BATCH, ROWS, heads, DIM, generator=generator)
        return x.to(device.torch, torch.bfloat16)

    leaves = [normal(heads).requires_grad_() for heads in (HEADS, HEADS_K, HEADS_K)]
    douts = [normal(HEADS) for _ in range(3)]
    separate = []
    for dout in douts:
        separate.append(torch.autograd.grad(ours(*leaves), leaves, dout))
    copies = [[grad.clone() for grad in grads] for grads in separate]
    for dout in douts:
        ours(*leaves).backward(dout)
    for i, leaf in enumerate(leaves):
        assert leaf.grad is not None
        assert torch.equal(leaf.grad, separate[0][i] + separate[1][i] + separate[2][i])
    for grads, kept in zip(separate, copies, strict=True):
        for grad, copy in zip(grads, kept, strict=True):
            assert torch.equal(grad, copy)


def test_micro_batches_give_the_gradients_of_the_batch(device: Device) -> None:
    """Sums over micro-batches: the same terms, added in another order by float32 weights."""
    x = inputs_of(device, batch=4)
    grads = []
    for size in (4, 1):
        model = model_of(ours, device)
        for part in x.split(size):
            with torch.autocast(device.torch.type, dtype=torch.bfloat16):
                loss = loss_of(model, part)
            loss.backward()
        grads.append(gradients(model))
    for name, whole in grads[0].items():
        # The gradient of a layer's weights leaves its product in bfloat16, once per micro-batch.
        difference = (grads[1][name] - whole).norm() / whole.norm()
        assert difference < 2**-7, f"{name}: {difference:.1e}"


# ---- Activation checkpointing -------------------------------------------------------------------


SELECTIVE = partial(create_selective_checkpoint_contexts, save_attention)


@pytest.mark.parametrize(
    ("options", "forwards_per_block"),
    [
        ({"use_reentrant": True}, 2),
        ({"use_reentrant": False}, 2),
        ({"use_reentrant": False, "context_fn": SELECTIVE}, 1),
    ],
    ids=["reentrant", "recompute", "save attention"],
)
def test_checkpointed_blocks_under_autocast(
    options: dict[str, Any], forwards_per_block: int, device: Device
) -> None:
    """The gradients of a step without checkpoints, bit for bit, and as many forwards as due."""
    blocks = 3
    x = inputs_of(device).requires_grad_()  # a reentrant checkpoint differentiates its inputs

    def checkpointed(model: nn.Sequential, x: Tensor) -> Tensor:
        for block in model:
            x = checkpoint(block, x, **options)
        return x

    results = []
    for run in (lambda model, x: model(x), checkpointed):
        model = model_of(ours, device, blocks)
        x.grad = None
        with CountForwards() as counter:
            with torch.autocast(device.torch.type, dtype=torch.bfloat16):
                loss = loss_of(partial(run, model), x)
            loss.backward()
        results.append(({"loss": loss.detach(), "x": x.grad, **gradients(model)}, counter))
    (expected, plain_counter), (got, counter) = results
    for name, value in expected.items():
        assert torch.equal(got[name], value), name
    assert plain_counter.forwards == blocks
    assert counter.forwards == blocks * forwards_per_block
