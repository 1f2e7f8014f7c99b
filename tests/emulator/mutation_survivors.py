"""Mutations that nothing notices, and why.

Either the step is redundant where it stands, or the checker does not look there (GLOBAL,
OVERWRITES and LANES).
"""

from __future__ import annotations

from dataclasses import dataclass

from mutation_sites import Mutation
from mutations import Subject


@dataclass(frozen=True)
class Survivor:
    """Mutations of equal instructions of a kernel."""

    place: str  # role, instruction and mbarrier: Subject.place
    numbers: tuple[int, ...]  # which of those at the place, in the order of the text: Subject.site
    changes: tuple[str, ...]
    reason: str
    kernel: str = ""  # of several in a text

    def may_match(self, mutation: Mutation) -> bool:
        """As far as the text tells."""
        return (
            mutation.change in self.changes
            and mutation.name in self.place.split()
            and self.kernel in ("", mutation.kernel)
        )

    def matches(self, subject: Subject, mutation: Mutation) -> bool:
        # The place is found by running the kernel many times: last.
        return (
            self.may_match(mutation)
            and subject.site(mutation)[0] == self.place
            and subject.site(mutation)[1] in self.numbers
        )


def reason(subject: Subject, mutation: Mutation) -> str | None:
    """Why nothing notices it; None: it has to be noticed."""
    for survivor in SURVIVORS.get(subject.name, ()):
        if survivor.matches(subject, mutation):
            return survivor.reason
    return None


def may_survive(subject: Subject, mutation: Mutation) -> bool:
    """Whether one like it is on the list."""
    return any(survivor.may_match(mutation) for survivor in SURVIVORS.get(subject.name, ()))


# ---- Reasons -------------------------------------------------------------------------------------

ALLOCATION = "tcgen05.alloc and dealloc are synchronous: a barrier is enough"
MEETS = "the .aligned instruction or barrier behind it is where the warp meets"
COMMIT_TELLS = (
    "a commit hands over what its thread had heard, and who hears it passes that on; the ISA does "
    "not say so: the kernel keeps the step"
)
LAST = "nothing comes after it that it could guard or that waits for it"
FIRST = "the first wait for a free buffer passes at once"
NEXT_COMMIT = "the next commit takes the products with it, and the wait is for both"
NEXT_WAIT = "another wait covers it, before anything uses the registers or the operands"
BESIDE = "the one beside it orders the same"
ONE_FENCE = "since the fence before it nothing has used the registers of this product"
TURN_BETWEEN = "the barrier of a turn has come between: all threads of the consumer were there"
TURN = "warpgroups take turns for speed: nothing is handed over"
NOTHING_NEW = "what lanes did since the barrier before needs no hand-over here"
ORDERED = "in deterministic mode all copies have been waited for before the flag was released"
CARRIED = "a cluster barrier, or the fence before a relaxed one, carries the inits"
STRONGER = "the fence.proxy.async behind it is the stronger of the two"
LATER_BARRIER = "a later barrier orders the same"
GRID_END = "the end of the grid completes copies; until then the sources have to last, no more"
# Not redundant: the checker does not look there.
GLOBAL = "not looked at: order of accesses to global memory"
OVERWRITES = "not looked at: a lane that overwrites what another lane of its warp reads"
LANES = "not looked at: which lanes of a warp wait for, or signal, which phase"

OUT = ("left out",)
WAIT_GROUP = ("left out", "one group later")
ARRIVE = ("left out", "twice")
UNWAITED = ("not waited",)
READS = ("for reads alone",)
RELAXED = ("relaxed",)
BAR = ("left out", "32 threads more", "arrives alone")


def _idiom(kernel: str, place: str, number: int, changes: tuple[str, ...], reason: str) -> Survivor:
    return Survivor(place, (number,), changes, reason, kernel)


# ---- Kernels of the library ----------------------------------------------------------------------

