"""Mutations: kernels with one step of a hand-over left out or altered, and what notices each.

A kernel of the library runs the changed PTX through dispatch and launch code, a small one of
tests/emulator/kernels through its own test. Nothing is compiled for a mutation.

    python tests/emulator/mutations.py            the table of docs/emulator.md
    python tests/emulator/mutations.py KERNEL     every mutation of one kernel, and who notices it
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mutation_sites import Mutation, mutations

from flash_attn4 import emulator
from flash_attn4.emulator import Options

PLANS = emulator.kernel_plans()

# A mutated kernel that goes on for ever is stopped after these many warp instructions.
BOUNDS = {"stall_steps": 2_000_000, "max_steps": 60_000_000, "threads": 1}
RANDOM = {"policy": "random", "order": "random", "random_election": True}
SCHEDULES = [
    Options(check="strict", plans=PLANS, **changes, **BOUNDS)
    for changes in (
        {},
        {"policy": "lazy", "order": "descending"},
        {**RANDOM, "seed": 1},
        {**RANDOM, "seed": 2},
    )
]

# ---- What notices a mutation ---------------------------------------------------------------------

NOTICED = ("checker", "error", "hang", "values")
UNREACHED, SURVIVES = "not reached", "survives"

_HANG = re.compile(r"deadlock: no warp can go on|\bhung\b|max_steps =")
_CHECKER = re.compile(
    r"plan: |no barrier orders the init|no fence\.mbarrier_init follows"
    r"|still uses? its shared memory"
    r"|which was never written, or not yet: a wait is missing"
    r"|uses a register that a tcgen05\.ld writes|register that line \d+|wgmma\.fence before it"
    r"|arrives at .* in two phases at once|arrives at barrier \d+ again"
    r"|releases a flag in global memory while"
    r"|uses global memory that the grids before this one may still write"
    r"|(reads|writes): .*(has not waited|no [\w.:]+ |MMAs of one thread are in order only)"
)


def noticed_by(report: str) -> str:
    """Of a failed launch: the checker of ordering, another error of the emulator, or a hang."""
    sentence = report.split("\n")[0]
    if _HANG.search(sentence):
        return "hang"
    return "checker" if _CHECKER.search(sentence) else "error"


class WrongValues(Exception):
    """A result that is not the one of the kernel as it is."""


@dataclass(frozen=True)
class Fate:
    kind: str  # one of NOTICED, UNREACHED, SURVIVES
    report: str = ""


# ---- What is mutated -----------------------------------------------------------------------------


# Runs a PTX text. Raises RuntimeError or, for results, WrongValues.
Call = Callable[[str, Options], None]


class Subject(ABC):
    """A PTX text with calls that run it."""

    name: str
    ptx: str

    @abstractmethod
    def calls(self, kernel: str) -> Sequence[Call]:
        """That launch the kernel."""

    @cached_property
    def mutations(self) -> list[Mutation]:
        """Of the kernels that calls launch."""
        return [mutation for mutation in mutations(self.ptx) if self.calls(mutation.kernel)]

    def fate(self, mutation: Mutation, schedules: Sequence[Options] = SCHEDULES) -> Fate:
        ptx = mutation.apply(self.ptx)
        for options, call in itertools.product(schedules, self.calls(mutation.kernel)):
            try:
                call(ptx, options)
            except RuntimeError as error:
                return Fate(noticed_by(str(error)), str(error))
            except (WrongValues, AssertionError) as error:
                return Fate("values", str(error))
        return Fate(SURVIVES if self.place(mutation) else UNREACHED)

    # ---- Where a line is, in words that a change elsewhere leaves alone

    def site(self, mutation: Mutation) -> tuple[str, int]:
        """Role, instruction and mbarrier, and the how manieth of these in the kernel's text. Where
        no call gets: the instruction and UNREACHED."""
        same = {
            other.line: self.place(other)
            for other in self.mutations
            if other.name == mutation.name and other.kernel == mutation.kernel
        }
        place = same[mutation.line]
        number = [line for line, its in same.items() if its == place].index(mutation.line) + 1
        return place or f"{mutation.name} {UNREACHED}", number

    def place(self, mutation: Mutation) -> str:
        """Empty where no call gets there."""
        if mutation.line not in self._places:
            self._places[mutation.line] = self._place(mutation)
        return self._places[mutation.line]

    @cached_property
    def _places(self) -> dict[int, str]:
        return {}

    def _place(self, mutation: Mutation) -> str:
        """An instruction that fails tells who executes it, and the name of the mbarrier."""
        lines = self.ptx.split("\n")
        probe = "trap;"
        if mutation.barrier and mutation.kernel in PLANS:
            probe = f"mbarrier.init.shared::cta.b64 {mutation.barrier}, 77; trap;"
        lines[mutation.line - 1] = f"{probe} {lines[mutation.line - 1]}"
        for call in self.calls(mutation.kernel):
            try:
                call("\n".join(lines), SCHEDULES[0])
            except RuntimeError as error:
                report = str(error)
                at = re.search(r"\n  at line (\d+):[^\n]*\n  in kernel .* warp (\d+), ", report)
                if at is None or int(at[1]) != mutation.line:
                    raise
                barrier = re.search(r"plan: (\w+)(\[\d+\])? expects", report)
                role = self._role(mutation.kernel, int(at[2]))
                words = [role, mutation.name, barrier[1] if barrier else ""]
                return " ".join(word for word in words if word)
        return ""

    @staticmethod
    def _role(kernel: str, warp: int) -> str:
        plan = PLANS.get(kernel)
        roles = [] if plan is None else plan.roles
        return next((x.name for x in roles if 0 <= warp - x.first_warp < x.warps), "")


# ---- The table -----------------------------------------------------------------------------------


def _outcome(subject: Subject, mutation: Mutation) -> str:
    """The kind of its fate; "redundant" where the list says that it survives."""
    from mutation_survivors import reason

    kind = subject.fate(mutation).kind
    if kind in (SURVIVES, UNREACHED) and reason(subject, mutation) is not None:
        return "listed"
    return kind


def print_table(subjects: Sequence[Subject]) -> None:
    kinds = (*NOTICED, "listed", UNREACHED, SURVIVES)
    print("| kernel | mutations | " + " | ".join(kinds) + " |")
    print("| --- " * (2 + len(kinds)) + "|")
    total: Counter[str] = Counter()
    for subject in subjects:
        counts = Counter(_outcome(subject, mutation) for mutation in subject.mutations)
        total += counts
        _print_row(subject.name, counts, kinds)
    _print_row("all", total, kinds)


def _print_row(name: str, counts: Counter[str], kinds: Sequence[str]) -> None:
    cells = [name, str(counts.total()), *(str(counts[kind]) for kind in kinds)]
    print("| " + " | ".join(cells) + " |", flush=True)


def print_mutations(subject: Subject) -> None:
    for mutation in subject.mutations:
        fate = subject.fate(mutation)
        where = "" if fate.kind in NOTICED else f" {subject.site(mutation)}"
        print(f"{mutation}: {fate.kind}{where}: {fate.report.splitlines()[:1]}", flush=True)


def main() -> None:
    from mutation_subjects import subjects

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kernel", nargs="?", choices=sorted(subjects()), help="default: all")
    name = parser.parse_args().kernel
    if name is None:
        print_table([*subjects().values()])
    else:
        print_mutations(subjects()[name])


if __name__ == "__main__":
    main()
