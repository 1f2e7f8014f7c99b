"""What the compiler made of the loops around products: instructions by opcode, where waits stand.

    python tools/sass.py build/cmake-*/generated/fa4_fwd_sm90_hd128_bf16.cubin
    python tools/sass.py --json KERNEL.cubin          the same for a program
    python tools/sass.py --blocks KERNEL.cubin        with the basic blocks of each loop
    python tools/sass.py LISTING.txt                  of what nvdisasm or cuobjdump printed

Loops are natural loops of the control-flow graph: a branch back to a block that every path to the
branch has passed. So code that the compiler put out of line belongs to its loop, and a jump back
from there is not a loop. Reported are loops that hold HGMMA (SM90), UTCHMMA, LDTM and STTM, or LDTM
and UBLKRED (SM100: those of the mma, softmax, correction, compute and reduce roles); `inner` ones
hold no smaller of them.

    every round   instructions in blocks that each round passes: no branch leads around them. A
                  round that takes a branch executes more; of two arms neither counts.
                  Instructions with a predicate count: they are issued
    all           instructions of all blocks of the loop, smaller loops in it included
    ordinary      of the ways once around that do all the work, the shortest. The work: the most
                  UTCHMMA of any way; in a loop without them the most arrivals at barriers and the
                  most F2FP, which round results. So waits are over at once, and nothing is done
                  that only some rounds need
    masked        the same of the ways with the most R2P: a mask's bits become predicates
    rescaled      the same of the ways with the most FMUL2: O follows another reference

A way goes through a smaller loop in it once: a rolled loop counts as one of its rounds.

The order of instructions is static: the blocks in the order of flow (reverse postorder), going
around once. An exponential (MUFU.EX2) counts as `before the wait` when of HGMMA and
`WARPGROUP.DEPBAR.LE gsb0, 0x0` the one before it is HGMMA: a product is in flight. Exponentials are
counted in blocks that each round passes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools" / "build_backend"))
from fa4_environment import site_directories  # noqa: E402

# Opcodes of the table, in its order; the others are one sum.
COLUMNS = (
    *("HGMMA", "MUFU.EX2", "FFMA", "FMUL", "FADD", "FMNMX", "F2FP", "FSEL", "SHFL", "VOTE"),
    *("BAR", "SYNCS", "WARPGROUP.ARRIVE", "WARPGROUP.DEPBAR", "BRA"),
)
COLUMNS_SM100 = (
    *("UTCHMMA", "UTCBAR", "MUFU.EX2", "FFMA2", "FADD2", "FADD2.RM", "FMUL2", "FMNMX3", "FMNMX"),
    *("F2FP", "LEA", "LDTM", "STTM", "FSEL", "R2P", "MOV", "R2UR", "UMOV", "ULEA", "UIADD3"),
    *("LDS", "STS", "SYNCS", "ELECT", "NOP", "BRA"),
)
# Ways around a loop besides the ordinary one, by an opcode that only such ways pass.
WAYS = {"masked": "R2P", "rescaled": "FMUL2"}
LOCAL_MEMORY = ("LDL", "STL")  # spills, and arrays that no register can hold
WAIT_FOR_ALL = re.compile(r"gsb0, 0x0\b")


@dataclass(frozen=True)
class Instruction:
    address: int
    guard: str  # predicate in front: "@!P0", or nothing
    opcode: str
    operands: str
    target: int | None  # of a branch
    table: tuple[int, ...] = ()  # of a jump through a table, where the listing tells: its targets

    @property
    def kind(self) -> str:
        """Opcode without modifiers, but for those that tell different instructions apart."""
        names = self.opcode.split(".")
        if names[0] == "FADD2" and "RM" in names:  # rounds down: a step of the exponential
            return "FADD2.RM"
        return ".".join(names[: 2 if names[0] in ("MUFU", "WARPGROUP") else 1])

    @property
    def ends_work(self) -> bool:
        """Arrivals hand over what is done, F2FP rounds it to 16 bit, UBLKRED sends it."""
        return self.kind in ("F2FP", "UBLKRED") or self.opcode.startswith("SYNCS.ARRIVE")

    @property
    def is_branch(self) -> bool:
        return self.kind in ("BRA", "JMP") and self.target is not None

    @property
    def falls_through(self) -> bool:
        """Whether the next instruction may follow. A branch may be conditional by an operand."""
        if self.is_branch:
            return bool(self.guard) or "," in self.operands
        return bool(self.guard) or self.kind not in ("BRA", "BRX", "JMP", "JMX", "EXIT", "RET")

    @property
    def waits_for_all(self) -> bool:
        return self.kind == "WARPGROUP.DEPBAR" and bool(WAIT_FOR_ALL.search(self.operands))


# ---- Listings -----------------------------------------------------------------------------------

_FUNCTION = re.compile(r"^\.text\.(\S+):|^\s*Function : (\S+)")
_LABEL = re.compile(r"^([.$\w]+):")
_INSTRUCTION = re.compile(
    r"^\s*/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+)?\s*([A-Z][A-Z0-9_.]*)\s*([^;]*);"
)
_TABLE = re.compile(r"BRANCH_TARGETS ([^\"]*)")
_TARGET = re.compile(r"`\((\S+)\)|\b0x([0-9a-f]+)\s*$")


def parse(text: str) -> dict[str, list[Instruction]]:
    """Functions of a listing by nvdisasm -c or cuobjdump -sass, in the order of addresses."""
    functions: dict[str, list[Instruction]] = {}
    labels: dict[str, int] = {}
    rows: list[tuple[int, str, str, str]] = []
    waiting: list[str] = []  # labels in front of the next instruction

    def close() -> None:
        if rows:
            functions[name] = [
                Instruction(*row, _target(row[2], row[3], labels), _table(row[3], labels))
                for row in rows
            ]
        labels.clear()
        rows.clear()
        waiting.clear()

    name = ""
    for line in text.splitlines():
        if found := _FUNCTION.match(line):
            close()
            name = found[1] or found[2]
        elif found := _LABEL.match(line):
            waiting.append(found[1])
        elif found := _INSTRUCTION.match(line):
            address = int(found[1], 16)
            labels.update(dict.fromkeys(waiting, address))
            waiting.clear()
            rows.append((address, found[2] or "", found[3], found[4].strip()))
    close()
    return functions


def _target(opcode: str, operands: str, labels: dict[str, int]) -> int | None:
    found = _TARGET.search(operands) if opcode.startswith(("BRA", "JMP")) else None
    if found is None:
        return None
    return labels.get(found[1]) if found[1] else int(found[2], 16)


def _table(operands: str, labels: dict[str, int]) -> tuple[int, ...]:
    """nvdisasm puts the targets of a BRX in a comment behind it."""
    found = _TABLE.search(operands)
    names = found[1].split(",") if found is not None else []
    return tuple(labels[name.strip()] for name in names if name.strip() in labels)


def find_nvdisasm() -> Path | None:
    """nvdisasm of CUDA_HOME, the PATH, a usual place, or NVIDIA's Python packages."""
    home = os.environ.get("CUDA_HOME")
    candidates = [Path(home) / "bin" / "nvdisasm"] if home else []
    if on_path := shutil.which("nvdisasm"):
        candidates.append(Path(on_path))
    candidates.append(Path("/usr/local/cuda/bin/nvdisasm"))
    candidates.extend(site / "nvidia" / "cu13" / "bin" / "nvdisasm" for site in site_directories())
    return next((path for path in candidates if path.is_file()), None)


