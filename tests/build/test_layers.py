"""The layers of the tree, checked by reading it: who may include what, where asm may stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SUFFIXES = {".h", ".cpp", ".cu", ".cuh"}


def sources(*folders: str) -> list[Path]:
    found = [p for f in folders for p in (ROOT / f).rglob("*") if p.suffix in SUFFIXES]
    assert found, f"no sources under {folders}"
    return found


def offenders(files: list[Path], pattern: str) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(pattern, line.split("//")[0])
    ]


def outside(files: list[Path], *folders: str) -> list[Path]:
    return [p for p in files if not any(p.is_relative_to(ROOT / f) for f in folders)]


ALL = ("include", "csrc")


@pytest.mark.parametrize(
    ("files", "pattern"),
    [
        pytest.param(
            outside(sources(*ALL), "csrc/torch"),
            r"#include [<\"](torch/csrc|torch/headeronly|ATen)",
            id="torch-only-in-csrc-torch",
        ),
        pytest.param(
            outside(sources(*ALL), "csrc/python"),
            r"#include <(pybind11|Python\.h)",
            id="pybind11-only-in-csrc-python",
        ),
        pytest.param(
            outside(sources(*ALL), "include/flash_attn4/device/ptx"),
            r"\basm( volatile)?\b *\(",
            id="asm-only-in-device-ptx",
        ),
        pytest.param(
            sources("include/flash_attn4/core"),
            r"#include [<\"](cuda|cute|cutlass|torch)",
            id="core-is-plain",
        ),
        pytest.param(
            outside(sources(*ALL), "csrc/driver", "csrc/emulator", "include/flash_attn4/device"),
            r"#include <cuda(_runtime)?\.h>",
            id="driver-api-only-in-csrc-driver-and-emulator",
        ),
        pytest.param(sources(*ALL), r"#include [<\"]cute/tensor\.hpp", id="no-cute-tensor"),
        pytest.param(
            sources("csrc/driver"),
            r"#include \"csrc/(dispatch|torch|cpu|common|python)/",
            id="driver-knows-no-attention",
        ),
        pytest.param(
            sources("csrc/cpu"),
            r"#include \"csrc/(dispatch|torch|driver|common|python)/",
            id="cpu-stands-alone",
        ),
        pytest.param(
            sources("csrc/emulator"),
            # Of the CPU backend only its vector types, of the driver seam only the table's type.
            r"#include \"csrc/(?!emulator/|driver/driver\.h\"|cpu/isa/vec\.h\")",
            id="emulator-knows-no-attention",
        ),
        pytest.param(
            outside(sources(*ALL), "csrc/emulator"),
            r"#include \"csrc/emulator/",
            id="emulator-is-reached-by-its-table-and-header",
        ),
        pytest.param(
            outside(sources("csrc"), "csrc/emulator", "csrc/python"),
            r"#include \"flash_attn4/emulator\.h",
            id="ops-know-the-emulator-as-a-driver-only",
        ),
    ],
)
def test_layer(files: list[Path], pattern: str) -> None:
    assert offenders(files, pattern) == []


def test_files_stay_short() -> None:
    long = {
        str(p.relative_to(ROOT)): count
        for p in [
            *sources(*ALL, "tests"),
            *(ROOT / "flash_attn4").glob("*.py"),
            *(ROOT / "tests").rglob("*.py"),
            *(ROOT / "benchmarks").rglob("*.py"),
        ]
        if (count := len(p.read_text().splitlines())) > 600
    }
    assert long == {}


def test_cmake_lists_every_source() -> None:
    listed = "".join(
        p.read_text() for p in [ROOT / "CMakeLists.txt", *sorted((ROOT / "cmake").glob("*.cmake"))]
    )
    missing = [
        str(p.relative_to(ROOT))
        for p in sources("csrc", "tests", "examples")
        if p.suffix == ".cpp"
        and p.parent != ROOT / "examples" / "cpp"
        and str(p.relative_to(ROOT)) not in listed
    ]
    assert missing == []