BEFORE, AFTER = "tcgen05.fence::before_thread_sync", "tcgen05.fence::after_thread_sync"
GROUPS = "cp.async.bulk.wait_group"

FORWARD_SM90 = [
    # Releases of what wgmma alone has read, or behind another one; rows staged a turn ago.
    Survivor("consumer bar.warp.sync", (*range(1, 9), 10, 11, 12, 14, 15), OUT, NOTHING_NEW),
    Survivor("consumer bar.sync", (4,), OUT, TURN_BETWEEN),
    Survivor("consumer wgmma.fence", (3,), OUT, ONE_FENCE),
    Survivor("schedule bar.warp.sync", (1,), OUT, LANES),
    Survivor("consumer mbarrier.arrive v_empty", (2,), ARRIVE, LAST),
    Survivor("consumer mbarrier.arrive tile_empty", (2, 3), ARRIVE, LAST),
]

FORWARD_SM100_BOTH = [
    Survivor(f"softmax {BEFORE}", (1,), OUT, ALLOCATION),
    Survivor(f"softmax {AFTER}", (1,), OUT, ALLOCATION),
    Survivor(f"softmax {BEFORE}", (2,), OUT, COMMIT_TELLS),
    Survivor("softmax bar.warp.sync", (5,), OUT, NOTHING_NEW),
    Survivor("correction bar.warp.sync", (7,), OUT, NOTHING_NEW),
    Survivor("mma bar.warp.sync", (1,), OUT, MEETS),
    Survivor("schedule bar.warp.sync", (1,), OUT, LANES),
]
FORWARD_SM100 = [
    *FORWARD_SM100_BOTH,
    Survivor("mma mbarrier.try_wait o_empty", (3,), UNWAITED, NEXT_WAIT),
    Survivor(f"mma {AFTER}", (5,), OUT, ALLOCATION),
]
FORWARD_SM100_PAIR = [
    *FORWARD_SM100_BOTH,
    Survivor("softmax fence.mbarrier_init", (1,), OUT, CARRIED),
    Survivor("load bar.warp.sync", (1,), OUT, MEETS),
    Survivor(f"schedule {BEFORE}", (1,), OUT, ALLOCATION),
    Survivor(f"store {AFTER}", (1,), OUT, ALLOCATION),
]

# Softcap has a copy of everything: from the second half of the numbers on.
BACKWARD_SM90_HD64 = [
    Survivor(
        "consumer wgmma.fence",
        (2, 4, 6, 8, 10, 11, 12, *range(14, 21), 23, 24, 25, *range(27, 34)),
        OUT,
        ONE_FENCE,
    ),
    Survivor("consumer wgmma.commit_group", (3, 4, 7, 8, 9, 13, 14, 22, 26, 27), OUT, NEXT_COMMIT),
    Survivor("consumer wgmma.wait_group", (3, 6, 14, 23), WAIT_GROUP, NEXT_WAIT),
    Survivor("consumer bar.warp.sync", (1, 2, 3, 8, 9, 10), OUT, NOTHING_NEW),
    Survivor("consumer bar.warp.sync", (4, 5, 11, 12), OUT, GLOBAL),
    Survivor("consumer bar.sync", (20, 30), ("left out", "arrives alone"), TURN_BETWEEN),
    Survivor("order ld.acquire", (1,), RELAXED, GLOBAL),
    Survivor("order red.release", (1,), RELAXED, GLOBAL),
]

BACKWARD_SM90_HD128 = [
    Survivor(
        "consumer wgmma.fence",
        (2, 4, 6, 8, 10, 11, 12, 14, 15, 16, 19, 20, 21, 23, 24, 25, 28, 29, 32, 33),
        OUT,
        ONE_FENCE,
    ),
    Survivor("consumer wgmma.commit_group", (3, 4, 7, 8, 13, 22), OUT, NEXT_COMMIT),
    Survivor("consumer wgmma.wait_group", (3, 6, 11, 18, 22, 25), WAIT_GROUP, NEXT_WAIT),
    Survivor("consumer bar.warp.sync", (1, 2, 3, 4, 5, 6), OUT, NOTHING_NEW),
    Survivor("consumer bar.warp.sync", (7, 8, 11, 12), OUT, GLOBAL),
    Survivor("consumer bar.sync", (26, 30), ("left out", "arrives alone"), TURN_BETWEEN),
    Survivor("order ld.acquire", (1,), RELAXED, GLOBAL),
    Survivor("order red.release", (1,), RELAXED, GLOBAL),
]

