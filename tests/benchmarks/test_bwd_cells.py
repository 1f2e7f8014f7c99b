"""`run.py bwd` and `fwd_bwd` without a GPU: checks, records and goals, with invented times."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bwd
import correctness
import fwd_bwd
import gpu_cells
import gradient_peers
import host_gpu
import pytest
import report
import torch
from gpu_cells import Cell
from gpu_report import DETERMINISTIC
from invented import PER_CLOCK, invented_setup
from peers import Call, Peer, Problem
from torch import Tensor

pytestmark = pytest.mark.cpu_only("the times are invented")

CELL = Cell("gqa128", "causal", (160, 160))
CPU = torch.bfloat16, "cpu"
SMALL = Cell("hd64", "full", (96,))
LIMIT = correctness.GRADIENT_FLOAT64_ERROR[torch.bfloat16]
SDPA = gradient_peers.STEP_PEERS["sdpa"]  # the CPU has no other backend of torch's attention


def measure(
    cell: Cell, others: dict[str, Peer], *times: float, ours: Peer = gradient_peers.fa4
) -> report.Record:
    setup = invented_setup(ours, others, *times)
    with torch.no_grad():
        return gpu_cells.measure(bwd.BACKWARD, cell, setup)


def changed(peer: Peer, change: Callable[[tuple[Tensor, ...]], object]) -> Peer:
    """The peer, with `change` done to its gradients in place."""

    def make(p: Problem) -> Call:
        call = peer(p)

        def wrong() -> Any:
            gradients = call()
            change(gradients)
            return gradients

        return wrong

    return make


def absent(p: Problem) -> Call:
    raise ImportError("not here")


def step_peer(p: Problem) -> Call:
    """torch's attention as a peer of the backward: with its forward, whose time is invented."""
    call = SDPA(p)

    def gradients() -> Any:
        with torch.enable_grad():
            return call()

    return gradients


# ---- Arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize("section", [bwd, fwd_bwd])
def test_grid_has_36_cells(section: Any) -> None:
    parser = argparse.ArgumentParser()
    section.add_arguments(parser)
    args = parser.parse_args([])
    args.lengths = gpu_cells.LENGTHS
    grid = list(gpu_cells.cells(args))
    assert len(grid) == 36
    assert {cell.shape for cell in grid} == {"hd64", "hd128", "gqa128"}
    assert args.peers == ["cudnn", "fa2"]


def test_arguments_that_are_refused(capsys: pytest.CaptureFixture) -> None:
    for words in (["--shapes", "varlen"], ["--peers", "fa3"]):
        parser = argparse.ArgumentParser()
        bwd.add_arguments(parser)
        with pytest.raises(SystemExit):
            parser.parse_args(words)
        assert "must be among" in capsys.readouterr().err


