"""A training step of examples/train_gpt.py on an emulated GPU against the CPU backend."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

emulator = pytest.importorskip(
    "flash_attn4.emulator", reason="no emulator in this build", exc_type=ImportError
)

pytestmark = pytest.mark.cpu_only("switches the emulator on itself")

PATH = Path(__file__).resolve().parents[2] / "examples" / "train_gpt.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    for package in ("matplotlib", "tqdm"):
        pytest.importorskip(package, reason=f"examples/train_gpt.py needs {package}")
    spec = importlib.util.spec_from_file_location("train_gpt", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def gradients(example: ModuleType, attention: str, dtype: str, head_dim: int) -> dict[str, Tensor]:
    """Of one step, with grouped heads and a context that is no whole number of blocks."""
    args = argparse.Namespace(
        device="cpu", dtype=dtype, context=200, width=4 * head_dim, layers=2, heads=4, kv_heads=2
    )
    torch.manual_seed(0)
    model = example.GPT(args, 300, example.ATTENTION[attention])
    windows = torch.randint(300, (2, args.context + 1))
    example.loss_of(model, windows, args).backward()
    return {name: weight.grad for name, weight in model.named_parameters()}


@pytest.mark.parametrize("arch", ["sm90", "sm100"])
@pytest.mark.parametrize("head_dim", [32, 96])
def test_gradients_are_those_of_the_cpu_backend(
    arch: str, head_dim: int, example: ModuleType
) -> None:
    """Both in bfloat16, and not farther from each other than the CPU backend is from float32."""
    exact = gradients(example, "sdpa", "float32", head_dim)
    expected = gradients(example, "fa4", "bfloat16", head_dim)
    with emulator.use(arch):
        result = gradients(example, "fa4", "bfloat16", head_dim)
    for name, gradient in result.items():
        assert gradient.isfinite().all(), name
        rounding = (expected[name] - exact[name]).norm()
        assert (gradient - exact[name]).norm() <= 1.2 * rounding, name
        assert (gradient - expected[name]).norm() <= rounding, name
