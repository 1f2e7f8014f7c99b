"""The SM100 backward with one statement left out that hands something over: it shows.

Every wait, arrival, commit, fence and meeting of threads of the kernel is left out once. Where
nothing objects, either the statement is superfluous or the schedules are too tame to tell.
"""

from __future__ import annotations

import functools
import re
from dataclasses import replace

import bwd_schedules
import fwd_schedules
import fwd_variants
import pytest
import torch
from cases import Case
from fwd_mutations import Site
from fwd_schedules import Call, Options, Packed, random_schedule
from machines import ROOT

pytestmark = pytest.mark.cpu_only("switches the emulator on itself")

KERNEL = "fa4_bwd_sm100_hd128_bf16"
PARTS = ("compute", "kernel", "load", "mma", "reduce", "store")
FILES = [f"csrc/sm100/bwd/{part}.cuh" for part in PARTS]
STATEMENTS = re.compile(
    r"\bb\.template (?:wait|release)<\w+>\([^;]*\);"
    r"|\bptx::tcgen05_(?:commit|wait_st|wait_ld|fence_before|fence_after)\([^;]*\);"
    r"|\bptx::(?:fence_proxy_async|fence_proxy_async_global|bulk_commit_group)\(\);"
    r"|\bptx::bulk_wait_group(?:_read)?<0>\(\);"
    r"|\b(?:wait_counter|ptx::red_add_release)\([^;]*\);"
    r"|\b__sync(?:warp|threads)\(\);"
)
# Statements, or their remarks, that nothing shows to be needed, and why.
COVERED = {
    "// lse2 and delta": "s_full comes after q_full by way of the mma role; the PTX ISA does not "
    "say so of a commit",
    "allocation": "allocating and freeing tensor memory take effect at once",
    "free": "... and so the whole warp waits for its one thread",
    "// staged by all lanes": "lanes of a warp that no branch divides keep step",
    "fence_proxy_async_global": "the check is for shared and tensor memory",
    "bulk_wait_group<0>": "blocks take turns after many instructions, and an addition has long "
    "happened by then",
}


def sites() -> list[Site]:
    found = []
    for name in FILES:
        text = (ROOT / name).read_text()
        for match in STATEMENTS.finditer(text):
            line = text[match.start() : text.find("\n", match.end())]
            if not any(words in line for words in COVERED):
                found.append(Site(name, *match.span()))
    return found


ONE_HEAD = {"heads_q": 1, "heads_k": 1, "head_dim": 128, "head_dim_v": 128}
KILLERS: list[tuple[Call, bool]] = [
    (Packed((300,), (200,), (170,), Case(causal=True, **ONE_HEAD)), False),
    (Case(batch=1, seqlen_q=600, seqlen_k=260, **(ONE_HEAD | {"heads_q": 2})), True),
    # Nine tiles add to a block: in another order some elements of dq differ after rounding.
    (Case(batch=1, seqlen_q=300, seqlen_k=1100, **(ONE_HEAD | {"heads_q": 4})), True),
]
SCHEDULES = [
    Options(check="strict"),
    Options(policy="lazy"),
    Options(check="strict", policy="random", seed=3, order="random", random_election=True),
    *map(random_schedule, (1, 2, 3)),
    Options(policy="lazy", order="descending"),
]


@functools.cache
def right_bits(call: Call, deterministic: bool) -> list[torch.Tensor]:
    return gradients(call, deterministic, fwd_variants.compiled(KERNEL), Options())


def gradients(call: Call, deterministic: bool, ptx: str, options: Options) -> list[torch.Tensor]:
    work = fwd_schedules.problem(call)
    options = replace(options, images={KERNEL: ptx})
    found = bwd_schedules.gradients("sm100", work, options, deterministic=deterministic)
    return [found.q, found.k, found.v] if deterministic else [found.k, found.v]


def objects(ptx: str, call: Call, deterministic: bool, options: Options) -> bool:
    """Whether the emulator or the result shows that the kernel is broken."""
    try:
        result = gradients(call, deterministic, ptx, options)
    except RuntimeError:
        return True
    right = right_bits(call, deterministic)
    return not all(torch.equal(x, y) for x, y in zip(result, right, strict=True))


def test_there_are_statements() -> None:
    assert len(sites()) > 30


@pytest.mark.sampled("site", sites(), 3)
def test_every_statement_that_hands_over_is_needed(site: Site) -> None:
    ptx = fwd_variants.compiled(KERNEL, replaced=(site.without(),))
    assert ptx != fwd_variants.compiled(KERNEL), "the compiler has not seen the statement"
    for options in SCHEDULES:
        for call, deterministic in KILLERS:
            if objects(ptx, call, deterministic, options):
                return
    raise AssertionError(f"{site}: nothing tells that it is missing")
