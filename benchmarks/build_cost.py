"""`run.py compile`: what each kernel and each source of the library costs to compile.

Configures a build of its own, without ccache, and runs its commands one after the other.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import report

TARGET = "fa4"  # the library without torch: every kernel, every host source but the bindings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--archs", default="cpu;sm90a;sm100f", help="FA4_ARCHS of the build")


def run(args: argparse.Namespace) -> Iterator[report.Record]:
    total, peak = 0.0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        _configure(Path(folder), args.archs)
        for output, command in _commands(Path(folder)):
            seconds, peak_mb = _cost(command, folder)
            total, peak = total + seconds, max(peak, peak_mb)
            yield {"case": output, "cpu_seconds": seconds, "peak_mb": peak_mb}
    yield {"case": "all", "cpu_seconds": total, "peak_mb": peak}


def _configure(folder: Path, archs: str) -> None:
    options = [f"-DFA4_ARCHS={archs}", "-DFA4_CCACHE=OFF", "-DFA4_PYTHON=OFF"]
    command = ["cmake", "-G", "Ninja", "-S", str(report.ROOT), "-B", str(folder), *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _commands(folder: Path) -> Iterator[tuple[str, str]]:
    """(name of the output, command line), in an order that respects dependencies."""
    ninja = ["ninja", "-C", str(folder), "-t"]
    database = subprocess.run([*ninja, "compdb"], check=True, capture_output=True, text=True)
    outputs = {edge["command"]: edge["output"] for edge in json.loads(database.stdout)}
    ordered = subprocess.run([*ninja, "commands", TARGET], check=True, capture_output=True)
    for command in ordered.stdout.decode().splitlines():
        name = Path(outputs[command]).name
        if not name.startswith("lib"):
            yield name.removesuffix(".o"), command


# A process counts the memory of the one it was forked from, so a small one stands between.
_MEASURE = """
import json, resource, subprocess, sys
status = subprocess.call(sys.argv[1], shell=True, stdout=subprocess.DEVNULL)
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([status, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e3]))
"""


def _cost(command: str, folder: str) -> tuple[float, float]:
    """CPU-seconds of the command and of all it starts, and the largest of their memories in MB."""
    measure = [sys.executable, "-I", "-S", "-c", _MEASURE, command]
    done = subprocess.run(measure, cwd=folder, check=True, stdout=subprocess.PIPE)
    status, seconds, peak_mb = json.loads(done.stdout)
    if status != 0:
        raise SystemExit(f"compile: exit status {status}: {command}")
    return round(seconds, 2), round(peak_mb)
