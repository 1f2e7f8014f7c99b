"""Wrong calls of the ops that Python functions do not call as they are: backward and buffers."""

from __future__ import annotations

import torch
from wrong_calls import Wrong, int32, last_dim_strided

BWD = [
    Wrong({"dout": None}, TypeError, "dout: must be Tensor, got NoneType"),
    Wrong(
        {"dout": lambda x: x[..., :16]},
        ValueError,
        "dout: this dimension must be 24, got 16 in shape (2, 5, 4, 16)",
    ),
    Wrong(
        {"dout": lambda x: x.half()},
        TypeError,
        "dout: must have the dtype of q (float32), got float16",
    ),
    Wrong(
        {"dout": last_dim_strided},
        ValueError,
        "dout: last dimension must be contiguous (stride 1), got stride 2",
    ),
    Wrong(
        {"out": lambda x: x[0]}, ValueError, "out: must have shape of the result, got (5, 4, 24)"
    ),
    Wrong(
        {"out": lambda x: x[:, :4]},
        ValueError,
        "out: this dimension must be 5, got 4 in shape (2, 4, 4, 24)",
    ),
    Wrong(
        {"lse": lambda x: x.transpose(1, 2)},
        ValueError,
        "lse: this dimension must be 4, got 5 in shape (2, 5, 4)",
    ),
    Wrong({"lse": lambda x: x.half()}, TypeError, "lse: must be float32, got float16"),
    Wrong({"dlse": lambda x: x.double()}, TypeError, "dlse: must be float32, got float64"),
    Wrong({"dlse": lambda x: x[0]}, ValueError, "dlse: must have shape of the result, got (4, 5)"),
    Wrong(
        {"k": lambda x: x[:, :, :, :8]},
        ValueError,
        "k: head_dim must be 16, got 8 in shape (2, 7, 2, 8)",
    ),
    Wrong(
        {"softmax_scale": -1.0}, ValueError, "softmax_scale: must be finite and > 0, got -1.000000"
    ),
    Wrong(
        {"seqused_k": int32(7, 8)},
        ValueError,
        "seqused_k: must lie in [0, 7], the rows present, got 8 at index 1",
        contents=True,
    ),
]

FWD_BUFFERS = [
    Wrong(
        {"out": lambda x: x[:, :4]},
        ValueError,
        "out: this dimension must be 5, got 4 in shape (2, 4, 4, 24)",
    ),
    Wrong(
        {"out": lambda x: x.half()},
        TypeError,
        "out: must have the dtype of q (float32), got float16",
    ),
    Wrong(
        {"out": lambda x: x.to("meta")},
        ValueError,
        "out: must be on the device of q (cpu), got meta",
    ),
    Wrong(
        {"out": last_dim_strided},
        ValueError,
        "out: last dimension must be contiguous (stride 1), got stride 2",
    ),
    Wrong(
        {"lse": lambda x: x.transpose(1, 2)},
        ValueError,
        "lse: this dimension must be 4, got 5 in shape (2, 5, 4)",
    ),
    Wrong({"lse": lambda x: x.double()}, TypeError, "lse: must be float32, got float64"),
    Wrong(
        {"out": lambda x: x[:, :1].expand(-1, 5, -1, -1)},
        ValueError,
        "out: must not overlap itself, got stride 0 in dimension 1",
    ),
]

BWD_BUFFERS = [
    Wrong(
        {"dq": lambda x: x[:1]},
        ValueError,
        "dq: this dimension must be 2, got 1 in shape (1, 5, 4, 16)",
    ),
    Wrong(
        {"dk": lambda x: x.half()}, TypeError, "dk: must have the dtype of k (float32), got float16"
    ),
    Wrong(
        {"dv": last_dim_strided},
        ValueError,
        "dv: last dimension must be contiguous (stride 1), got stride 2",
    ),
    Wrong({"dv": lambda x: x[0]}, ValueError, "dv: must have shape of its operand, got (7, 2, 24)"),
    Wrong(
        {"dsink": torch.zeros(4)},
        ValueError,
        "dsink: must be given exactly when learnable_sink is, got a tensor",
    ),
    Wrong(
        {"learnable_sink": torch.zeros(4)},
        ValueError,
        "dsink: must be given exactly when learnable_sink is, got None",
    ),
    Wrong(
        {"learnable_sink": torch.zeros(4), "dsink": torch.zeros(3)},
        ValueError,
        "dsink: this dimension must be 4, got 3 in shape (3,)",
    ),
]