REDUCE_SM100 = [
    Survivor(f"reduce {BEFORE}", (1,), OUT, ALLOCATION),
    Survivor(AFTER, (1,), OUT, ALLOCATION),
    Survivor("reduce ld.acquire", (1,), RELAXED, GLOBAL),
    Survivor("reduce red.release", (1,), RELAXED, GLOBAL),
    Survivor("reduce fence.proxy.async", (3,), OUT, GLOBAL),
    Survivor(f"reduce {GROUPS}", (4, 7), WAIT_GROUP, ORDERED),
    Survivor("reduce bar.warp.sync", (7,), OUT, ORDERED),
]
BACKWARD_SM100 = [
    *REDUCE_SM100,
    Survivor("compute mbarrier.try_wait q_full", (2, 4), UNWAITED, COMMIT_TELLS),
    Survivor("mma tcgen05.commit q_empty", (2,), OUT, LAST),
    Survivor(f"mma {AFTER}", (6, 7), OUT, ALLOCATION),
    Survivor("mma bar.warp.sync", (1,), OUT, MEETS),
]
BACKWARD_SM100_PAIR = [
    *REDUCE_SM100,
    Survivor("reduce fence.mbarrier_init", (1,), OUT, CARRIED),
    Survivor("mma tcgen05.commit qt_empty", (2,), OUT, LAST),
    Survivor(f"mma {AFTER}", (7, 8), OUT, BESIDE),
    Survivor("bar.warp.sync", (1,), OUT, MEETS),
    Survivor(f"compute {AFTER}", (7,), OUT, ALLOCATION),
]

# ---- Idioms --------------------------------------------------------------------------------------

