"""The checker of ordering: idioms that are right are clean, and each step left out of one is named,
with both parties and their lines, whatever the schedule has done."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from machines import Emulated, Machine

emulator = pytest.importorskip("flash_attn4.emulator", reason="no emulator in this build")
Plan, PlanBarrier, PlanRole = emulator.Plan, emulator.PlanBarrier, emulator.PlanRole


@pytest.fixture(autouse=True)
def _only_emulated(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--device") == "cuda":
        pytest.skip("a GPU does not check")


@dataclass(frozen=True)
class Idiom:
    source: str
    kernel: str
    words: int  # of the output
    block: int
    input_words: int = 0
    rounds: int = 0
    shared_bytes: int = 1024
    grid: int = 1
    cluster: int = 1


def launch(machine: Machine, idiom: Idiom, without: int, **options: Any) -> None:
    assert isinstance(machine, Emulated)
    args: list[Any] = []
    if idiom.input_words:
        args.append(torch.arange(idiom.input_words, dtype=torch.int32))
    args.append(torch.zeros(idiom.words, dtype=torch.int32))
    if idiom.rounds:
        args.append(idiom.rounds)
    if without != NO_STEPS:
        args.append(without)
    machine.compile(idiom.source).module.launch(
        idiom.kernel,
        idiom.grid,
        idiom.block,
        args,
        shared_bytes=idiom.shared_bytes,
        cluster=idiom.cluster,
        options=replace(machine.options, **{"check": "strict", **options}),
    )


def report(machine: Machine, idiom: Idiom, without: int, **options: Any) -> str:
    with pytest.raises(emulator.EmulatorError) as error:
        launch(machine, idiom, without, **options)
    text = str(error.value)
    assert idiom.kernel in text, text
    return text


def check(machine: Machine, idiom: Idiom, mistakes: Sequence[str | None], **options: Any) -> None:
    """mistakes[i]: what the report says without step i + 1, by its first sentence; None: clean."""
    launch(machine, idiom, 0, **options)
    for step, says in enumerate(mistakes, start=1):
        if says is None:
            launch(machine, idiom, step, **options)
            continue
        text = report(machine, idiom, step, **options)
        sentence = text.split("\n")[0]
        assert re.search(says, sentence), f"without step {step}:\n{text}"
        assert re.search(r"line \d+", text), text


THREADS = Idiom("ordering.cu", "threads_hand_over", 64, 64)
STORES = Idiom("ordering.cu", "copy_takes_what_threads_wrote", 128, 64)
COPIES = Idiom("ordering.cu", "copies_hand_over", 96, 96, input_words=96, rounds=3)
ONE_LANE = Idiom("ordering.cu", "one_lane_hands_over", 64, 96)
WARP_ARRIVES = Idiom("ordering.cu", "warp_arrives", 32, 32)
ONE_LANE_WAITS = Idiom("ordering.cu", "one_lane_waits", 32, 32, input_words=32)
FLAG = Idiom("ordering.cu", "flag_follows_copy", 64, 32)
NAMED = Idiom("ordering.cu", "named_barrier_hand_over", 32, 64)
LANES = Idiom("ordering.cu", "lanes_hand_over", 96, 32)
TURNS = Idiom("ordering.cu", "warps_take_turns", 64, 64, rounds=3)
THREAD_COPIES = Idiom(
    "ordering.cu", "thread_copies_hand_over", 64, 64, input_words=256, shared_bytes=2048
)
PEERS = Idiom("ordering.cu", "peers_hand_over", 64, 32, grid=2, cluster=2)
PAIR = Idiom("ordering.cu", "pair_arrives", 2, 64, grid=2, cluster=2)
WGMMA = Idiom("ordering_wgmma.cu", "wgmma_hand_over", 640, 160)
TMEM = Idiom("ordering_tmem.cu", "tensor_memory_hand_over", 4096, 160, shared_bytes=10240)

CLEAN = None
NO_STEPS = -1  # of kernels that leave nothing out
UNWRITTEN = "never written"  # where the schedule has the reader come before the writer


# ---- Shared memory -------------------------------------------------------------------------------


def test_threads(machine: Machine) -> None:
    check(
        machine,
        THREADS,
        [
            "line .* uses mbarrier 0x400, which warp 0 initialises in line .*: no barrier orders "
            "|no initialised barrier",
            "deadlock|warp 0, line .*, overwrites shared memory at 0x440 that warp 1, line .*, "
            "reads: no barrier between them: warp 0 has not waited at one that warp 1 signals|"
            "warp 1, line .*, reads .* that warp 0, line .*, writes: no barrier between them",
            "warp 1, line .*, reads shared memory at 0x440 that warp 0, line .*, writes: no "
            "barrier between them|warp 0, line .*, overwrites .* that warp 1, line .*, reads: no b|"
            + UNWRITTEN,
        ],
    )


def test_copy_takes_what_threads_wrote(machine: Machine) -> None:
    copy = "a bulk copy of warp 0, line .*, reads shared memory at 0x4.* that warp {0}, line .*, "
    wait = (
        "warp [01], line .*, overwrites shared memory at 0x4.0 that a bulk copy of warp 0, line "
        ".*, reads: no cp.async.bulk.wait_group.read (of warp 0 )?between"
    )
    check(
        machine,
        STORES,
        [
            copy.format("[01]") + "writes: no fence.proxy.async between them: warp [01] needs one",
            copy.format(1) + "writes: no fence.proxy.async between them: warp 1 needs one|"
            "no barrier|" + UNWRITTEN,
            copy.format(1)
            + "writes: no barrier between them|"
            + copy.format(0)
            + "writes: no bar.warp.sync between them: one lane issues the copy|"
            + UNWRITTEN,
            wait,
            wait,
            "CTA 0 exits while a bulk copy of warp 0, line .*, may still use its shared memory",
            "no barrier between them|" + UNWRITTEN,
        ],
    )
    launch(machine, STORES, 6, check="deployed")


def test_copies(machine: Machine) -> None:
    not_waited = "warp {} has not waited for the phase of full that the copy completes"
    copy = "a copy that completes on full, line .*, "
    check(
        machine,
        COPIES,
        [
            "warp 0, line .*, uses full, which warp 0 initialises in line .*: no fence.mbarrier",
            f"{copy}overwrites shared memory at 0x440 that {copy}writes: {not_waited.format(0)}|"
            f"{copy}overwrites shared memory at 0x440 that warp 1, line .*, reads: no barrier|"
            "more arrivals than expected",
            f"(warp 1, line .*, reads|{copy}overwrites) shared memory at 0x440 that .*, line .*, "
            f"(writes: {not_waited.format('[01]')}|reads: no barrier between them)|" + UNWRITTEN,
            f"warp 1, line .*, reads shared memory at 0x440 that {copy}writes: "
            f"{not_waited.format(1)}|{copy}overwrites .* that warp 1, line .*, reads: no barrier|"
            + UNWRITTEN,
            "deadlock",
            CLEAN,
            CLEAN,
            f"warp 1, line .*, reads shared memory at 0x440 that {copy}writes: "
            f"{not_waited.format(1)}; its last wait for it, line .*, passed when 0 phases were|"
            "deadlock|no barrier between them|" + UNWRITTEN,
            f"{copy}overwrites shared memory at 0x440 that warp 1, line .*, reads: no "
            "bar.warp.sync of warp 1 between its read and its signal, which one lane gives",
        ],
        barrier_names={0x400: "full", 0x408: "empty"},
    )
    launch(machine, COPIES, 9, check="deployed")


def test_one_lane(machine: Machine) -> None:
    """What one lane says holds for the others when the warp has met."""
    check(
        machine,
        ONE_LANE,
        [
            "warp 1, line .*, reads shared memory at 0x440 that warp 0, line .*, writes: no "
            "bar.warp.sync of warp 0 between its write and its signal, which one lane gives",
            "a bulk copy of warp 2, line .*, reads shared memory at 0x4c0 that warp 2, line .*, "
            "writes: no bar.warp.sync between them: one lane issues the copy, others may still",
        ],
    )
    for step in (1, 2):
        launch(machine, ONE_LANE, step, check="deployed")


def test_one_lane_waits(machine: Machine) -> None:
    behind = "no bar.warp.sync of warp 0 between the wait of one of its lanes and this access"
    not_yet = "warp 0 has not waited for the phase of mbarrier 0x400 that the copy completes"
    check(
        machine,
        ONE_LANE_WAITS,
        [
            "warp 0, line .*, reads shared memory at 0x44. that a copy that completes on mbarrier "
            f"0x400, line .*, writes: ({behind}|{not_yet})|" + UNWRITTEN,
            "warp 0, line .*, overwrites shared memory at 0x44. that a bulk copy of warp 0, line "
            f".*, reads: ({behind}|no cp.async.bulk.wait_group.read between them)",
        ],
    )


def test_flag_behind_a_copy(machine: Machine) -> None:
    says = (
        "warp 0, line .*, releases a flag in global memory while a bulk copy of it may still write "
        "there: no cp.async.bulk.wait_group between them"
    )
    check(machine, FLAG, [says, None])
    launch(machine, FLAG, 1, check="deployed")


def test_arrivals_of_a_warp_split_over_phases(machine: Machine) -> None:
    says = "warp 0, line .*, arrives at mbarrier 0x400 in two phases at once: some lanes complete"
    check(machine, WARP_ARRIVES, [says])
    launch(machine, WARP_ARRIVES, 1, check="deployed")


def test_named_barrier(machine: Machine) -> None:
    check(
        machine,
        NAMED,
        [
            "warp 1, line .*, reads shared memory at 0x440 that warp 0, line .*, writes: no "
            "barrier between them|warp 0, line .*, overwrites .* that warp 1, line .*, reads|"
            + UNWRITTEN,
            "barrier 1: threads wait for a count of (64|96), this instruction gives (64|96)",
        ],
    )


def test_lanes(machine: Machine) -> None:
    says = (
        r"warp 0, line .*, lane \d+, reads shared memory at 0x4.. that lane {}, line .*, writes: "
        "no bar.warp.sync between them"
    )
    check(machine, LANES, [says.format(r"\d+"), says.format(r"\d+"), says.format(5)])
    for step in (1, 2, 3):
        launch(machine, LANES, step, check="deployed")


def test_turns(machine: Machine) -> None:
    """A turn is not waited for, once: a warp that is a turn ahead counts for the other, and both
    may wait for ever."""
    says = (
        "warp [01], line .*, arrives at barrier [12] again, and nothing tells it that the phase "
        "for which it arrived before, without waiting, is complete"
    )
    check(machine, TURNS, [says, says])


def test_thread_copies(machine: Machine) -> None:
    copy = "warp [01], line .*, reads shared memory at 0x.* that cp.async of warp [01], line .*, "
    wait = copy + "writes: no cp.async.wait_group of warp [01] between the copy and its signal"
    barrier = copy + "writes: no barrier between them"
    check(machine, THREAD_COPIES, [wait, wait, barrier + "|" + UNWRITTEN])


def test_peers(machine: Machine) -> None:
    check(
        machine,
        PEERS,
        [
            "warp 0 of CTA ([01]), line .*, reads shared memory at 0x440 of CTA .* that warp 0 of "
            "CTA .*, line .*, writes: no barrier between them|" + UNWRITTEN,
            "CTA [01] has exited, warp 0 of CTA [01] still uses its shared memory in line .*: no "
            "cluster barrier|CTA [01] exits while warp 0 of CTA [01], line .*, may still use its "
            "shared memory: none of its warps has waited for that CTA",
            CLEAN,
        ],
    )


def test_unwritten(machine: Machine) -> None:
    buffer = Idiom("ordering.cu", "unwritten", 64, 64)
    text = report(machine, buffer, NO_STEPS)
    assert re.search(r"warp 1, line \d+, reads shared memory at 0x4c0, which was never", text), text
    launch(machine, buffer, NO_STEPS, check_uninitialized=False)
    launch(machine, replace(buffer, words=32, block=32), NO_STEPS)


# ---- Tensor cores --------------------------------------------------------------------------------


@pytest.mark.archs("sm90")
def test_wgmma(machine: Machine) -> None:
    reads = "wgmma of warp [0-3], line .*, reads shared memory at 0x4.. that warp 4, line .*, "
    wait = (
        "warp 4, line .*, overwrites shared memory at 0x4.. that wgmma of warp [0-3], line .*, "
        "reads: no wgmma.wait_group of warp [0-3] between the wgmma and its signal"
    )
    check(
        machine,
        WGMMA,
        [
            reads + "writes: no fence.proxy.async between them: warp 4 needs one",
            reads + "writes: no barrier between them|" + UNWRITTEN,
            wait,
            wait,
            "(wgmma of warp|warp 4), line .*: no barrier between them",
        ],
    )


# Steps of TMEM, and an order that widely used kernels rely on.
FENCES = (3, 5, 8, 11, 15, 16)
ISSUE_ORDER = (12, 13)


@pytest.mark.archs("sm100")
def test_tensor_memory(machine: Machine) -> None:
    mma_reads = "tcgen05.mma of warp 4, line .*, reads tensor memory at column 32, lanes .* that "
    stored = mma_reads + "tcgen05.st of warp [0-3], line .*, writes: no "
    load = "tcgen05.ld of warp [0-3], line .*, reads tensor memory at column {}, lanes .* that "
    scores = load.format(32) + "tcgen05.mma of warp 4, line .*, writes: "
    freed = (
        "tcgen05.dealloc of warp 4, line .*, frees tensor memory at column 128, lanes .* that "
        "tcgen05.ld of warp [0-3], line .*, reads: no "
    )
    in_order = "MMAs of one thread are in order only on the same accumulator and shape"
    not_waited = "warp [0-3] has not waited for an mbarrier that a tcgen05.commit after the MMA"
    says = [
        "tcgen05.mma of warp 4, line .*, reads shared memory at .* that warp .*, line .*, writes: "
        "no fence.proxy.async between them",
        mma_reads + "tcgen05.mma of warp 4, line .*, writes: " + in_order,
        stored + "tcgen05.fence::after_thread_sync of warp 4 between its wait and this access",
        scores + not_waited + "|" + UNWRITTEN,
        scores + "no tcgen05.fence::after_thread_sync of warp [0-3] between its wait and this",
        "tcgen05.st of warp [0-3], line .*, overwrites .* that tcgen05.ld of warp [0-3], line .*, "
        "reads: no tcgen05.wait::ld between them",
        stored + "tcgen05.wait::st of warp [0-3] between the store and its signal",
        stored + "tcgen05.fence::before_thread_sync of warp [0-3] between its tcgen05.wait::st",
        load.format(128)
        + "tcgen05.mma of warp 4, line .*, writes: "
        + not_waited
        + "|"
        + UNWRITTEN,
        freed + "tcgen05.wait::ld of warp [0-3] between the load and its signal",
        freed + "tcgen05.fence::before_thread_sync of warp [0-3] between its tcgen05.wait::ld",
        "overwrites tensor memory at column 0, .* line .*, writes: " + in_order,
        "reads tensor memory at column 0, .* line .*, writes: " + in_order,
        scores + not_waited + "|" + UNWRITTEN,
        "warp [0-3], line .*, uses a register that a tcgen05.ld writes: no tcgen05.wait::ld betw",
        stored
        + "tcgen05.fence::before_thread_sync .*, or no bar.warp.sync where one lane gives it",
        CLEAN,
    ]
    check(machine, TMEM, says)
    for step in (*FENCES, *ISSUE_ORDER):
        launch(machine, TMEM, step, check="deployed")


# ---- Findings ------------------------------------------------------------------------------------


def test_several_findings_come_in_one_report(machine: Machine) -> None:
    text = report(machine, STORES, 1, max_findings=10)
    assert text.count("no fence.proxy.async between them") >= 2
    assert re.search(r"the write: line \d+: st\.shared", text)


def test_off_means_off(machine: Machine) -> None:
    launch(machine, STORES, 1, check="off")


# ---- The plan ------------------------------------------------------------------------------------

ROLES = [PlanRole("load", 0, 1), PlanRole("reader", 1, 1)]
FULL = PlanBarrier("full", 0, done="bytes", signals=["load"], waits=["reader"])
EMPTY = PlanBarrier("empty", 8, signals=["reader"], waits=["load"])
PLAN = Plan(ROLES, [FULL, EMPTY])


@pytest.mark.parametrize(
    ("without", "plan", "says"),
    [
        (0, PLAN, None),
        (3, PLAN, "plan: full: warp 0 .load. arrives, the plan completes it by bytes of copies"),
        (6, PLAN, "plan: full: warp 2 waits in line .*, the plan lets reader wait"),
        (7, PLAN, "plan: empty expects 1 arrivals, mbarrier.init in line .* says 2"),
        (
            0,
            Plan(ROLES, [FULL]),
            "plan: no row declares the mbarrier at 0x408, which warp 0 .load.",
        ),
        (
            0,
            Plan(ROLES, [FULL, replace(EMPTY, signals=["load"])]),
            "plan: empty: warp 1 .reader. arrives, the plan lets load signal, in line",
        ),
        (
            0,
            Plan(ROLES, [replace(FULL, done="threads"), EMPTY]),
            "plan: full: warp 0 .load. announces bytes, the plan completes it by arrivals of thr",
        ),
        (
            4,
            Plan(ROLES, [replace(FULL, name="x", offset=0, stages=1), EMPTY]),
            "(phase of x|a copy that completes on x)|" + UNWRITTEN,
        ),
    ],
)
def test_plan(machine: Machine, without: int, plan: emulator.Plan, says: str | None) -> None:
    plans = {COPIES.kernel: plan}
    if says is None:
        launch(machine, COPIES, without, plans=plans)
    else:
        assert re.search(says, report(machine, COPIES, without, plans=plans).split("\n")[0])


@pytest.mark.archs("sm100")
def test_plan_of_commits(machine: Machine) -> None:
    roles = [PlanRole("softmax", 0, 4), PlanRole("mma", 4, 1)]
    ring = PlanBarrier("s_full", 0, done="commit", signals=["mma"], waits=["softmax"])
    p_full = PlanBarrier("p_full", 8, arrivals=128, signals=["softmax"], waits=["mma"])
    o_full = replace(ring, name="o_full", offset=16)
    launch(machine, TMEM, 0, plans={TMEM.kernel: Plan(roles, [ring, p_full, o_full])})
    wrong = Plan(roles, [replace(ring, done="threads"), p_full, o_full])
    text = report(machine, TMEM, 0, plans={TMEM.kernel: wrong})
    assert "plan: s_full: warp 4 (mma) commits, the plan completes it by arrivals of thr" in text


HELD = {
    holder: PlanBarrier(holder, 8 * number, signals=["load"], waits=["reader"], holder=holder)
    for number, holder in enumerate(("own", "leader", "both", "peer"))
}
HELD["leader"] = replace(HELD["leader"], arrivals=2)


@pytest.mark.parametrize(
    ("row", "holder", "at", "says"),
    [
        ("own", "peer", "[01]", "its peer"),
        ("leader", "own", "0", "its own CTA"),
        ("leader", "peer", "[01]", "its peer"),
        ("both", "leader", "1", "the leader of the pair"),
        ("peer", "own", "[01]", "its own CTA"),
    ],
)
def test_plan_of_a_pair(machine: Machine, row: str, holder: Any, at: str, says: str) -> None:
    """Who holds an mbarrier is compared with where arrivals go."""
    launch(machine, PAIR, 0, plans={PAIR.kernel: Plan(ROLES, list(HELD.values()))})
    rows = HELD | {row: replace(HELD[row], holder=holder)}
    text = report(machine, PAIR, 0, plans={PAIR.kernel: Plan(ROLES, list(rows.values()))})
    who = r"warp 0 of CTA [01] \(load\)"
    assert re.search(f"{row}: {who} arrives at the one of CTA {at}, the plan says {says},", text)


def test_plan_of_a_pair_lets_the_leader_wait(machine: Machine) -> None:
    rows = HELD | {"leader": replace(HELD["leader"], arrivals=1)}
    plans = {PAIR.kernel: Plan(ROLES, list(rows.values()))}
    text = report(machine, PAIR, 1, plans=plans, max_findings=9)
    assert "leader: warp 0 of CTA 1 (load) arrives at the one of CTA 1, the plan says the" in text
    waits = r"leader: warp 1 of CTA 1 \(reader\) waits in line .* reader of the pair's leader wait"
    assert re.search(waits, text)


def test_options_name_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="check: must be one of 'off', 'deployed', 'strict'"):
        emulator.Options(check="loose")
    with pytest.raises(ValueError, match="max_findings: must be an int from 1"):
        emulator.Options(max_findings=0)
    with pytest.raises(ValueError, match="plans: must map kernels' names to Plan, got 'k': dict"):
        emulator.Options(plans={"k": {}})
    held = PlanBarrier("full", 0, holder="nobody")
    with pytest.raises(ValueError, match="holder: must be one of own, leader, both, peer, got nob"):
        emulator.Module(
            ".version 8.8\n.target sm_90a\n.address_size 64\n.entry k() { ret; }"
        ).launch("k", 1, 1, [], options=emulator.Options(plans={"k": Plan([], [held])}))
    row = PlanBarrier("full", 0, done="never")
    with pytest.raises(ValueError, match="done: must be one of threads, bytes, commit, got never"):
        emulator.Module(
            ".version 8.8\n.target sm_90a\n.address_size 64\n.entry k() { ret; }"
        ).launch("k", 1, 1, [], options=emulator.Options(plans={"k": Plan([], [row])}))
