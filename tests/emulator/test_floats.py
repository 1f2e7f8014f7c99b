"""Floating-point instructions: exact ones against rational arithmetic, approximate ones against
float64 with the bounds of NVIDIA's documentation."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import ieee
import pytest
import torch
from ieee import BF16, F16, F32, Format
from machines import Machine
from torch import Tensor

Operation = Callable[[float, float, float], float]

COUNT = 512
INF, NAN = math.inf, math.nan
TINY = 2.0**-149  # smallest subnormal float32
SPECIAL = (
    0.0,
    -0.0,
    1.0,
    -1.0,
    INF,
    -INF,
    NAN,
    TINY,
    -TINY,
    2.0**-126,
    2.0**127,
    0.5,
    1.5,
    2.5,
    -2.5,
)
DTYPES = {F32: torch.float32, F16: torch.float16, BF16: torch.bfloat16}


def numbers(form: Format, seed: int) -> list[float]:
    """Special values and their neighbours first, then every magnitude, then close magnitudes."""
    generator = random.Random(seed)
    values = [generator.choice(SPECIAL) for _ in range(COUNT // 4)]
    wide = 1 - form.least_exponent
    for i in range(COUNT - len(values)):
        exponent = generator.randint(-wide - 5, wide - 1) if i % 2 else generator.randint(-3, 3)
        values.append(math.ldexp(generator.uniform(-2, 2), exponent))
    return [ieee.to(value, form) for value in values]


def same(got: float, wanted: float) -> bool:
    if math.isnan(wanted):
        return math.isnan(got)
    return got == wanted and math.copysign(1, got) == math.copysign(1, wanted)


@functools.cache
def inputs(form: Format) -> tuple[list[float], list[float], list[float]]:
    a, b, c = (numbers(form, seed) for seed in range(3))
    # A quarter of the sums cancels or nearly does.
    c[::4] = [ieee.fma(-x, y, 0.0, form) for x, y in zip(a[::4], b[::4], strict=True)]
    return a, b, c


def mismatches(
    machine: Machine, operations: dict[str, Operation], form: Format, into: torch.dtype
) -> Iterator[str]:
    program = machine.compile("floats.cu")
    values = inputs(form)
    tensors = [machine.tensor(torch.tensor(v, dtype=DTYPES[form])) for v in values]
    for name, operation in operations.items():
        out = machine.zeros(COUNT, dtype=into)
        program.launch(name, COUNT // 128, 128, [*tensors, out, COUNT])
        for got, a, b, c in zip(out.tolist(), *values, strict=True):
            wanted = operation(a, b, c)
            if not same(got, wanted):
                yield f"{name}({a!r}, {b!r}, {c!r}): {wanted!r} expected, got {got!r}"
                break


# ---- Exact arithmetic ----------------------------------------------------------------------------


def divided(a: float, b: float, c: float) -> float:
    if math.isnan(a) or math.isnan(b) or (a == 0 and b == 0) or (math.isinf(a) and math.isinf(b)):
        return NAN
    sign = math.copysign(1, a) * math.copysign(1, b)
    if b == 0 or math.isinf(a):
        return sign * INF
    return sign * 0.0 if math.isinf(b) else ieee.div(a, b)


def square_root(a: float, b: float, c: float) -> float:
    if math.isnan(a) or a < 0:
        return NAN
    return ieee.to(math.sqrt(a), F32)  # 53 bits are enough for one rounding of a root


FMA = {
    f"fma_{mode}_f32": functools.partial(ieee.fma, mode=mode) for mode in ("rn", "rz", "rm", "rp")
}
EXACT: dict[str, Operation] = {
    **FMA,
    "fma_rn_ftz_f32": functools.partial(ieee.fma, ftz=True),
    "fma_rn_sat_f32": lambda a, b, c: ieee.saturated(ieee.fma(a, b, c)),
    "add_f32": lambda a, b, c: ieee.add(a, b),
    "add_rn_ftz_f32": lambda a, b, c: ieee.add(a, b, ftz=True),
    "add_rz_f32": lambda a, b, c: ieee.add(a, b, mode="rz"),
    "add_rm_f32": lambda a, b, c: ieee.add(a, b, mode="rm"),
    "add_rp_f32": lambda a, b, c: ieee.add(a, b, mode="rp"),
    "add_rm_ftz_f32": lambda a, b, c: ieee.add(a, b, mode="rm", ftz=True),
    "add_sat_f32": lambda a, b, c: ieee.saturated(ieee.add(a, b)),
    "sub_f32": lambda a, b, c: ieee.add(a, -b),
    "sub_ftz_f32": lambda a, b, c: ieee.add(a, -b, ftz=True),
    "mul_f32": lambda a, b, c: ieee.mul(a, b),
    "mul_ftz_f32": lambda a, b, c: ieee.mul(a, b, ftz=True),
    "mul_rz_f32": lambda a, b, c: ieee.mul(a, b, mode="rz"),
    "mul_rp_f32": lambda a, b, c: ieee.mul(a, b, mode="rp"),
    "div_rn_f32": divided,
    "rcp_rn_f32": lambda a, b, c: divided(1.0, a, c),
    "sqrt_rn_f32": square_root,
    "neg_f32": lambda a, b, c: -a,
    "neg_ftz_f32": lambda a, b, c: -ieee.flushed(a),
    "abs_f32": lambda a, b, c: abs(a),
    "copysign_f32": lambda a, b, c: math.copysign(b, a),
    "min_f32": lambda a, b, c: ieee.least(a, b),
    "max_f32": lambda a, b, c: ieee.largest(a, b),
    "min_nan_f32": lambda a, b, c: ieee.least(a, b, nan=True),
    "max_nan_f32": lambda a, b, c: ieee.largest(a, b, nan=True),
    "max_ftz_f32": lambda a, b, c: ieee.largest(ieee.flushed(a), ieee.flushed(b)),
    "selp_f32": lambda a, b, c: a if c > 0 else b,
}


def test_float32(machine: Machine) -> None:
    assert list(mismatches(machine, EXACT, F32, torch.float32)) == []


@pytest.mark.archs("sm100")
def test_float32_of_three_inputs(machine: Machine) -> None:
    flushed = ieee.flushed
    operations: dict[str, Operation] = {
        "max_3_f32": ieee.largest,
        "min_3_f32": ieee.least,
        "max_3_nan_f32": functools.partial(ieee.largest, nan=True),
        "max_3_ftz_f32": lambda a, b, c: ieee.largest(flushed(a), flushed(b), flushed(c)),
    }
    assert list(mismatches(machine, operations, F32, torch.float32)) == []


@pytest.mark.archs("sm100")
@pytest.mark.parametrize(
    ("name", "operation"),
    [
        ("add_rn_f32x2", EXACT["add_f32"]),
        ("add_rm_f32x2", EXACT["add_rm_f32"]),
        ("add_rn_ftz_f32x2", EXACT["add_rn_ftz_f32"]),
        ("sub_rn_f32x2", EXACT["sub_f32"]),
        ("mul_rn_f32x2", EXACT["mul_f32"]),
        ("mul_rn_ftz_f32x2", EXACT["mul_ftz_f32"]),
        ("fma_rn_f32x2", EXACT["fma_rn_f32"]),
        ("fma_rn_ftz_f32x2", EXACT["fma_rn_ftz_f32"]),
        ("fma_rp_f32x2", EXACT["fma_rp_f32"]),
    ],
)
def test_pairs_of_float32(machine: Machine, name: str, operation: Operation) -> None:
    values = inputs(F32)
    tensors = [machine.tensor(torch.tensor(v)) for v in values]
    out = machine.zeros(COUNT, dtype=torch.float32)
    program = machine.compile("floats.cu")
    program.launch(name, COUNT // 256, 128, [*tensors, out, COUNT // 2])
    for got, *given in zip(out.tolist(), *values, strict=True):
        wanted = operation(*given)
        assert same(got, wanted), f"{given}: {wanted!r} expected, got {got!r}"


@pytest.mark.archs("sm100")
@pytest.mark.parametrize("form", [F16, BF16], ids=["f16", "bf16"])
def test_mixed_precision(machine: Machine, form: Format) -> None:
    a, b, _ = inputs(form)
    c = inputs(F32)[2]
    tensors = [machine.tensor(torch.tensor(v, dtype=DTYPES[form])) for v in (a, b)]
    tensors.append(machine.tensor(torch.tensor(c)))
    operations: dict[str, Operation] = {
        F16: {"fma_rn_f32_f16": ieee.fma, "sub_f32_f16": lambda x, y, z: ieee.add(x, -z)},
        BF16: {"fma_rn_f32_bf16": ieee.fma, "add_f32_bf16": lambda x, y, z: ieee.add(x, z)},
    }[form]
    for name, operation in operations.items():
        out = machine.zeros(COUNT, dtype=torch.float32)
        machine.compile("floats.cu").launch(name, COUNT // 128, 128, [*tensors, out, COUNT])
        for got, *given in zip(out.tolist(), a, b, c, strict=True):
            wanted = operation(*given)
            assert same(got, wanted), f"{name}{given}: {wanted!r} expected, got {got!r}"


# ---- Comparisons ---------------------------------------------------------------------------------


def compared(test: Callable[[float, float], bool], unordered: bool) -> Operation:
    def result(a: float, b: float, c: float) -> float:
        return float(unordered if math.isnan(a) or math.isnan(b) else test(a, b))

    return result


ORDERED: dict[str, Callable[[float, float], bool]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}
COMPARISONS: dict[str, Operation] = {
    **{f"setp_{name}_f32": compared(test, False) for name, test in ORDERED.items()},
    **{f"setp_{name}u_f32": compared(test, True) for name, test in ORDERED.items()},
    "setp_num_f32": compared(lambda a, b: True, False),
    "setp_nan_f32": compared(lambda a, b: False, True),
    "setp_lt_ftz_f32": compared(lambda a, b: ieee.flushed(a) < ieee.flushed(b), False),
}
HALF_COMPARISONS = {
    F16: {
        "setp_gt_f16": compared(ORDERED["gt"], False),
        "setp_neu_f16": compared(ORDERED["ne"], True),
    },
    BF16: {"setp_lt_bf16": compared(ORDERED["lt"], False)},
}


def test_comparisons(machine: Machine) -> None:
    assert list(mismatches(machine, COMPARISONS, F32, torch.int32)) == []
    for form, operations in HALF_COMPARISONS.items():
        assert list(mismatches(machine, operations, form, torch.int32)) == []


# ---- Conversions ---------------------------------------------------------------------------------

ROUND = {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}


def to_integer(mode: str, low: int, high: int, nan: int = 0) -> Operation:
    def result(a: float, b: float, c: float) -> float:
        if math.isnan(a):
            return nan
        if math.isinf(a):
            return high if a > 0 else low
        return max(low, min(high, ROUND[mode](a)))

    return result


def to_integral(mode: str) -> Operation:
    def result(a: float, b: float, c: float) -> float:
        if not math.isfinite(a):
            return a
        return math.copysign(float(ROUND[mode](a)), a)

    return result


def relu(value: float) -> float:
    return value if math.isnan(value) else max(value, 0.0) + 0.0


S32 = -(2**31), 2**31 - 1
TO_INTEGERS = {
    torch.int32: {
        **{f"cvt_{mode}_s32_f32": to_integer(mode, *S32) for mode in ROUND},
    },
    torch.uint32: {"cvt_rzi_u32_f32": to_integer("rzi", 0, 2**32 - 1)},
    torch.int64: {
        # NaN is 0 for results of 32 bits, the most negative number for 64.
        "cvt_rzi_s64_f32": to_integer("rzi", -(2**63), 2**63 - 1, nan=-(2**63))
    },
}
TO_FLOATS = {
    torch.float32: {
        **{f"cvt_{mode}_f32_f32": to_integral(mode) for mode in ROUND},
        "cvt_sat_f32_f32": lambda a, b, c: ieee.saturated(a),
    },
    torch.float16: {
        "cvt_rn_f16_f32": lambda a, b, c: ieee.to(a, F16),
        "cvt_rz_f16_f32": lambda a, b, c: ieee.to(a, F16, "rz"),
    },
    torch.bfloat16: {
        "cvt_rn_bf16_f32": lambda a, b, c: ieee.to(a, BF16),
        "cvt_rz_bf16_f32": lambda a, b, c: ieee.to(a, BF16, "rz"),
        "cvt_rn_relu_bf16_f32": lambda a, b, c: relu(ieee.to(a, BF16)),
    },
}


@pytest.mark.parametrize("dtype", [*TO_INTEGERS, *TO_FLOATS], ids=str)
def test_conversions_of_float32(machine: Machine, dtype: torch.dtype) -> None:
    operations = {**TO_INTEGERS, **TO_FLOATS}[dtype]
    assert list(mismatches(machine, operations, F32, dtype)) == []


def test_conversions_to_pairs(machine: Machine) -> None:
    """The first operand becomes the upper half."""
    program = machine.compile("floats.cu")
    a, b, _ = inputs(F32)
    tensors = [machine.tensor(torch.tensor(v)) for v in inputs(F32)]
    operations = {
        "cvt_rn_f16x2_f32": (F16, lambda x: ieee.to(x, F16)),
        "cvt_rn_bf16x2_f32": (BF16, lambda x: ieee.to(x, BF16)),
        "cvt_rz_bf16x2_f32": (BF16, lambda x: ieee.to(x, BF16, "rz")),
        "cvt_rn_relu_bf16x2_f32": (BF16, lambda x: relu(ieee.to(x, BF16))),
        "cvt_rn_relu_f16x2_f32": (F16, lambda x: relu(ieee.to(x, F16))),
    }
    for name, (form, convert) in operations.items():
        out = machine.zeros(COUNT, 2, dtype=DTYPES[form])
        program.launch(name, COUNT // 128, 128, [*tensors, out, COUNT])
        for (low, high), x, y in zip(out.tolist(), a, b, strict=True):
            assert same(high, convert(x)), f"{name}: {x!r} became {high!r}"
            assert same(low, convert(y)), f"{name}: {y!r} became {low!r}"


def test_conversions_to_float32(machine: Machine) -> None:
    for form, name in ((F16, "cvt_f32_f16"), (BF16, "cvt_f32_bf16")):
        assert list(mismatches(machine, {name: lambda a, b, c: a}, form, torch.float32)) == []


@pytest.mark.parametrize(
    ("name", "bits", "is_signed", "mode"),
    [
        ("cvt_rn_f32_s32", 32, True, "rn"),
        ("cvt_rn_f32_u32", 32, False, "rn"),
        ("cvt_rz_f32_s32", 32, True, "rz"),
        ("cvt_rn_f32_s64", 64, True, "rn"),
    ],
)
def test_conversions_of_integers(
    machine: Machine, name: str, bits: int, is_signed: bool, mode: str
) -> None:
    generator = random.Random(8)
    words = [generator.getrandbits(generator.randint(1, bits)) for _ in range(COUNT - 3)]
    words += [0, 1 << (bits - 1), (1 << bits) - 1]
    signed = [word - (1 << bits) if word >> (bits - 1) else word for word in words]
    data = machine.tensor(torch.tensor(signed, dtype=torch.int32 if bits == 32 else torch.int64))
    out = machine.zeros(COUNT, dtype=torch.float32)
    machine.compile("floats.cu").launch(name, COUNT // 128, 128, [data, data, data, out, COUNT])
    for got, value in zip(out.tolist(), signed if is_signed else words, strict=True):
        wanted = ieee.rounded(Fraction(value), F32, mode) if value else 0.0
        assert got == wanted, f"{value}: {wanted!r} expected, got {got!r}"


def test_conversions_of_float16_and_integers(machine: Machine) -> None:
    program = machine.compile("floats.cu")
    integers = torch.arange(-70000, 70000, 280, dtype=torch.int32)[:COUNT]
    data, count = machine.tensor(integers), len(integers)
    out = machine.zeros(count, dtype=torch.float16)
    program.launch("cvt_rn_f16_s32", 4, 128, [data, data, data, out, count])
    assert torch.equal(out.cpu(), integers.float().to(torch.float16))
    operations = {"cvt_rni_s32_f16": to_integer("rni", *S32)}
    assert list(mismatches(machine, operations, F16, torch.int32)) == []


# ---- 16 bits -------------------------------------------------------------------------------------


def half_operations(form: Format) -> dict[str, Operation]:
    """Under the names of the packed forms, without "x2"."""
    fma = functools.partial(ieee.fma, form=form)
    return {
        "add": lambda a, b, c: ieee.add(a, b, form),
        "sub": lambda a, b, c: ieee.add(a, -b, form),
        "mul": lambda a, b, c: ieee.mul(a, b, form),
        "fma_rn": fma,
        "fma_rn_relu": lambda a, b, c: relu(fma(a, b, c)),
        "max": lambda a, b, c: ieee.largest(a, b),
        "min": lambda a, b, c: ieee.least(a, b),
        "max_nan": lambda a, b, c: ieee.largest(a, b, nan=True),
        "neg": lambda a, b, c: -a,
        "abs": lambda a, b, c: abs(a),
    }


@pytest.mark.parametrize("form", [F16, BF16], ids=["f16", "bf16"])
def test_halves(machine: Machine, form: Format) -> None:
    suffix = "f16" if form == F16 else "bf16"
    names = (
        ("add", "mul", "fma_rn", "max", "neg") if form == F16 else ("fma_rn", "max", "abs", "neg")
    )
    operations = {f"{name}_{suffix}": half_operations(form)[name] for name in names}
    assert list(mismatches(machine, operations, form, DTYPES[form])) == []


@pytest.mark.parametrize("form", [F16, BF16], ids=["f16", "bf16"])
def test_pairs_of_halves(machine: Machine, form: Format) -> None:
    program = machine.compile("floats.cu")
    suffix = "f16x2" if form == F16 else "bf16x2"
    names = ["add", "sub", "mul", "fma_rn", "max", "min", "neg"]
    names += ["fma_rn_relu", "max_nan", "abs"] if form == F16 else []
    values = inputs(form)
    tensors = [machine.tensor(torch.tensor(v, dtype=DTYPES[form])) for v in values]
    for name in names:
        operation = half_operations(form)[name]
        out = machine.zeros(COUNT, dtype=DTYPES[form])
        program.launch(f"{name}_{suffix}", COUNT // 256, 128, [*tensors, out, COUNT // 2])
        for got, *given in zip(out.tolist(), *values, strict=True):
            wanted = operation(*given)
            assert same(got, wanted), f"{name}{given}: {wanted!r} expected, got {got!r}"


# ---- Approximate functions -----------------------------------------------------------------------


@dataclass(frozen=True)
class Approximate:
    """An approximate function, its bounds, and what holds exactly (PTX ISA: special values)."""

    function: Callable[[Tensor], Tensor]
    range: tuple[float, float]
    absolute: float
    relative: float
    exact: tuple[tuple[float, float], ...]


NAN_STAYS = (NAN, NAN)
POLES = (0.0, INF), (-0.0, -INF), (INF, 0.0), (-INF, -0.0), NAN_STAYS
APPROXIMATE = {
    "ex2_approx_f32": Approximate(
        torch.exp2, (-148, 127), TINY, 2**-22, ((-INF, 0.0), (INF, INF), (0.0, 1.0), NAN_STAYS)
    ),
    "ex2_approx_ftz_f32": Approximate(
        torch.exp2,
        (-126, 127),
        0,
        2**-22,
        ((-INF, 0.0), (-127.5, 0.0), (INF, INF), (TINY, 1.0), (-TINY, 1.0)),
    ),
    "lg2_approx_f32": Approximate(
        torch.log2, (0.5, 2), 2**-22, 0, ((0.0, -INF), (-0.0, -INF), (INF, INF), (-1.0, NAN))
    ),
    "lg2_approx_ftz_f32": Approximate(
        torch.log2, (2, 2e38), 0, 2**-21.5, ((TINY, -INF), (0.0, -INF), (4.0, 2.0))
    ),
    "rcp_approx_ftz_f32": Approximate(torch.reciprocal, (1e-37, 1e37), 0, 2**-23, POLES),
    "rsqrt_approx_f32": Approximate(
        torch.rsqrt, (1e-38, 3e38), 0, 2**-22.4, ((0.0, INF), (INF, 0.0), (-1.0, NAN))
    ),
    "rsqrt_approx_ftz_f32": Approximate(
        torch.rsqrt, (1e-37, 3e38), 0, 2**-22.4, ((TINY, INF), (-0.0, -INF), (INF, 0.0))
    ),
    "sqrt_approx_f32": Approximate(
        torch.sqrt, (0, 3e38), 2**-60, 2**-22, ((0.0, 0.0), (-0.0, -0.0), (INF, INF), (-1.0, NAN))
    ),
    "tanh_approx_f32": Approximate(
        torch.tanh, (-6, 6), 0, 2**-11, ((INF, 1.0), (-INF, -1.0), (0.0, 0.0), NAN_STAYS)
    ),
    "sin_approx_f32": Approximate(
        torch.sin, (-3.14159, 3.14159), 2**-20.5, 0, ((0.0, 0.0), (-0.0, -0.0), (INF, NAN))
    ),
    "cos_approx_f32": Approximate(
        torch.cos, (-3.14159, 3.14159), 2**-20.5, 0, ((0.0, 1.0), (INF, NAN))
    ),
}


@pytest.mark.parametrize("name", APPROXIMATE)
def test_approximate(machine: Machine, name: str) -> None:
    case = APPROXIMATE[name]
    exact, (low, high) = case.exact, case.range
    generator = torch.Generator().manual_seed(9)
    count = 4096
    x = low + (high - low) * torch.rand(count, generator=generator)
    x[: len(exact)] = torch.tensor([argument for argument, _ in exact])
    data = machine.tensor(x)
    out = machine.zeros(count, dtype=torch.float32)
    args = [data, data, data, out, count]
    machine.compile("floats.cu").launch(name, count // 128, 128, args)
    got = out.cpu()
    for i, (argument, wanted) in enumerate(exact):
        assert same(got[i].item(), wanted), (
            f"{argument!r}: {wanted!r} expected, got {got[i].item()!r}"
        )
    rest = slice(len(exact), None)
    wanted = case.function(x[rest].double())
    bound = case.absolute + case.relative * wanted.abs()
    error = (got[rest].double() - wanted).abs() - bound
    worst = int(error.argmax())
    assert error[worst] <= 0, f"at {x[rest][worst].item()!r}: {got[rest][worst].item()!r}"


@pytest.mark.parametrize(
    ("name", "dtype", "function", "absolute", "relative"),
    [
        ("ex2_approx_f16x2", torch.float16, torch.exp2, 0, 2**-9.9),
        ("ex2_approx_ftz_bf16x2", torch.bfloat16, torch.exp2, 0, 2**-7),
        ("tanh_approx_f16x2", torch.float16, torch.tanh, 2**-10.987, 0),
        ("tanh_approx_bf16x2", torch.bfloat16, torch.tanh, 2**-8, 0),
    ],
)
def test_approximate_halves(
    machine: Machine,
    name: str,
    dtype: torch.dtype,
    function: Callable[[Tensor], Tensor],
    absolute: float,
    relative: float,
) -> None:
    x = torch.linspace(-8, 8, COUNT).to(dtype)
    data = machine.tensor(x)
    out = machine.zeros(COUNT, dtype=dtype)
    args = [data, data, data, out, COUNT // 2]
    machine.compile("floats.cu").launch(name, COUNT // 256, 128, args)
    torch.testing.assert_close(
        out.cpu().double(), function(x.double()), atol=absolute, rtol=relative
    )


def test_division_by_approximation(machine: Machine) -> None:
    """div.full and div.approx: two units in the last place."""
    program = machine.compile("floats.cu")
    generator = torch.Generator().manual_seed(10)
    a, b = (torch.randn(COUNT, generator=generator) * 2.0**e for e in (5, -3))
    tensors = [machine.tensor(part) for part in (a, b, b)]
    for name in ("div_full_f32", "div_approx_ftz_f32"):
        out = machine.zeros(COUNT, dtype=torch.float32)
        program.launch(name, COUNT // 128, 128, [*tensors, out, COUNT])
        torch.testing.assert_close(out.cpu().double(), a.double() / b.double(), rtol=2**-22, atol=0)


def test_exp2_by_polynomial(machine: Machine) -> None:
    x = torch.linspace(-140, 20, COUNT)
    x[:2] = torch.tensor([-INF, 0.0])
    out = machine.zeros(COUNT, dtype=torch.float32)
    args = [machine.tensor(x), out, COUNT]
    machine.compile("floats.cu").launch("exp2_by_polynomial", 1, COUNT, args)
    normal = x >= -126
    wanted = torch.exp2(x.double())
    torch.testing.assert_close(out.cpu().double()[normal], wanted[normal], rtol=9e-5, atol=0)
    assert (out.cpu()[x <= -127] == 0).all()
