"""What is tested: one Case per call of dense attention, and the tensors that belong to it."""

from __future__ import annotations

import itertools
import random
import zlib
from dataclasses import dataclass, field, fields, replace

import reference
import tolerances
import torch
from torch import Tensor

DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True)
class Case:
    """A call of flash_attn_func. Defaults do not appear in the name of the test."""

    dtype: str = "bfloat16"
    batch: int = 2
    seqlen_q: int = 129
    seqlen_k: int = 129
    heads_q: int = 4
    heads_k: int = 2
    head_dim: int = 64
    head_dim_v: int = 64
    causal: bool = False
    window: tuple[int, int] = (-1, -1)
    softcap: float = 0.0
    softmax_scale: float | None = None
    sink: str = ""  # element type of learnable_sink; empty: none
    seqused: bool = False  # NaN behind the keys that count
    num_splits: int = 1
    data: str = "normal"  # outlier, hot (peaked rows), one_hot (V returns the weights themselves)
    layout: str = "contiguous"  # bhsd, qkv, expanded, padded: other strides

    def __str__(self) -> str:
        words = []
        for item in fields(self):
            value = getattr(self, item.name)
            if value != item.default:
                words.append(f"{item.name}={value}".replace(" ", ""))
        return ",".join(words) or "default"

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    def rule_b_applies(self) -> bool:
        """Whether all rows see enough keys, with the usual scores, for a bound on the RMSE."""
        mask = reference.visible_mask(self.seqlen_q, self.seqlen_k, self.causal, self.window)
        keys_seen = int(mask.sum(dim=-1).min()) if mask.numel() else 0
        usual = not self.seqused and self.softmax_scale is None and not self.softcap
        return usual and keys_seen >= tolerances.FEWEST_KEYS_FOR_RMSE

    def inputs(self) -> Inputs:
        """Tensors on the CPU, the same in every run."""
        return _make_inputs(self)


@dataclass(frozen=True)
class Inputs:
    case: Case
    q: Tensor
    k: Tensor
    v: Tensor
    dout: Tensor
    dlse: Tensor
    sink: Tensor | None = None
    seqused_k: Tensor | None = None
    options: reference.Options = field(default_factory=reference.Options)

    def to(self, device: torch.device) -> Inputs:
        if device.type == "cpu":
            return self
        moved = {
            item.name: _on_device(value, device)
            for item in fields(self)
            if isinstance(value := getattr(self, item.name), Tensor)
        }
        return replace(self, **moved)

    def spans(self) -> list[reference.Span]:
        case = self.case
        return list(reference.dense_spans(case.batch, case.seqlen_q, case.seqlen_k, self.seqused_k))

    def arguments(self) -> dict[str, object]:
        """Keyword arguments of flash_attn_func beside q, k and v."""
        case = self.case
        return {
            "softmax_scale": case.softmax_scale,
            "causal": case.causal,
            "window_size": case.window,
            "softcap": case.softcap,
            "learnable_sink": self.sink,
            "seqused_k": self.seqused_k,
            "num_splits": case.num_splits,
        }


def sampled(values: list[Case], count: int) -> list[Case]:
    """`count` of the values, the same ones in every run, in their order."""
    if len(values) <= count:
        return values
    chosen = random.Random(20).sample(range(len(values)), count)
    return [values[i] for i in sorted(chosen)]


# ---- Lists --------------------------------------------------------------------------------------

MASKS: tuple[dict[str, object], ...] = (
    {},
    {"causal": True},
    {"window": (40, 7)},
    {"causal": True, "window": (33, -1)},
    {"window": (0, -1)},
)

# One of each feature, for tests that run something else than the matrix.
SMOKE = [
    Case(),
    Case(dtype="float16", causal=True, seqlen_k=200),
    Case(dtype="float32", causal=True, window=(50, -1), head_dim_v=32),
    Case(window=(30, 10), softcap=5.0, heads_k=1),
    Case(causal=True, sink="float32", seqlen_q=70, heads_k=4),
    Case(dtype="float32", seqused=True, sink="float32", softcap=3.0),
]

_WIDE: tuple[dict[str, object], ...] = (
    {"seqlen_q": 257, "seqlen_k": 400, "causal": True, "heads_q": 8},
    {"seqlen_q": 3, "seqlen_k": 300, "heads_q": 10, "dtype": "float16"},
    {"seqlen_q": 200, "seqlen_k": 90, "causal": True, "sink": "bfloat16"},
    {"window": (40, 7), "softcap": 5.0, "dtype": "float16"},
    {"seqused": True, "batch": 5, "causal": True},
    {"data": "hot", "seqlen_k": 300},
    {"data": "outlier", "seqlen_q": 512, "seqlen_k": 512, "layout": "qkv"},
)

