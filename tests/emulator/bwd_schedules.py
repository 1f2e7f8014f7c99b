"""What tests of backward kernels in the emulator share: gradients of a call, what they fulfil."""

from __future__ import annotations

from dataclasses import replace

import reference
import tolerances
import torch
from fwd_schedules import Options, Problem, emulator


def gradients(
    arch: str, work: Problem, options: Options, *, deterministic: bool, through_lse: bool = False
) -> reference.Gradients:
    x = work.inputs
    leaves = [x.q, x.k, x.v, *([] if x.sink is None else [x.sink])]
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    arguments = work.arguments | {"deterministic": deterministic}
    if x.sink is not None:
        arguments["learnable_sink"] = leaves[3]
    inputs = replace(x, q=leaves[0], k=leaves[1], v=leaves[2])
    # Which form dispatch would take is no matter here: one CTA per tile unless pairs are asked for.
    with emulator.use(arch, replace(options, ctas=options.ctas or 1)):
        out, lse = replace(work, inputs=inputs, arguments=arguments).forward()
        seeds = [x.dout.reshape(out.shape), x.dlse.reshape(lse.shape)]
        count = 2 if through_lse else 1
        found = torch.autograd.grad([out, lse][:count], leaves, seeds[:count])
    return reference.Gradients(*found)


def check(work: Problem, result: reference.Gradients, *, through_lse: bool = False) -> None:
    """Rules A and B of dq, dk and dv. The rules of dsink are those of tests/ops."""
    x = work.inputs
    tensors = x.q, x.k, x.v
    dlse = x.dlse if through_lse else None
    dout = x.dout.reshape(*x.q.shape[:-1], x.v.shape[-1])
    if dlse is not None:
        dlse = dlse.reshape(x.q.shape[-2], x.q.shape[0]) if x.q.dim() == 3 else dlse
    _, _, expected = reference.attention_and_gradients(tensors, work.spans, x.options, dout, dlse)
    _, _, eager = reference.attention_and_gradients(
        tensors, work.spans, x.options, dout, dlse, eager=True
    )
    factor, extra = (3.0, 3e-4) if x.options.softcap else (2.0, 0.0)
    many_rows = x.case.seqlen_q >= tolerances.FEWEST_KEYS_FOR_RMSE
    normal = x.case.data == "normal"
    scale = x.options.scale(x.case.head_dim)
    for name, left in tolerances.cancellation(*tensors, dout, scale).items():
        parts = [getattr(g, name) for g in (result, expected, eager)]
        tolerances.check_largest_error(f"d{name}", *parts, factor=factor, extra=extra + left)
        if work.rule_b and many_rows and normal and not through_lse:
            tolerances.check_rmse(f"d{name}", *parts, normal_data=True)


def check_schedules(arch: str, work: Problem, schedules: list[Options]) -> None:
    """Right gradients in the first schedule, and in deterministic mode the same bits in the others.

    dk and dv have the same bits in any order of additions to dq: in every third schedule there are
    gradients of both modes.
    """
    first = gradients(arch, work, schedules[0], deterministic=True)
    check(work, first)
    for number, options in enumerate(schedules[1:]):
        for ordered in (True, False) if number % 3 == 2 else (True,):
            other = gradients(arch, work, options, deterministic=ordered)
            for name in ("q", "k", "v", "sink") if ordered else ("k", "v"):
                got, want = getattr(other, name), getattr(first, name)
                if want is not None:
                    assert torch.equal(got, want), f"d{name}, deterministic={ordered}, {options}"
