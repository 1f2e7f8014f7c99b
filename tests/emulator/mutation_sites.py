"""Places where a kernel hands over, and how each can be broken: one line of its PTX is changed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

# ---- A mutation ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mutation:
    """One line of a PTX text, and what stands there instead."""

    kernel: str
    line: int  # from 1
    name: str  # of the instruction, without modifiers that always are the same
    change: str
    text: str
    barrier: str = ""  # operand that holds the address of an mbarrier

    def __str__(self) -> str:
        return f"{self.kernel}:{self.line} {self.name} -> {self.change}"

    def apply(self, ptx: str) -> str:
        lines = ptx.split("\n")
        lines[self.line - 1] = self.text
        return "\n".join(lines)


# ---- What is done to an instruction --------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """An instruction in its parts."""

    guard: str  # "@%p1 " or nothing
    op: str
    operands: list[str]

    def with_op(self, op: str) -> str:
        return f"{self.guard}{op} {', '.join(self.operands)};"

    def with_operand(self, index: int, delta: int) -> str:
        """With `delta` added to an operand, which may be a register."""
        changed = [*self.operands]
        changed[index] = "mutated"
        sum_of = f"add.s32 mutated, {self.operands[index]}, {delta};"
        return f"{{ .reg .b32 mutated; {sum_of} {self.guard}{self.op} {', '.join(changed)}; }}"


DROPPED = ("left out", "")
Changes = Iterator[tuple[str, str]]


def _init(line: Line) -> Changes:
    yield DROPPED
    yield "one arrival more", line.with_operand(1, 1)
    yield "one arrival less", line.with_operand(1, -1)


def _arrive(line: Line) -> Changes:
    yield ("left out", "") if line.operands[0] == "_" else ("left out", _token(line))
    yield "twice", f"{line.with_op(line.op)} {line.with_op(line.op)}"


def _token(line: Line) -> str:
    """The result stays defined."""
    return f"mov.b64 {line.operands[0]}, 0;"


def _expect(line: Line) -> Changes:
    yield DROPPED
    yield "16 bytes more", line.with_operand(-1, 16)
    yield "16 bytes less", line.with_operand(-1, -16)
    if ".arrive." in line.op:
        plain = Line(line.guard, line.op.replace(".expect_tx", ""), line.operands[:-1])
        yield "no bytes", plain.with_op(plain.op)


def _wait(line: Line) -> Changes:
    done = line.operands[0]
    yield "not waited", f"setp.eq.u32 {done}, 0, 0;"
    if ".parity" in line.op:
        parity = f"xor.b32 mutated, {line.operands[2]}, 1;"
        operands = [*line.operands[:2], "mutated", *line.operands[3:]]
        instruction = f"{line.guard}{line.op} {', '.join(operands)};"
        yield "other parity", f"{{ .reg .b32 mutated; {parity} {instruction} }}"


def _wait_group(line: Line) -> Changes:
    yield DROPPED
    later = Line(line.guard, line.op, [str(int(line.operands[0]) + 1)])
    yield "one group later", later.with_op(later.op)
    if line.op == "cp.async.bulk.wait_group":
        yield "for reads alone", line.with_op(line.op + ".read")


def _bar(line: Line) -> Changes:
    yield DROPPED
    if len(line.operands) == 2:
        yield "32 threads more", line.with_operand(1, 32)
        if line.op.endswith("sync"):
            yield "arrives alone", line.with_op("bar.arrive")


def _cluster_arrive(line: Line) -> Changes:
    yield DROPPED
    if ".relaxed" not in line.op:
        yield "relaxed", line.with_op(line.op.replace(".release", ".relaxed"))


def _flag(line: Line) -> Changes:
    """A flag in global memory: ld.acquire or red.release."""
    if line.op.startswith("red"):
        yield DROPPED
    yield "relaxed", line.with_op(re.sub(r"\.(acquire|release)", ".relaxed", line.op))


def _dropped(_: Line) -> Changes:
    yield DROPPED


# ---- Which instructions --------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    op: re.Pattern[str]
    name: str
    changes: Callable[[Line], Changes]
    barrier: int | None = None  # which operand is an mbarrier


def _rule(
    op: str, name: str, changes: Callable[[Line], Changes], barrier: int | None = None
) -> Rule:
    return Rule(re.compile(op), name, changes, barrier)


RULES = [
    _rule(r"mbarrier\.init\.", "mbarrier.init", _init, 0),
    _rule(r"mbarrier\.arrive\.expect_tx\.", "mbarrier.arrive.expect_tx", _expect, 1),
    _rule(r"mbarrier\.expect_tx\.", "mbarrier.expect_tx", _expect, 0),
    _rule(r"mbarrier\.arrive\.", "mbarrier.arrive", _arrive, 1),
    _rule(r"mbarrier\.try_wait\.", "mbarrier.try_wait", _wait, 1),
    _rule(r"mbarrier\.test_wait\.", "mbarrier.test_wait", _wait, 1),
    _rule(r"cp\.async\.mbarrier\.arrive\.", "cp.async.mbarrier.arrive", _dropped),
    _rule(r"cp\.async\.bulk\.commit_group$", "cp.async.bulk.commit_group", _dropped),
    _rule(r"cp\.async\.bulk\.wait_group", "cp.async.bulk.wait_group", _wait_group),
    _rule(r"cp\.async\.commit_group$", "cp.async.commit_group", _dropped),
    _rule(r"cp\.async\.wait_group$", "cp.async.wait_group", _wait_group),
    _rule(r"cp\.async\.wait_all$", "cp.async.wait_all", _dropped),
    _rule(r"wgmma\.fence\.", "wgmma.fence", _dropped),
    _rule(r"wgmma\.commit_group\.", "wgmma.commit_group", _dropped),
    _rule(r"wgmma\.wait_group\.", "wgmma.wait_group", _wait_group),
    _rule(r"tcgen05\.commit\.", "tcgen05.commit", _dropped, 0),
    _rule(r"tcgen05\.wait::ld\.", "tcgen05.wait::ld", _dropped),
    _rule(r"tcgen05\.wait::st\.", "tcgen05.wait::st", _dropped),
    _rule(r"tcgen05\.fence::before", "tcgen05.fence::before_thread_sync", _dropped),
    _rule(r"tcgen05\.fence::after", "tcgen05.fence::after_thread_sync", _dropped),
    _rule(r"fence\.proxy\.async", "fence.proxy.async", _dropped),
    _rule(r"fence\.mbarrier_init\.", "fence.mbarrier_init", _dropped),
    _rule(r"fence\.(acq_rel|sc)\.|membar\.", "fence", _dropped),
    _rule(r"(bar|barrier)\.sync$", "bar.sync", _bar),
    _rule(r"(bar|barrier)\.arrive$", "bar.arrive", _bar),
    _rule(r"bar\.warp\.sync$", "bar.warp.sync", _dropped),
    _rule(r"barrier\.cluster\.arrive", "barrier.cluster.arrive", _cluster_arrive),
    _rule(r"barrier\.cluster\.wait", "barrier.cluster.wait", _dropped),
    _rule(r"griddepcontrol\.wait$", "griddepcontrol.wait", _dropped),
    _rule(r"ld\.acquire\.gpu\.global", "ld.acquire", _flag),
    _rule(r"red\.release\.gpu\.global", "red.release", _flag),
]

_INSTRUCTION = re.compile(r"\s*(@!?%?\w+\s+)?([a-z][\w.:]+)\s*([^;{}]*);\s*")
_ENTRY = re.compile(r"\.entry (\w+)")


def mutations(ptx: str) -> list[Mutation]:
    """Of every kernel in the text, in the order of lines."""
    found = []
    kernel = ""
    for number, text in enumerate(ptx.split("\n"), start=1):
        entry = _ENTRY.search(text)
        kernel = entry[1] if entry is not None else kernel
        match = _INSTRUCTION.fullmatch(text)
        rule = match and next((rule for rule in RULES if rule.op.match(match[2])), None)
        if not match or rule is None:
            continue
        operands = [part.strip() for part in match[3].split(",")] if match[3].strip() else []
        line = Line(match[1] or "", match[2], operands)
        barrier = "" if rule.barrier is None else operands[rule.barrier]
        for change, replaced in rule.changes(line):
            found.append(Mutation(kernel, number, rule.name, change, replaced, barrier))
    return found
