"""Our kernels at the letter of the PTX ISA, and as their plans say."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

import fwd_schedules
import pytest
import torch
from cases import Case
from fwd_schedules import Call, Options, Packed, Problem, emulator, problem, random_schedule
from test_use import GENERATED

from flash_attn4 import _C

pytestmark = pytest.mark.cpu_only("switches the emulator on itself")

PLANS = emulator.kernel_plans()

HD96 = {"head_dim": 96, "head_dim_v": 96}
HD128 = {"head_dim": 128, "head_dim_v": 128}
HD192 = {"head_dim": 192, "head_dim_v": 128}


def schedules(request: pytest.FixtureRequest) -> list[Options]:
    seeds = range(1, 21 if request.config.getoption("--full") else 3)
    plain = [Options(), Options(policy="lazy"), *map(random_schedule, seeds)]
    # Pairs have test_fwd_sm100_pair.py.
    return [replace(options, check="strict", plans=PLANS, ctas=1) for options in plain]


# ---- Kernels are clean ---------------------------------------------------------------------------

BOTH: list[Call] = [
    Case(batch=1, seqlen_q=400, seqlen_k=700, heads_q=2, **HD128),
    Case(seqlen_q=260, seqlen_k=300, causal=True, seqused=True, dtype="float16", **HD128),
    Case(seqlen_q=200, seqlen_k=333, window=(70, 20), softcap=4.0, sink="float32", data="hot"),
    # Several tiles per block of threads, of which a GPU holds 132 or 148.
    Case(batch=1, seqlen_q=300, seqlen_k=300, heads_q=100, heads_k=50, causal=True),
    Case(batch=200, seqlen_q=20, seqlen_k=70, heads_q=2, heads_k=1, dtype="float16", **HD128),
    # NaN behind the keys that count.
    Packed((70, 260, 1), (200, 300, 129), (170, 257, 128), Case(causal=True, **HD128)),
    Packed((3, 0, 300), (300, 40, 150), (0, 40, 150), Case(causal=True, heads_q=10)),
]
SM100_ALONE: list[Call] = [
    Case(batch=1, seqlen_q=520, seqlen_k=777, heads_q=1, heads_k=1, causal=True, **HD96),
    Case(batch=150, seqlen_q=30, seqlen_k=200, window=(60, 9), heads_q=2, seqused=True, **HD96),
    Packed((129, 64), (127, 333), (127, 321), Case(window=(90, -1), sink="float32", **HD96)),
    Case(batch=1, seqlen_q=130, seqlen_k=800, heads_q=2, dtype="float16", **HD192),
    Case(batch=150, seqlen_q=5, seqlen_k=140, heads_q=2, causal=True, **HD192),
    Packed((40, 140, 90), (50, 260, 300), (30, 200, 289), Case(dtype="float16", **HD192)),
]
BACKWARD: list[Call] = [
    Case(batch=1, seqlen_q=700, seqlen_k=500),
    Case(seqlen_q=300, seqlen_k=260, causal=True, dtype="float16"),
    Case(seqlen_q=200, seqlen_k=333, window=(70, 20), softcap=4.0, heads_q=2, heads_k=1),
    Case(batch=20, seqlen_q=100, seqlen_k=200, heads_q=8, heads_k=4),
    Case(seqlen_q=140, seqlen_k=260, causal=True, seqused=True),
    Packed((70, 260, 1), (200, 300, 129), (170, 257, 128), Case(causal=True)),
]
BACKWARD += [
    replace(call, **HD128) if isinstance(call, Case) else replace(call, dense=Case(**HD128))
    for call in BACKWARD
]


@pytest.mark.sampled(
    "arch,call", [*(("sm100", x) for x in (*SM100_ALONE, *BOTH)), *(("sm90", x) for x in BOTH)], 13
)
def test_forward(arch: str, call: Call, request: pytest.FixtureRequest) -> None:
    error = fwd_schedules.EXP2_ERROR[arch]
    fwd_schedules.check_schedules(arch, call, schedules(request), error)


BACKWARD_SM100_ALONE: list[Call] = [
    replace(call, **HD96) if isinstance(call, Case) else replace(call, dense=Case(**HD96))
    for call in BACKWARD[:6]
]


@pytest.mark.sampled(
    "arch,call",
    [
        *((arch, x) for arch in ("sm90", "sm100") for x in BACKWARD),
        *(("sm100", x) for x in BACKWARD_SM100_ALONE),
    ],
    14,
)
def test_backward(arch: str, call: Call, request: pytest.FixtureRequest) -> None:
    """Deterministic in every second schedule."""
    work = problem(call)
    for number, options in enumerate(schedules(request)):
        work.arguments["deterministic"] = number % 2 == 1
        for gradient in gradients(arch, work, options):
            assert gradient.isfinite().all(), options


def gradients(arch: str, work: Problem, options: Options) -> tuple[torch.Tensor, ...]:
    leaves = [x.detach().requires_grad_() for x in (work.inputs.q, work.inputs.k, work.inputs.v)]
    q, k, v = leaves
    with emulator.use(arch, options):
        out, _ = replace(work, inputs=replace(work.inputs, q=q, k=k, v=v)).forward()
        return torch.autograd.grad(out, leaves, work.inputs.dout.reshape(out.shape))


# ---- Kernels that differ from their plan are not -------------------------------------------------


def ptx_of(kernel: str) -> str:
    path = GENERATED / f"{kernel}.ptx"
    if not path.exists():
        pytest.skip(f"no {path}: the build was made elsewhere")
    return path.read_text()


def run(kernel: str, ptx: str) -> None:
    """A small call that takes `kernel`, which runs as `ptx`."""
    facts = re.fullmatch(r"fa4_(fwd|bwd)_(sm\d+)_hd(\d+)(_pair)?_(bf16|fp16)", kernel)
    assert facts is not None, kernel
    op, arch, head_dim, pair, dtype = facts.groups()
    dim = int(head_dim)
    dtype = {"bf16": "bfloat16", "fp16": "float16"}[dtype]
    ctas = 1 if pair is None else 2
    # Only where rows do not count does the mma role of a pair's backward arrive anywhere.
    ragged = op == "bwd" and ctas == 2
    work = problem(Case(dtype, 1, 700, 900, 1, 1, dim, min(dim, 128), seqused=ragged))
    options = Options(check="strict", plans=PLANS, images={kernel: ptx}, ctas=ctas)
    if op == "fwd":
        fwd_schedules.run(arch, work, options)
    else:  # every role takes part in the deterministic mode alone
        arguments = work.arguments | {"deterministic": True}
        gradients(arch, replace(work, arguments=arguments), options)


def reports(
    kernel: str, site: str, change: Callable[[re.Match[str]], str]
) -> Iterator[tuple[int, str]]:
    """Of the kernel with one place of its PTX changed, for each: its number, and what is reported,
    which is nothing where the call does not get there."""
    ptx = ptx_of(kernel)
    for index, found in enumerate(re.finditer(site, ptx)):
        changed = ptx[: found.start()] + change(found) + ptx[found.end() :]
        try:
            run(kernel, changed)
        except RuntimeError as error:
            yield index, str(error)


ALL = sorted(PLANS)
ONE_PER_PLAN = [kernel for kernel in ALL if kernel.endswith("bf16")]
ONE_PER_SOURCE = [
    kernel for kernel in ONE_PER_PLAN if "hd128" in kernel or "bwd_sm100_hd192" in kernel
]


def test_kernels_with_mbarriers_have_a_plan() -> None:
    built = [kernel["name"] for kernel in _C.kernels() if kernel["target"] != "cpu"]
    assert sorted(name for name in built if "mbarrier.init" in ptx_of(name)) == ALL


@pytest.mark.parametrize("kernel", ONE_PER_PLAN)
def test_a_count_of_arrivals_is_compared(kernel: str) -> None:
    """Kernels initialise their rings in the order of the plan, each in one place of the PTX."""
    rings = PLANS[kernel].barriers
    site = r"(mbarrier\.init\.shared::cta\.b64 \[%r\d+\]), %r\d+;"
    numbers = []
    for number, report in reports(kernel, site, lambda found: f"{found[1]}, 77;"):
        ring = rings[number]
        name = ring.name if ring.stages == 1 else f"{ring.name}[0]"
        says = f"plan: {name} expects {ring.arrivals} arrivals, mbarrier.init in line"
        assert says in report
        assert "says 77" in report
        numbers.append(number)
    assert numbers == [*range(len(rings))]


ARRIVAL = r"mbarrier\.arrive(\.release\.cluster)?\.shared::(cta|cluster)\.b64 _, \[%r\d+\];"


@pytest.mark.parametrize("kernel", ONE_PER_SOURCE)
def test_an_arrival_at_another_mbarrier_is_named(kernel: str) -> None:
    """Every role that arrives somewhere does so at a ring that copies complete."""
    rings = PLANS[kernel].barriers
    wrong = next(
        ring for ring in rings if ring.done == "bytes" and (ring.stages > 1 or ring.holder == "own")
    )
    name = wrong.name if wrong.stages == 1 else f"{wrong.name}[0]"
    arrival = f"mbarrier.arrive.shared::cta.b64 _, [{0x400 + wrong.offset}];"
    roles = set()
    for _, report in reports(kernel, ARRIVAL, lambda _: arrival):
        found = re.search(
            rf"plan: {re.escape(name)}: warp \d+ (?:of CTA \d )?\((\w+)\) arrives", report
        )
        assert found is not None, report
        roles.add(found[1])
    assert roles == {role for ring in rings if ring.done == "threads" for role in ring.signals}


@pytest.mark.parametrize("kernel", ONE_PER_SOURCE)
def test_a_missing_arrival_is_named(kernel: str) -> None:
    """Who waits for it in vain is reported with the row of the plan."""
    names = set()
    for _, report in reports(kernel, ARRIVAL, lambda _: ""):
        waits = re.findall(r"waits for the end of phase \d+ of mbarrier 0x\w+ (\S+) ", report)
        assert waits, report
        names.update(name.split("[")[0] for name in waits)
    assert names
    assert names <= {ring.name for ring in PLANS[kernel].barriers}


# ---- Grids that begin early ----------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [name for name in ONE_PER_SOURCE if "bwd" in name])
def test_a_missing_wait_for_the_grids_before_is_named(kernel: str) -> None:
    """Backward kernels begin while what prepares their rows may still write."""
    found = [*reports(kernel, r"griddepcontrol\.wait;", lambda _: "")]
    assert len(found) == 1
    assert re.search(
        r"warp \d+.*, line \d+.*, uses global memory that the grids before this one may still "
        "write: no griddepcontrol.wait before it",
        found[0][1],
    )
