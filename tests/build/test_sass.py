"""The machine code of the forward kernels for SM90: what ptxas decides without a message.

tools/sass.py reads it; the parser is tested on recorded listings. C75xx, spills and stack frames,
for which there are messages, are in test_kernel_list.py. Where the waits stand among the
exponentials is not tested: an HGMMA holds up its warp until the tensor core has taken it, so most
of the waiting is over before the wait. For instruction counts there is the tool.
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
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
LISTING = Path(__file__).parent / "listings" / "loops.txt"  # from loops.cu beside it


# ---- Built kernels ------------------------------------------------------------------------------

FORWARD = [k.name for k in KERNELS if k.op == "fwd" and k.target == "sm90a"]


@functools.cache
def loops_of(name: str) -> list[dict[str, Any]]:
    if sass.find_nvdisasm() is None:
        pytest.skip("no nvdisasm: it comes with the CUDA toolkit or nvidia-cuda-nvdisasm")
    cubin = GENERATED / f"{name}.cubin"
    if not cubin.is_file():
        pytest.skip(f"{name} is not built")
    return sass.loops_of(cubin, [name])[name]


def serialised(loop: dict[str, Any]) -> bool:
    """Whether each HGMMA has a fence or a wait of its own: those of a product share them."""
    opcodes = loop["opcodes_all"]
    own = max(opcodes.get("WARPGROUP.ARRIVE", 0), loop["waits_for_all"])
    return bool(2 * own > opcodes["HGMMA"])


def test_there_are_forward_kernels() -> None:
    assert FORWARD


@pytest.mark.parametrize("name", FORWARD)
def test_products_are_not_serialised(name: str) -> None:
    loops = loops_of(name)
    assert loops, f"{name} holds no loop with HGMMA"
    for loop in loops:
        assert not serialised(loop), (
            f"{name}, loop at {loop['header']}, {loop['all']} instructions: {loop['opcodes_all']}"
        )


@pytest.mark.parametrize("name", FORWARD)
def test_setmaxnreg_asks_for_no_more_than_the_launch_gets(name: str) -> None:
    """Otherwise an increase waits for ever. Registers of a launch: those that ptxas reports."""
    ptx, log = GENERATED / f"{name}.ptx", GENERATED / f"{name}.log"
    if not ptx.is_file():
        pytest.skip(f"{name} is not built")
    text = ptx.read_text()
    threads = int(re.search(r"\.maxntid (\d+)", text)[1])
    launched = int(re.search(r"Used (\d+) registers", log.read_text())[1])
    (up,) = set(re.findall(r"setmaxnreg\.inc\S* (\d+);", text))
    (down,) = set(re.findall(r"setmaxnreg\.dec\S* (\d+);", text))
    warpgroups = threads // 128
    asked = (warpgroups - 1) * int(up) + int(down)
    assert asked <= warpgroups * launched, (
        f"{name}: asks for {asked} registers per lane of {warpgroups} warpgroups, has "
        f"{warpgroups * launched}"
    )


# ---- The parser ---------------------------------------------------------------------------------


def reports() -> dict[str, dict[str, Any]]:
    """The only loop of each recorded kernel."""
    found = sass.loops_of(LISTING)
    assert set(found) == {"late", "hoisted"}
    for loops in found.values():
        assert len(loops) == 1, "the jump back from code out of line is no loop"
    return {name: loops[0] for name, loops in found.items()}


def test_recorded_loops() -> None:
    loops = reports()
    late, hoisted = loops["late"], loops["hoisted"]
    assert (late["header"], hoisted["header"]) == ("0x120", "0x150")
    for loop in (late, hoisted):
        assert loop["inner"]
        opcodes = loop["opcodes_every_round"]
        expected = {"HGMMA": 2, "MUFU.EX2": 8, "FADD": 8, "F2FP": 4, "FMUL": 4}
        expected |= {"WARPGROUP.ARRIVE": 1, "WARPGROUP.DEPBAR": 2, "VOTE": 1}
        assert {kind: opcodes[kind] for kind in expected} == expected
        assert loop["waits_for_all"] == 1
        assert sum(opcodes.values()) == loop["every_round"]
        assert sum(loop["opcodes_all"].values()) == loop["all"]
    assert (hoisted["every_round"], hoisted["all"]) == (40, 40)
    # The wait for the barrier lies behind the kernel's end: three instructions.
    assert (late["every_round"], late["all"]) == (47, 50)
    assert late["opcodes_all"]["SYNCS"] == late["opcodes_every_round"]["SYNCS"] + 1


def test_hoisted_wait_is_seen() -> None:
    loops = reports()
    seen = {n: (x["exponentials"], x["exponentials_before_wait"]) for n, x in loops.items()}
    assert seen == {"late": (8, 8), "hoisted": (8, 1)}


def test_listing_of_cuobjdump_gives_the_same(tmp_path: Path) -> None:
    """cuobjdump -sass has addresses instead of labels, and encodings behind instructions."""
    other = tmp_path / "cuobjdump.txt"
    other.write_text("\n".join(as_cuobjdump(LISTING.read_text())))
    assert sass.loops_of(other) == sass.loops_of(LISTING)


def as_cuobjdump(text: str) -> list[str]:
    lines: list[str] = []
    for name, instructions in sass.parse(text).items():
        lines.append(f"\t\tFunction : {name}")
        for x in instructions:
            operands = x.operands if x.target is None else hex(x.target)
            words = " ".join(word for word in (x.guard, x.opcode, operands) if word)
            lines.append(f"        /*{x.address:04x}*/    {words} ;    /* 0x000000041a3d7c20 */")
            lines.append("                                    /* 0x000fe40008400000 */")
    return lines


def listing(*lines: str) -> list[dict[str, Any]]:
    """Loops of a kernel written as `label:` and instruction lines."""
    text, address = [".text.kernel:"], 0
    for line in lines:
        if not line.endswith(":"):
            line = f"        /*{address:04x}*/    {line} ;"
            address += 16
        text.append(line)
    return sass.report(sass.parse("\n".join(text))["kernel"])


MMA = "HGMMA.64x8x16.F32.BF16 R32, R36, gdesc[UR4].tnspB, R32, gsb0"
WAIT = "WARPGROUP.DEPBAR.LE gsb0, 0x0"
EX2 = "MUFU.EX2 R1, R1"


def test_loop_is_a_circle() -> None:
    """A loop may begin between product and wait, with a product of the round before in flight."""
    (loop,) = listing(
        MMA, ".L_x_0:", EX2, EX2, WAIT, EX2, MMA, EX2, "@P0 BRA `(.L_x_0)", "EXIT"
    )  # fmt: skip
    assert (loop["exponentials"], loop["exponentials_before_wait"]) == (4, 3)


@pytest.mark.parametrize("own", ["WARPGROUP.ARRIVE", WAIT])
def test_serialised_products_are_seen(own: str) -> None:
    rest = "@P0 BRA `(.L_x_0)", "EXIT"
    (apart,) = listing(".L_x_0:", own, MMA, own, MMA, own, MMA, *rest)
    (together,) = listing(".L_x_0:", own, MMA, MMA, MMA, *rest)
    assert serialised(apart)
    assert not serialised(together)


def test_waits_for_some_groups_leave_products_in_flight() -> None:
    (loop,) = listing(
        ".L_x_0:", MMA, "WARPGROUP.DEPBAR.LE gsb0, 0x1", EX2, WAIT, EX2, "@P0 BRA `(.L_x_0)", "EXIT"
    )
    assert (loop["exponentials"], loop["exponentials_before_wait"]) == (2, 1)
    assert loop["waits_for_all"] == 1


def test_code_under_a_branch_is_not_of_every_round() -> None:
    (loop,) = listing(
        ".L_x_0:",
        MMA,
        "@!P1 BRA `(.L_x_1)",
        EX2,
        "FMUL R1, R1, R2",
        ".L_x_1:",
        EX2,
        "BRA.U !UP0, `(.L_x_2)",  # conditional by its operand
        "FADD R1, R1, R2",
        ".L_x_2:",
        WAIT,
        "@P0 BRA `(.L_x_0)",
        "EXIT",
    )
    assert (loop["every_round"], loop["all"]) == (6, 9)
    assert loop["exponentials"] == 1
    assert "FMUL" not in loop["opcodes_every_round"]
    assert loop["opcodes_all"]["FMUL"] == 1
    assert [block["every_round"] for block in loop["blocks"]] == [True, False, True, False, True]


def test_outer_and_inner_loops() -> None:
    outer, inner = listing(
        ".L_x_0:",
        "MOV R1, R2",
        ".L_x_1:",
        MMA,
        ".L_x_2:",
        "SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [UR8], R2",
        "@!P1 BRA `(.L_x_2)",  # waiting: no loop with HGMMA, and passed at least once
        WAIT,
        "@P0 BRA `(.L_x_1)",
        "@P2 BRA `(.L_x_0)",
        "EXIT",
    )
    assert (outer["header"], outer["inner"], outer["all"]) == ("0x0", False, 7)
    assert (inner["header"], inner["inner"], inner["all"]) == ("0x10", True, 5)
    assert inner["every_round"] == 5


def way(loop: dict[str, Any], name: str) -> tuple[int, dict[str, int]]:
    opcodes = loop["ways"][name]
    return sum(opcodes.values()), opcodes


ARRIVE = "@P0 SYNCS.ARRIVE.TRANS64.A1T0 RZ, [UR4], RZ"


def test_ordinary_way_does_all_the_work_and_no_more() -> None:
    """A softmax loop in small: waits spin out of line, most rounds need no mask, all but a tile's
    first signal the factor."""
    (loop,) = listing(
        ".L_x_0:",
        "SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR4], R2",
        "@!P0 BRA `(.L_x_4)",
        ".L_x_1:",
        "LDTM.x32 R4, tmem[UR8]",
        "@!P1 BRA `(.L_x_2)",
        "R2P PR, R3, 0x7f",
        "FSEL R4, R4, -INF, P1",
        ".L_x_2:",
        "@P2 BRA `(.L_x_3)",
        "STS [R5], R6",
        ARRIVE,
        ".L_x_3:",
        "@!P4 BRA `(.L_x_5)",  # never taken
        EX2,
        "F2FP.BF16.F32.PACK_AB R4, R5, R4",
        ".L_x_5:",
        "STTM.x16 tmem[UR8], R4",
        ARRIVE,
        "@P3 BRA `(.L_x_0)",
        "EXIT",
        ".L_x_4:",
        "SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR4], R2",
        "@!P0 BRA `(.L_x_4)",
        "BRA `(.L_x_1)",
    )
    assert loop["ways"].keys() == {"ordinary", "masked"}
    length, opcodes = way(loop, "ordinary")
    assert length == 13
    assert (opcodes["SYNCS"], opcodes["STS"]) == (3, 1)
    assert "R2P" not in opcodes
    length, opcodes = way(loop, "masked")
    assert length == 15
    assert (opcodes["R2P"], opcodes["FSEL"]) == (1, 1)
    assert loop["all"] == 18


def test_work_around_products_is_products() -> None:
    """An mma loop in small: arriving, when a tile ends, is not the ordinary way."""
    (loop,) = listing(
        ".L_x_0:",
        "@!P0 BRA `(.L_x_1)",
        ARRIVE,
        ".L_x_1:",
        "@P1 BRA `(.L_x_2)",
        "UTCHMMA tmem[UR4], gdesc[UR6], tmem[UR8], tmem[UR10], idesc[UR11], UPT",
        ".L_x_2:",
        "@P2 BRA `(.L_x_0)",
        "EXIT",
    )
    length, opcodes = way(loop, "ordinary")
    assert (length, opcodes) == (4, {"BRA": 3, "UTCHMMA": 1})


def test_rescaled_way_rescales_all() -> None:
    """A correction loop in small, for two halves; a smaller loop counts as one of its rounds."""
    half = (
        ARRIVE,
        "@!P{0} BRA `(.L_x_{0}1)",
        ".L_x_{0}0:",
        "LDTM.x16 R4, tmem[UR8]",
        "FMUL2.FTZ R4, R4.F32x2.HI_LO, R2.F32",
        "STTM.x16 tmem[UR8], R4",
        "@P3 BRA `(.L_x_{0}0)",
        ".L_x_{0}1:",
        "NOP",
    )
    halves = [line.format(n) for n in (1, 2) for line in half]
    loops = listing(".L_x_0:", *halves, "@P0 BRA `(.L_x_0)", "EXIT")
    whole = next(loop for loop in loops if not loop["inner"])
    assert way(whole, "ordinary")[0] == 7
    length, opcodes = way(whole, "rescaled")
    assert (length, opcodes["FMUL2"]) == (15, 2)


def test_spills_are_counted() -> None:
    (loop,) = listing(
        ".L_x_0:", MMA, "STL [R1], R2", "LDL.LU R2, [R1]", "@P0 BRA `(.L_x_0)", "EXIT"
    )
    assert loop["local_memory"] == 2


def test_rounding_down_is_its_own_opcode() -> None:
    (loop,) = listing(
        ".L_x_0:",
        MMA,
        "FADD2.FTZ.RM R2, R4.F32x2.HI_LO, 12582912",
        "FADD2.FTZ R2, R4.F32x2.HI_LO, R6.F32x2.HI_LO",
        "@P0 BRA `(.L_x_0)",
        "EXIT",
    )
    assert (loop["opcodes_all"]["FADD2.RM"], loop["opcodes_all"]["FADD2"]) == (1, 1)


def test_command_line(tmp_path: Path) -> None:
    tool = ROOT / "tools" / "sass.py"

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(tool), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    printed = run("--blocks", LISTING).stdout
    assert "8 of 8 exponentials before the wait" in printed
    assert "1 of 8 exponentials before the wait" in printed
    assert "0x4d0..0x4e0" in printed
    assert json.loads(run("--json", LISTING, "late").stdout).keys() == {"late"}
    wrong = run(LISTING, "early")
    assert wrong.returncode != 0
    assert "holds no early; it has hoisted, late" in wrong.stderr
    (tmp_path / "k.cubin").write_bytes(b"\x7fELF no image")
    assert "sass: nvdisasm" in run(tmp_path / "k.cubin").stderr  # missing, or what it says