# ---- Gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", ["causal", "full"])
@pytest.mark.parametrize("rows", [1024, 64], ids="rows_at_a_time={}".format)
def test_float64_gradients_are_those_of_autograd(
    mask: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(correctness, "FLOAT64_ROWS", rows)
    p = Cell("gqa128", mask, (150, 150)).problem(torch.float64, "cpu")
    exact = SDPA(p)()
    assert correctness.gradient_float64_error(p, exact) < 1e-6  # differences are in float32
    for index in range(3):
        moved = list(exact)
        moved[index] = moved[index].roll(1, dims=1)
        assert correctness.gradient_float64_error(p, tuple(moved)) > 0.1


@pytest.mark.parametrize("cell", [CELL, SMALL], ids=str)
def test_right_gradients_pass(cell: Cell) -> None:
    p = cell.problem(*CPU)
    gradients = gradient_peers.fa4(p)()
    assert 1e-4 < correctness.gradient_float64_error(p, gradients) < LIMIT
    assert correctness.gradient_difference(gradients, gradients) == 0


@pytest.mark.parametrize("index", range(3), ids=["dq", "dk", "dv"])
def test_one_wrong_row_of_a_gradient_ends_the_cell(index: int) -> None:
    def change(gradients: tuple[Tensor, ...]) -> None:
        gradients[index][1, 77, -1] *= -1

    record = measure(CELL, {}, ours=changed(gradient_peers.fa4, change))
    assert record["failed"].startswith("WrongResult: fa4: relative error")
    record = measure(CELL, {"x": changed(step_peer, change)}, 1.0, 1.0)
    assert record["failed"].startswith("WrongResult: x beside fa4")
    assert "burst" not in record


def test_deterministic_calls_that_differ_end_the_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    fa4, calls = gradient_peers._fa4, []

    def drift(gradients: tuple[Tensor, ...]) -> None:
        calls.append(1)
        gradients[1][0, 0, 0, 0] += len(calls)

    def drifting(p: Problem, deterministic: bool) -> Call:
        call = fa4(p, deterministic)
        return changed(lambda _: call, drift)(p) if deterministic else call

    monkeypatch.setattr(gradient_peers, "_fa4", drifting)
    record = measure(SMALL, {DETERMINISTIC: gradient_peers.fa4_deterministic}, 1.0, 1.0)
    assert record["failed"] == "WrongResult: deterministic: two calls differ in dk"


def test_every_step_makes_its_own_graph() -> None:
    """A node of an earlier call would run on that call's stream, which breaks a capture."""
    made: list[Tensor] = []

    def forward(p: Problem) -> Call:
        made.append(p.q.transpose(1, 2))
        return lambda: made[-1].transpose(1, 2) * p.k * p.v

    step = gradient_peers.with_backward(forward)(Cell("hd64", "full", (4,)).problem(*CPU))
    for _ in range(2):
        step()
    assert len(made) == 2


@pytest.mark.parametrize("peer", ["cudnn", "fa2"])
@pytest.mark.parametrize("shape", ["hd64", "gqa128"])
def test_torchs_operators_take_our_arguments(peer: str, shape: str) -> None:
    """On tensors without data, for which torch still checks arguments and infers shapes."""
    heads_q, heads_k, head_dim = gpu_cells.SHAPES[shape]
    q, k, v, dout = (
        torch.empty(2, 256, heads, head_dim, dtype=torch.bfloat16, device="meta")
        for heads in (heads_q, heads_k, heads_k, heads_q)
    )
    p = Problem(q, k, v, True, (256, 256), None, dout)
    gradients = gradient_peers.BACKWARD_PEERS[peer](p)()
    assert [x.shape for x in gradients] == [q.shape, k.shape, v.shape]


# ---- Records -------------------------------------------------------------------------------------


def test_record_of_a_cell() -> None:
    others = {DETERMINISTIC: gradient_peers.fa4_deterministic, "cudnn": step_peer, "fa2": absent}
    record = measure(CELL, others, 100.0, 125.0, 120.0)
    assert "failed" not in record
    assert record["missing"] == {"fa2": "ImportError: not here"}
    assert record["flops"] == 2.5 * CELL.flops
    ours = record["burst"]["fa4"]
    assert ours["tflops"] == pytest.approx(2.5 * CELL.flops / 1e-4 / 1e12)
    assert ours["share"] == pytest.approx(2.5 * CELL.flops / (PER_CLOCK * 1750e6 * 1e-4))
    assert set(record["errors"]) == {"fa4", DETERMINISTIC, "cudnn"}
    row = report.columns(record)
    assert row["det/fast"] == "0.800"
    assert row["ratio"] == "1.200"  # the deterministic mode is no peer
    assert row["fa2"] == "-"
    assert "ratio to all" not in row


def test_sustained_times_stand_beside_those_of_bursts() -> None:
    others = {DETERMINISTIC: gradient_peers.fa4_deterministic, "cudnn": step_peer, "fa2": absent}
    times = (100.0, 125.0, 120.0, 110.0, 220.0, 99.0)  # of the burst, then sustained
    setup = invented_setup(gradient_peers.fa4, others, *times, sustained=True)
    with torch.no_grad():
        record = gpu_cells.measure(bwd.BACKWARD, CELL, setup)
    assert "failed" not in record
    assert setup.stopwatch.events == 2 * ["new graphs", *["graph"] * 3]
    hot = record["sustained"]
    assert hot["fa4"]["tflops"] == pytest.approx(2.5 * CELL.flops / 1.1e-4 / 1e12)
    assert hot["cudnn"]["ratio"] == pytest.approx(0.9)
    bwd.add_published(record, {str(CELL): {"cudnn": 200.0, "fa3": 250.0}})
    row = report.columns(record)
    assert list(row)[-7:] == [
        *("fa3 (via cudnn)", "ratio to all"),
        *("hot fa4", "hot cudnn", "hot fa2", "hot det/fast", "hot ratio"),
    ]
    assert (row["det/fast"], row["hot det/fast"]) == ("0.800", "0.500")
    assert (row["ratio"], row["hot ratio"]) == ("1.200", "0.900")
    assert row["hot fa2"] == "-"


def test_a_failure_in_the_sustained_round_ends_the_cell() -> None:
    setup = invented_setup(gradient_peers.fa4, {}, 100.0, sustained=True)  # no time for it
    with torch.no_grad():
        record = gpu_cells.measure(bwd.BACKWARD, SMALL, setup)
    assert record["failed"].startswith("StopIteration")


def test_estimate_counts_sustained_rounds_of_all() -> None:
    others = {DETERMINISTIC: absent, "cudnn": absent}
    seconds = [
        gpu_cells.estimate_seconds(
            bwd.BACKWARD, 10, invented_setup(absent, others, sustained=sustained)
        )
        for sustained in (False, True)
    ]
    rounds = 2 * 3 * 10  # of three functions in ten cells
    assert seconds[1] - seconds[0] == pytest.approx(rounds * gpu_cells.SUSTAINED_SECONDS)


def test_no_deterministic_kernel_leaves_a_dash() -> None:
    record = measure(SMALL, {DETERMINISTIC: absent}, 100.0)
    row = report.columns(record)
    assert row["det/fast"] == row["ratio"] == "-"
    assert report.gpu_report.notes(record) == ["deterministic missing: ImportError: not here"]


def test_record_of_a_step() -> None:
    setup = invented_setup(gradient_peers.fa4_step, {"sdpa": SDPA}, 100.0, 150.0)
    record = gpu_cells.measure(fwd_bwd.STEP, CELL, setup)
    assert "failed" not in record
    assert record["flops"] == 3.5 * CELL.flops
    assert record["burst"]["sdpa"]["ratio"] == pytest.approx(1.5)
    assert 1e-4 < record["errors"]["fa4"] < LIMIT


# ---- Published peers -----------------------------------------------------------------------------


def test_published_table_has_every_cell() -> None:
    published = json.loads(bwd.PUBLISHED.read_text())
    lengths = gpu_cells.LENGTHS
    names = {f"{s} {m} {n}" for s in bwd.SHAPES for m in gpu_cells.MASKS for n in lengths}
    assert set(published["tflops"]) == names
    assert {tuple(row) for row in published["tflops"].values()} == {
        (bwd.YARDSTICK, *published["peers"])
    }
    assert {"gpu", "date", "torch", "cudnn", *published["peers"]} <= set(published["origin"])
    assert set(published["hot"]) < names


def test_published_figures_are_carried_over_by_cudnn() -> None:
    record = measure(SMALL, {"cudnn": step_peer}, 100.0, 150.0)
    table = {"hd64 full 96": {"cudnn": 200.0, "fa3": 250.0, "cute": 400.0}}
    bwd.add_published(record, table)
    cudnn = record["burst"]["cudnn"]["tflops"]
    assert record["published"]["fa3"]["tflops"] == pytest.approx(1.25 * cudnn)
    assert record["published"]["fa3"]["ratio"] == pytest.approx(1.2)
    assert record["published"]["cute"]["ratio"] == pytest.approx(0.75)
    row = report.columns(record)
    assert list(row)[-4:] == ["ratio", "fa3 (via cudnn)", "cute (via cudnn)", "ratio to all"]
    assert row["ratio"] == "1.500"
    assert row["ratio to all"] == "0.750"


def test_without_cudnn_nothing_is_carried_over() -> None:
    table = {"hd64 full 96": {"cudnn": 200.0, "fa3": 250.0}}
    for record in (measure(SMALL, {"cudnn": absent}, 1.0), measure(SMALL, {}, ours=absent)):
        bwd.add_published(record, table)
        assert "published" not in record


@pytest.mark.parametrize(
    ("words", "capability", "says"),
    [
        (["--peers", "fa2"], (9, 0), "needs cudnn"),
        (["--dtype", "fp16"], (9, 0), "needs --dtype bf16"),
        ([], (10, 0), "needs a Hopper card"),
        ([], (9, 0), "times their ratio to cudnn in bursts on NVIDIA H100"),
    ],
)
def test_when_published_figures_are_used(
    words: list[str],
    capability: tuple[int, int],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(gpu_cells, "run", lambda *_: iter([]))
    parser = argparse.ArgumentParser()
    bwd.add_arguments(parser)
    assert list(bwd.run(parser.parse_args(words))) == []
    assert says in capsys.readouterr().out


# ---- Summary -------------------------------------------------------------------------------------


def invented(shape: str, mask: str, seqlen: int, ratio: float, **more: Any) -> report.Record:
    ours = {"us": 100.0, "tflops": 500.0, "mhz": None, "share": None}
    return {
        "case": f"{shape} {mask} {seqlen}",
        "pass": "bwd",
        "shape": shape,
        "mask": mask,
        "seqlen": seqlen,
        "flops": 5e10,
        "peers": [DETERMINISTIC, "cudnn"],
        "burst": {
            "fa4": ours,
            DETERMINISTIC: {**ours, "ratio": 1 / more.pop("deterministic", 0.9)},
            "cudnn": {**ours, "ratio": ratio},
        },
        **more,
    }


def test_summary_of_the_backward() -> None:
    first, second = ({"fa3": {"tflops": 1.0, "ratio": r}} for r in (0.7, 2.0))
    records = [
        invented("hd64", "full", 512, 1.0, published=first, deterministic=0.8),
        invented("hd64", "full", 4096, 1.21, published=second),
        invented("hd128", "causal", 4096, 1.07),
    ]
    lines = bwd.summary(records)
    assert lines[0] == "geometric means: time of the fastest of cudnn over ours"
    assert lines[1].startswith("hd64 full                1.100  burst, 2 cells, 500 TFLOP/s")
    assert ", goal 1.08 met; 0.920  with published peers, goal 1.08 missed" in lines[1]
    assert lines[2].endswith("1.070  burst, 1 cells, 500 TFLOP/s, goal 1.08 missed")
    assert lines[3] == f"{'least':<24} 1.000  hd64 full 512, goal 0.97 met"
    assert lines[4] == f"{'least with published':<24} 0.700  hd64 full 512, goal 0.97 missed"
    assert lines[5] == (
        f"{'deterministic / fast':<24} 0.865  burst, 3 cells, goal 0.88 missed; "
        "least 0.800  hd64 full 512, goal 0.88 missed"
    )
    assert len(lines) == 6  # no line of its own for long causal hd128: that is the forward's


def test_summary_of_a_sustained_run() -> None:
    ours = {"us": 100.0, "tflops": 400.0, "mhz": None, "share": None}
    hot = {"fa4": ours, DETERMINISTIC: {**ours, "ratio": 1.25}, "cudnn": {**ours, "ratio": 0.9}}
    lines = bwd.summary([invented("hd64", "full", 512, 1.1, sustained=hot)])
    assert lines[1] == (
        f"{'hd64 full':<24} 1.100  burst, 1 cells, 500 TFLOP/s, goal 1.08 met; "
        "0.900  sustained, 1 cells, 400 TFLOP/s"
    )
    assert lines[3] == (
        f"{'deterministic / fast':<24} 0.900  burst, 1 cells, goal 0.88 met; "
        "least 0.900  hd64 full 512, goal 0.88 met; "
        "0.800  sustained, 1 cells; least 0.800  hd64 full 512"
    )


def test_host_time_of_a_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(host_gpu, "SHAPE", (1, 8, 2, 64))
    monkeypatch.setattr(host_gpu, "CALLS", 3)
    steps = fwd_bwd.host_steps("cpu")
    assert set(steps) == {"fa4", "sdpa", "sdpa, FA2", "sdpa, cuDNN"}
    ours, theirs = steps["fa4"][0](), steps["sdpa"][0]()
    same = tuple(x.transpose(1, 2) for x in theirs)  # type: ignore[attr-defined]
    assert correctness.gradient_difference(ours, same) < 2e-2  # type: ignore[arg-type]
    record = fwd_bwd.host_time({name: steps[name] for name in ("fa4", "sdpa")})
    assert record is not None
    assert report.columns(record)["case"] == "host time of a step, 8 tokens"
    assert record["functions"]["fa4"]["median_us"] > 1
    record["functions"]["sdpa"]["ratio"] = 0.9
    assert fwd_bwd.summary([record]) == [
        f"{'host, sdpa / ours':<24} 0.900  host time of a step, 8 tokens, goal 1.00 missed"
    ]
    facts = {"date": "today", "cpu": "x", "commit": "y"}
    path = report.save("fwd_bwd", [record], facts, tmp_path / "out.json")
    assert "goal 1.00 missed" in report.markdown(path)


def test_host_time_without_ours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)

    def raises() -> object:
        raise NotImplementedError("no kernel")

    assert fwd_bwd.host_time({"fa4": (raises, contextlib.nullcontext)}) is None
    assert "fa4 missing: NotImplementedError: no kernel" in capsys.readouterr().out
