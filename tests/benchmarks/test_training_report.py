"""`run.py training` without a GPU: one small run of the example, and invented results."""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import report
import torch
import training

pytestmark = pytest.mark.cpu_only("the times are invented, or the CPU's")

EXAMPLES = Path(training.__file__).parents[1] / "examples"


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    training.add_arguments(parser)
    return parser.parse_args(words)


def invented(shift: float = 0.0, end: float = 0.0, speed: float = 1.0) -> dict[str, Any]:
    """What the example writes; ours lies `shift` above the curve, `end` above the last loss."""
    losses = [9 - step / 20 for step in range(50)]
    theirs = {
        "losses": losses,
        "held_out": [[25, 8.0], [50, 7.0]],
        "tokens_per_second": 1e5,
        "peak_memory_bytes": 2**31,
    }
    ours = copy.deepcopy(theirs) | {"tokens_per_second": speed * 1e5}
    ours["losses"] = [loss + shift for loss in losses]
    ours["held_out"][-1][1] += end
    options = {"context": 1024}
    return {
        "options": options,
        "parameters": 28_320_256,
        "unigram_entropy": 6.0,
        "runs": {"fa4": ours, "sdpa": theirs},
    }


def record(**changes: float) -> training.Record:
    return training.record_of(1024, "eager", invented(**changes))


# ---- Arguments -----------------------------------------------------------------------------------


def test_four_cases_of_equal_steps() -> None:
    args = parsed()
    seen = []
    for context in args.contexts:
        for mode in args.modes:
            words = training.command(context, mode, args, "folder")
            options = dict(zip(words[2:-1:2], words[3::2], strict=False))
            assert int(options["--context"]) * int(options["--batch"]) == args.tokens
            assert options["--device"] == "cuda"
            assert options["--dtype"] == "bfloat16"
            assert ("--compile" in words) == (mode == "compile")
            seen.append((context, mode))
    assert seen == [(1024, "eager"), (1024, "compile"), (8192, "eager"), (8192, "compile")]


def test_arguments_that_are_refused(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        parsed("--modes", "eager,fast")
    assert "must be among eager, compile, got 'fast'" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="--tokens must be a multiple of 1000, got 32768"):
        list(training.run(parsed("--contexts", "1000")))


def test_time_limit_leaves_out_what_would_not_fit(capsys: pytest.CaptureFixture) -> None:
    clock = iter([0, 0, 40, 40, 80, 80])  # start; begin and end of each case

    def work(context: int, mode: str, args: argparse.Namespace) -> training.Record:
        return {"case": training.name_of(context, mode)}

    done = list(training.run(parsed("--time-limit", "100"), work, now=lambda: next(clock)))
    assert [x["case"] for x in done] == ["context 1024 eager", "context 1024 compile"]
    assert "2 cases left out" in capsys.readouterr().out


# ---- Records -------------------------------------------------------------------------------------


def test_curves_within_the_tolerances_agree() -> None:
    inside = record(shift=0.9 * training.CURVE_TOLERANCE, end=0.9 * training.HELD_OUT_TOLERANCE)
    assert inside["gaps"]["agree"]
    assert not record(shift=-1.1 * training.CURVE_TOLERANCE)["gaps"]["agree"]
    assert not record(end=1.1 * training.HELD_OUT_TOLERANCE)["gaps"]["agree"]
    assert not record(shift=math.nan)["gaps"]["agree"]
    assert not record(end=math.nan)["gaps"]["agree"]


def test_noise_of_single_steps_is_no_difference() -> None:
    results = invented()
    losses = results["runs"]["fa4"]["losses"]
    losses[:] = [loss + 0.2 * (-1) ** i for i, loss in enumerate(losses)]
    gaps = training.record_of(1024, "eager", results)["gaps"]
    assert gaps["agree"]
    assert gaps["single_step"] == pytest.approx(0.2)


