"""Loads and launches PTX texts that come on standard input, in a process that may crash.

    python ptx_fuzz_worker.py EXTENSION

EXTENSION is the file of flash_attn4._C, which needs no torch. A job is its length in bytes, a
line, and the text. The answer is a JSON line: {"load": outcome, "launches": [outcome, ...]}; an
outcome is "ok" or [name of the exception, message].
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import resource
import struct
import sys
import types
from pathlib import Path
from typing import Any

# Beyond it an allocation fails, which is no documented error. Sanitizers reserve more than that.
MOST_MEMORY = 8 << 30
MOST_STEPS = 20_000
BUFFER_BYTES = 1 << 16


def load_extension(path: str) -> Any:
    spec = importlib.util.spec_from_file_location("_C", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.emulator


def options(seed: int) -> types.SimpleNamespace:
    return types.SimpleNamespace(
        policy=("eager", "lazy", "random")[seed % 3],
        seed=seed,
        accumulate=("sequential", "exact")[seed % 2],
        order="ascending",
        perturbation=0.0,
        random_election=seed % 2 == 1,
        check_uninitialized=seed % 5 != 0,
        threads=1,
        max_steps=MOST_STEPS,
        stall_steps=MOST_STEPS,
        resident_clusters=0,
        trace=seed % 7 == 0,
        check=("off", "strict", "deployed")[seed % 3],
        max_findings=3,
        plans={},
        barrier_names={},
    )


def extent(declared: tuple[int, int, int], otherwise: int) -> tuple[int, int, int]:
    x, y, z = declared
    return (x, y or 1, z or 1) if x else (otherwise, 1, 1)


def parameters(size: int, address: int) -> bytes:
    """Addresses of the buffer and small numbers in turn."""
    words = [address + 64 * i if i % 3 == 0 else i for i in range(size // 8 + 1)]
    return struct.pack(f"<{len(words)}Q", *words)[:size]


def outcome(action: Any) -> tuple[Any, Any]:
    try:
        return "ok", action()
    except Exception as error:
        return [type(error).__name__, str(error)], None


def launch(module: Any, kernel: dict[str, Any], buffer: Any) -> Any:
    address = ctypes.addressof(buffer)
    shape = (
        extent(kernel["required_cluster"], 1),
        extent(kernel["required_threads"], min(64, kernel["max_threads"][0] or 64)),
        extent(kernel["required_cluster"], 1),
    )
    block = parameters(kernel["parameter_bytes"], address)
    memory = [(address, BUFFER_BYTES)]
    chosen = options(kernel["instructions"])
    return outcome(lambda: module.launch(kernel["name"], shape, 4096, block, memory, chosen))[0]


def main() -> None:
    emulator = load_extension(sys.argv[1])
    if "libasan" not in Path("/proc/self/maps").read_text():
        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    buffer = (ctypes.c_uint8 * BUFFER_BYTES)()
    jobs = sys.stdin.buffer
    answers = os.fdopen(os.dup(1), "w")  # what kernels print goes to standard output
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    while header := jobs.readline():
        text = jobs.read(int(header)).decode("latin-1")
        loaded, module = outcome(lambda text=text: emulator.Module(text, "fuzz.ptx"))
        launches = [] if module is None else [launch(module, k, buffer) for k in module.kernels()]
        print(json.dumps({"load": loaded, "launches": launches}), file=answers, flush=True)


if __name__ == "__main__":
    main()
