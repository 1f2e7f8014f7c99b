"""The SM100 backward with one statement left out that hands something over: it shows."""

from __future__ import annotations

import bwd_mutations
import pytest
from cases import Case
from fwd_mutations import Site
from fwd_schedules import Packed

pytestmark = pytest.mark.cpu_only("switches the emulator on itself")

KERNEL = "fa4_bwd_sm100_hd128_bf16"

ONE_HEAD = {"heads_q": 1, "heads_k": 1, "head_dim": 128, "head_dim_v": 128}
KILLERS: bwd_mutations.Killers = [
    (Packed((300,), (200,), (170,), Case(causal=True, **ONE_HEAD)), False),
    (Case(batch=1, seqlen_q=600, seqlen_k=260, **(ONE_HEAD | {"heads_q": 2})), True),
    # Nine tiles add to a block: in another order some elements of dq differ after rounding.
    (Case(batch=1, seqlen_q=300, seqlen_k=1100, **(ONE_HEAD | {"heads_q": 4})), True),
]


def test_there_are_statements() -> None:
    assert len(bwd_mutations.sites()) > 60


@pytest.mark.sampled("site", bwd_mutations.sites(), 3)
def test_every_statement_that_hands_over_is_needed(site: Site) -> None:
    if site.without_effect(KERNEL):
        pytest.skip(f"{site}: is not in the kernel of one CTA")
    bwd_mutations.check_needed(site, KERNEL, KILLERS)