def disassemble(cubin: Path) -> str:
    nvdisasm = find_nvdisasm()
    if nvdisasm is None:
        raise FileNotFoundError(
            "nvdisasm: must be in CUDA_HOME/bin, on the PATH or from the package "
            "nvidia-cuda-nvdisasm, found none"
        )
    done = subprocess.run([nvdisasm, "-c", cubin], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"nvdisasm {cubin}: {done.stderr.strip()}")
    return done.stdout


# ---- Control flow -------------------------------------------------------------------------------


class Flow:
    """Basic blocks of a function; a block is named by its place in `blocks`."""

    def __init__(self, instructions: list[Instruction]) -> None:
        starts = {instructions[0].address}
        for before, after in zip(instructions, [*instructions[1:], None], strict=True):
            starts.update(before.table if before.target is None else (before.target,))
            if after is not None and (before.is_branch or not before.falls_through):
                starts.add(after.address)
        self.blocks: list[list[Instruction]] = []
        for instruction in instructions:
            if instruction.address in starts:
                self.blocks.append([])
            self.blocks[-1].append(instruction)
        self.successors = [self._successors_of(i) for i in range(len(self.blocks))]
        self.order = self._reverse_postorder()
        self.predecessors: dict[int, list[int]] = {i: [] for i in self.order}
        for i in self.order:
            for successor in self.successors[i]:
                self.predecessors[successor].append(i)

    def _successors_of(self, index: int) -> list[int]:
        """The next block first, so that branches around code keep the order of the listing."""
        last = self.blocks[index][-1]
        found = []
        if last.falls_through and index + 1 < len(self.blocks):
            found.append(index + 1)
        targets = (last.target,) if last.is_branch else last.table
        found.extend(i for i, b in enumerate(self.blocks) if b[0].address in targets)
        return found

    def _reverse_postorder(self) -> list[int]:
        seen, finished = {0}, []
        stack = [(0, list(self.successors[0]))]
        while stack:
            block, left = stack[-1]
            if not left:
                finished.append(block)
                stack.pop()
                continue
            # Visited last to first: what falls through is finished last and so comes first.
            following = left.pop()
            if following not in seen:
                seen.add(following)
                stack.append((following, list(self.successors[following])))
        return finished[::-1]

    @cached_property
    def dominators(self) -> dict[int, set[int]]:
        """Blocks that every path from the entry to a block passes, itself included."""
        result = {block: set(self.order) for block in self.order}
        result[0] = {0}
        changed = True
        while changed:
            changed = False
            for block in self.order[1:]:
                above = set.intersection(*(result[p] for p in self.predecessors[block]))
                if above | {block} != result[block]:
                    result[block] = above | {block}
                    changed = True
        return result

    def loops(self) -> list[Loop]:
        """Natural loops by header, those with one header together."""
        latches: dict[int, list[int]] = {}
        for block in self.order:
            for successor in self.successors[block]:
                if successor in self.dominators[block]:
                    latches.setdefault(successor, []).append(block)
        return [Loop(self, header, ends) for header, ends in latches.items()]


