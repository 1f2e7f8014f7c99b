"""Host time of a call on a GPU: launches that return before the kernel ends, and the first call.

The tensors are small enough that no implementation's kernel takes as long as its call.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import peers
import report
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

SHAPE = 1, 128, 16, 128  # batch, seqlen, heads, head_dim; causal
CALLS = 1000  # before one synchronize: fewer than a GPU's launch queue holds
ROUNDS = 5
FIRST_CALL_GOAL_MS = 100

Function = Callable[[], object]
Context = Callable[[], AbstractContextManager[Any]]  # what a function's calls stand in


FREE: Context = contextlib.nullcontext


def backend(choice: SDPBackend) -> Context:
    """torch's attention by this backend, chosen once and not at every call."""
    return lambda: sdpa_kernel([choice])


def functions() -> dict[str, tuple[Function, Context]]:
    from flash_attn4 import flash_attn_func

    q, k, v = (torch.randn(SHAPE, device="cuda").bfloat16() for _ in range(3))
    number = torch.zeros(1, device="cuda")
    op: Any = torch.ops.fa4.fwd.default
    q_sdpa, k_sdpa, v_sdpa = (x.transpose(1, 2) for x in (q, k, v))

    def sdpa() -> object:
        return scaled_dot_product_attention(q_sdpa, k_sdpa, v_sdpa, is_causal=True)

    found: dict[str, tuple[Function, Context]] = {
        "torch.ops.fa4.fwd": (lambda: op(q, k, v, None, True), FREE),
        "flash_attn4.flash_attn_func": (lambda: flash_attn_func(q, k, v, causal=True), FREE),
        "sdpa, torch's choice": (sdpa, FREE),
        "sdpa, FA2": (sdpa, backend(SDPBackend.FLASH_ATTENTION)),
        "sdpa, cuDNN": (sdpa, backend(SDPBackend.CUDNN_ATTENTION)),
        "a.add_(1)": (lambda: number.add_(1), FREE),
    }
    try:
        fa3 = peers.fa3(peers.Problem(q, k, v, True, (SHAPE[1],)))
        raw: Any = torch.ops.flash_attn_3.fwd
    except Exception as error:
        print(f"FA3 missing: {type(error).__name__}: {error}")
        return found
    found["FA3, raw op"] = (lambda: raw(q, k, v, is_causal=True, num_splits=1), FREE)
    found["FA3, flash_attn_func"] = fa3, FREE
    return found


def run() -> Iterator[report.Record]:
    with torch.no_grad():
        working = warmed_up(functions())
        for name, rounds in interleave(working).items():
            yield _record(f"{name}, no grad", "us/call", rounds)
    yield from first_call()


def interleave(
    chosen: Mapping[str, tuple[Function, Context]],
    synchronize: Callable[[], None] = torch.cuda.synchronize,
    now: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Microseconds of a call in each round, of CALLS calls and the wait for the last."""
    order = list(chosen)
    rounds: dict[str, list[float]] = {name: [] for name in order}
    for _ in range(ROUNDS):
        for name in order:
            function, context = chosen[name]
            with context():
                synchronize()
                start = now()
                for _ in range(CALLS):
                    function()
                synchronize()
                rounds[name].append(1e6 * (now() - start) / CALLS)
        order.append(order.pop(0))
    return rounds


def warmed_up(
    found: Mapping[str, tuple[Function, Context]],
) -> dict[str, tuple[Function, Context]]:
    """Those whose calls succeed, each called a few times."""
    working = {}
    for name, (function, context) in found.items():
        try:
            with context():
                for _ in range(10):
                    function()
            torch.cuda.synchronize()
        except Exception as error:
            print(f"{name} missing: {type(error).__name__}: {error}")
            continue
        working[name] = function, context
    return working


# The context exists and torch's kernels have run, so that what is left is ours.
_FIRST_CALL = """
import json, sys, time
import torch
start = time.perf_counter()
import flash_attn4
import_ms = 1e3 * (time.perf_counter() - start)
device, *shape = sys.argv[1:]
wait = torch.cuda.synchronize if device == "cuda" else lambda: None
q, k, v = (torch.randn(*map(int, shape), device=device).bfloat16() for _ in range(3))
times = []
for _ in range(2):
    wait()
    start = time.perf_counter()
    flash_attn4.flash_attn_func(q, k, v, causal=True)
    wait()
    times.append(1e3 * (time.perf_counter() - start))
print(json.dumps([import_ms, *times]))
"""


def first_call(device: str = "cuda", processes: int = 3) -> Iterator[report.Record]:
    """Import, first and second call in processes of their own, one after the other."""
    command = [sys.executable, "-c", _FIRST_CALL, device, *map(str, SHAPE)]
    samples = []
    for _ in range(processes):
        done = subprocess.run(command, cwd=report.ROOT, capture_output=True, text=True)
        if done.returncode != 0:
            print("first call failed:", done.stderr.strip().rpartition("\n")[2])
            return
        samples.append(json.loads(done.stdout))
    imports, firsts, seconds = zip(*samples, strict=True)
    yield _record("import flash_attn4 after torch", "ms", imports)
    yield _record(f"first call of a process (goal {FIRST_CALL_GOAL_MS})", "ms", firsts)
    yield _record("second call of a process", "ms", seconds)


def _record(case: str, unit: str, rounds: list[float] | tuple[float, ...]) -> report.Record:
    fifths = statistics.quantiles(rounds, n=5, method="inclusive")
    spread = [fifths[0], fifths[3]]
    rate = statistics.median(rounds)
    return {"case": case, "unit": unit, "rate": rate, "spread": spread, "rounds": list(rounds)}
