"""`run.py fwd` without a GPU: its cells, checks and records, with invented times."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import correctness
import fwd
import gpu_cells
import peers
import pytest
import report
import torch
from gpu_cells import Cell, Setup
from invented import PER_CLOCK, invented_setup
from peers import Problem

pytestmark = pytest.mark.cpu_only("the times are invented")

CELL = Cell("gqa128", "causal", (160, 160))
PACKED = Cell("varlen", "full", (5, 130, 1))


def setup(others: dict[str, peers.Peer], *times: float, **options: object) -> Setup:
    return invented_setup(options.pop("ours", peers.fa4), others, *times, **options)


def measure(cell: Cell, setup: Setup) -> report.Record:
    return gpu_cells.measure(fwd.FORWARD, cell, setup)


def broken(p: Problem) -> peers.Call:
    """Right but for one row of one head."""
    call = peers.fa4(p)

    def wrong() -> torch.Tensor:
        out = call()
        out.view(-1, *out.shape[-2:])[77, 3] *= -1
        return out

    return wrong


def absent(p: Problem) -> peers.Call:
    raise ImportError("not here")


# ---- Cells ---------------------------------------------------------------------------------------


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    fwd.add_arguments(parser)
    args = parser.parse_args(words)
    args.lengths = args.lengths or list(gpu_cells.LENGTHS)
    return args


def test_grid_has_36_dense_and_6_packed_cells_of_all_tokens() -> None:
    grid = list(gpu_cells.cells(parsed()))
    assert len([c for c in grid if not c.packed]) == 36
    assert len([c for c in grid if c.packed]) == 6
    assert {sum(c.lengths) for c in grid} == {16384}
    assert {len(c.lengths) for c in grid if c.packed} == {8, 32, 128}
    assert len({str(c) for c in grid}) == len(grid)


def test_arguments_choose_cells() -> None:
    words = "--shapes", "hd64,gqa128", "--mask", "full", "--lengths", "512,4096"
    names = [str(c) for c in gpu_cells.cells(parsed(*words))]
    assert names == ["hd64 full 512", "hd64 full 4096", "gqa128 full 512", "gqa128 full 4096"]


@pytest.mark.parametrize(
    "words", [("--shapes", "hd63"), ("--lengths", "1000"), ("--peers", "fa3,fa9")]
)
def test_arguments_that_are_refused(words: tuple[str, str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        parsed(*words)
    assert "must" in capsys.readouterr().err


def test_operations_of_a_cell() -> None:
    full = Cell("hd128", "full", (16384,))
    assert full.flops == 4 * 16 * 16384**2 * 128
    assert Cell("hd128", "causal", (16384,)).flops == full.flops / 2
    assert Cell("varlen", "full", (3, 4)).flops == 4 * 16 * (9 + 16) * 128


def test_data_is_normal_and_packed_sequences_lie_behind_each_other() -> None:
    p = PACKED.problem(torch.bfloat16, "cpu")
    assert p.q.shape == (136, 16, 128)
    assert p.cu_seqlens is not None
    assert p.cu_seqlens.tolist() == [0, 5, 135, 136]
    assert p.cu_seqlens.dtype == torch.int32
    assert torch.equal(p.sequence(p.k, 1), p.k[5:135])
    assert abs(p.q.float().std().item() - 1) < 0.02


# ---- Checks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", [CELL, PACKED, Cell("hd64", "full", (700,))], ids=str)
def test_right_results_pass(cell: Cell) -> None:
    p = cell.problem(torch.bfloat16, "cpu")
    out = peers.fa4(p)()
    assert 1e-4 < correctness.float64_error(p, out) < correctness.FLOAT64_ERROR[torch.bfloat16]
    assert correctness.difference(out, out) == 0


def test_one_wrong_row_of_many_is_seen() -> None:
    reference = torch.randn(2, 3000, 4, 64)
    for row in (0, 1500, 2999):
        out = reference.clone()
        out[1, row, 2] = 0
        assert correctness.difference(out, reference) > 0.05


def test_nan_is_wrong() -> None:
    reference = torch.randn(1, 300, 2, 64)
    for row in (5, 299):  # in a whole block, in the rest
        out = reference.clone()
        out[0, row, 0, 0] = torch.nan
        error = correctness.difference(out, reference)
        with pytest.raises(correctness.WrongResult, match="x: relative error nan"):
            correctness.check("x", error, 1.0)


def test_a_mask_off_by_one_is_wrong() -> None:
    p = CELL.problem(torch.bfloat16, "cpu")
    moved = torch.cat([torch.zeros_like(p.k[:, :1]), p.k[:, :-1]], dim=1)
    out = peers.fa4(Problem(p.q, moved, p.v, p.causal, p.lengths))()
    assert correctness.float64_error(p, out) > correctness.FLOAT64_ERROR[torch.bfloat16]


# ---- Records -------------------------------------------------------------------------------------


def test_record_of_a_cell() -> None:
    others = {"sdpa": peers.sdpa, "fa3": absent}
    setting = setup(others, 100.0, 120.0, 200.0, 220.0, sustained=True)
    record = measure(CELL, setting)
    assert "failed" not in record
    # A pool of graphs ends with its last graph, which is gone when the next kind of timing begins.
    assert setting.stopwatch.events == 2 * ["new graphs", "graph", "graph"]
    assert record["missing"] == {"fa3": "ImportError: not here"}
    ours, sdpa = record["burst"]["fa4"], record["burst"]["sdpa"]
    assert ours["us"] == 100
    assert ours["tflops"] == pytest.approx(CELL.flops / 1e-4 / 1e12)
    assert ours["share"] == pytest.approx(CELL.flops / (PER_CLOCK * 1750e6 * 1e-4))
    assert sdpa["ratio"] == pytest.approx(1.2)
    assert record["sustained"]["sdpa"]["ratio"] == pytest.approx(1.1)
    assert record["errors"]["sdpa"] < 1e-2
    row = report.columns(record)
    assert row["ratio"] == "1.200"
    assert row["fa3"] == "-"


def test_packed_cells_are_compared_with_fa3_alone() -> None:
    others = {"fa3": peers.fa4, "cudnn": absent, "fa2": peers.fa4}
    record = measure(PACKED, setup(others, 10.0, 11.0, 9.0))
    assert record["peers"] == ["fa3", "fa2"]
    assert report.columns(record)["ratio"] == "1.100"


@pytest.mark.parametrize("peer", ["fa4", "sdpa"])
def test_a_wrong_result_ends_the_cell(peer: str) -> None:
    if peer == "fa4":
        record = measure(Cell("hd64", "full", (96,)), setup({}, ours=all_broken))
    else:
        record = measure(CELL, setup({"sdpa": broken}, 1.0, 1.0))
    assert record["failed"].startswith(f"WrongResult: {peer}")
    assert "burst" not in record


def all_broken(p: Problem) -> peers.Call:
    call = peers.fa4(p)
    return lambda: call() * 1.05


def test_no_kernel_for_ours_is_a_failed_cell() -> None:
    record = measure(CELL, setup({}, ours=absent))
    assert record["failed"] == "ImportError: not here"


def test_time_limit_leaves_out_what_would_not_fit(capsys: pytest.CaptureFixture) -> None:
    clock = iter([0, 0, 40, 40, 70, 70])  # start; begin and end of each cell
    grid = [Cell("hd64", "full", (n,)) for n in (512, 1024, 2048)]
    done = gpu_cells.within(100, grid, lambda cell: {"case": str(cell)}, now=lambda: next(clock))
    assert [record["case"] for record in done] == ["hd64 full 512", "hd64 full 1024"]
    assert "1 cells left out, from hd64 full 2048 on" in capsys.readouterr().out


# ---- Report --------------------------------------------------------------------------------------


def invented(shape: str, mask: str, seqlen: int, ratio: float) -> report.Record:
    ours = {"us": 100.0, "tflops": 500.0, "mhz": None, "share": None}
    return {
        "case": f"{shape} {mask} {seqlen}",
        "shape": shape,
        "mask": mask,
        "seqlen": seqlen,
        "flops": 5e10,
        "peers": ["fa3", "fa2"],
        "burst": {
            "fa4": ours,
            "fa3": {**ours, "ratio": ratio},
            "fa2": {**ours, "ratio": 2 * ratio},
        },
    }


def test_summary_names_goals_and_the_least_ratio() -> None:
    records = [invented("hd128", "causal", 512, 0.9), invented("hd128", "causal", 4096, 1.6)]
    records += [invented("hd64", "full", 512, 1.09), {"case": "x", "flops": 1, "failed": "why"}]
    lines = fwd.summary(records)
    assert "fastest of fa3, fa2 over ours" in lines[0]
    assert lines[1].split()[:3] == ["hd128", "causal", "1.200"]
    assert lines[1].endswith("goal 1.05 met")
    assert lines[2].split()[:5] == ["hd128", "causal", "from", "4096", "1.600"]
    assert lines[3].endswith("goal 1.10 missed")
    assert lines[4] == f"{'least':<24} 0.900  hd128 causal 512, goal 0.97 missed"
    assert lines[5:] == ["failed cells: 1"]


def test_file_and_screen(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    records = [invented("hd64", "full", 512, 1.2), {"case": "y", "flops": 1, "failed": "a\nb"}]
    records[0]["missing"] = {"cudnn": "ImportError: not here"}
    screen, path = report.Screen(), tmp_path / "out.json"
    facts = {"date": "today", "cpu": "x", "commit": "y"}
    for count, record in enumerate(records, start=1):
        screen.show(record)
        report.save('fwd "b"', records[:count], facts, path)
        assert len(json.loads(path.read_text())['fwd "b"']["cases"]) == count
    printed = capsys.readouterr().out
    assert "cudnn missing: ImportError: not here" in printed
    assert "failed: a b" in printed
    text = report.markdown(path)
    assert "| hd64 full 512 | 100.0 | 500 | - | - | 500 | 500 | 1.200 |" in text
    assert "goal 1.10 met" in text
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"]
