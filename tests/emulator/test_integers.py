"""Integer instructions against Python's integers."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator

import pytest
import torch
from machines import Machine

Operation = Callable[..., int]

EDGES = (0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 255, 256, 0x3210, 0x8F76)
COUNT = 640


def signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def operands(bits: int, seed: int) -> list[int]:
    """Small and extreme numbers first, then numbers of every length."""
    generator = random.Random(seed)
    top = 1 << bits
    known = [*EDGES, top - 1, top - 2, top // 2, top // 2 - 1, top // 2 + 1, top - 100]
    values = [generator.choice(known) % top for _ in range(COUNT // 2)]
    lengths = (generator.randint(1, bits) for _ in range(COUNT - len(values)))
    return values + [generator.getrandbits(length) for length in lengths]


def truncated_division(a: int, b: int) -> tuple[int, int]:
    quotient = abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    return quotient, a - quotient * b


def shift_right(bits: int, *, arithmetic: bool) -> Operation:
    def result(a: int, b: int, c: int) -> int:
        return (signed(a, bits) if arithmetic else a) >> min(b, bits)

    return result


def field(bits: int, *, arithmetic: bool) -> Operation:
    """bfe: positions and lengths are 8 bits; beyond the top follows the sign or zero."""

    def result(a: int, b: int, c: int) -> int:
        position, length = b & 255, c & 255
        value = (a >> position) & ((1 << length) - 1)
        top = min(position + length - 1, bits - 1)
        if arithmetic and length > 0 and a >> top & 1:
            value |= -1 << max(0, min(length, bits - position))
        return value

    return result


def insert_field(a: int, b: int, c: int) -> int:
    """bfi into a constant."""
    position, length = b & 255, c & 255
    mask = ((1 << length) - 1) << position & 0xFFFFFFFF
    return 0x12345678 & ~mask | a << position & mask


def permuted(a: int, b: int, c: int) -> int:
    """prmt: four selectors; their top bit asks for eight copies of the sign."""
    source, result = b << 32 | a, 0
    for i in range(4):
        selector = c >> 4 * i & 15
        byte = source >> 8 * (selector & 7) & 255
        if selector & 8:
            byte = 255 if byte & 128 else 0
        result |= byte << 8 * i
    return result


def funnel(left: bool, clamp: bool) -> Operation:
    def result(a: int, b: int, c: int) -> int:
        by = min(c, 32) if clamp else c & 31
        both = b << 32 | a
        return (both << by) >> 32 if left else both >> by

    return result


def lookup(table: int) -> Operation:
    def result(a: int, b: int, c: int) -> int:
        bits = 0
        for i in range(32):
            index = (a >> i & 1) << 2 | (b >> i & 1) << 1 | c >> i & 1
            bits |= (table >> index & 1) << i
        return bits

    return result


def clamped(value: int, low: int, high: int) -> int:
    return max(low, min(high, value))


def both_predicates(a: int, b: int, c: int) -> int:
    less = signed(a, 32) < signed(b, 32)
    return int(less and c != 0) + 2 * int(not less and c != 0)


def predicate_logic(a: int, b: int, c: int) -> int:
    p, q = signed(a, 32) < 0, signed(b, 32) < 0
    either, both = p != q, p and q
    return int(not p or both) + 2 * int(not either) + 4 * int(both)


def reversed_bits(value: int, bits: int) -> int:
    return int(f"{value:0{bits}b}"[::-1], 2)


def common(bits: int) -> dict[str, Operation]:
    """What exists for 32 and 64 bits under names that differ in the width alone."""
    s = functools.partial(signed, bits=bits)
    return {
        f"mul_lo_u{bits}": lambda a, b, c: a * b,
        f"mul_hi_u{bits}": lambda a, b, c: a * b >> bits,
        f"mul_hi_s{bits}": lambda a, b, c: s(a) * s(b) >> bits,
        f"mad_lo_s{bits}": lambda a, b, c: a * b + c,
        f"and_b{bits}": lambda a, b, c: a & b,
        f"or_b{bits}": lambda a, b, c: a | b,
        f"xor_b{bits}": lambda a, b, c: a ^ b,
        f"not_b{bits}": lambda a, b, c: ~a,
        f"neg_s{bits}": lambda a, b, c: -a,
        f"abs_s{bits}": lambda a, b, c: abs(s(a)),
        f"min_s{bits}": lambda a, b, c: min(s(a), s(b)),
        f"max_u{bits}": lambda a, b, c: max(a, b),
        f"brev_b{bits}": lambda a, b, c: reversed_bits(a, bits),
    }


WORDS: dict[str, Operation] = {
    **common(32),
    "add_u32": lambda a, b, c: a + b,
    "sub_s32": lambda a, b, c: a - b,
    "mad_hi_u32": lambda a, b, c: (a * b >> 32) + c,
    "mad_hi_s32": lambda a, b, c: (signed(a, 32) * signed(b, 32) >> 32) + c,
    "max_s32": lambda a, b, c: max(signed(a, 32), signed(b, 32)),
    "min_u32": lambda a, b, c: min(a, b),
    "shl_b32": lambda a, b, c: a << min(b, 32),
    "shr_u32": shift_right(32, arithmetic=False),
    "shr_s32": shift_right(32, arithmetic=True),
    "bfe_u32": field(32, arithmetic=False),
    "bfe_s32": field(32, arithmetic=True),
    "bfi_b32": insert_field,
    "popc_b32": lambda a, b, c: a.bit_count(),
    "clz_b32": lambda a, b, c: 32 - a.bit_length(),
    "prmt_b32": permuted,
    "shf_l_wrap": funnel(left=True, clamp=False),
    "shf_r_wrap": funnel(left=False, clamp=False),
    "shf_l_clamp": funnel(left=True, clamp=True),
    "shf_r_clamp": funnel(left=False, clamp=True),
    "lop3_majority": lookup(0xE8),
    "lop3_select": lookup(0xCA),
    "lop3_odd": lookup(0x96),
    "lop3_mixed": lookup(0x1D),
    "add_sat_s32": lambda a, b, c: clamped(signed(a, 32) + signed(b, 32), -(2**31), 2**31 - 1),
    "sub_sat_s32": lambda a, b, c: clamped(signed(a, 32) - signed(b, 32), -(2**31), 2**31 - 1),
    "cvt_sat_s16_s32": lambda a, b, c: clamped(signed(a, 32), -(2**15), 2**15 - 1),
    "cvt_sat_u16_s32": lambda a, b, c: clamped(signed(a, 32), 0, 2**16 - 1),
    "cvt_u16_u32": lambda a, b, c: a,
    "setp_both": both_predicates,
    "predicates": predicate_logic,
    "setp_eq_b32": lambda a, b, c: int(a == b),
    "setp_ne_s32": lambda a, b, c: int(a != b),
    "setp_lt_s32": lambda a, b, c: int(signed(a, 32) < signed(b, 32)),
    "setp_le_s32": lambda a, b, c: int(signed(a, 32) <= signed(b, 32)),
    "setp_gt_s32": lambda a, b, c: int(signed(a, 32) > signed(b, 32)),
    "setp_ge_s32": lambda a, b, c: int(signed(a, 32) >= signed(b, 32)),
    **{f"setp_{name}_u32": lambda a, b, c: int(a < b) for name in ("lt", "lo")},
    **{f"setp_{name}_u32": lambda a, b, c: int(a <= b) for name in ("le", "ls")},
    **{f"setp_{name}_u32": lambda a, b, c: int(a > b) for name in ("gt", "hi")},
    **{f"setp_{name}_u32": lambda a, b, c: int(a >= b) for name in ("ge", "hs")},
}
WORD_DIVISIONS: dict[str, Operation] = {
    "div_u32": lambda a, b, c: a // b,
    "rem_u32": lambda a, b, c: a % b,
    "div_s32": lambda a, b, c: truncated_division(signed(a, 32), signed(b, 32))[0],
    "rem_s32": lambda a, b, c: truncated_division(signed(a, 32), signed(b, 32))[1],
}
LONGS: dict[str, Operation] = {
    **common(64),
    "add_u64": lambda a, b, c: a + b,
    "sub_s64": lambda a, b, c: a - b,
    "setp_eq_b64": lambda a, b, c: int(a == b),
    "setp_ne_u64": lambda a, b, c: int(a != b),
    "setp_lt_s64": lambda a, b, c: int(signed(a, 64) < signed(b, 64)),
    "setp_gt_u64": lambda a, b, c: int(a > b),
    "popc_b64": lambda a, b, c: a.bit_count(),
    "clz_b64": lambda a, b, c: 64 - a.bit_length(),
    "low_word": lambda a, b, c: a,
    "high_word": lambda a, b, c: a >> 32,
    "cvt_u32_u64": lambda a, b, c: a,
}
LONG_DIVISIONS: dict[str, Operation] = {
    "div_u64": lambda a, b, c: a // b,
    "rem_u64": lambda a, b, c: a % b,
    "div_s64": lambda a, b, c: truncated_division(signed(a, 64), signed(b, 64))[0],
    "rem_s64": lambda a, b, c: truncated_division(signed(a, 64), signed(b, 64))[1],
}
LONG_SHIFTS: dict[str, Operation] = {
    "shl_b64": lambda a, b, c: a << min(b, 64),
    "shr_u64": shift_right(64, arithmetic=False),
    "shr_s64": shift_right(64, arithmetic=True),
}
LONG_FIELDS: dict[str, Operation] = {"bfe_u64": field(64, arithmetic=False)}
WIDENING: dict[str, Operation] = {
    "mul_wide_u32": lambda a, b, c: a * b,
    "mul_wide_s32": lambda a, b, c: signed(a, 32) * signed(b, 32),
    "mad_wide_u32": lambda a, b, c: a * b + c,
    "mad_wide_s32": lambda a, b, c: signed(a, 32) * signed(b, 32) + c,
    "pack_b64": lambda a, b, c: b << 32 | a,
    "cvt_u64_u32": lambda a, b, c: a,
    "cvt_s64_s32": lambda a, b, c: signed(a, 32),
}
WIDENING_HALVES: dict[str, Operation] = {
    "mul_wide_u16": lambda a, b, c: a * b,
    "mul_wide_s16": lambda a, b, c: signed(a, 16) * signed(b, 16),
    "pack_b32": lambda a, b, c: b << 16 | a,
    "cvt_u32_u16": lambda a, b, c: a,
    "cvt_s32_s16": lambda a, b, c: signed(a, 16),
    "cvt_s32_s8": lambda a, b, c: signed(a, 8),
    "cvt_u32_u8": lambda a, b, c: a & 255,
    "setp_lt_s16": lambda a, b, c: int(signed(a, 16) < signed(b, 16)),
    "setp_ge_u16": lambda a, b, c: int(a >= b),
}
HALVES: dict[str, Operation] = {
    "add_s16": lambda a, b, c: a + b,
    "sub_u16": lambda a, b, c: a - b,
    "mul_lo_u16": lambda a, b, c: a * b,
    "mul_hi_u16": lambda a, b, c: a * b >> 16,
    "mul_hi_s16": lambda a, b, c: signed(a, 16) * signed(b, 16) >> 16,
    "mad_lo_u16": lambda a, b, c: a * b + c,
    "min_s16": lambda a, b, c: min(signed(a, 16), signed(b, 16)),
    "max_u16": lambda a, b, c: max(a, b),
    "and_b16": lambda a, b, c: a & b,
    "or_b16": lambda a, b, c: a | b,
    "not_b16": lambda a, b, c: ~a,
}
HALF_DIVISIONS: dict[str, Operation] = {
    "div_u16": lambda a, b, c: a // b,
    "rem_u16": lambda a, b, c: a % b,
    "div_s16": lambda a, b, c: truncated_division(signed(a, 16), signed(b, 16))[0],
    "rem_s16": lambda a, b, c: truncated_division(signed(a, 16), signed(b, 16))[1],
}
HALF_SHIFTS: dict[str, Operation] = {
    "shl_b16": lambda a, b, c: a << min(b, 16),
    "shr_u16": shift_right(16, arithmetic=False),
    "shr_s16": shift_right(16, arithmetic=True),
}

# Operations, bits of the result and of the operands.
GROUPS: dict[str, tuple[dict[str, Operation], int, tuple[int, int, int]]] = {
    "words": (WORDS, 32, (32, 32, 32)),
    "word_divisions": (WORD_DIVISIONS, 32, (32, 32, 32)),
    "longs": (LONGS, 64, (64, 64, 64)),
    "long_divisions": (LONG_DIVISIONS, 64, (64, 64, 64)),
    "long_shifts": (LONG_SHIFTS, 64, (64, 32, 32)),
    "long_fields": (LONG_FIELDS, 64, (64, 32, 32)),
    "widening": (WIDENING, 64, (32, 32, 64)),
    "widening_halves": (WIDENING_HALVES, 32, (16, 16, 32)),
    "halves": (HALVES, 16, (16, 16, 16)),
    "half_divisions": (HALF_DIVISIONS, 16, (16, 16, 16)),
    "half_shifts": (HALF_SHIFTS, 16, (16, 32, 32)),
}
# Results of another width than their group's.
WIDTHS = {
    **dict.fromkeys(("popc_b64", "clz_b64", "low_word", "high_word", "cvt_u32_u64"), 32),
    **{f"setp_{name}": 32 for name in ("eq_b64", "ne_u64", "lt_s64", "gt_u64")},
    **dict.fromkeys(("cvt_sat_s16_s32", "cvt_sat_u16_s32", "cvt_u16_u32"), 16),
}
TYPES = {16: torch.int16, 32: torch.int32, 64: torch.int64}


def as_tensor(values: list[int], bits: int) -> torch.Tensor:
    return torch.tensor([signed(value, bits) for value in values], dtype=TYPES[bits])


@functools.cache
def inputs(group: str) -> tuple[list[int], ...]:
    _, _, widths = GROUPS[group]
    a, b, c = (operands(bits, seed) for seed, bits in enumerate(widths))
    if "divisions" in group:
        # Division by zero, and the one quotient that does not fit, are undefined.
        top = 1 << widths[1]
        b = [value if value not in (0, top - 1) else 3 for value in b]
    if group == "long_fields":
        # The ISA takes 8 bits of position and length, an H100 more.
        b, c = ([value & 255 for value in values] for values in (b, c))
    return a, b, c


def mismatches(machine: Machine, group: str) -> Iterator[str]:
    program = machine.compile("integers.cu")
    operations, bits, widths = GROUPS[group]
    numbers = inputs(group)
    tensors = [machine.tensor(as_tensor(v, w)) for v, w in zip(numbers, widths, strict=True)]
    for name, operation in operations.items():
        width = WIDTHS.get(name, bits)
        out = machine.zeros(COUNT, dtype=TYPES[width])
        program.launch(name, (COUNT + 127) // 128, 128, [*tensors, out, COUNT])
        for got, a, b, c in zip(out.tolist(), *numbers, strict=True):
            wanted = signed(operation(a, b, c), width)
            if got != wanted:
                yield f"{name}({a:#x}, {b:#x}, {c:#x}): {wanted:#x} expected, got {got:#x}"
                break


@pytest.mark.parametrize("group", GROUPS)
def test_integers(machine: Machine, group: str) -> None:
    assert list(mismatches(machine, group)) == []


def test_three_inputs(machine: Machine) -> None:
    a, b, c = (as_tensor(operands(32, seed)[:256], 32) for seed in (3, 4, 5))
    out = machine.zeros(3, 256)
    args = [*map(machine.tensor, (a, b, c)), out, 256]
    machine.compile("integers.cu").launch("three_inputs", 1, 256, args)
    pair = torch.maximum(a, b)
    expected = torch.stack(
        [torch.maximum(pair, c), torch.minimum(torch.minimum(a, b), c), pair.clamp(0)]
    )
    assert torch.equal(out.cpu(), expected)
