"""The machine code of the kernels for SM100: how long steps of their loops are, and registers.

tools/sass.py reads it; its rules are tested in test_sass.py, spills and stack frames, for which
there are messages, in test_kernel_list.py.
"""

from __future__ import annotations

import functools
import re
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
from kernel_list import KERNELS

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import sass  # noqa: E402

GENERATED = ROOT / "build" / f"cmake-{sysconfig.get_config_var('SOABI')}" / "generated"
FORWARD = [k.name for k in KERNELS if k.op == "fwd" and k.target == "sm100f"]
BACKWARD = [k.name for k in KERNELS if k.op == "bwd" and k.target == "sm100f"]

WEIGHTS = 128  # of a row, in a block of keys
# Of an ordinary step without emulated exponentials, and how many more each of those takes: 10 for
# two, where the special function unit takes 2. docs/kernels/fwd_sm100.md has where they go.
STEP, EMULATED = 446, 4


def ctas_of(name: str) -> int:
    return next(k.ctas for k in KERNELS if k.name == name)


@functools.cache
def loops_of(name: str) -> list[dict[str, Any]]:
    if sass.find_nvdisasm() is None:
        pytest.skip("no nvdisasm: it comes with the CUDA toolkit or nvidia-cuda-nvdisasm")
    cubin = GENERATED / f"{name}.cubin"
    if not cubin.is_file():
        pytest.skip(f"{name} is not built")
    return sass.loops_of(cubin, [name])[name]


def softmax_loop(name: str) -> dict[str, Any]:
    """The innermost loop with exponentials that reads and writes tensor memory."""
    wanted = ("MUFU.EX2", "LDTM", "STTM")
    found = [
        x for x in loops_of(name) if x["inner"] and all(kind in x["opcodes_all"] for kind in wanted)
    ]
    assert len(found) == 1, f"{name}: softmax loops: {len(found)}"
    return found[0]


def test_there_are_kernels() -> None:
    assert FORWARD
    assert BACKWARD


@pytest.mark.parametrize("name", FORWARD)
def test_a_softmax_step_is_short(name: str) -> None:
    step = softmax_loop(name)["ways"]["ordinary"]
    emulated = WEIGHTS - (step["MUFU.EX2"] - 1)  # one is the factor for O
    assert emulated == 2 * step.get("FADD2.RM", 0), f"{name}: {step}"
    length = sum(step.values())
    # (192, 128) keeps state of the loop in uniform registers, which costs moves.
    spare = 4 if "_hd192_" in name else 0
    assert length <= STEP + EMULATED * emulated + spare, (
        f"{name}: {length} instructions with {emulated} emulated exponentials: {step}"
    )


