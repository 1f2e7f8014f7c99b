"""tools/timeline.py: every wait of a trace is in the picture and in the events, at its time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import machines
import pytest
import test_tma
from machines import Emulated

emulator = pytest.importorskip("flash_attn4.emulator", reason="no emulator in this build")
pytestmark = pytest.mark.cpu_only("a trace is the emulator's")

TOOL = machines.ROOT / "tools" / "timeline.py"


def traced(monkeypatch: pytest.MonkeyPatch) -> str:
    """The trace of a ring of loads, as JSON text."""
    results = []
    launch = emulator.Module.launch

    def recorded(*args: object, **keywords: object) -> object:
        results.append(launch(*args, **keywords))
        return results[-1]

    monkeypatch.setattr(emulator.Module, "launch", recorded)
    machine = Emulated("sm100", "eager")
    machine.options = emulator.Options(policy="lazy", trace=True)
    test_tma.test_tensor_ring(machine, steps=8)
    return results[-1].json()


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, TOOL, *map(str, arguments)], capture_output=True, text=True
    )


def test_pictures_show_every_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = traced(monkeypatch)
    (tmp_path / "trace.json").write_text(text)
    waits = [wait for warp in json.loads(text)["trace"] for wait in warp["waits"]]
    assert len(waits) > 8
    for name in ("timeline.svg", "events.json"):
        done = run(tmp_path / "trace.json", tmp_path / name, "--roles", "load,read")
        assert done.returncode == 0, done.stderr

    picture = ElementTree.parse(tmp_path / "timeline.svg")
    tips = [x.text or "" for x in picture.iter("{http://www.w3.org/2000/svg}title")]
    assert sorted(tips) == sorted(
        f"line {w['line']}, {w['begin']} to {w['end']}: {w['what']}" for w in waits
    )
    events = json.loads((tmp_path / "events.json").read_text())["traceEvents"]
    spans = sorted((e["ts"], e["dur"]) for e in events if e["ph"] == "X")
    assert spans == sorted((w["begin"], w["end"] - w["begin"]) for w in waits)
    assert "warp 0 load" in {e["args"]["name"] for e in events if e["ph"] == "M"}


def test_a_cluster_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trace.json").write_text(traced(monkeypatch))
    done = run(tmp_path / "trace.json", tmp_path / "x.svg", "--cluster", "7")
    assert done.returncode == 1
    assert "no warp of cluster 7 in the trace" in done.stderr