def test_table_and_summary(tmp_path: Path) -> None:
    records = [
        record(speed=1.2),
        record(speed=1.2, end=0.5),
        training.failed(8192, "eager", "a\nb"),
    ]
    rows = [report.columns(x) for x in records]
    assert rows[0]["ratio"] == "1.200"
    assert rows[0]["fa4 GiB"] == "2.00"
    assert [row.get("curves") for row in rows] == ["agree", "DIFFER", None]
    assert rows[2] == {"case": "context 8192 eager", "failed": "a b"}
    lines = training.summary(records)
    assert lines[0].startswith("28,320,256 parameters")
    assert "apart by 0.5000 at the end, 0.0000 in means over 20 steps" in lines[1]
    assert lines[1].endswith("DIFFER")
    assert lines[2] == "speed: 1.200 of sdpa's tokens per second, 2 cases"
    assert lines[3:] == ["failed cases: 1"]
    facts = {"date": "today", "cpu": "x", "commit": "y"}
    path = report.save("training", records[:2], facts, tmp_path / "out.json")
    assert "speed: 1.200 of sdpa's" in report.markdown(path)


def test_a_case_that_fails_says_why() -> None:
    args = parsed("--device", "cpu", "--contexts", "64", "--modes", "eager")
    args.steps = "many"
    (failure,) = training.run(args)
    assert "argument --steps: invalid int value: 'many'" in failure["failed"]
    args.case_limit = 0
    (late,) = training.run(args)
    assert late["failed"] == "no end within 0 s"


# ---- The example ---------------------------------------------------------------------------------


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("matplotlib", reason="the example draws with matplotlib")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import train_gpt

    monkeypatch.setattr(train_gpt, "MAX_TEXT_BYTES", 300_000)
    yield train_gpt
    del sys.modules["train_gpt"]


def test_example_writes_what_the_record_needs(
    example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = "--width=64", "--layers=1", "--heads=4", "--kv-heads=2", "--vocabulary=300"
    args = parsed("--device=cpu", "--tokens=128", "--steps=4", *sizes)
    _, _, *words = training.command(64, "eager", args, str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["train_gpt.py", *words])
    monkeypatch.setattr(example, "sample", lambda *_: "")  # 200 tokens, one by one
    example.main()
    results = json.loads((tmp_path / "results.json").read_text())
    made = training.record_of(64, "eager", results)
    for run in made["runs"].values():
        assert len(run["losses"]) == 4
        assert run["held_out"][-1][0] == 4
        assert run["tokens_per_second"] > 0
        assert run["peak_memory_bytes"] > 2**20
    assert made["gaps"]["agree"]
    assert made["options"]["dtype"] == "bfloat16"
    assert made["parameters"] == 64 * (300 + 64 * 2 + 64 + 6 * 64 + 3 * 64 + 3)
    assert (tmp_path / "loss.png").exists()


def test_example_counts_a_wrong_gradient(example: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention whose keys get no gradient: the curves leave the tolerance."""
    sizes = {"width": 64, "layers": 1, "heads": 4, "kv_heads": 2, "vocabulary": 300}
    sizes |= {"context": 64, "batch": 4, "steps": 60, "seed": 0, "lr": 4e-3}
    options = {"device": "cpu", "dtype": "bfloat16", "compile": False, "optimizer": "muon"}
    args = argparse.Namespace(**sizes, **options)
    texts = example.read_texts()
    vocabulary = example.Vocabulary(texts[0], args.vocabulary)
    tokens, held_out = (vocabulary.encode(text) for text in texts)
    right = example.ATTENTION["fa4"]

    def wrong(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return right(q, k, v.detach())

    runs = {}
    for name, attention in (("fa4", right), ("sdpa", example.ATTENTION["sdpa"]), ("x", wrong)):
        monkeypatch.setitem(example.ATTENTION, name, attention)
        runs[name] = example.train(name, tokens, held_out, args)
    assert training.gaps(runs)["agree"]
    assert not training.gaps({"fa4": runs["x"], "sdpa": runs["sdpa"]})["agree"]