class Loop:
    def __init__(self, flow: Flow, header: int, latches: list[int]) -> None:
        self.header = header
        members, stack = {header}, [x for x in latches if x != header]
        while stack:
            block = stack.pop()
            if block not in members:
                members.add(block)
                stack.extend(flow.predecessors[block])
        self.members = members
        self.blocks = [flow.blocks[i] for i in flow.order if i in members]
        every_round = set.intersection(*(flow.dominators[x] for x in latches)) & members
        self.passed = [i in every_round for i in flow.order if i in members]
        self.inner = True  # holds no smaller loop around products; see report()
        self.flow = flow

    def instructions(self, *, every_round: bool) -> Iterable[Instruction]:
        for block, passed in zip(self.blocks, self.passed, strict=True):
            if passed or not every_round:
                yield from block

    @property
    def around_products(self) -> bool:
        kinds = {x.kind for x in self.instructions(every_round=False)}
        of_sm100 = ({"UTCHMMA"}, {"LDTM", "STTM"}, {"LDTM", "UBLKRED"})
        return "HGMMA" in kinds or any(wanted <= kinds for wanted in of_sm100)

    def shortest(self, kind: str | None = None) -> list[Instruction] | None:
        """Of the ways around that do all the work, the shortest; given a kind, of those with the
        most of it, and None where there is none of it."""
        body = list(self.instructions(every_round=False))
        products = any(x.kind == "UTCHMMA" for x in body)
        place = {block: i for i, block in enumerate(self.flow.order)}
        # The best way from a block to the end of the round. Blocks are in the order of flow: those
        # ahead are known when a block's turn comes. A branch back ends the round where it leads to
        # the header; elsewhere it is that of a smaller loop, and not taken.
        best: dict[int, tuple[int, int, int, list[Instruction]]] = {}
        for block in sorted(self.members, key=place.__getitem__, reverse=True):
            code = self.flow.blocks[block]
            ahead = [
                (0, 0, 0, []) if successor == self.header else best[successor]
                for successor in self.flow.successors[block]
                if successor == self.header
                or (successor in best and place[successor] > place[block])
            ]
            if ahead:
                work, wanted, shortness, rest = max(ahead, key=lambda way: way[:3])
                work += sum(x.kind == "UTCHMMA" if products else x.ends_work for x in code)
                wanted += sum(x.kind == kind for x in code)
                best[block] = (work, wanted, shortness - len(code), code + rest)
        _, wanted, _, way = best[self.header]
        return way if kind is None or wanted else None

    def exponentials(self) -> tuple[int, int]:
        """How many each round executes, and how many of them before the wait."""
        total = before_wait = 0
        in_flight = False
        for counts in (False, True):  # the first time around shows what is in flight at the header
            for block, passed in zip(self.blocks, self.passed, strict=True):
                for instruction in block:
                    if instruction.kind == "HGMMA":
                        in_flight = True
                    elif instruction.waits_for_all:
                        in_flight = False
                    elif counts and passed and instruction.kind == "MUFU.EX2":
                        total += 1
                        before_wait += in_flight
        return total, before_wait


# ---- Report -------------------------------------------------------------------------------------


def report(instructions: list[Instruction]) -> list[dict[str, Any]]:
    """One entry per loop of a function that is around products, in the order of addresses."""
    loops = [loop for loop in Flow(instructions).loops() if loop.around_products]
    for loop in loops:
        loop.inner = not any(other.members < loop.members for other in loops)
    return [_entry(loop) for loop in sorted(loops, key=lambda x: x.blocks[0][0].address)]


