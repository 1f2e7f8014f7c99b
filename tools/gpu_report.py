"""Runs tests on a GPU and writes a report that can be committed: what ran where, how it ended.

    python tools/gpu_report.py --out docs/reports/seam-h100.json tests/gpu tests/ops/test_combine.py

The library under test is the one in flash_attn4/; its digest in the report tells which build.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import torch
from provenance import ROOT, provenance


def outcomes(junit: Path) -> list[dict[str, object]]:
    """One entry per test: name, outcome, and the reason of a failure or skip."""
    entries = []
    for case in ElementTree.parse(junit).iter("testcase"):
        problem = next((c for c in case if c.tag in ("failure", "error", "skipped")), None)
        entry: dict[str, object] = {
            "test": f"{case.get('classname')}::{case.get('name')}",
            "outcome": "passed" if problem is None else problem.tag,
        }
        if problem is not None:
            entry["reason"] = (problem.get("message") or "")[:500]
        entries.append(entry)
    return entries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("tests", nargs="+", help="arguments for pytest")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("gpu_report: needs a CUDA device, found none")
    with tempfile.TemporaryDirectory() as folder:
        junit = Path(folder) / "junit.xml"
        command = [sys.executable, "-m", "pytest", "-q", "--device", "cuda", f"--junitxml={junit}"]
        code = subprocess.run([*command, *options.tests], cwd=ROOT).returncode
        tests = outcomes(junit)
    counts = {
        o: sum(t["outcome"] == o for t in tests) for o in ("passed", "failure", "error", "skipped")
    }
    report = {
        **provenance(),
        "tests": options.tests,
        "counts": counts,
        "outcomes": tests,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"gpu_report: {counts} -> {options.out}")
    raise SystemExit(code)


if __name__ == "__main__":
    main()