_GROUP_HEAD_DIMS = ((64, 64), (96, 96), (128, 128), (192, 128))

# Few queries, whose heads may share tiles of 64 or 128 rows. Groups of 3, 5, 6 and 7 heads leave
# rows without a query.
GROUPED = [
    Case(
        dtype=DTYPES[group // 4 % 2],
        batch=1,
        seqlen_q=50,
        seqlen_k=200,
        heads_q=2 * group,
        heads_k=2,
        head_dim=_GROUP_HEAD_DIMS[group % 4][0],
        head_dim_v=_GROUP_HEAD_DIMS[group % 4][1],
        causal=group % 3 != 0,
    )
    for group in range(1, 9)
]

EDGE = [
    # Lengths: nothing, one, one beside a tile, more queries than keys (rows that see nothing).
    Case(seqlen_q=1, seqlen_k=1),
    Case(seqlen_q=1, seqlen_k=300),
    Case(seqlen_q=300, seqlen_k=1),
    Case(seqlen_q=0),
    Case(seqlen_k=0),
    Case(seqlen_k=0, sink="float32", causal=True),
    Case(batch=0),
    Case(seqlen_q=64, seqlen_k=64),
    Case(seqlen_q=63, seqlen_k=65, causal=True),
    Case(seqlen_q=128, seqlen_k=256, causal=True),
    Case(seqlen_q=200, seqlen_k=90, causal=True),
    Case(seqlen_q=200, seqlen_k=90, causal=True, sink="bfloat16"),
    Case(seqlen_q=150, seqlen_k=20, window=(10, 3)),
    Case(batch=1, seqlen_q=1000, seqlen_k=1100, causal=True, heads_q=2, heads_k=1),
    # Windows: a single key, past both ends, so wide that nothing is masked, nothing but masked.
    Case(window=(0, 0)),
    Case(window=(0, 5), seqlen_k=300),
    Case(window=(1000, 1000)),
    Case(window=(2**40, -1), causal=True),
    Case(window=(5, 0), causal=True, seqlen_q=40, seqlen_k=300),
    Case(window=(3, 9), causal=True),
    # Heads and head sizes.
    Case(head_dim=8, head_dim_v=8),
    Case(head_dim=256, head_dim_v=256, dtype="float16"),
    Case(head_dim=72, head_dim_v=40),
    Case(head_dim=192, head_dim_v=128, causal=True),
    Case(head_dim=16, head_dim_v=256, dtype="float32"),
    Case(heads_q=7, heads_k=1),
    Case(heads_q=6, heads_k=2, causal=True, sink="float16", dtype="float16"),
    Case(batch=61, seqlen_q=9, seqlen_k=33, heads_q=40, heads_k=8, head_dim=32, head_dim_v=32),
    # Scores: peaked, with outliers, scaled, capped.
    Case(data="hot", causal=True, seqlen_q=256, seqlen_k=256),
    Case(data="hot", dtype="float16", sink="float32"),
    Case(data="hot", dtype="float32", softcap=20.0),
    Case(data="outlier", seqlen_k=512),
    Case(data="outlier", dtype="float16", causal=True),
    Case(softmax_scale=1.0, dtype="float32"),
    Case(softmax_scale=1e-3),
    Case(softcap=0.5),
    Case(softcap=1000.0, data="hot", dtype="float16"),
    # Weights themselves: V is one-hot.
    Case(data="one_hot", seqlen_q=100, seqlen_k=64, causal=True),
    Case(data="one_hot", seqlen_k=190, window=(17, 4), dtype="float16"),
    Case(data="one_hot", seqlen_k=130, head_dim_v=256, window=(-1, 12), dtype="float32"),
    # Strides.
    *(Case(layout=x, causal=True) for x in ("bhsd", "qkv", "expanded", "padded")),
    Case(layout="bhsd", dtype="float32", seqused=True),
    Case(layout="padded", head_dim=40, head_dim_v=24, window=(9, 9)),
    # Keys that do not count hold NaN.
    Case(seqused=True, batch=5),
    Case(seqused=True, batch=5, causal=True, dtype="float16"),
    Case(seqused=True, batch=5, causal=True, window=(20, -1), sink="float32"),
    # Splits of the keys.
    Case(num_splits=0),
    Case(num_splits=3, seqlen_k=500),
    Case(num_splits=7, causal=True, seqused=True, dtype="float16"),
    # In 16 bit, which GPUs serve, what is above in float32 or with larger heads.
    Case(causal=True, window=(50, -1), head_dim_v=32),
    Case(seqused=True, sink="float32", softcap=3.0),
    Case(softmax_scale=1.0, dtype="float16"),
    Case(data="hot", dtype="float16", softcap=20.0),
    Case(data="one_hot", seqlen_k=130, head_dim_v=128, window=(-1, 12)),
    Case(layout="bhsd", seqused=True, dtype="float16"),
    Case(head_dim=16, head_dim_v=128, dtype="float16"),
    # Head dims with tiles of their own.
    *(Case(head_dim=128, head_dim_v=128, **options) for options in _WIDE),
    *(Case(head_dim=96, head_dim_v=96, **options) for options in _WIDE),
    *(Case(head_dim=192, head_dim_v=128, **{**options, "layout": "bhsd"}) for options in _WIDE),
    *GROUPED,
]

_LENGTHS = ((1, 137), (113, 113), (128, 192), (192, 128), (257, 333))
_HEADS = ((4, 4), (4, 2), (5, 1))
_HEAD_DIMS = ((64, 64), (128, 128), (96, 48), (40, 200))
_EXTRAS: tuple[dict[str, object], ...] = (
    {},
    {"softcap": 4.0},
    {"sink": "float32", "softmax_scale": 0.2},
    {"seqused": True, "data": "hot"},
)
FULL = [
    Case(
        dtype=dtype,
        seqlen_q=seqlen_q,
        seqlen_k=seqlen_k,
        heads_q=heads_q,
        heads_k=heads_k,
        head_dim=head_dim,
        head_dim_v=head_dim_v,
        **mask,
        **extra,
    )
    for dtype, (seqlen_q, seqlen_k), (heads_q, heads_k), (head_dim, head_dim_v), mask, extra in (
        itertools.product(DTYPES, _LENGTHS, _HEADS, _HEAD_DIMS, MASKS, _EXTRAS)
    )
]


# ---- Tensors ------------------------------------------------------------------------------------


def _make_inputs(case: Case) -> Inputs:
    generator = torch.Generator().manual_seed(zlib.crc32(str(case).encode()))
    dtype = case.torch_dtype

    def normal(*shape: int) -> Tensor:
        x = torch.randn(*shape, generator=generator)
        if case.data == "outlier":
            rare = torch.rand(*shape, generator=generator) < 1e-3
            x += 10 * torch.randn(*shape, generator=generator) * rare
        return x

    b, hq, hk = case.batch, case.heads_q, case.heads_k
    q = normal(b, case.seqlen_q, hq, case.head_dim)
    k = normal(b, case.seqlen_k, hk, case.head_dim)
    v = normal(b, case.seqlen_k, hk, case.head_dim_v)
    if case.data == "hot":
        q *= 8
    elif case.data == "one_hot":
        v = torch.eye(case.head_dim_v)[torch.arange(case.seqlen_k) % case.head_dim_v]
        v = v[None, :, None, :].repeat(b, 1, hk, 1)
    q, k, v = _laid_out(case, q.to(dtype), k.to(dtype), v.to(dtype))
    dout = torch.randn(b, case.seqlen_q, hq, case.head_dim_v, generator=generator).to(dtype)
    dlse = torch.randn(b, hq, case.seqlen_q, generator=generator)
    sink = seqused_k = None
    if case.sink:
        sink = torch.randn(hq, generator=generator).to(getattr(torch, case.sink))
    if case.seqused:
        seqused_k = torch.randint(0, case.seqlen_k + 1, (b,), generator=generator)
        seqused_k = seqused_k.to(torch.int32)
        for i, used in enumerate(seqused_k.tolist()):
            k[i, used:] = torch.nan
            v[i, used:] = torch.nan
    options = reference.Options(case.softmax_scale, case.causal, case.window, case.softcap, sink)
    return Inputs(case, q, k, v, dout, dlse, sink, seqused_k, options)


def _laid_out(case: Case, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same values behind the strides that callers have."""
    if case.layout == "bhsd":
        q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    elif case.layout == "qkv":
        qkv = torch.cat([q, k, v], dim=2)
        hq, hk = case.heads_q, case.heads_k
        q, k, v = qkv[:, :, :hq], qkv[:, :, hq : hq + hk], qkv[:, :, hq + hk :]
    elif case.layout == "expanded":
        k, v = (x[:1, :, :1].expand_as(x) for x in (k, v))
    elif case.layout == "padded":
        q, k, v = (_framed(x) for x in (q, k, v))
    return q, k, v


def _framed(x: Tensor) -> Tensor:
    """x inside a larger tensor of NaN, with odd distances between its rows."""
    frame = torch.full([n + 3 for n in x.shape], torch.nan, dtype=x.dtype)
    inner = frame[tuple(slice(1, n + 1) for n in x.shape)]
    inner.copy_(x)
    return inner


def _on_device(x: Tensor, device: torch.device) -> Tensor:
    """x with its strides kept: to() would make an expanded tensor contiguous."""
    if x.numel() == 0:
        return x.to(device)
    span = 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True) if n > 0)
    storage = x.as_strided((span,), (1,)).to(device)
    return storage.as_strided(x.shape, x.stride())