def _entry(loop: Loop) -> dict[str, Any]:
    body = list(loop.instructions(every_round=False))
    passed = Counter(x.kind for x in loop.instructions(every_round=True))
    exponentials, before_wait = loop.exponentials()
    ways = {"ordinary": loop.shortest()}
    ways |= {name: loop.shortest(kind) for name, kind in WAYS.items()}
    return {
        "header": hex(loop.blocks[0][0].address),
        "inner": loop.inner,
        "every_round": sum(passed.values()),
        "all": len(body),
        "opcodes_every_round": dict(passed.most_common()),
        "opcodes_all": dict(Counter(x.kind for x in body).most_common()),
        "ways": {
            name: dict(Counter(x.kind for x in way).most_common())
            for name, way in ways.items()
            if way is not None
        },
        "local_memory": sum(x.kind in LOCAL_MEMORY for x in body),
        "exponentials": exponentials,
        "exponentials_before_wait": before_wait,
        "waits_for_all": sum(x.waits_for_all for x in body),
        "blocks": [
            {
                "first": hex(block[0].address),
                "last": hex(block[-1].address),
                "instructions": len(block),
                "every_round": passed_by_all,
            }
            for block, passed_by_all in zip(loop.blocks, loop.passed, strict=True)
        ],
    }


def loops_of(path: Path, names: list[str] | None = None) -> dict[str, list[dict[str, Any]]]:
    """Reports by function of a cubin or a listing, of all functions with such loops."""
    is_image = path.read_bytes()[:4] == b"\x7fELF"
    functions = parse(disassemble(path) if is_image else path.read_text())
    missing = [name for name in names or [] if name not in functions]
    if missing:
        raise KeyError(f"{path} holds no {', '.join(missing)}; it has {', '.join(functions)}")
    reports = {name: report(functions[name]) for name in names or functions}
    return {name: loops for name, loops in reports.items() if loops or names}


def _print_loops(name: str, loops: list[dict[str, Any]], *, blocks: bool) -> None:
    print(f"{name}: loops around products: {len(loops)}")
    for loop in loops:
        sm90 = "HGMMA" in loop["opcodes_all"]
        counts = {} if sm90 else loop["ways"]
        if sm90 and loop["inner"]:
            counts = {"every round": loop["opcodes_every_round"]}
        counts = {**counts, "all": loop["opcodes_all"]}
        if loop["inner"]:
            print(f"  loop at {loop['header']}")
            _print_table(counts, COLUMNS if sm90 else COLUMNS_SM100)
        else:
            lengths = ", ".join(f"{title} {sum(x.values())}" for title, x in counts.items())
            print(f"  loop at {loop['header']} holds smaller ones; instructions: {lengths}")
        if loop["local_memory"]:
            print(f"    accesses to local memory: {loop['local_memory']}")
        if sm90 and loop["inner"]:
            print(
                f"    {loop['exponentials_before_wait']} of {loop['exponentials']} exponentials "
                f"before the wait; waits for all products: {loop['waits_for_all']}"
            )
        for block in loop["blocks"] if blocks and loop["inner"] else []:
            span = f"{block['first']}..{block['last']}"
            passed_by_all = block["instructions"] if block["every_round"] else 0
            print(f"    {span:<18}{passed_by_all:>12}{block['instructions']:>8}")


def _print_table(counts: dict[str, dict[str, int]], columns: tuple[str, ...]) -> None:
    """Opcodes downwards, `counts` by title across."""
    rows = {"instructions": [sum(x.values()) for x in counts.values()]}
    for kind in columns:
        rows[kind] = [x.get(kind, 0) for x in counts.values()]
    rows["others"] = [
        sum(n for kind, n in x.items() if kind not in columns) for x in counts.values()
    ]
    print(f"    {'':<18}" + "".join(f"{title:>12}" for title in counts))
    for title, row in rows.items():
        if any(row) or title == "others":
            print(f"    {title:<18}" + "".join(f"{n:>12}" for n in row))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="a cubin, or a listing")
    parser.add_argument("kernels", nargs="*", help="functions; none: all with such loops")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--blocks", action="store_true", help="list the basic blocks of each loop")
    options = parser.parse_args()
    try:
        reports = loops_of(options.file, options.kernels)
    except (OSError, KeyError, RuntimeError) as error:
        raise SystemExit(f"sass: {error.args[-1] if error.args else error}") from None
    if options.json:
        print(json.dumps(reports, indent=1))
        return
    if not reports:
        print(f"{options.file}: no loop around products")
    for name, loops in reports.items():
        _print_loops(name, loops, blocks=options.blocks)


if __name__ == "__main__":
    main()
