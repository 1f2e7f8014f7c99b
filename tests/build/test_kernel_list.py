"""The kernel list against what was built: names, symbols, resources, and the README's table."""

from __future__ import annotations

import re
import sysconfig
from pathlib import Path

import pytest
from kernel_list import FEATURES, KERNELS, TARGETS, markdown

ROOT = Path(__file__).resolve().parents[2]
GENERATED = ROOT / "build" / f"cmake-{sysconfig.get_config_var('SOABI')}" / "generated"


def built() -> list:
    """Rows of the compiled library."""
    from flash_attn4 import _C

    return _C.kernels()


def built_gpu_names() -> list[str]:
    return [row["name"] for row in built() if row["target"] != "cpu"]


def test_names_follow_the_rule() -> None:
    assert len({k.name for k in KERNELS}) == len(KERNELS)
    for kernel in KERNELS:
        assert kernel.target in TARGETS
        assert set(kernel.features) <= set(FEATURES)
        if kernel.target != "cpu":
            arch = re.match(r"sm\d+", kernel.target)
            assert arch is not None
            assert re.fullmatch(rf"fa4_{kernel.op}_{arch[0]}(_\w+)?", kernel.name), kernel.name


def test_at_most_24_kernels_per_architecture_and_operation() -> None:
    groups = {(k.target, k.op) for k in KERNELS}
    for target, op in groups:
        assert sum(k.target == target and k.op == op for k in KERNELS) <= 24


def test_compiled_rows_are_the_list() -> None:
    rows = {row["name"]: row for row in built()}
    targets = {row["target"] for row in rows.values()}
    expected = [k for k in KERNELS if k.target in targets]
    assert list(rows) == [k.name for k in expected]
    for kernel in expected:
        row = rows[kernel.name]
        assert (row["op"], row["target"]) == (kernel.op, kernel.target)
        assert set(row["dtypes"]) == set(kernel.dtypes)
        assert row["features"] == list(kernel.features)
        assert row["head_dim"] == kernel.head_dim
        assert row["head_dim_v"] == kernel.head_dim_v


def test_no_spills_and_no_stack() -> None:
    names = built_gpu_names()
    if not names:
        pytest.skip("this build has no GPU kernels (FA4_ARCHS=cpu)")
    for name in names:
        report = (GENERATED / f"{name}.log").read_text()
        found = re.search(
            rf"properties for {name}\s+(\d+) bytes stack frame, (\d+) bytes spill stores, "
            r"(\d+) bytes spill loads",
            report,
        )
        assert found, f"{name}: no resource report in:\n{report}"
        assert [int(n) for n in found.groups()] == [0, 0, 0], f"{name}: {found[0]}"
        assert not re.search(r"\bC75\d\d\b|warning", report), report


def test_every_image_is_small() -> None:
    total = sum(row["cubin_bytes"] + row["ptx_bytes"] for row in built())
    assert total < 40e6, f"{total} bytes of images: the wheel's budget is 40 MB"


def test_readme_support_table_is_the_list() -> None:
    assert markdown() in (ROOT / "README.md").read_text(), (
        "README.md: put in what `python csrc/dispatch/kernel_list.py --markdown` prints"
    )


def test_readme_walk_names_what_exists() -> None:
    """Every step of the README's walk names a file and something defined in it."""
    text = (ROOT / "README.md").read_text()
    walk = text.split("## The walk", 1)[1].split("\n## ", 1)[0]
    steps = re.findall(r"^\d+\. `([^`]+)` `([^`]+)`", walk, flags=re.MULTILINE)
    assert len(steps) >= 6
    for file, name in steps:
        source = (ROOT / file).read_text()
        assert re.search(rf"\b{re.escape(name)}\b", source), f"{file} does not hold {name}"