ORDERING = [
    _idiom("threads_hand_over", "mbarrier.try_wait", 1, UNWAITED, FIRST),
    _idiom("threads_hand_over", "mbarrier.arrive", 3, ARRIVE, LAST),
    _idiom("copy_takes_what_threads_wrote", "bar.sync", 4, OUT, LAST),
    _idiom("lanes_hand_over", "bar.warp.sync", 2, OUT, OVERWRITES),
    _idiom("lanes_hand_over", "bar.warp.sync", 3, OUT, OVERWRITES),
]
ORDERING_WGMMA = [
    Survivor("wgmma.commit_group", (2,), OUT, NEXT_COMMIT),
    Survivor("wgmma.wait_group", (2,), WAIT_GROUP, NEXT_WAIT),
    Survivor("bar.sync", (4,), OUT, LAST),
]
ORDERING_TMEM = [
    Survivor("fence.mbarrier_init", (1,), OUT, STRONGER),
    Survivor("bar.warp.sync", (1,), OUT, MEETS),
]
BARRIERS = [_idiom("named_turns", "bar.sync", 1, OUT, LATER_BARRIER)]
MBARRIER = [
    _idiom("mbarrier_ring", "bar.warp.sync", 5, OUT, LAST),
    _idiom("mbarrier_ring", "mbarrier.arrive", 5, ARRIVE, LAST),
    _idiom("mbarrier_ring", "mbarrier.try_wait", 6, UNWAITED, LAST),
    _idiom("mbarrier_remote", "fence.mbarrier_init", 1, OUT, CARRIED),
    _idiom("mbarrier_remote", "fence.mbarrier_init", 2, OUT, CARRIED),
    _idiom("mbarrier_remote", "bar.sync", 1, OUT, LATER_BARRIER),
    _idiom("mbarrier_remote", "bar.sync", 2, OUT, LATER_BARRIER),
    _idiom("mbarrier_remote", "barrier.cluster.arrive", 1, RELAXED, CARRIED),
    _idiom("mbarrier_remote", "bar.warp.sync", 1, OUT, MEETS),
    _idiom("mbarrier_remote", "barrier.cluster.arrive", 2, RELAXED, LAST),
    _idiom("mbarrier_remote", "barrier.cluster.wait", 2, OUT, LAST),
]
TMA = [
    _idiom("tensor_multicast_ring", "fence.mbarrier_init", 1, OUT, CARRIED),
    _idiom("tensor_multicast_ring", "barrier.cluster.arrive", 1, RELAXED, CARRIED),
    _idiom("tensor_multicast_ring", "bar.warp.sync", 1, OUT, LANES),
    _idiom("tensor_multicast_ring", "bar.warp.sync", 2, OUT, MEETS),
    _idiom("tensor_store_ring", GROUPS, 2, READS, GRID_END),
]
COPIES = [
    _idiom("bulk_store_then_flag", "ld.acquire", 1, RELAXED, GLOBAL),
    _idiom("bulk_reduce_ring", GROUPS, 2, READS, GRID_END),
    _idiom("bulk_copy_to_peer", "fence.mbarrier_init", 1, OUT, CARRIED),
    _idiom("bulk_copy_to_peer", "bar.sync", 1, OUT, LATER_BARRIER),
    _idiom("cp_async_zero_fill", "mbarrier.init", 1, ("one arrival less",), LANES),
]
ATOMICS = [
    _idiom("semaphore_order", "ld.acquire", 1, RELAXED, GLOBAL),
    _idiom("semaphore_order", "red.release", 1, RELAXED, GLOBAL),
    _idiom("semaphore_order", "bar.sync", 2, OUT, GLOBAL),
    _idiom("last_block", "fence", 1, OUT, GLOBAL),
    _idiom("last_block", "fence", 2, OUT, GLOBAL),
]
WGMMA = [
    Survivor("wgmma.commit_group", (2,), OUT, NEXT_COMMIT),
    Survivor("wgmma.wait_group", (2,), WAIT_GROUP, NEXT_WAIT),
    Survivor("wgmma.fence", (3,), OUT, ONE_FENCE),
]
TCGEN05_ATTENTION = [
    Survivor("bar.warp.sync", (1, 2), OUT, MEETS),
    Survivor(BEFORE, (1,), OUT, ALLOCATION),
    Survivor(AFTER, (1, 5), OUT, ALLOCATION),
    _idiom("attention_pair", "fence.mbarrier_init", 1, OUT, CARRIED),
]

SURVIVORS: dict[str, list[Survivor]] = {
    "fa4_fwd_sm90_hd64_bf16": FORWARD_SM90,
    "fa4_bwd_sm90_hd64_bf16": BACKWARD_SM90_HD64,
    "fa4_bwd_sm90_hd128_bf16": BACKWARD_SM90_HD128,
    "fa4_fwd_sm100_hd128_bf16": FORWARD_SM100,
    "fa4_fwd_sm100_hd128_pair_bf16": FORWARD_SM100_PAIR,
    "fa4_bwd_sm100_hd128_bf16": BACKWARD_SM100,
    "fa4_bwd_sm100_hd128_pair_bf16": BACKWARD_SM100_PAIR,
    "ordering-sm100": ORDERING,
    "ordering_wgmma-sm90": ORDERING_WGMMA,
    "ordering_tmem-sm100": ORDERING_TMEM,
    "barriers-sm100": BARRIERS,
    "mbarrier-sm100": MBARRIER,
    "tma-sm100": TMA,
    "copies-sm100": COPIES,
    "atomics-sm100": ATOMICS,
    "wgmma-sm90": WGMMA,
    "tcgen05_attention-sm100": TCGEN05_ATTENTION,
}
