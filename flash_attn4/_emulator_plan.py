"""Plans of kernels, as flash_attn4.emulator.Options takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from flash_attn4 import _C


@dataclass(frozen=True)
class PlanRole:
    """Warps of a block with one job."""

    name: str
    first_warp: int
    warps: int


@dataclass(frozen=True)
class PlanBarrier:
    """A ring of mbarriers, eight bytes apart.

    offset: of the first, in dynamic shared memory.
    arrivals: per phase, the count of mbarrier.init.
    done: what completes a phase: "threads" arrive, copies deliver "bytes" that threads announce, or
        a tcgen05 "commit".
    signals, waits: names of the roles that may.
    holder: which CTA of a pair holds the mbarriers that a role signals: its "own", the "leader" (of
        even rank, who alone waits), "both", or its "peer".
    """

    name: str
    offset: int
    stages: int = 1
    arrivals: int = 1
    done: Literal["threads", "bytes", "commit"] = "threads"
    signals: Sequence[str] = ()
    waits: Sequence[str] = ()
    holder: Literal["own", "leader", "both", "peer"] = "own"


@dataclass(frozen=True)
class Plan:
    """Who runs in a kernel and who hands over to whom: what Options(check=...) compares arrivals
    and waits with. A warp of no role may neither signal nor wait."""

    roles: Sequence[PlanRole]
    barriers: Sequence[PlanBarrier]


def kernel_plans() -> dict[str, Plan]:
    """Plans of this build's kernels by name: the tables that they are compiled with.

    For Options(check="strict", plans=kernel_plans()). Kernels without mbarriers have none.
    """
    return {
        name: Plan(
            [PlanRole(**row) for row in plan["roles"]],
            [PlanBarrier(**row) for row in plan["barriers"]],
        )
        for name, plan in _C.kernel_plans().items()
    }
