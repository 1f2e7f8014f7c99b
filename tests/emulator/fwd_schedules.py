"""What tests of forward kernels in the emulator share: schedules, calls, and what a result fulfils.

An output must not depend on when copies and products take effect, on how warps interleave, on which
lane elect.sync picks, or on the order of blocks. Where a wait is missing, one of these differs, or
the emulator reports a read of memory that was never written.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import reference
import tolerances
import torch
from cases import Case, Inputs
from torch import Tensor

from flash_attn4 import flash_attn_func, flash_attn_varlen_func

emulator = pytest.importorskip(
    "flash_attn4.emulator", reason="no emulator in this build", exc_type=ImportError
)
Options = emulator.Options

EXP2_ERROR = {"sm90": tolerances.EXP2_ERROR, "sm100": tolerances.EXP2_POLYNOMIAL_ERROR}


def random_schedule(seed: int) -> Options:
    return Options(policy="random", seed=seed, order="random", random_election=True)


SCHEDULES = [
    Options(policy="lazy"),
    Options(policy="lazy", order="descending"),
    *map(random_schedule, (1, 2)),
]
MORE_SCHEDULES = [*map(random_schedule, range(3, 21))]

# Rounding inside a product and errors of ex2, lg2, rcp may be any within their bounds.
ROUNDING = {
    "exact-sums": Options(accumulate="exact"),
    "perturbed-functions": Options(perturbation=1.5e-7, seed=5),
}


@dataclass(frozen=True)
class Packed:
    """A call of flash_attn_varlen_func: the rows of `dense`, a case of batch 1, in sequences.

    Keys and values behind the `used_k` of a sequence, and rows behind the last one, hold NaN.
    """

    lengths_q: tuple[int, ...]
    lengths_k: tuple[int, ...]
    used_k: tuple[int, ...]
    dense: Case = field(default_factory=Case)

    def __str__(self) -> str:
        lengths = zip(self.lengths_q, self.lengths_k, self.used_k, strict=True)
        return f"packed={'_'.join(f'{q}x{used}of{k}' for q, k, used in lengths)},{self.dense}"


Call = Case | Packed


@dataclass(frozen=True)
class Problem:
    """Tensors of a call, its keyword arguments, its sequences, and whether rule B is for it."""

    inputs: Inputs
    arguments: dict[str, object]
    spans: list[reference.Span]
    rule_b: bool

    def forward(self) -> tuple[Tensor, Tensor]:
        x = self.inputs
        function = flash_attn_varlen_func if "cu_seqlens_q" in self.arguments else flash_attn_func
        return function(x.q, x.k, x.v, **self.arguments, return_lse=True)


def problem(call: Call) -> Problem:
    if isinstance(call, Case):
        inputs = call.inputs()
        return Problem(inputs, inputs.arguments(), inputs.spans(), call.rule_b_applies())
    return _packed(call)


def _packed(call: Packed) -> Problem:
    gap = 5
    inputs = replace(
        call.dense,
        batch=1,
        seqlen_q=sum(call.lengths_q) + gap,
        seqlen_k=sum(call.lengths_k) + gap,
    ).inputs()
    cu_seqlens_q, cu_seqlens_k = (
        torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
        for lengths in (call.lengths_q, call.lengths_k)
    )
    used_k = torch.tensor(call.used_k, dtype=torch.int32)
    spans = list(reference.packed_spans(cu_seqlens_q, cu_seqlens_k, None, used_k))
    q, k, v = inputs.q[0], inputs.k[0], inputs.v[0]
    counts = torch.zeros(k.shape[0], dtype=torch.bool)
    for span in spans:
        counts[span.k] = True
    for tensor, rows in ((q, slice(sum(call.lengths_q), None)), (k, ~counts), (v, ~counts)):
        tensor[rows] = torch.nan
    arguments = {
        **inputs.arguments(),
        "cu_seqlens_q": cu_seqlens_q,
        "cu_seqlens_k": cu_seqlens_k,
        "max_seqlen_q": max(call.lengths_q),
        "max_seqlen_k": max(call.lengths_k),
        "seqused_k": used_k,
    }
    del arguments["num_splits"]
    return Problem(
        Inputs(inputs.case, q, k, v, inputs.dout, inputs.dlse, options=inputs.options),
        arguments,
        spans,
        rule_b=False,
    )


def run(arch: str, work: Problem, options: Options) -> tuple[Tensor, Tensor]:
    with emulator.use(arch, options):
        return work.forward()


def check(work: Problem, out: Tensor, lse: Tensor, exp2_error: float) -> None:
    """Rules A, B and D."""
    q, k, v, options = work.inputs.q, work.inputs.k, work.inputs.v, work.inputs.options
    expected, expected_lse = reference.attention(
        q.double(), k.double(), v.double(), iter(work.spans), options
    )
    eager, _ = reference.attention(q, k, v, iter(work.spans), options)
    factor = 3.0 if options.softcap else 2.0
    tolerances.check_largest_error("out", out, expected, eager, factor=factor)
    score = reference.largest_score(q, k, work.spans, options)
    tolerances.check_lse(lse, expected_lse, score, exp2_error)
    if work.rule_b:
        normal = work.inputs.case.data == "normal"
        tolerances.check_rmse("out", out, expected, eager, normal_data=normal)


def check_schedules(arch: str, call: Call, schedules: list[Options], exp2_error: float) -> None:
    """A right result in the first schedule, and the same bits in the others."""
    work = problem(call)
    out, lse = run(arch, work, schedules[0])
    check(work, out, lse, exp2_error)
    for options in schedules[1:]:
        other, other_lse = run(arch, work, options)
        assert torch.equal(other, out), options
        assert torch.equal(other_lse, lse), options
