"""Runs the Hopper kernels in the emulator and on a Hopper GPU, and compares call by call.

    python tools/compare_emulator.py --out docs/reports/emulator-kernels-h100.json
    python tools/compare_emulator.py --against emulator     without a GPU: a trial of this tool

Both sides get the same tensors through the same ops. The backward gets the emulator's out and lse
on both sides, so that only its own kernels make a difference. What has to be equal:

exact  Inputs for which every product and sum is exact, and rounding to 16 bit undoes errors of 2^x
       and 1 / x: the same bits. It finds what moves, loses or doubles an element.
C      Hardware does not document how a matrix product sums, and approximates 2^x, log2 and 1 / x to
       1.5e-7. A 16-bit result, and weights and their gradients, which are rounded to 16 bit on the
       way, may then round the other way. An element: at most 4 units in its last place, 2e-5 of the
       largest result, or two such roundings of the largest weight of its row, whichever is most.
       All of them: root mean square at most half that of rounding to the type, plus the share of
       the result that D allows lse, an error of the scores, and of the weights by that factor.
D      lse: tests/tolerances.py.
sum    dsink, a sum over rows in float32 in a fixed order: 2e-6 of the sum of absolute values. And
       combine, likewise: 2e-6 of the largest partial of the row.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from provenance import LIBRARY, ROOT, digest, provenance
from torch import Tensor

sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "tests"))
import reference
import tolerances
from cases import Case, Inputs, _on_device

import flash_attn4  # noqa: F401  (registers torch.ops.fa4)

try:
    from flash_attn4 import emulator
except ImportError:  # it is built for one version of Python, the library for all
    emulator = None

UNIT_RMS = {torch.bfloat16: 1.65e-3, torch.float16: 2.07e-4}  # rounding to the type, relative
SHORT = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


# ---- The two sides ------------------------------------------------------------------------------


class Machine(Protocol):
    def __call__(self, op: Callable[..., Any], *args: Any) -> list[Tensor]: ...


@contextmanager
def emulated_by_default() -> Iterator[None]:
    """emulator.use("sm90") for a Python that emulator was not built for."""
    switch = ctypes.CDLL(str(LIBRARY)).fa4_use_emulator
    switch.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t)
    message = ctypes.create_string_buffer(4096)
    if switch(b"sm90", message, len(message)) != 0:
        raise RuntimeError(message.value.decode())
    try:
        yield
    finally:
        switch(None, message, len(message))


def emulated(op: Callable[..., Any], *args: Any) -> list[Tensor]:
    with emulated_by_default() if emulator is None else emulator.use("sm90"):
        return list(op(*args))


def emulated_otherwise(op: Callable[..., Any], *args: Any) -> list[Tensor]:
    """For a trial: nothing that hardware leaves open is as in `emulated`."""
    options = emulator.Options(
        policy="random", seed=5, order="random", accumulate="exact", perturbation=1.5e-7
    )
    with emulator.use("sm90", options):
        return list(op(*args))


def on_gpu(op: Callable[..., Any], *args: Any) -> list[Tensor]:
    device = torch.device("cuda", torch.cuda.current_device())
    moved = [_on_device(x, device) if isinstance(x, Tensor) else x for x in args]
    return [result.cpu() for result in op(*moved)]


# ---- Comparison of two tensors ------------------------------------------------------------------


@dataclass
class Comparison:
    tensor: str
    rule: str
    bit_equal: float  # share of the elements
    units: float  # largest difference, in units in the last place of the larger of the two
    difference: float
    largest: float  # of the emulator's results
    of_allowed: float  # difference / allowed, of the element where that is largest
    rmse: float = 0.0
    rmse_allowed: float | None = None
    reason: str = ""

    @property
    def passed(self) -> bool:
        rmse_holds = self.rmse_allowed is None or self.rmse <= self.rmse_allowed
        return not self.reason and self.of_allowed <= 1 and rmse_holds


def unit_in_last_place(x: Tensor) -> Tensor:
    """Of float64 x, as an element of x.dtype before the conversion; x is not 0."""
    return torch.ldexp(torch.ones_like(x), torch.frexp(x).exponent - 1)


def compare(
    name: str,
    rule: str,
    got: Tensor,
    expected: Tensor,
    allowed: Tensor | float = 0.0,
    *,
    rmse_floor: float = 0.0,
    rmse_share: float = 0.0,
) -> Comparison:
    """got is the GPU's, expected the emulator's.

    allowed: per element, beside what the rule says. rmse_share: of the results.
    """
    try:
        tolerances.check_special_values(name, got, expected)
    except AssertionError as error:
        return Comparison(name, rule, 0.0, 0.0, 0.0, 0.0, 0.0, reason=str(error))
    if got.dtype != expected.dtype:
        reason = f"{name}: {got.dtype} on one side, {expected.dtype} on the other"
        return Comparison(name, rule, 0.0, 0.0, 0.0, 0.0, 0.0, reason=reason)
    finite = torch.isfinite(expected)
    a, b = (torch.where(finite, x.double(), 0.0) for x in (got, expected))
    difference = (a - b).abs()
    info = torch.finfo(expected.dtype)
    unit = info.eps * unit_in_last_place(torch.maximum(a.abs(), b.abs()).clamp(min=info.tiny))
    largest = b.abs().max().item()
    limit = torch.zeros_like(difference) + allowed
    if rule == "C":
        limit = torch.maximum(limit, torch.maximum(4 * unit, torch.tensor(2e-5 * largest)))
    excess = torch.where(difference > 0, difference / limit, 0.0)
    result = Comparison(
        tensor=name,
        rule=rule,
        bit_equal=(difference == 0).double().mean().item(),
        units=(difference / unit).max().item(),
        difference=difference.max().item(),
        largest=largest,
        of_allowed=excess.max().item(),
        rmse=difference.square().mean().sqrt().item(),
    )
    if rule == "C":
        rms = b.square().mean().sqrt().item()
        share = 0.5 * UNIT_RMS[expected.dtype] + rmse_share
        result.rmse_allowed = max(share * rms, rmse_floor)
    return result


# ---- Attention ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """Of forward and backward. With cu_seqlens of sequences that are packed, with batch 1."""

    inputs: Inputs
    spans: list[reference.Span]
    cu_seqlens: tuple[Tensor, Tensor] | None = None
    longest: tuple[int, int] = (0, 0)
    used_q: Tensor | None = None
    used_k: Tensor | None = None
    through_lse: bool = False
    deterministic: bool = False

    def _options(self) -> tuple[Any, ...]:
        x = self.inputs.options
        return x.softmax_scale, x.causal, *x.window, x.softcap, x.sink

    def forward(self, machine: Machine) -> list[Tensor]:
        x, options = self.inputs, self._options()
        if self.cu_seqlens is None:
            return machine(torch.ops.fa4.fwd, x.q, x.k, x.v, *options, self.used_k)
        sequences = *self.cu_seqlens, *self.longest
        lengths = self.used_q, self.used_k
        return machine(torch.ops.fa4.varlen_fwd, x.q, x.k, x.v, *sequences, *options, *lengths)

    def backward(self, machine: Machine, out: Tensor, lse: Tensor) -> list[Tensor]:
        x, options = self.inputs, self._options()
        operands = x.dout, x.q, x.k, x.v, out, lse
        dlse = x.dlse if self.through_lse else None
        if self.cu_seqlens is None:
            last = self.used_k, self.deterministic
            return machine(torch.ops.fa4.bwd, *operands, dlse, *options, *last)
        sequences = *self.cu_seqlens, *self.longest
        last = self.used_q, self.used_k, self.deterministic
        return machine(torch.ops.fa4.varlen_bwd, *operands, *sequences, dlse, *options, *last)


def dense(case: Case, **more: Any) -> Call:
    inputs = case.inputs()
    return Call(inputs, inputs.spans(), used_k=inputs.seqused_k, **more)


def packed(
    case: Case,
    lengths_q: Sequence[int],
    lengths_k: Sequence[int],
    used: tuple[Sequence[int], Sequence[int]] | None = None,
    **more: Any,
) -> Call:
    """Five rows of q and k, behind the last sequence, belong to none."""
    rows = {"seqlen_q": sum(lengths_q) + 5, "seqlen_k": sum(lengths_k) + 5}
    x = replace(case, batch=1, **rows).inputs()
    offsets = [
        torch.tensor([0, *lengths]).cumsum(0).to(torch.int32) for lengths in (lengths_q, lengths_k)
    ]
    used_q, used_k = (
        (None, None) if used is None else (torch.tensor(n, dtype=torch.int32) for n in used)
    )
    spans = list(reference.packed_spans(*offsets, used_q, used_k))
    counts_q, counts_k = (torch.zeros(x.shape[1], dtype=torch.bool) for x in (x.q, x.k))
    for span in spans:
        counts_q[span.q], counts_k[span.k] = True, True
    for tensor, counts in ((x.q, counts_q), (x.dout, counts_q), (x.k, counts_k), (x.v, counts_k)):
        tensor[0, ~counts] = torch.nan
    flat = replace(x, q=x.q[0], k=x.k[0], v=x.v[0], dout=x.dout[0], dlse=x.dlse[0])
    longest = max(lengths_q), max(lengths_k)
    return Call(flat, spans, tuple(offsets), longest, used_q, used_k, **more)


@dataclass(frozen=True)
class Steps:
    """Per row: what its largest weight, or gradient of one, moves when it rounds the other way."""

    out: Tensor
    dq: Tensor
    dk: Tensor
    dv: Tensor
    dsink: Tensor  # the sum of absolute values


def largest_steps(call: Call, out: Tensor, lse: Tensor) -> Steps:
    x, options = call.inputs, call.inputs.options
    eps, scale = torch.finfo(x.q.dtype).eps, options.scale(x.q.shape[-1])
    heads_q, heads_k = x.q.shape[-2], x.k.shape[-2]
    group = heads_q // heads_k
    of_q = [torch.zeros(x.q.shape[:-1], dtype=torch.float64) for _ in range(2)]
    of_k = [torch.zeros(x.k.shape[:-1], dtype=torch.float64) for _ in range(2)]
    dsink = torch.zeros(heads_q, dtype=torch.float64)
    for span in call.spans:
        q, dout, o = (t[span.q].double() for t in (x.q, x.dout, out))
        k, v = (t[span.k].double().repeat_interleave(group, dim=1) for t in (x.k, x.v))
        if q.numel() == 0:
            continue
        delta = (dout * o).sum(-1).T
        if call.through_lse:
            delta = delta - x.dlse[span.lse].double()
        row_lse = lse[span.lse].double()
        delta, seen = torch.where(torch.isfinite(row_lse), delta, 0.0), row_lse > -torch.inf
        if options.sink is not None:
            weight = torch.where(seen, (options.sink.double()[:, None] - row_lse).exp(), 0.0)
            dsink += (weight * delta.abs()).sum(-1)
        if k.numel() == 0:
            continue
        scores = torch.einsum("qhd,khd->hqk", q, k) * scale
        slope = torch.ones_like(scores)
        if options.softcap:
            capped = (scores / options.softcap).tanh()
            scores, slope = options.softcap * capped, 1 - capped.square()
        visible = reference.visible_mask(q.shape[0], k.shape[0], options.causal, options.window)
        weights = torch.where(visible & seen[..., None], (scores - row_lse[..., None]).exp(), 0.0)
        dp = torch.einsum("qhd,khd->hqk", dout, v)
        ds = (weights * (dp - delta[..., None]) * slope * scale).abs()
        of_q[0][span.q] = eps * v.abs().max() * weights.amax(-1).T
        of_q[1][span.q] = eps * k.abs().max() * ds.amax(-1).T
        for i, (steps, factor) in enumerate(((ds, q), (weights, dout))):
            by_head = eps * factor.abs().max() * steps.amax(-2)
            of_k[i][span.k] = by_head.unflatten(0, (heads_k, group)).amax(1).T
    return Steps(of_q[0], of_q[1], of_k[0], of_k[1], dsink)


def cancellation(x: Inputs, factor: Tensor) -> float:
    """Bound of what float32 leaves in dq (factor: k) or dk (factor: q) where dP - D cancels."""
    norms = [t.double().nan_to_num().norm(dim=-1).max().item() for t in (x.dout, x.v)]
    scale = x.options.scale(x.q.shape[-1])
    return 2**-23 * norms[0] * norms[1] * scale * factor.double().nan_to_num().abs().max().item()


def run_attention(make: Callable[[], Call], one: Machine, other: Machine) -> list[Comparison]:
    call = make()
    x = call.inputs
    out, lse = call.forward(one)
    out_other, lse_other = call.forward(other)
    gradients = call.backward(one, out, lse)
    gradients_other = call.backward(other, out, lse)
    steps = largest_steps(call, out, lse)
    score = reference.largest_score(x.q, x.k, call.spans, x.options)
    lse_allowed = 1.2 * tolerances.EXP2_ERROR + 5e-6 + 2e-6 * score
    left = {"q": cancellation(x, x.k), "k": cancellation(x, x.q), "v": 0.0}
    results = [
        compare("out", "C", out_other, out, 2 * steps.out[..., None], rmse_share=lse_allowed),
        compare("lse", "D", lse_other, lse, lse_allowed),
    ]
    for i, (name, floor) in enumerate(left.items()):
        allowed = 2 * getattr(steps, f"d{name}")[..., None] + floor
        pair = gradients_other[i], gradients[i]
        rmse = {"rmse_floor": floor, "rmse_share": lse_allowed}
        results.append(compare(f"d{name}", "C", *pair, allowed, **rmse))
    if x.sink is not None:
        unit = torch.finfo(x.sink.dtype).eps * gradients[3].double().abs()
        results.append(
            compare("dsink", "sum", gradients_other[3], gradients[3], 2e-6 * steps.dsink + unit)
        )
    return results


# ---- Exact calls --------------------------------------------------------------------------------


def exact_inputs(case: Case) -> Inputs:
    """Row i of q picks the keys j with j = i modulo head_dim; all of them weigh the same."""
    x, dim = case.inputs(), case.head_dim
    generator = torch.Generator().manual_seed(7)

    def signs(like: Tensor) -> Tensor:
        return torch.randint(-1, 2, like.shape, generator=generator).to(like.dtype)

    picked = (torch.arange(case.seqlen_q)[:, None] + torch.arange(case.heads_q)) % dim
    q = torch.zeros_like(x.q).scatter_(-1, picked.expand(x.q.shape[:-1])[..., None], 1)
    matches = torch.arange(case.seqlen_k)[:, None] % dim == torch.arange(dim)
    k = torch.where(matches, 0.0, -1024.0).to(x.k.dtype)[None, :, None].expand_as(x.k).contiguous()
    return replace(x, q=q, k=k, v=signs(x.v), dout=signs(x.dout))


def run_exact(case: Case, one: Machine, other: Machine) -> list[Comparison]:
    """The backward gets out = 0 and lse = 0, with which D is 0 and all weights are 0 or 1."""
    inputs = exact_inputs(replace(case, softmax_scale=0.125))
    call = Call(inputs, inputs.spans(), deterministic=False)
    out, lse = call.forward(one)
    zeros = torch.zeros_like(out), torch.zeros_like(lse)
    results = [out, *call.backward(one, *zeros)[:3]]
    results_other = [call.forward(other)[0], *call.backward(other, *zeros)[:3]]
    return [
        compare(name, "exact", got, expected)
        for name, got, expected in zip(
            ("out", "dq", "dk", "dv"), results_other, results, strict=True
        )
    ]


# ---- Combine ------------------------------------------------------------------------------------


def run_combine(dtype: torch.dtype, one: Machine, other: Machine) -> list[Comparison]:
    generator = torch.Generator().manual_seed(1)
    out_partial = torch.randn(5, 2, 33, 3, 72, generator=generator).to(dtype)
    lse_partial = 5 * torch.randn(5, 2, 33, 3, generator=generator)
    lse_partial[1:3, 0] = -torch.inf
    lse_partial[:, 1, 5] = -torch.inf
    out, lse = one(torch.ops.fa4.combine, out_partial, lse_partial)
    out_other, lse_other = other(torch.ops.fa4.combine, out_partial, lse_partial)
    unit = torch.finfo(dtype).eps * out.double().abs()
    allowed = 2e-6 * out_partial.double().abs().amax((0, -1))[..., None] + unit
    largest = lse_partial[lse_partial.isfinite()].abs().max().item()
    return [
        compare("out", "sum", out_other, out, allowed),
        compare("lse", "D", lse_other, lse, 5e-6 + 2e-6 * largest),
    ]


# ---- List ---------------------------------------------------------------------------------------

Run = Callable[[Machine, Machine], list[Comparison]]


@dataclass(frozen=True)
class Entry:
    name: str
    kernels: tuple[str, ...]
    run: Run


def attention_kernels(case: Case) -> tuple[str, ...]:
    dtype = SHORT[case.torch_dtype]
    tile = 64 if max(case.head_dim, case.head_dim_v) <= 64 else 128
    names = [f"fa4_{op}_sm90_hd{tile}_{dtype}" for op in ("fwd", "bwd")]
    names += [f"fa4_bwd_{op}_sm90_{dtype}" for op in ("prepare", "finish")]
    return tuple(names + ["fa4_bwd_sink_sm90"] * bool(case.sink))


def _dense(case: Case, **more: Any) -> Entry:
    words = ",".join([str(case), *more])
    return Entry(
        words, attention_kernels(case), partial(run_attention, partial(dense, case, **more))
    )


def _packed(name: str, case: Case, *lengths: Any, **more: Any) -> Entry:
    make = partial(packed, case, *lengths, **more)
    words = ",".join([f"packed {name}", str(case), *more])
    return Entry(words, attention_kernels(case), partial(run_attention, make))


def _exact(case: Case) -> Entry:
    return Entry(f"exact,{case}", attention_kernels(case), partial(run_exact, case))


HD128 = {"head_dim": 128, "head_dim_v": 128}
HALF: dict[str, Any] = {"dtype": "float16"}
ONE: dict[str, Any] = {"batch": 1, "heads_q": 2, "heads_k": 2}
DETERMINISTIC: dict[str, Any] = {"deterministic": True}
THROUGH_LSE: dict[str, Any] = {"through_lse": True}


def entries() -> list[Entry]:
    return [
        # Each kernel, long enough for several tiles of queries and rings of keys that wrap.
        *(
            _dense(Case(**ONE, **dims, **dtype, seqlen_q=rows, seqlen_k=rows, causal=causal))
            for dims in ({}, HD128)
            for dtype in ({}, HALF)
            for rows, causal in ((512, False), (640, True))
        ),
        _dense(Case(**ONE, **HD128, seqlen_q=1030, seqlen_k=1100, causal=True)),
        _dense(Case(**ONE, **HALF, seqlen_q=1030, seqlen_k=1100)),
        # Lengths beside a tile, one row, more queries than keys.
        *(
            _dense(Case(**dims, seqlen_q=rows, seqlen_k=keys, causal=causal), **more)
            for dims, rows, keys, causal, more in (
                (HALF, 333, 389, True, DETERMINISTIC),
                (HD128, 300, 421, True, DETERMINISTIC),
                ({**HD128, **HALF}, 129, 300, False, THROUGH_LSE),
                (HD128, 1, 300, False, {}),
                ({}, 1, 1, False, {}),
                (HD128, 200, 90, True, THROUGH_LSE),
            )
        ),
        _dense(Case(seqlen_q=200, seqlen_k=90, causal=True, sink="bfloat16"), **THROUGH_LSE),
        # Masks, scores, sinks.
        _dense(Case(window=(70, 20), seqlen_q=260, seqlen_k=300, **HD128), **DETERMINISTIC),
        _dense(Case(window=(0, 5), seqlen_k=300, **HALF)),
        _dense(Case(window=(33, -1), causal=True, **HALF, **HD128)),
        _dense(Case(seqlen_q=200, seqlen_k=333, window=(70, 20), softcap=4.0, sink="float32")),
        _dense(Case(softcap=20.0, data="hot", seqlen_k=200, **HD128, **HALF)),
        _dense(Case(data="hot", causal=True, seqlen_q=256, seqlen_k=256, **ONE)),
        _dense(Case(data="hot", sink="float16", seqlen_k=300, **HALF, **HD128)),
        _dense(Case(data="outlier", seqlen_k=400, **HD128)),
        _dense(Case(data="one_hot", seqlen_k=190, window=(17, 4), **HALF)),
        _dense(Case(softmax_scale=1.0, **HALF)),
        # Head dims that are filled up with zeros, strides, heads that share tiles.
        _dense(Case(head_dim=40, head_dim_v=24, causal=True, layout="padded", sink="float32")),
        _dense(Case(head_dim=72, head_dim_v=128, seqlen_k=200, layout="bhsd", **HALF)),
        _dense(Case(head_dim=96, head_dim_v=96, layout="qkv", causal=True)),
        _dense(Case(batch=1, seqlen_q=3, seqlen_k=300, heads_q=8, heads_k=1)),
        _dense(Case(batch=1, seqlen_q=40, seqlen_k=200, heads_q=10, causal=True, **HD128)),
        _dense(Case(batch=150, seqlen_q=20, seqlen_k=70, heads_q=2, heads_k=1, **HALF)),
        # Keys that do not count, and sequences.
        _dense(Case(batch=5, seqused=True, causal=True, sink="float32", seqlen_k=300)),
        _dense(Case(batch=4, seqused=True, seqlen_k=260, **HD128, **HALF), **DETERMINISTIC),
        _packed("with empty ones", Case(causal=True), (130, 0, 1, 128), (130, 20, 0, 150)),
        _packed("used", Case(**HD128), (130, 70), (100, 200), ((77, 0), (65, 200)), **THROUGH_LSE),
        _packed("deterministic", Case(**HALF, **HD128), (200, 33), (150, 280), **DETERMINISTIC),
        _packed(
            "window", Case(window=(40, 7), heads_k=1, sink="float32", **HALF), (99, 9), (99, 64)
        ),
        *(
            _exact(Case(seqlen_q=260, seqlen_k=333, **dims, **dtype, **mask))
            for dims, dtype, mask in (
                (HD128, {}, {}),
                (HD128, HALF, {"causal": True}),
                ({}, {}, {"window": (150, 80)}),
                ({}, HALF, {"causal": True}),
            )
        ),
        *(
            Entry(f"combine,{dtype}", (f"fa4_combine_sm90_{short}",), partial(run_combine, dtype))
            for dtype, short in SHORT.items()
        ),
    ]


# ---- Report -------------------------------------------------------------------------------------


def compare_all(chosen: list[Entry], one: Machine, other: Machine) -> list[dict[str, Any]]:
    """One entry per call; prints a line per tensor."""
    print(f"{'':<10}{'rule':<6} bit-equal    units  of largest  of allowed      rmse  rmse allowed")
    results = []
    for entry in chosen:
        started = time.monotonic()
        comparisons = entry.run(one, other)
        seconds = time.monotonic() - started
        print(f"{entry.name}  ({seconds:.1f} s)", flush=True)
        for c in comparisons:
            relative = c.difference / c.largest if c.largest else c.difference
            allowed = "-" if c.rmse_allowed is None else f"{c.rmse_allowed:.1e}"
            print(
                f"  {c.tensor:<8}{c.rule:<6}{c.bit_equal:>9.3%} {c.units:>9.2f} {relative:>11.1e}"
                f" {c.of_allowed:>11.3f} {c.rmse:>9.1e} {allowed:>13}"
                f"{'' if c.passed else '  FAILED ' + c.reason}",
                flush=True,
            )
        results.append(
            {
                "call": entry.name,
                "kernels": entry.kernels,
                "passed": all(c.passed for c in comparisons),
                "tensors": [vars(c) | {"passed": c.passed} for c in comparisons],
            }
        )
    return results


def write_report(path: Path, results: list[dict[str, Any]]) -> None:
    tensors = [tensor for result in results for tensor in result["tensors"]]
    report = {
        **provenance(),
        "emulator_sha256": digest(LIBRARY.with_name("libfa4_emulator.so")),
        "rules": (__doc__ or "").split("What has to be equal:\n\n")[1].splitlines(),
        "counts": {
            "calls": len(results),
            "calls_failed": sum(not result["passed"] for result in results),
            "tensors": len(tensors),
            "tensors_failed": sum(not tensor["passed"] for tensor in tensors),
        },
        "kernels": sorted({name for result in results for name in result["kernels"]}),
        "results": results,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="the JSON file to write")
    parser.add_argument("--calls", default="", help="only calls whose name contains this")
    parser.add_argument("--against", choices=("gpu", "emulator"), default="gpu", help="a trial")
    options = parser.parse_args()
    other: Machine = on_gpu
    if options.against == "emulator":
        if options.out is not None:
            parser.error("--out: a report needs a GPU, got --against emulator")
        other = emulated_otherwise
    elif not torch.cuda.is_available():
        raise SystemExit("compare_emulator: needs a CUDA device, found none")
    elif torch.cuda.get_device_capability() != (9, 0):
        found = torch.cuda.get_device_name()
        raise SystemExit(f"compare_emulator: needs a Hopper GPU, found {found}")
    chosen = [entry for entry in entries() if options.calls in entry.name]
    if not chosen:
        parser.error(f"--calls: no call's name contains {options.calls!r}")
    started = time.monotonic()
    results = compare_all(chosen, emulated, other)
    failed = [result["call"] for result in results if not result["passed"]]
    seconds = time.monotonic() - started
    print(f"{len(results)} calls, {len(failed)} failed, {seconds:.0f} s, {os.cpu_count()} cores")
    if options.out is not None:
        write_report(options.out, results)
    for name in failed:
        print(f"failed: {name}")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