@pytest.mark.parametrize("name", FORWARD)
def test_a_softmax_step_takes_each_score_once(name: str) -> None:
    """Loads of 32 columns and stores of 16; two scores per FFMA2 and per word of weights."""
    step = softmax_loop(name)["ways"]["ordinary"]
    assert (step["LDTM"], step["STTM"]) == (WEIGHTS // 32, WEIGHTS // 2 // 16)
    assert step["F2FP"] == WEIGHTS // 2
    emulated_pairs = step.get("FADD2.RM", 0)
    assert step["FFMA2"] == WEIGHTS // 2 + 4 * emulated_pairs  # degree 3
    assert step["FMNMX3"] <= WEIGHTS // 2


@pytest.mark.parametrize("name", FORWARD)
def test_setmaxnreg_asks_for_no_more_than_the_launch_gets(name: str) -> None:
    """Otherwise an increase waits for ever. The decreases are those of a warpgroup each; all others
    increase."""
    ptx, log = GENERATED / f"{name}.ptx", GENERATED / f"{name}.log"
    if not ptx.is_file():
        pytest.skip(f"{name} is not built")
    text = ptx.read_text()
    threads = int(re.search(r"\.maxntid (\d+)", text)[1])
    launched = int(re.search(r"Used (\d+) registers", log.read_text())[1])
    (up,) = {int(n) for n in re.findall(r"setmaxnreg\.inc\S* (\d+);", text)}
    down = [int(n) for n in re.findall(r"setmaxnreg\.dec\S* (\d+);", text)]
    assert len(down) == 2, f"{name}: correction, and the warps of other roles; found {down}"
    warpgroups = threads // 128
    asked = (warpgroups - len(down)) * up + sum(down)
    assert asked <= warpgroups * launched, (
        f"{name}: asks for {asked} registers per lane of {warpgroups} warpgroups, has "
        f"{warpgroups * launched}"
    )


# ---- Backward ------------------------------------------------------------------------------------

# Instructions per warp and block of 128 queries: FlashAttention-4's own kernel at head dim 128 has
# 439, 298 and 100, that of pairs 555, 327 and 125. docs/kernels/bwd_sm100.md has where ours go.
MOST = {
    "one CTA": {"compute": 450, "mma": 250, "reduce": 100},
    "pair": {"compute": 555, "mma": 327, "reduce": 100},
    # Four products more than a pair's; rows are cleaned twice in a step, not three times.
    "serial": {"compute": 510, "mma": 350, "reduce": 100},
}
MOST_OF_EVERY_STEP = {"one CTA": 350, "pair": 370, "serial": 355}  # of compute, cleaning apart


def form_of(name: str) -> str:
    return "serial" if "_hd192_" in name else "pair" if ctas_of(name) == 2 else "one CTA"


def backward_loops(name: str) -> dict[str, dict[str, int]]:
    """The ordinary way around each loop; of two of a kind the shorter one, because softcap and the
    deterministic mode have loops of their own."""
    found: dict[str, dict[str, int]] = {}
    for loop in loops_of(name):
        way = loop["ways"]["ordinary"]
        role = (
            "mma"
            if "UTCHMMA" in way
            else "compute"
            if "MUFU.EX2" in way
            else "reduce"
            if "UBLKRED" in loop["opcodes_all"]
            else None
        )
        if role is not None and (
            role not in found or sum(way.values()) < sum(found[role].values())
        ):
            found[role] = way
    return found


@pytest.mark.parametrize("name", BACKWARD)
def test_steps_of_a_backward_are_short(name: str) -> None:
    loops = backward_loops(name)
    for role, most in MOST[form_of(name)].items():
        length = sum(loops[role].values())
        assert length <= most, f"{name}: {role}: {length} instructions: {loops[role]}"


@pytest.mark.parametrize("name", BACKWARD)
def test_what_every_backward_step_passes_is_short(name: str) -> None:
    """Of compute, on every way: without masks and cleaning."""
    passed = [x["every_round"] for x in loops_of(name) if x["opcodes_all"].get("F2FP")]
    assert min(passed) <= MOST_OF_EVERY_STEP[form_of(name)], f"{name}: {passed}"


@pytest.mark.parametrize("name", BACKWARD)
def test_a_backward_step_takes_each_score_once(name: str) -> None:
    """A thread has 64 of a key's scores: two per FFMA2, FMUL2 and word of weights and of dS."""
    step = backward_loops(name)["compute"]
    assert step["MUFU.EX2"] == 64
    assert (step["FFMA2"], step["FMUL2"], step["F2FP"]) == (64, 32, 64)
    assert (step["LDTM"], step["STTM"], step["STS"]) == (2 + 4, 2 + 4, 8)


@pytest.mark.parametrize("name", BACKWARD)
def test_products_of_a_backward_step(name: str) -> None:
    """One per 16 of k: S and dP over the head dim, dV and dK over queries, dQ over keys."""
    head_dim = int(re.search(r"_hd(\d+)_", name)[1])
    products = backward_loops(name)["mma"]["UTCHMMA"]
    of_scores = head_dim + min(head_dim, 128)
    assert products == of_scores // 16 + (2 + ctas_of(name)) * 128 // 16
