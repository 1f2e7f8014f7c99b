"""Exact arithmetic on floating-point formats: values are Python floats, results are rounded once,
in any direction. Every value of float16, bfloat16 and float32 is a Python float."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Format:
    digits: int  # of the significand, with the hidden one
    least_exponent: int  # of a normal number

    @property
    def largest(self) -> float:
        return math.ldexp(2 - 2.0 ** (1 - self.digits), 1 - self.least_exponent)

    @property
    def least_normal(self) -> float:
        return math.ldexp(1.0, self.least_exponent)


F32 = Format(24, -126)
F16 = Format(11, -14)
BF16 = Format(8, -126)


def _integer(scaled: Fraction, mode: str) -> int:
    """rn, rz, rm (down) or rp (up)."""
    if mode == "rn":
        return round(scaled)  # ties to even
    if mode == "rm" or (mode == "rz" and scaled > 0):
        return math.floor(scaled)
    return math.ceil(scaled)


def rounded(value: Fraction, form: Format, mode: str = "rn", *, ftz: bool = False) -> float:
    """The exact value, not zero, in the format."""
    magnitude = abs(value)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if magnitude < Fraction(2) ** exponent:
        exponent -= 1
    exponent = max(exponent, form.least_exponent)
    unit = Fraction(2) ** (exponent - form.digits + 1)
    result = float(_integer(value / unit, mode) * unit)
    result = math.copysign(result, 1 if value > 0 else -1)
    if abs(result) > form.largest:
        towards_zero = mode == "rz" or mode == ("rm" if value > 0 else "rp")
        return math.copysign(form.largest if towards_zero else math.inf, result)
    if ftz and abs(result) < form.least_normal:
        return math.copysign(0.0, result)
    return result


def flushed(value: float) -> float:
    """float32 with a subnormal value replaced by zero."""
    return math.copysign(0.0, value) if abs(value) < F32.least_normal else value


def fma(
    a: float, b: float, c: float, form: Format = F32, mode: str = "rn", *, ftz: bool = False
) -> float:
    """a * b + c, rounded once."""
    if ftz:
        a, b, c = flushed(a), flushed(b), flushed(c)
    if not all(map(math.isfinite, (a, b, c))):
        return a * b + c  # a product of finite values does not overflow here
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if exact != 0:
        return rounded(exact, form, mode, ftz=ftz)
    product_sign = math.copysign(1, a) * math.copysign(1, b)
    if product_sign == math.copysign(1, c):
        return math.copysign(0.0, c)
    return -0.0 if mode == "rm" else 0.0


def add(a: float, b: float, form: Format = F32, mode: str = "rn", *, ftz: bool = False) -> float:
    return fma(a, 1.0, b, form, mode, ftz=ftz)


def mul(a: float, b: float, form: Format = F32, mode: str = "rn", *, ftz: bool = False) -> float:
    # The zero that is added has the sign of the product: it changes nothing.
    zero = math.copysign(0.0, math.copysign(1, a) * math.copysign(1, b))
    return fma(a, b, zero, form, mode, ftz=ftz)


def div(a: float, b: float, form: Format = F32) -> float:
    """Of finite values, b not zero."""
    if a == 0:
        return math.copysign(0.0, math.copysign(1, a) * math.copysign(1, b))
    return rounded(Fraction(a) / Fraction(b), form)


def to(value: float, form: Format, mode: str = "rn") -> float:
    if value == 0 or not math.isfinite(value):
        return value
    return rounded(Fraction(value), form, mode)


def largest(*values: float, nan: bool = False) -> float:
    """max: NaN is missing data, or (nan) wins; +0 is above -0."""
    known = [value for value in values if not math.isnan(value)]
    if not known or (nan and len(known) < len(values)):
        return math.nan
    return max(known, key=lambda value: (value, math.copysign(1, value)))


def least(*values: float, nan: bool = False) -> float:
    return -largest(*(-value for value in values), nan=nan)


def saturated(value: float) -> float:
    """Clamped to [0, 1]; NaN is 0."""
    return 0.0 if math.isnan(value) or value <= 0 else min(value, 1.0)
