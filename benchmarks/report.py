"""Results as lines on the screen, as JSON files and as Markdown tables."""

from __future__ import annotations

import datetime
import hashlib
import itertools
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gpu_report
import torch
import training
from peers import fa3_version
from timing import Timing

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"

Record = dict[str, Any]


def environment(device: str) -> Record:
    """What a figure depends on, beside the code."""
    import flash_attn4
    from flash_attn4._library import LIBRARY_PATH

    facts: Record = {
        "date": datetime.date.today().isoformat(),
        "commit": _git("rev-parse", "--short=10", "HEAD"),
        "modified": _git("status", "--porcelain", "--", "include", "csrc", "flash_attn4") != "",
        "library_sha256": hashlib.sha256(LIBRARY_PATH.read_bytes()).hexdigest(),
        "flash_attn4": flash_attn4.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cxx": _output([os.environ.get("CXX", "c++"), "--version"]).split("\n")[0],
        "nvcc": _output(["nvcc", "--version"]).split("\n")[-1],
        "cpu": _cpu_model(),
        "cpu_isa": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "load_average_before": load_average(),
    }
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        facts |= {
            "gpu": torch.cuda.get_device_name(),
            "capability": f"{major}.{minor}",
            "cuda": torch.version.cuda,
            "driver": _nvidia_smi("driver_version"),
            "power_limit_w": _nvidia_smi("power.limit"),
            "max_sm_clock_mhz": _nvidia_smi("clocks.max.sm"),
            "sm_clock_mhz": _nvidia_smi("clocks.sm"),
            "memory_clock_mhz": _nvidia_smi("clocks.mem"),
            "cudnn": _cudnn_version(),
            "fa3": fa3_version(),
        }
    return facts


def load_average() -> float:
    """Processes that ran at a time during the last minute."""
    return os.getloadavg()[0]


def _output(command: list[str]) -> str:
    """What the command prints; "unknown" where it does not exist or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def _git(*arguments: str) -> str:
    return _output(["git", "-C", str(ROOT), *arguments])


def _nvidia_smi(field: str) -> str:
    return _output(
        ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits", "--id=0"]
    )


def _cudnn_version() -> int | None:
    cudnn: Any = torch.backends.cudnn
    version: int | None = cudnn.version()
    return version


def _cpu_model() -> str:
    """The model name and, because virtual machines hide it, family and model numbers."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    found = dict(re.findall(r"^(model name|cpu family|model)\s*: (.*)$", text, re.MULTILINE))
    numbers = f"family {found.get('cpu family', '?')} model {found.get('model', '?')}"
    return f"{found.get('model name', platform.machine())} ({numbers})"


# ---- One case ------------------------------------------------------------------------------------


def timing_record(timings: dict[str, Timing], ours: str, flops: dict[str, float]) -> Record:
    """The record of one case.

    timings: by function; ours: the one that is compared with all others; flops: floating-point
    operations of one call, for those functions that have a rate.
    """
    record: Record = {"ours": ours, "functions": {}}
    for name, timing in timings.items():
        low, high = timing.spread_us
        function: Record = {
            "median_us": timing.median_us,
            "spread_us": [low, high],
            "calls": timing.calls,
            "rounds_us": [round(us, 3) for us in timing.rounds_us],
        }
        if name in flops:
            function["gflops"] = flops[name] / timing.median_us / 1e3
        if name != ours:
            function["ratio"] = timings[ours].ratio(timing)
        record["functions"][name] = function
    return record


