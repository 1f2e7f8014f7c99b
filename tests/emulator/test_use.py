"""Calls of the library on an emulated GPU: the host code and kernels that a real one would run."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from flash_attn4 import flash_attn_combine, flash_attn_func

emulator = pytest.importorskip(
    "flash_attn4.emulator", reason="no emulator in this build", exc_type=ImportError
)

ROOT = Path(__file__).resolve().parents[2]
GENERATED = ROOT / "build" / f"cmake-{sysconfig.get_config_var('SOABI')}" / "generated"

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


# ---- Images --------------------------------------------------------------------------------------

COMBINE = "fa4_combine_sm90_fp32"


@pytest.fixture
def combine_ptx() -> str:
    path = GENERATED / f"{COMBINE}.ptx"
    if not path.exists():
        pytest.skip(f"no {path}: this build does not hold sm90a")
    return path.read_text()


def emulated_combine(**images: str) -> torch.Tensor:
    with emulator.use("sm90", emulator.Options(images=images)):
        return flash_attn_combine(*partials())[0]


def squared(ptx: str) -> str:
    """Of combine: every part weighs exp(2 * (lse - max)) instead of exp(lse - max)."""
    log2_e, twice = "0f3FB8AA3B", "0f4038AA3B"
    assert log2_e in ptx
    return ptx.replace(log2_e, twice)


def test_an_image_runs_in_place_of_the_kernel_while_in_use(combine_ptx: str) -> None:
    out_partial, lse_partial = partials()
    expected, _ = flash_attn_combine(out_partial, 2 * lse_partial)
    before = emulated_combine()
    assert not torch.allclose(before, expected, atol=0.1)
    for _ in range(2):
        changed = emulated_combine(**{COMBINE: squared(combine_ptx)})
        torch.testing.assert_close(changed, expected, atol=4e-6, rtol=4e-6)
        assert torch.equal(emulated_combine(**{COMBINE: combine_ptx}), before)
        assert torch.equal(emulated_combine(), before)


def test_an_image_of_another_kernel_has_no_effect(combine_ptx: str) -> None:
    changed = squared(combine_ptx).replace(COMBINE, "fa4_combine_sm90_fp99")
    images = {"fa4_combine_sm90_fp99": changed}
    assert torch.equal(emulated_combine(**images), emulated_combine())


def test_a_refused_use_leaves_the_images_of_the_one_in_progress(combine_ptx: str) -> None:
    options = emulator.Options(images={COMBINE: squared(combine_ptx)})
    changed = emulated_combine(**options.images)
    with emulator.use("sm90", options):
        with pytest.raises(RuntimeError, match="one use at a time"), emulator.use("sm90"):
            pass
        assert torch.equal(flash_attn_combine(*partials())[0], changed)


def test_an_image_broken_on_purpose_fails_where_the_kernel_does(combine_ptx: str) -> None:
    broken = combine_ptx.replace("st.global.f32", "trap; //", 1)
    assert broken != combine_ptx
    with pytest.raises(RuntimeError, match=f"launch of {COMBINE}: CUDA_ERROR_LAUNCH_FAILED .*trap"):
        emulated_combine(**{COMBINE: broken})
    emulated_combine()


def test_an_image_that_cannot_be_loaded_is_named_when_use_begins(combine_ptx: str) -> None:
    before = emulated_combine()
    with pytest.raises(ValueError, match=rf"^use: images: {COMBINE}\.ptx:1: "):
        emulated_combine(**{COMBINE: "no PTX"})
    message = f"use: images: other: must hold a kernel of that name, got {COMBINE}"
    with pytest.raises(ValueError, match=message):
        emulated_combine(**{COMBINE: squared(combine_ptx), "other": combine_ptx})
    unmodelled = combine_ptx.replace("ex2.approx.ftz.f32", "ex2.later.ftz.f32", 1)
    with pytest.raises(
        NotImplementedError, match=rf"^use: images: {COMBINE}\.ptx:\d+: .*ex2.later"
    ):
        emulated_combine(**{COMBINE: unmodelled})
    assert torch.equal(emulated_combine(), before)


def test_an_image_that_does_not_fit_the_launch_is_named_by_the_call(combine_ptx: str) -> None:
    other_target = combine_ptx.replace(".target sm_90a", ".target sm_100a")
    message = f"launch of {COMBINE}: .*images: {COMBINE}: .target: must run on sm_90, got sm_100a"
    with pytest.raises(RuntimeError, match=message):
        emulated_combine(**{COMBINE: other_target})
    more = combine_ptx.replace(f"{COMBINE}_param_0[176]", f"{COMBINE}_param_0[184]")
    message = "parameters: must be those of the kernel it replaces, 176 bytes, got 184 bytes"
    with pytest.raises(RuntimeError, match=message):
        emulated_combine(**{COMBINE: more})


def test_images_are_texts_and_belong_to_use(combine_ptx: str) -> None:
    with pytest.raises(
        ValueError, match="images: must map kernels' names to PTX texts, got 'a': b"
    ):
        emulator.Options(images={"a": b""})
    module = emulator.Module(combine_ptx)
    options = emulator.Options(images={COMBINE: combine_ptx})
    with pytest.raises(
        ValueError, match=f"launch: options: images: must be {{}}, got .'{COMBINE}'"
    ):
        module.launch(COMBINE, grid=1, block=128, args=[bytes(176)], options=options)


def test_importing_the_package_does_not_load_the_emulator() -> None:
    code = (
        "import sys, flash_attn4\n"
        "assert 'flash_attn4.emulator' not in sys.modules\n"
        "assert 'libfa4_emulator' not in open('/proc/self/maps').read()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
