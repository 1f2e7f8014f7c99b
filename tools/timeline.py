"""A trace of the emulator as a picture: for each warp, when it ran and what it waited for.

    python tools/timeline.py trace.json timeline.svg     opens in a browser
    python tools/timeline.py trace.json events.json      opens in ui.perfetto.dev

trace.json is what LaunchResult.json() of flash_attn4.emulator gives with Options(trace=True). Time
is counted in warp instructions of the cluster: order and overlap mean something, lengths do not.
"""

from __future__ import annotations

import argparse
import html
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Warp = dict[str, Any]

# Of colours that tell apart well; what is waited for most gets the first.
COLOURS = [
    "#4477aa",
    "#ee6677",
    "#228833",
    "#ccbb44",
    "#66ccee",
    "#aa3377",
    "#bb5566",
    "#004488",
    "#999933",
]
RUNS, OTHERS = "#dddddd", "#888888"
LEFT, ROW, WIDTH = 150, 22, 900  # pixels


def waited_for(what: str) -> str:
    """The name of an mbarrier, or its address; of other waits the words before the colon."""
    mbarrier = re.search(r"mbarrier (0x\w+)(?: ([^\s(]+))? \(", what)
    if mbarrier is not None:
        return mbarrier[2] or f"mbarrier {mbarrier[1]}"
    return what.split(":")[0]


def title_of(warp: Warp, names: Sequence[str]) -> str:
    text = f"warp {warp['warp']}"
    role = names[warp["warp"]] if warp["warp"] < len(names) else ""
    return f"{text} {role}".strip()


def end_of(warps: Sequence[Warp]) -> int:
    return max((wait["end"] for warp in warps for wait in warp["waits"]), default=1)


# ---- For trace viewers ---------------------------------------------------------------------------


def events(warps: Sequence[Warp], names: Sequence[str]) -> str:
    """Trace Event Format: a process per CTA, a thread per warp."""
    found: list[dict[str, Any]] = []
    for warp in warps:
        place = {"pid": warp["cta"], "tid": warp["warp"]}
        name = {"name": title_of(warp, names)}
        found.append({"ph": "M", "name": "thread_name", "args": name, **place})
        found.extend(
            {
                "ph": "X",
                "name": waited_for(wait["what"]),
                "ts": wait["begin"],
                "dur": wait["end"] - wait["begin"],
                "args": {"line": wait["line"], "what": wait["what"]},
                **place,
            }
            for wait in warp["waits"]
        )
    return json.dumps({"traceEvents": found, "displayTimeUnit": "ns"})


# ---- For browsers --------------------------------------------------------------------------------


def colours_of(warps: Sequence[Warp]) -> dict[str, str]:
    time: dict[str, int] = {}
    for warp in warps:
        for wait in warp["waits"]:
            key = waited_for(wait["what"])
            time[key] = time.get(key, 0) + wait["end"] - wait["begin"]
    most = sorted(time, key=lambda key: -time[key])
    return {key: COLOURS[i] if i < len(COLOURS) else OTHERS for i, key in enumerate(most)}


def box(x: float, y: int, width: float, colour: str, tip: str = "") -> str:
    shape = f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{ROW - 6}" fill="{colour}"'
    return f"{shape}><title>{html.escape(tip)}</title></rect>" if tip else f"{shape}/>"


def text(x: int, y: int, words: str) -> str:
    return f'<text x="{x}" y="{y + 12}">{html.escape(words)}</text>'


def svg(warps: Sequence[Warp], names: Sequence[str]) -> str:
    scale = WIDTH / end_of(warps)
    colours = colours_of(warps)
    parts = []
    for row, warp in enumerate(warps):
        y = 4 + row * ROW
        parts.append(text(4, y, f"CTA {warp['cta']} {title_of(warp, names)}"))
        parts.append(box(LEFT, y, WIDTH, RUNS))
        for wait in warp["waits"]:
            key = waited_for(wait["what"])
            length = (wait["end"] - wait["begin"]) * scale
            tip = f"line {wait['line']}, {wait['begin']} to {wait['end']}: {wait['what']}"
            parts.append(box(LEFT + wait["begin"] * scale, y, length, colours[key], tip))
    legend = 12 + len(warps) * ROW
    for i, (key, colour) in enumerate([("runs", RUNS), *colours.items()]):
        x, y = LEFT + i % 4 * 225, legend + i // 4 * ROW
        parts += [box(x, y, 16, colour), text(x + 22, y, key)]
    height = legend + (len(colours) // 4 + 1) * ROW
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 10}" height="{height}"'
    style = 'font-family="sans-serif" font-size="12"'
    return (
        "\n".join(
            [
                f"{head} {style}>",
                '<rect width="100%" height="100%" fill="white"/>',
                *parts,
                "</svg>",
            ]
        )
        + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trace", type=Path)
    parser.add_argument("out", type=Path, help="an .svg, or a .json for trace viewers")
    parser.add_argument("--cluster", type=int, default=0, help="of the launch (default 0)")
    parser.add_argument(
        "--roles", default="", help="names of the warps of a CTA, from warp 0 on: a,a,b"
    )
    args = parser.parse_args()
    trace = json.loads(args.trace.read_text())["trace"]
    warps = [warp for warp in trace if warp["cluster"] == args.cluster]
    if not warps:
        sys.exit(f"timeline.py: {args.trace}: no warp of cluster {args.cluster} in the trace")
    names = args.roles.split(",") if args.roles else []
    draw = svg if args.out.suffix == ".svg" else events
    args.out.write_text(draw(warps, names))


if __name__ == "__main__":
    main()
