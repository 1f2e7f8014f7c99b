"""SM100 forward kernels with a statement left out, and what objects to them.

Every wait, arrival and commit of a kernel is left out once. Where nothing objects, either the
statement is superfluous or the schedules are too tame to tell.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import fwd_schedules
import fwd_variants
import torch
from fwd_schedules import Call, Options, Problem, problem, random_schedule
from machines import ROOT
from torch import Tensor

FILES = [
    "csrc/common/fwd_schedule.cuh",
    *(f"csrc/sm100/fwd/{role}.cuh" for role in ("correction", "load", "mma", "softmax", "store")),
]
STATEMENTS = re.compile(
    r"\bb\.template (?:wait|arrive|release|commit|announce)<\w+>\([^;]*\);"
    r"|\bsignal_weights<\w+>\(\);"
    r"|\bptx::tcgen05_wait_st\(\);"
    r"|\bptx::bulk_wait_group_read<0>\(\);"
)


@dataclass(frozen=True)
class Site:
    """A statement that hands something over."""

    file: str
    first: int
    last: int

    @property
    def text(self) -> str:
        return (ROOT / self.file).read_text()

    def __str__(self) -> str:
        line = self.text.count("\n", 0, self.first) + 1
        return f"{Path(self.file).name}:{line}:{self.text[self.first : self.last - 1]}"

    def without(self) -> tuple[str, str]:
        """The file and its text with an empty statement."""
        return self.file, f"{self.text[: self.first]};{self.text[self.last :]}"

    def without_effect(self, kernel: str) -> bool:
        """Whether the kernel does not have it."""
        changed = fwd_variants.compiled(kernel, replaced=(self.without(),))
        return changed == fwd_variants.compiled(kernel)


def sites() -> list[Site]:
    return [
        Site(name, *match.span())
        for name in FILES
        for match in STATEMENTS.finditer((ROOT / name).read_text())
    ]


def ctas_of(kernel: str) -> int:
    return 2 if "_pair_" in kernel else 1


def run(work: Problem, kernel: str, ptx: str, options: Options) -> tuple[Tensor, Tensor]:
    """The call by that kernel, which runs as `ptx`."""
    options = replace(options, images={kernel: ptx}, ctas=ctas_of(kernel))
    return fwd_schedules.run("sm100", work, options)


@functools.cache
def right_bits(kernel: str, call: Call) -> tuple[Tensor, Tensor]:
    return run(problem(call), kernel, fwd_variants.compiled(kernel), Options())


def objection(kernel: str, ptx: str, call: Call, options: Options) -> str:
    """How the emulator or the result shows that the kernel is broken; empty: not at all."""
    try:
        out, lse = run(problem(call), kernel, ptx, options)
    except RuntimeError as error:
        return str(error)
    right, right_lse = right_bits(kernel, call)
    return "" if torch.equal(out, right) and torch.equal(lse, right_lse) else "other bits"


def check_needed(site: Site, kernels: Sequence[str], calls: dict[str, list[Call]]) -> None:
    """Something objects to the first of the kernels that has the statement."""
    kernel = next(kernel for kernel in kernels if not site.without_effect(kernel))
    ptx = fwd_variants.compiled(kernel, replaced=(site.without(),))
    for call in calls[kernel]:
        # Random schedules delay copies by a few turns, not by as long as a softmax takes: that
        # values are waited for shows by the order of events alone.
        for options in (
            Options(policy="lazy"),
            *map(random_schedule, (1, 2, 3)),
            Options(check="strict"),
        ):
            if objection(kernel, ptx, call, options):
                return
    raise AssertionError(f"{site}: nothing tells that it is missing")
