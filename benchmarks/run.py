"""Benchmarks of flash_attn4: one entry point, one subcommand per question.

    python benchmarks/run.py cpu         attention on the CPU beside torch's, forward and backward
    python benchmarks/run.py fwd         the forward on a GPU beside FA3, cuDNN and FA2
    python benchmarks/run.py bwd         the backward alone on a GPU beside cuDNN and FA2
    python benchmarks/run.py fwd_bwd     both through autograd, on the host's clock as well
    python benchmarks/run.py training    a GPT trained on a GPU, through ours and torch's attention
    python benchmarks/run.py host        host time of a call on tiny tensors
    python benchmarks/run.py emulator    speed of the emulator
    python benchmarks/run.py compile     compile cost of every kernel and source
    python benchmarks/run.py show FILE   a result file as Markdown

Each prints one line per case and writes benchmarks/results/<date>-<device>-<commit>.json.
benchmarks/README.md states the method.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import build_cost
import bwd
import cpu
import emulator
import fwd
import fwd_bwd
import host
import report
import torch
import training

SECTIONS: dict[str, Any] = {
    "cpu": cpu,
    "fwd": fwd,
    "bwd": bwd,
    "fwd_bwd": fwd_bwd,
    "training": training,
    "host": host,
    "emulator": emulator,
    "compile": build_cost,
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, section in SECTIONS.items():
        command = commands.add_parser(name, help=section.__doc__.splitlines()[0])
        command.add_argument("--threads", type=int, help="threads of torch; default: its choice")
        command.add_argument("--out", type=Path, help="result file; default: in benchmarks/results")
        command.add_argument("--label", help="what is special about this run; stored")
        section.add_arguments(command)
    show = commands.add_parser("show", help="a result file as Markdown")
    show.add_argument("file", type=Path)
    return parser.parse_args()


def main() -> None:
    args = parse()
    if args.command == "show":
        print(report.markdown(args.file))
        return
    if args.threads:
        torch.set_num_threads(args.threads)
    device = getattr(args, "device", "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"run.py {args.command}: torch {torch.__version__} finds no GPU")
    facts, name, section = report.environment(device), args.command, SECTIONS[args.command]
    if args.label:
        facts["label"], name = args.label, f"{name} {args.label}"
    print(*(f"{fact}: {value}" for fact, value in facts.items()), sep="\n")
    screen, records, path = report.Screen(), [], None
    for record in section.run(args):
        screen.show(record)
        records.append(record)
        facts["load_average_after"] = report.load_average()
        path = report.save(name, records, facts, args.out)  # a run cut short leaves its cases
    if hasattr(section, "summary"):
        print(*section.summary(records), sep="\n")
    print("written:", path)


if __name__ == "__main__":
    main()