def columns(record: Record) -> dict[str, str]:
    """The cells of one case, by column title."""
    if "flops" in record:
        return gpu_report.columns(record)
    if record.get("pass") == "training":
        return training.columns(record)
    cells = {"case": record["case"]}
    if "rate" in record:
        low, high = record["spread"]
        return cells | {
            record["unit"]: f"{record['rate']:.1f}",
            "20-80 %": f"{low:.1f}-{high:.1f}",
        }
    if "cpu_seconds" in record:
        cells |= {"CPU s": f"{record['cpu_seconds']:.2f}", "peak MB": f"{record['peak_mb']:.0f}"}
        return cells
    functions = dict(record["functions"])
    ours = functions.pop(record["ours"])
    low, high = ours["spread_us"]
    cells |= {"us": f"{ours['median_us']:.1f}", "20-80 %": f"{low:.1f}-{high:.1f}"}
    if "gflops" in ours:
        cells["GFLOP/s"] = f"{ours['gflops']:.1f}"
    for name, baseline in functions.items():
        if name == "matmul":
            cells["of matmul's"] = f"{ours['gflops'] / baseline['gflops']:.2f}"
        else:
            cells[f"{name} us"] = f"{baseline['median_us']:.1f}"
            cells[f"{name} / ours"] = f"{baseline['ratio']:.2f}"
    return cells


class Screen:
    """One line per case, as soon as it is measured."""

    def __init__(self) -> None:
        self.titles: list[str] = []
        self.notes: list[str] = []

    def show(self, record: Record) -> None:
        for note in gpu_report.notes(record):
            if note not in self.notes:  # once per reason, not once per case
                self.notes.append(note)
                print(note)
        cells = columns(record)
        if "failed" in cells:
            print(f"{cells['case']:<44}  failed: {cells['failed']}", flush=True)
            return
        if list(cells) != self.titles:
            self.titles = list(cells)
            self._print(self.titles)
        self._print(cells.values())

    def _print(self, texts: Iterable[str]) -> None:
        first, *rest = texts
        narrow = "share" in self.titles  # many short columns
        widths = [max(7 if narrow else 15, len(title)) for title in self.titles[1:]]
        line = [f"{text:>{width}}" for text, width in zip(rest, widths, strict=True)]
        print("  ".join([f"{first:<{28 if narrow else 44}}", *line]), flush=True)


# ---- Files ---------------------------------------------------------------------------------------


def save(section: str, records: list[Record], facts: Record, path: Path | None) -> Path:
    """Stores the section beside the others of the same day, device and commit."""
    device = re.sub(r"[^a-z0-9]+", "-", str(facts.get("gpu", facts["cpu"])).lower()).strip("-")
    path = path or RESULTS / f"{facts['date']}-{device}-{facts['commit']}.json"
    content = json.loads(path.read_text()) if path.exists() else {}
    content[section] = {"environment": facts, "cases": records}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")  # a run that is killed leaves the old file or the new one
    part.write_text(_one_line_per_case(content))
    part.replace(path)
    return path


def _one_line_per_case(content: Record) -> str:
    sections = []
    for name, section in content.items():
        cases = ",\n".join(json.dumps(case) for case in section["cases"])
        facts = json.dumps(section["environment"], indent=1)
        sections.append(
            f'{json.dumps(name)}: {{\n"environment": {facts},\n"cases": [\n{cases}\n]}}'
        )
    return "{\n" + ",\n".join(sections) + "\n}\n"


def summary_lines(records: list[Record]) -> list[str]:
    """What stands below a section's table."""
    if all(record.get("pass") == "training" for record in records):
        return training.summary(records)
    return gpu_report.summary_lines(records)


def markdown(path: Path) -> str:
    """The file as tables, one per section."""
    parts = []
    for name, section in json.loads(path.read_text()).items():
        facts = ", ".join(f"{fact}: {value}" for fact, value in section["environment"].items())
        parts.append(f"### {name}\n\n{facts}")
        rows = [columns(record) for record in section["cases"]]
        for titles, group in itertools.groupby(rows, key=list):  # cases of other units: a new table
            lines = [f"| {' | '.join(titles)} |", f"|{' --- |' * len(titles)}"]
            lines += [f"| {' | '.join(row.values())} |" for row in group]
            parts.append("\n".join(lines))
        means = summary_lines(section["cases"])
        parts += [f"```\n{chr(10).join(means)}\n```"] if means else []
    return "\n\n".join(parts)
