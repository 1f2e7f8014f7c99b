"""Collective GEMMs of CUTLASS, which real chips run, give right results in the emulator: in every
order of asynchronous operations, with both ways of summing. What is unlike the emulator in a proven
kernel would show here: layouts of descriptors, swizzles, tensor memory and pairs of CTAs, pipelines
of barriers, multicast, cluster launch control."""

from __future__ import annotations

import ctypes
import functools
import zlib
from dataclasses import dataclass

import cutlass_gemm
import pytest
import torch
from cutlass_gemm import Variant
from torch import Tensor

from flash_attn4._library import LIBRARY_PATH

try:
    from flash_attn4 import emulator
except ImportError as reason:
    pytest.skip(str(reason), allow_module_level=True)

pytestmark = pytest.mark.cpu_only("these kernels run in the emulator in any case")

ALPHA = 0.5  # a power of two: scaling is exact
MATRICES = 2
SCHEDULES = {
    "eager": {"policy": "eager"},
    "lazy": {"policy": "lazy"},
    **{f"random{seed}": {"policy": "random", "seed": seed, "order": "random"} for seed in range(3)},
}
ACCUMULATE = ("sequential", "exact")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Not the marker `sampled`, whose choice is random: few variants have to show every value."""
    if "variant" not in metafunc.fixturenames:
        return
    full = metafunc.config.getoption("--full")
    metafunc.parametrize(
        "variant", cutlass_gemm.MATRIX if full else cutlass_gemm.SAMPLE, ids=str, scope="module"
    )


@pytest.fixture(autouse=True)
def _buildable(request: pytest.FixtureRequest) -> None:
    if "variant" not in request.fixturenames:
        return
    try:
        cutlass_gemm.build(request.getfixturevalue("variant"))
    except cutlass_gemm.Unavailable as reason:
        pytest.skip(str(reason))


@functools.cache
def encoder() -> int:
    """Address of the emulator's cuTensorMapEncodeTiled."""
    library = ctypes.CDLL(str(LIBRARY_PATH.parent / "libfa4_emulator.so"))
    function = library.fa4_emulator_tensor_map_encode
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    return address


@functools.lru_cache(maxsize=2)
def module(variant: Variant) -> emulator.Module:
    return emulator.load(cutlass_gemm.build(variant).ptx)


@dataclass(frozen=True)
class Problem:
    a: Tensor  # [L, M, K], values of the variant's type
    b: Tensor  # [L, N, K]
    product: Tensor  # ALPHA * A * B in float64
    magnitude: Tensor  # ALPHA * |A| * |B|: what bounds every partial sum


@functools.lru_cache(maxsize=4)
def problem(variant: Variant, integers: bool) -> Problem:
    """Several tiles in each direction, none of the last ones full. Extents are multiples of 8, as
    tensor maps of 16-bit elements require."""
    tile_m, tile_n, tile_k = variant.shape.tile
    m, n, k = 2 * tile_m + 40, tile_n + 72, 3 * tile_k + 40
    generator = torch.Generator().manual_seed(zlib.crc32(str(variant).encode()))

    def values(*shape: int) -> Tensor:
        if integers:
            return torch.randint(-4, 5, shape, generator=generator).to(variant.dtype)
        return torch.randn(shape, generator=generator).to(variant.dtype)

    a, b = values(MATRICES, m, k), values(MATRICES, n, k)
    a64, b64 = a.double(), b.double().transpose(1, 2)
    return Problem(a, b, ALPHA * (a64 @ b64), ALPHA * (a64.abs() @ b64.abs()))


def run(
    variant: Variant, x: Problem, **options: object
) -> tuple[Tensor, cutlass_gemm.Launch, emulator.LaunchResult]:
    """D, how it was launched, and the emulator's result."""
    # CUTLASS for SM90 relies on elect.sync choosing lane 0: the elected lane issues copies, lane 0
    # tells their barrier how many bytes to expect.
    options["random_election"] = not variant.shape.sm90 and options.get("policy") == "random"
    operands = cutlass_gemm.operands(variant, x.a, x.b)
    launch = cutlass_gemm.prepare(variant, operands, ALPHA, encoder())
    result = module(variant).launch(
        "gemm",
        launch.grid,
        launch.block,
        launch.parameters,
        shared_bytes=launch.shared_bytes,
        cluster=launch.cluster,
        options=emulator.Options(**options),
        memory=[operands.a, operands.b, operands.d],
    )
    return operands.d, launch, result


