"""tools/sanitize.py without its tools: that every call runs, and how an outcome is read."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Device

import flash_attn4  # noqa: F401  (registers torch.ops.fa4)

TOOLS = Path(__file__).resolve().parents[2] / "tools"
sys.path.insert(0, str(TOOLS))
import sanitize  # noqa: E402
import sanitize_calls  # noqa: E402

CALLS = [
    pytest.param(call, id=f"{name}: {title}")
    for name, calls in sanitize_calls.CALLS.items()
    for title, call in calls.items()
]


@pytest.fixture(autouse=True)
def _on_device(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sanitize_calls, "DEVICE", str(device.torch))


@pytest.mark.parametrize("call", CALLS)
def test_call_runs(call: Callable[[], None]) -> None:
    call()


class Spy(torch.utils._python_dispatch.TorchDispatchMode):
    """The names of the ops, and whether they are deterministic."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, bool]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "fa4":
            names = [argument.name for argument in func._schema.arguments]
            given = dict(zip(names, args, strict=False), **(kwargs or {}))
            self.seen.append((func._opname, given.get("deterministic", False)))
        return func(*args, **(kwargs or {}))


@pytest.mark.cpu_only("the same ops are called on every device")
def test_calls_reach_every_op() -> None:
    with Spy() as spy:
        for calls in sanitize_calls.CALLS.values():
            for call in calls.values():
                call()
    assert {op for op, _ in spy.seen} == {
        *("fwd", "varlen_fwd", "fwd_out", "varlen_fwd_out", "bwd", "varlen_bwd", "bwd_out")
    }
    assert {op for op, deterministic in spy.seen if deterministic} == {"bwd", "varlen_bwd"}
    assert sum("bwd" in op for op, _ in spy.seen) == len(sanitize_calls.BACKWARD)


CLEAN = "call: forward, full\ncall: backward, full\n========= ERROR SUMMARY: 0 errors\n"


@pytest.mark.parametrize(
    ("output", "status", "outcome"),
    [
        (CLEAN, 0, "clean"),
        (CLEAN.replace("0 errors", "3 errors"), sanitize.FOUND, "found"),
        (CLEAN.replace("call: backward, full\n", ""), 0, "failed"),  # a call is missing
        (CLEAN.replace("ERROR SUMMARY", ""), 0, "failed"),  # it watched nothing
        (CLEAN, 1, "failed"),
        (CLEAN, -1, "no end within 120 s"),
        ("call: a\ncall: b\nRACECHECK SUMMARY: 1 hazard displayed", 0, "found"),
    ],
)
def test_outcome_of_a_tool(output: str, status: int, outcome: str) -> None:
    result = sanitize.read_output("memcheck", output, status, 2, 1.0)
    assert result["outcome"] == outcome
    assert bool(result["output"]) == (outcome != "clean")
