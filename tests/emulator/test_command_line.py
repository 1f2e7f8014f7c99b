"""python -m flash_attn4.emulator FILE.ptx"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip(
    "flash_attn4.emulator", reason="no emulator in this build", exc_type=ImportError
)
pytestmark = pytest.mark.cpu_only("runs the emulator's command line")

PTX = """
.version 8.8
.target sm_100f
.address_size 64
.visible .entry first(.param .u64 first_param_0, .param .u32 first_param_1)
.reqntid 64, 1, 1
.reqnctapercluster 2, 1, 1
{
  .reg .b32 %r<3>;
  .shared .align 16 .b8 staging[256];
  mov.u32 %r1, %tid.x;
  add.s32 %r2, %r1, %r1;
  add.s32 %r2, %r2, %r1;
  ret;
}
.visible .entry second()
{
  ret;
}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "two.ptx"
    path.write_text(PTX)
    return path


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flash_attn4.emulator", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_kernels_are_listed(file: Path) -> None:
    result = run(file)
    assert result.returncode == 0, result.stderr
    lines = [line.strip() for line in result.stdout.splitlines()]
    assert lines[0] == f"{file}: target sm_100f, 2 kernels"
    assert lines[2] == "first"
    assert lines[3] == "parameters: 12 bytes"
    assert lines[4].split() == ["0", "8", "bytes,", "align", "8", "first_param_0"]
    assert "threads: at most not declared, required 64 x 1 x 1" in lines
    assert "cluster: 2 x 1 x 1" in lines
    assert "shared memory: 256 bytes static" in lines
    assert "instructions: 4" in lines
    assert [line.split() for line in lines if line.endswith("add.s32")] == [["2", "add.s32"]]
    assert "second" in lines


def test_json_holds_the_same_facts(file: Path) -> None:
    result = run(file, "--json")
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts["file"] == str(file)
    assert facts["target"] == "sm_100f"
    first, second = facts["kernels"]
    assert first["name"] == "first"
    assert first["parameters"][1] == {
        "name": "first_param_1",
        "offset": 8,
        "bytes": 4,
        "align": 4,
    }
    assert first["required_cluster"] == [2, 1, 1]
    assert first["forms"] == {"mov.u32": 1, "add.s32": 2, "ret": 1}
    assert second["parameters"] == []


def test_problems_are_one_line(tmp_path: Path) -> None:
    absent = run(tmp_path / "absent.ptx")
    assert absent.returncode == 1
    assert "absent.ptx" in absent.stderr
    assert "Traceback" not in absent.stderr
    broken = tmp_path / "broken.ptx"
    broken.write_text("this is not PTX\n")
    result = run(broken)
    assert result.returncode == 1
    assert "broken.ptx:1: " in result.stderr
    assert "Traceback" not in result.stderr
