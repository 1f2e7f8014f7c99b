"""The calls that tools/sanitize.py watches: small ones, of every way through the kernels.

    python tools/sanitize_calls.py --passes forward backward   makes them, a line for each
    python tools/sanitize_calls.py --past-the-end              the control: reads past an end

Every tensor is an allocation of its own, so that its end is an end for memcheck, and comes from the
host by a copy, which initcheck counts as written; it does not see kernels it does not watch. The
same rule keeps calls of the backward to the ops: autograd would launch kernels of its own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

DEVICE = "cuda"  # tests put it to "cpu"

Rows = tuple[int, int]  # of queries and keys


def on_gpu(x: Tensor) -> Tensor:
    return x.to(DEVICE)


def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return on_gpu(torch.randn(*shape, generator=generator).to(dtype))


def int32(*values: int) -> Tensor:
    return on_gpu(torch.tensor(values, dtype=torch.int32))


# ---- Forward -------------------------------------------------------------------------------------


def dense(
    rows: Rows,
    heads: Rows = (2, 2),
    dims: Rows = (128, 128),
    batch: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    used: tuple[int, ...] | None = None,
    sink: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """The arguments of torch.ops.fa4.fwd by name."""
    options["q"] = normal(batch, rows[0], heads[0], dims[0], dtype=dtype)
    options["k"] = normal(batch, rows[1], heads[1], dims[0], dtype=dtype)
    options["v"] = normal(batch, rows[1], heads[1], dims[1], dtype=dtype)
    if used is not None:
        options["seqused_k"] = int32(*used)
    if sink:
        options["learnable_sink"] = normal(heads[0], dtype=torch.float32)
    return options


def packed(
    offsets_q: tuple[int, ...],
    offsets_k: tuple[int, ...],
    rows: Rows,
    used: tuple[tuple[int, ...], tuple[int, ...]] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """The arguments of torch.ops.fa4.varlen_fwd by name."""
    counts = ((rows[0], 4), (rows[1], 2), (rows[1], 2))
    options["q"], options["k"], options["v"] = (normal(n, heads, 128) for n, heads in counts)
    options |= {"cu_seqlens_q": int32(*offsets_q), "cu_seqlens_k": int32(*offsets_k)}
    options |= {"max_seqlen_q": rows[0], "max_seqlen_k": rows[1]}
    if used is not None:
        options |= {"seqused_q": int32(*used[0]), "seqused_k": int32(*used[1])}
    return options


Arguments = Callable[[], dict[str, Any]]


def fwd(arguments: Arguments) -> None:
    torch.ops.fa4.fwd(**arguments())


def varlen_fwd(arguments: Arguments) -> None:
    torch.ops.fa4.varlen_fwd(**arguments())


def forward_into_strided_buffers() -> None:
    q, k, v = (normal(2, n, 2, 64) for n in (130, 200, 200))
    out = on_gpu(torch.zeros(2, 2, 140, 66, dtype=q.dtype)).transpose(1, 2)[:, 5:135, :, :64]
    lse = on_gpu(torch.zeros(2, 130, 2)).transpose(1, 2)
    torch.ops.fa4.fwd_out(q, k, v, causal=True, out=out, lse=lse)


MORE_QUERIES = partial(dense, (200, 90), causal=True)
PADDED_DIMS = partial(dense, (70, 130), dims=(40, 24), sink=True, causal=True)
CAPPED_WINDOW = partial(
    dense, (260, 300), dims=(64, 64), window_left=100, window_right=20, softcap=5.0
)
USED_KEYS = partial(dense, (130, 300), batch=4, used=(0, 1, 129, 300))
SEQUENCES = partial(
    packed, (0, 130, 130, 131, 259), (0, 130, 150, 150, 300), (270, 310), causal=True
)
USED_ROWS = partial(packed, (0, 130, 200), (0, 100, 300), (200, 300), used=((77, 0), (65, 200)))
MANY_TILES = partial(dense, (257, 257), heads=(10, 10), batch=8)

FORWARD: dict[str, Callable[[], None]] = {
    "full": partial(fwd, partial(dense, (300, 300))),
    "causal": partial(fwd, partial(dense, (200, 333), dtype=torch.float16, causal=True)),
    "more queries than keys": partial(fwd, MORE_QUERIES),
    "head dim 64, window, softcap": partial(fwd, CAPPED_WINDOW),
    "head dims 40 and 24, sink": partial(fwd, PADDED_DIMS),
    "packed heads": partial(fwd, partial(dense, (3, 300), heads=(8, 1))),
    "packed heads that do not divide a tile": partial(
        fwd, partial(dense, (40, 200), heads=(5, 1), causal=True)
    ),
    "used keys": partial(fwd, USED_KEYS),
    "sequences": partial(varlen_fwd, SEQUENCES),
    "used queries and keys": partial(varlen_fwd, USED_ROWS),
    "strided buffers": forward_into_strided_buffers,
    "more tiles than multiprocessors": partial(fwd, MANY_TILES),
}


# ---- Backward, behind the forward whose results it needs -----------------------------------------


def forward_results(op: Any, given: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """out and lse, in tensors that come from the host too: the copy engine's stores of out are
    writes that initcheck does not see."""
    q, v = given["q"], given["v"]
    out = on_gpu(torch.zeros(*q.shape[:-1], v.shape[-1], dtype=q.dtype))
    *batch, rows, heads, _ = q.shape
    lse = on_gpu(torch.zeros(*batch, heads, rows))
    op(**given, out=out, lse=lse)
    return out, lse


def bwd(arguments: Arguments, *, through_lse: bool = False, deterministic: bool = False) -> None:
    given = arguments()
    out, lse = forward_results(torch.ops.fa4.fwd_out, given)
    given |= {"dout": normal(*out.shape, dtype=out.dtype), "out": out, "lse": lse}
    if through_lse:
        given["dlse"] = normal(*lse.shape, dtype=torch.float32)
    torch.ops.fa4.bwd(**given, deterministic=deterministic)


def varlen_bwd(
    arguments: Arguments, *, through_lse: bool = False, deterministic: bool = False
) -> None:
    given = arguments()
    out, lse = forward_results(torch.ops.fa4.varlen_fwd_out, given)
    given |= {"dout": normal(*out.shape, dtype=out.dtype), "out": out, "lse": lse}
    if through_lse:
        given["dlse"] = normal(*lse.shape, dtype=torch.float32)
    torch.ops.fa4.varlen_bwd(**given, deterministic=deterministic)


def backward_into_strided_buffers() -> None:
    given = dense((130, 200), dims=(64, 64), batch=2, sink=True, causal=True)
    out, lse = forward_results(torch.ops.fa4.fwd_out, given)

    def buffer(like: Tensor) -> Tensor:
        batch, rows, heads, dim = like.shape
        room = torch.zeros(batch, heads, rows + 10, dim + 2, dtype=like.dtype)
        return on_gpu(room).transpose(1, 2)[:, 5 : rows + 5, :, :dim]

    given |= {"dq": buffer(given["q"]), "dk": buffer(given["k"]), "dv": buffer(given["v"])}
    given["dsink"] = on_gpu(torch.zeros(2))
    dout = normal(*out.shape, dtype=out.dtype)
    torch.ops.fa4.bwd_out(dout=dout, out=out, lse=lse, **given)


GROUPED = partial(dense, (150, 290), heads=(6, 2), causal=True)

BACKWARD: dict[str, Callable[[], None]] = {
    "full": partial(bwd, partial(dense, (300, 300))),
    "causal": partial(bwd, partial(dense, (200, 333), dtype=torch.float16, causal=True)),
    "more queries than keys": partial(bwd, MORE_QUERIES),
    "head dim 64": partial(bwd, partial(dense, (300, 300), dims=(64, 64), causal=True)),
    "head dim 64, window, softcap": partial(bwd, CAPPED_WINDOW),
    "head dims 40 and 24, sink": partial(bwd, PADDED_DIMS),
    "grouped heads": partial(bwd, GROUPED),
    "used keys": partial(bwd, USED_KEYS),
    "sequences": partial(varlen_bwd, SEQUENCES),
    "used queries and keys, gradient of lse": partial(varlen_bwd, USED_ROWS, through_lse=True),
    "gradient of lse": partial(bwd, CAPPED_WINDOW, through_lse=True),
    "deterministic": partial(bwd, GROUPED, deterministic=True),
    "deterministic, head dim 64, window": partial(bwd, CAPPED_WINDOW, deterministic=True),
    "deterministic sequences": partial(varlen_bwd, SEQUENCES, deterministic=True),
    "strided buffers": backward_into_strided_buffers,
    "more tiles than multiprocessors": partial(bwd, MANY_TILES),
    "deterministic, more tiles than multiprocessors": partial(bwd, MANY_TILES, deterministic=True),
}

CALLS = {"forward": FORWARD, "backward": BACKWARD}


# ---- In a process of their own, under the tool ---------------------------------------------------


def run_calls(passes: list[str]) -> None:
    import flash_attn4  # noqa: F401  (registers torch.ops.fa4)

    for name in passes:
        for title, call in CALLS[name].items():
            call()
            torch.cuda.synchronize()
            print(f"call: {name}, {title}", flush=True)


def read_past_the_end() -> None:
    import flash_attn4  # noqa: F401

    out, lse = normal(3, 40, 2, 64, dtype=torch.float32), normal(3, 40, 2, dtype=torch.float32)
    storage = out.untyped_storage()
    storage.resize_(storage.nbytes() - 4096)
    torch.ops.fa4.combine(out, lse)
    torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passes", nargs="+", choices=CALLS, default=[])
    parser.add_argument("--past-the-end", action="store_true", help="only the call of the control")
    options = parser.parse_args()
    if options.past_the_end:
        read_past_the_end()
    run_calls(options.passes)


if __name__ == "__main__":
    main()