def error_bound(x: Problem, output: torch.dtype) -> Tensor:
    """What D may differ from the product by, element by element.

    Products of two 16-bit floats are exact in fp32. A sum of K of them in any order and grouping
    that rounds at most once per product errs by at most g = K u / (1 - K u) of the sum of
    magnitudes, u = 2^-24. The output rounds once: by half a unit in the last place, or half the
    smallest subnormal."""
    k = x.a.shape[2]
    g = k * 2.0**-24 / (1 - k * 2.0**-24)
    accumulation = g * x.magnitude
    form = torch.finfo(output)
    smallest = form.smallest_normal * form.eps
    return accumulation + form.eps / 2 * (x.product.abs() + accumulation) + smallest / 2


@pytest.mark.parametrize("accumulate", ACCUMULATE)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_integers_are_exact(variant: Variant, schedule: str, accumulate: str) -> None:
    """Sums of small integers fit fp32, so only the rounding to D's type is left."""
    x = problem(variant, integers=True)
    d, _, _ = run(variant, x, accumulate=accumulate, **SCHEDULES[schedule])
    torch.testing.assert_close(d, x.product.to(variant.output), rtol=0, atol=0)


@pytest.mark.parametrize("accumulate", ACCUMULATE)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_rounding(variant: Variant, schedule: str, accumulate: str) -> None:
    x = problem(variant, integers=False)
    d, _, _ = run(variant, x, accumulate=accumulate, **SCHEDULES[schedule])
    excess = (d.double() - x.product).abs() - error_bound(x, variant.output)
    assert not torch.isnan(excess).any(), "elements of D are NaN"
    worst = int(excess.argmax())
    assert excess.max() <= 0, (
        f"element {worst}: got {d.flatten()[worst]}, expected {x.product.flatten()[worst]}, "
        f"{excess.max():.3g} over the bound; {int((excess > 0).sum())} elements of {d.numel()}"
    )


def test_nothing_is_unordered(variant: Variant, request: pytest.FixtureRequest) -> None:
    """As the happens-before checker sees it, by the rules for proven kernels; under 20 seeds with
    --full."""
    x = problem(variant, integers=True)
    seeds = range(1, 21 if request.config.getoption("--full") else 2)
    schedules = [{"policy": "random", "seed": seed, "order": "random"} for seed in seeds]
    for schedule in ({"policy": "eager"}, {"policy": "lazy"}, *schedules):
        d, _, _ = run(variant, x, check="deployed", **schedule)
        torch.testing.assert_close(d, x.product.to(variant.output), rtol=0, atol=0)


def test_tiles_by_cluster_launch_control(variant: Variant) -> None:
    """With one worker, the first cluster takes over all others by clusterlaunchcontrol.try_cancel.
    Kernels without that instruction start every cluster of the grid."""
    x = problem(variant, integers=True)
    d, launch, result = run(variant, x, threads=1)
    torch.testing.assert_close(d, x.product.to(variant.output), rtol=0, atol=0)
    assert launch.clusters > 1
    taken_over = variant.shape.takes_over_clusters
    assert result.statistics["clusters"] == (1 if taken_over else launch.clusters)


def test_sample_shows_every_value() -> None:
    def axes(variants: tuple[Variant, ...]) -> dict[str, set[object]]:
        blackwell = [v for v in variants if not v.shape.sm90]
        shapes = cutlass_gemm.ONE_SM + cutlass_gemm.TWO_SM
        return {
            "sms": {v.shape.schedule for v in blackwell},
            "shape": {shapes.index(v.shape) % 3 for v in blackwell},
            "scheduler": {v.shape.scheduler for v in blackwell},
            "dtype": {v.dtype for v in blackwell},
            "output": {v.output for v in blackwell},
            "a_major": {v.a_major for v in blackwell},
            "b_major": {v.b_major for v in blackwell},
        }

    assert axes(cutlass_gemm.SAMPLE) == axes(cutlass_gemm.MATRIX)
    assert any(v.shape.sm90 for v in cutlass_gemm.SAMPLE)
    assert set(cutlass_gemm.SAMPLE) <= set(cutlass_gemm.MATRIX)


def test_refused_problem_is_named() -> None:
    variant = cutlass_gemm.SAMPLE[0]
    try:
        cutlass_gemm.build(variant)
    except cutlass_gemm.Unavailable as reason:
        pytest.skip(str(reason))
    x = cutlass_gemm.operands(variant, torch.zeros(1, 64, 36), torch.zeros(1, 64, 36))
    with pytest.raises(ValueError, match=r"N 64, K 36: CUTLASS cannot implement this problem"):
        cutlass_gemm.prepare(variant, x, ALPHA, encoder())
