"""Registers of wgmma by the letter of the ISA: which fence, commit or wait is missing is named."""

from __future__ import annotations

import re

import pytest
import torch

emulator = pytest.importorskip("flash_attn4.emulator", reason="no emulator in this build")
pytestmark = pytest.mark.cpu_only("a GPU does not check")

FENCE = "wgmma.fence.sync.aligned;\n"
COMMIT = "wgmma.commit_group.sync.aligned;\n"
WAIT = "wgmma.wait_group.sync.aligned 0;\n"
OPERAND = "add.s32 %r4, %r4, 1;\n"
USE = "add.f32 %f1, %f1, %f2;\n"
START = "cvt.rn.f32.u32 %f1, %r4;\n"
# B is a tile of zeros, A a register, of which all warps make the next one when they may.
KERNEL = f""".version 8.8
.target sm_90a
.address_size 64
.extern .shared .align 16 .b8 tile[];
.entry registers(.param .u64 out) {{
.reg .b32 %r<8>;
.reg .b64 %rd<4>;
.reg .f32 %f<5>;
.reg .pred %p<2>;
mov.u32 %r1, tile;
mov.u32 %r2, %tid.x;
shl.b32 %r3, %r2, 2;
add.s32 %r5, %r1, %r3;
st.shared.u32 [%r5], 0;
fence.proxy.async.shared::cta;
bar.sync 0;
shr.u32 %r1, %r1, 4;
cvt.u64.u32 %rd1, %r1;
or.b64 %rd1, %rd1, 524288;
mov.b32 %r4, 0;
{START}mov.f32 %f2, %f1;
mov.f32 %f3, %f1;
mov.f32 %f4, %f1;
{FENCE}wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 \
{{%f1, %f2, %f3, %f4}}, {{%r4, %r4, %r4, %r4}}, %rd1, 1, 1, 1, 0;
{COMMIT}{WAIT}{USE}{OPERAND}ld.param.u64 %rd2, [out];
mul.wide.u32 %rd3, %r3, 1;
add.s64 %rd2, %rd2, %rd3;
st.global.f32 [%rd2], %f1;
ret;
}}
"""


def launch(text: str, check: str = "strict") -> None:
    out = torch.empty(128)
    emulator.Module(text).launch(
        "registers",
        1,
        128,
        [out],
        shared_bytes=512,
        options=emulator.Options(check=check),
    )
    assert not out.any()


USES = r"uses a register that the wgmma of line \d+ writes: no wgmma.wait_group for its group"
MISTAKES = {
    "no fence": (FENCE, "", r"takes a register that line \d+ has used: no wgmma.fence between"),
    "fence too early": (
        START,
        FENCE + START,
        r"takes a register that line \d+ has used: no wgmma.fence between",
    ),
    "no commit": (COMMIT, "", USES),
    "no wait": (WAIT, "", USES),
    "wait for the group before": (WAIT, WAIT.replace("0", "1"), USES),
    "wait before the commit": (COMMIT + WAIT, WAIT + COMMIT, USES),
    "wait on one way alone": (
        WAIT,
        f"setp.ne.s32 %p1, %r2, -1;\n@%p1 bra LATER;\n{WAIT}LATER:\n",
        USES,
    ),
    "operand written": (
        WAIT + USE + OPERAND,
        OPERAND + WAIT + USE,
        r"overwrites a register that the wgmma of line \d+ reads: no wgmma.wait_group for its",
    ),
}


def test_nothing_is_missing() -> None:
    launch(KERNEL)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_is_missing_is_named(mistake: str) -> None:
    before, after, says = MISTAKES[mistake]
    text = KERNEL.replace(before, after)
    if mistake == "fence too early":
        text = text.replace(f"{FENCE}wgmma.mma", "wgmma.mma")
    assert text != KERNEL
    with pytest.raises(emulator.EmulatorError) as error:
        launch(text)
    assert re.search(rf"^warp [0-3], line \d+, {says}", str(error.value)), error.value


def test_deployed_leaves_registers_to_ptxas() -> None:
    launch(KERNEL.replace(FENCE, ""), check="deployed")


def test_the_first_wgmma_has_a_fence() -> None:
    """Also where nothing was in its registers before."""
    text = re.sub(r"mov\.f32 %f\d, .*\n", "", KERNEL).replace(START, "")
    text = text.replace("%rd1, 1, 1, 1, 0;", "%rd1, 0, 1, 1, 0;").replace(OPERAND, "")
    launch(text)
    with pytest.raises(emulator.EmulatorError, match=r"has no wgmma.fence before it"):
        launch(text.replace(FENCE, ""))


def test_accumulators_pass_from_one_wgmma_to_the_next() -> None:
    found = re.search(r"wgmma\.mma_async.*\n", KERNEL)
    assert found is not None
    launch(KERNEL.replace(found[0], 3 * found[0]))
