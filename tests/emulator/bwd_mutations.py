"""SM100 backward kernels with a statement left out, and what objects to them.

Every wait, arrival, commit, fence and meeting of threads is left out once. Where nothing objects,
either the statement is superfluous or the schedules are too tame to tell.
"""

from __future__ import annotations

import functools
import re
from dataclasses import replace

import bwd_schedules
import fwd_schedules
import fwd_variants
import torch
from fwd_mutations import Site, ctas_of
from fwd_schedules import Call, Options, random_schedule
from machines import ROOT

PARTS = (
    *("compute", "kernel", "load", "mma", "pair_load", "pair_mma", "reduce", "serial_load"),
    *("serial_mma", "store"),
)
FILES = [f"csrc/sm100/bwd/{part}.cuh" for part in PARTS]
STATEMENTS = re.compile(
    r"\bb\.template (?:wait|arrive|release|commit|announce)<[^;]*?>\([^;]*\);"
    r"|\bptx::tcgen05_(?:commit|wait_st|wait_ld|fence_before|fence_after)\([^;]*\);"
    r"|\bptx::(?:fence_proxy_async|fence_proxy_async_global|bulk_commit_group)\(\);"
    r"|\bptx::bulk_wait_group(?:_read)?<0>\(\);"
    r"|\bptx::(?:mbarrier_arrive_expect_tx(?:_cluster)?|bulk_copy_cluster)\([^;]*\);"
    r"|\b(?:wait_counter|ptx::red_add_release)\([^;]*\);"
    r"|\b__sync(?:warp|threads)\(\);"
    r"|(?<=  )meet_tile<[^;]*>\(\);"
)
# Statements, or their remarks, that nothing shows to be needed, and why.
COVERED = {
    "// lse2 and delta": "s_full comes after q_full by way of the mma role; the PTX ISA does not "
    "say so of a commit",
    "allocation": "allocating and freeing tensor memory take effect at once",
    "free": "... and so the whole warp waits for its one thread",
    "// a whole warp meets": "lanes that a branch has divided are one again by then",
    "// staged by all lanes": "lanes of a warp that no branch divides keep step",
    "fence_proxy_async_global": "the check is for shared and tensor memory",
    "bulk_wait_group<0>": "blocks take turns after many instructions, and an addition has long "
    "happened by then",
}

SCHEDULES = [
    Options(check="strict"),
    Options(policy="lazy"),
    Options(check="strict", policy="random", seed=3, order="random", random_election=True),
    *map(random_schedule, (1, 2, 3)),
    Options(policy="lazy", order="descending"),
]
Killers = list[tuple[Call, bool]]  # calls, and whether they are deterministic


def sites() -> list[Site]:
    found = []
    for name in FILES:
        text = (ROOT / name).read_text()
        for match in STATEMENTS.finditer(text):
            line = text[match.start() : text.find("\n", match.end())]
            if not any(words in line for words in COVERED):
                found.append(Site(name, *match.span()))
    return found


def gradients(
    kernel: str, call: Call, deterministic: bool, ptx: str, options: Options
) -> list[torch.Tensor]:
    work = fwd_schedules.problem(call)
    options = replace(options, images={kernel: ptx}, ctas=ctas_of(kernel))
    found = bwd_schedules.gradients("sm100", work, options, deterministic=deterministic)
    return [found.q, found.k, found.v] if deterministic else [found.k, found.v]


@functools.cache
def right_bits(kernel: str, call: Call, deterministic: bool) -> list[torch.Tensor]:
    return gradients(kernel, call, deterministic, fwd_variants.compiled(kernel), Options())


def objection(kernel: str, ptx: str, call: Call, deterministic: bool, options: Options) -> str:
    """How the emulator or the result shows that the kernel is broken; empty: not at all."""
    try:
        result = gradients(kernel, call, deterministic, ptx, options)
    except RuntimeError as error:
        return str(error)
    right = right_bits(kernel, call, deterministic)
    same = all(torch.equal(x, y) for x, y in zip(result, right, strict=True))
    return "" if same else "other bits"


def check_needed(site: Site, kernel: str, killers: Killers) -> None:
    """Something objects to the kernel without the statement."""
    ptx = fwd_variants.compiled(kernel, replaced=(site.without(),))
    for options in SCHEDULES:
        for call, deterministic in killers:
            if objection(kernel, ptx, call, deterministic, options):
                return
    raise AssertionError(f"{site}: nothing tells that it is missing")
