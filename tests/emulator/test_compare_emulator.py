"""tools/compare_emulator.py: it runs every Hopper kernel, and notices wrong values.

Another machine's results are those of the emulator with everything different that hardware leaves
open, and with one thing wrong.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from kernel_list import KERNELS
from torch import Tensor

pytest.importorskip(
    "flash_attn4.emulator", reason="no emulator in this build", exc_type=ImportError
)

pytestmark = pytest.mark.cpu_only("switches the emulator on itself")

TOOLS = Path(__file__).resolve().parents[2] / "tools"
sys.path.insert(0, str(TOOLS))
import compare_emulator as tool  # noqa: E402

ENTRIES = {entry.name: entry for entry in tool.entries()}
WITH_SINK = "head_dim=40,head_dim_v=24,causal=True,sink=float32,layout=padded"
PACKED = "packed with empty ones,causal=True"
EXACT = "exact,dtype=float16,seqlen_q=260,seqlen_k=333,causal=True"
COMBINE = "combine,torch.float16"


def outcomes(name: str, other: Callable[..., list[Tensor]]) -> dict[str, bool]:
    return {c.tensor: c.passed for c in ENTRIES[name].run(tool.emulated, other)}


class Wrong:
    """A machine whose result `index` of calls with `count` results is wrong."""

    def __init__(self, index: int, count: int, change: Callable[[Tensor], None]) -> None:
        self.index, self.count, self.change = index, count, change

    def __call__(self, op: Any, *args: Any) -> list[Tensor]:
        results = tool.emulated_otherwise(op, *args)
        if len(results) == self.count:
            self.change(results[self.index])
        return results


def largest(x: Tensor) -> tuple[Tensor, ...]:
    return torch.unravel_index(x.abs().nan_to_num(posinf=0.0).argmax(), x.shape)


def smaller(x: Tensor) -> None:
    x[largest(x)] *= 0.9


def nan(x: Tensor) -> None:
    x[largest(x)] = torch.nan


def swapped_rows(x: Tensor) -> None:
    x[:, :2] = x[:, :2].flip(1)


def noisy(x: Tensor) -> None:
    """Every element in the next 16-bit value: half of the error that a lost rounding makes."""
    x.mul_(1 + torch.finfo(x.dtype).eps)


def later(x: Tensor) -> None:
    x += 5e-5


def next_value(x: Tensor) -> None:
    x.view(torch.int16)[largest(x)] += 1


def test_every_hopper_kernel_is_compared() -> None:
    expected = {kernel.name for kernel in KERNELS if kernel.target == "sm90a"}
    assert {name for entry in ENTRIES.values() for name in entry.kernels} == expected


@pytest.mark.parametrize("name", [WITH_SINK, PACKED, EXACT, COMBINE])
def test_what_hardware_leaves_open_passes(name: str) -> None:
    passed = outcomes(name, tool.emulated_otherwise)
    assert passed
    assert all(passed.values()), passed


RESULTS = {"out": (0, 2), "lse": (1, 2), "dq": (0, 4), "dk": (1, 4), "dv": (2, 4), "dsink": (3, 4)}


@pytest.mark.parametrize("change", [smaller, nan])
@pytest.mark.parametrize("tensor", RESULTS)
def test_a_wrong_element_is_noticed(tensor: str, change: Callable[[Tensor], None]) -> None:
    passed = outcomes(WITH_SINK, Wrong(*RESULTS[tensor], change))
    assert [name for name, good in passed.items() if not good] == [tensor]


@pytest.mark.parametrize("tensor", ["out", "dq", "dk", "dv"])
@pytest.mark.parametrize("change", [swapped_rows, noisy])
def test_elements_that_are_all_wrong_are_noticed(
    tensor: str, change: Callable[[Tensor], None]
) -> None:
    passed = outcomes(WITH_SINK, Wrong(*RESULTS[tensor], change))
    assert [name for name, good in passed.items() if not good] == [tensor]


@pytest.mark.parametrize("name", [WITH_SINK, PACKED, COMBINE])
def test_lse_that_is_off_is_noticed(name: str) -> None:
    passed = outcomes(name, Wrong(*RESULTS["lse"], later))
    assert [tensor for tensor, good in passed.items() if not good] == ["lse"]


@pytest.mark.parametrize("tensor", ["out", "dq", "dk", "dv"])
def test_exact_calls_have_to_give_the_same_bits(tensor: str) -> None:
    passed = outcomes(EXACT, Wrong(*RESULTS[tensor], next_value))
    assert [name for name, good in passed.items() if not good] == [tensor]


def test_exact_calls_have_results() -> None:
    for name, entry in ENTRIES.items():
        if name.startswith("exact"):
            compared = entry.run(tool.emulated, tool.emulated)
            assert all(c.largest > 0.5 for c in compared), name


def test_the_module_emulator_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    q = torch.randn(1, 70, 2, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = tool.emulated(torch.ops.fa4.fwd, q, q, q)
    monkeypatch.setattr(tool, "emulator", None)
    got = tool.emulated(torch.ops.fa4.fwd, q, q, q)
    assert all(map(torch.equal, got, expected))
    assert not torch.equal(got[1], torch.ops.fa4.fwd(q, q, q)[1])  # of the CPU backend


def test_a_failure_ends_up_in_the_results(capsys: pytest.CaptureFixture[str]) -> None:
    chosen = [ENTRIES[COMBINE]]
    wrong = Wrong(*RESULTS["out"], smaller)
    (result,) = tool.compare_all(chosen, tool.emulated, wrong)
    assert not result["passed"]
    assert [tensor["passed"] for tensor in result["tensors"]] == [False, True]
    assert capsys.readouterr().out.count("FAILED") == 1


def test_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("provenance.gpus", list)
    chosen = [ENTRIES[COMBINE], ENTRIES[WITH_SINK]]
    results = tool.compare_all(chosen, tool.emulated, Wrong(*RESULTS["dk"], nan))
    tool.write_report(tmp_path / "report.json", results)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["counts"] == {"calls": 2, "calls_failed": 1, "tensors": 8, "tensors_failed": 1}
    assert "fa4_combine_sm90_fp16" in report["kernels"]
    assert report["rules"][0].startswith("exact")
    (failed,) = [t for r in report["results"] for t in r["tensors"] if not t["passed"]]
    assert (failed["tensor"], failed["passed"]) == ("dk", False)
    assert "NaN at the wrong places" in failed["reason"]
