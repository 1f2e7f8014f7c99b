"""The machine code of the forward kernels for SM100: how long a softmax step is, and registers.

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

WEIGHTS = 128  # of a row, in a block of keys
# Of an ordinary step without emulated exponentials, and how many more each of those takes: 10 for
# two, where the special function unit takes 2. docs/kernels/fwd_sm100.md has where they go.
STEP, EMULATED = 446, 4


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


def test_there_are_forward_kernels() -> None:
    assert FORWARD


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
