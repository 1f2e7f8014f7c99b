"""Calls of the library on an emulated GPU: the host code and kernels that a real one would run."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from flash_attn4 import flash_attn_combine, flash_attn_func

emulator = pytest.importorskip(
    "flash_attn4.emulator", reason="no emulator in this build", exc_type=ImportError
)

ARCHS = ("sm90", "sm100")
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}

pytestmark = pytest.mark.cpu_only("switches the emulator on itself")


def partials(
    dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = (3, 2, 9, 2, 64), seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    out = torch.randn(*shape, generator=generator).to(dtype)
    return out, 5 * torch.randn(*shape[:-1], generator=generator)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_combine_equals_the_cpu_backend(arch: str, dtype: torch.dtype) -> None:
    out_partial, lse_partial = partials(dtype)
    expected, expected_lse = flash_attn_combine(out_partial, lse_partial)
    with emulator.use(arch) as session:
        out, lse = flash_attn_combine(out_partial, lse_partial)
        assert session.statistics["clusters"] == 9  # 36 rows, 4 per block
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(out, expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(lse, expected_lse, atol=4e-6, rtol=1e-6)


def test_statistics_add_up_and_stay() -> None:
    with emulator.use("sm100") as session:
        assert not any(session.statistics.values())
        flash_attn_combine(*partials())
        once = session.statistics
        assert once["warp_instructions"] > 0
        assert once["seconds"] > 0
        flash_attn_combine(*partials())
        assert session.statistics["warp_instructions"] == 2 * once["warp_instructions"]
        flash_attn_combine(*partials())
    assert session.statistics["warp_instructions"] == 3 * once["warp_instructions"]
    with emulator.use("sm100") as other:
        assert not any(other.statistics.values())


def test_what_no_gpu_kernel_serves_is_refused_with_every_reason() -> None:
    q = torch.zeros(1, 4, 1, 384)
    with (
        emulator.use("sm100"),
        pytest.raises(NotImplementedError, match="no fwd kernel for this call on emulated sm_100"),
    ):
        flash_attn_func(q, q, q)


def test_the_cpu_backend_is_back_afterwards() -> None:
    x = torch.randn(1, 4, 1, 16)
    with pytest.raises(KeyError), emulator.use("sm90"):
        raise KeyError
    flash_attn_func(x, x, x)
    with emulator.use("sm90") as session:
        pass
    flash_attn_combine(*partials())
    assert session.statistics["clusters"] == 0


def test_uses_do_not_nest() -> None:
    with emulator.use("sm90") as session:
        message = "use: the emulator serves one use at a time in a process: sm90 is in use, got"
        with pytest.raises(RuntimeError, match=message), emulator.use("sm100"):
            pass
        flash_attn_combine(*partials())
        assert session.statistics["clusters"] > 0


def test_options_are_checked_and_hold_for_the_use() -> None:
    with pytest.raises(ValueError, match="use: arch: must be 'sm90' or 'sm100', got 'sm80'"):
        emulator.use("sm80").__enter__()
    with pytest.raises(ValueError, match="trace: must be False"):
        emulator.use("sm90", emulator.Options(trace=True)).__enter__()
    with (
        emulator.use("sm90", emulator.Options(max_steps=5)),
        pytest.raises(RuntimeError, match=r"fa4_combine_sm90_fp32: CUDA_ERROR_LAUNCH_FAILED \("),
    ):
        flash_attn_combine(*partials())
    with emulator.use("sm90"):
        flash_attn_combine(*partials())


@pytest.mark.parametrize("policy", ["eager", "lazy", "random"])
def test_results_hold_under_every_schedule(policy: str) -> None:
    expected, _ = flash_attn_combine(*partials())
    options = emulator.Options(policy=policy, seed=3, order="random", perturbation=1.5e-7)
    with emulator.use("sm100", options):
        out, _ = flash_attn_combine(*partials())
    torch.testing.assert_close(out, expected, atol=4e-6, rtol=4e-6)


def test_all_threads_go_there() -> None:
    cases = [partials(seed=seed) for seed in range(6)]
    expected = [flash_attn_combine(*case)[0] for case in cases]
    with emulator.use("sm100") as session, ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda case: flash_attn_combine(*case)[0], cases))
    assert session.statistics["clusters"] == 6 * 9
    for got, want in zip(results, expected, strict=True):
        torch.testing.assert_close(got, want, atol=2e-6, rtol=2e-6)


def test_memory_beyond_the_tensors_is_out_of_bounds() -> None:
    out_partial, lse_partial = partials()
    storage = out_partial.untyped_storage()
    storage.resize_(storage.nbytes() - 4)
    with emulator.use("sm90"):
        with pytest.raises(RuntimeError, match="out of bounds") as caught:
            flash_attn_combine(out_partial, lse_partial)
        report = str(caught.value)
        assert report.startswith("flash_attn_combine: launch of fa4_combine_sm90_fp32: ")
        assert "ld.global" in report
        flash_attn_combine(*partials())


def test_a_strided_tensor_is_its_elements() -> None:
    """What lies between and behind a view's elements may be noted, what lies before it is not."""
    out_partial, lse_partial = partials()
    frame = torch.full((3, 2, 11, 2, 80), torch.nan)
    frame[:, :, 1:10, :, 8:72] = out_partial
    expected = flash_attn_combine(out_partial, lse_partial)
    with emulator.use("sm100"):
        got = flash_attn_combine(frame[:, :, 1:10, :, 8:72], lse_partial)
    torch.testing.assert_close(got, expected, atol=2e-6, rtol=2e-6)


def test_gradients() -> None:
    """Backward runs on a thread of autograd's."""
    leaves = [x.requires_grad_() for x in partials()]
    with emulator.use("sm90"):
        out, lse = flash_attn_combine(*leaves)
        grads = torch.autograd.grad(out.sum() + lse.sum(), leaves)
    out, lse = flash_attn_combine(*leaves)
    expected = torch.autograd.grad(out.sum() + lse.sum(), leaves)
    torch.testing.assert_close(grads, expected, atol=1e-5, rtol=1e-5)


def test_importing_the_package_does_not_load_the_emulator() -> None:
    code = (
        "import sys, flash_attn4\n"
        "assert 'flash_attn4.emulator' not in sys.modules\n"
        "assert 'libfa4_emulator' not in open('/proc/self/maps').read()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
