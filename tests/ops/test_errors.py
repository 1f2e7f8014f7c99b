"""Wrong calls: type and text of the exception, and that nothing has run before it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import Device
from torch import Tensor
from wrong_calls import COMBINE, DENSE, PAGED, VARLEN, VARLEN_PAGED, Wrong, int32
from wrong_op_calls import BWD, BWD_BUFFERS, FWD_BUFFERS

from flash_attn4 import flash_attn_combine, flash_attn_func, flash_attn_varlen_func


def right_dense() -> dict[str, Any]:
    q, k, v = torch.zeros(2, 5, 4, 16), torch.zeros(2, 7, 2, 16), torch.zeros(2, 7, 2, 24)
    return {"q": q, "k": k, "v": v}


def right_varlen() -> dict[str, Any]:
    return {
        "q": torch.zeros(10, 4, 16),
        "k": torch.zeros(14, 2, 16),
        "v": torch.zeros(14, 2, 24),
        "cu_seqlens_q": int32(0, 4, 10),
        "cu_seqlens_k": int32(0, 8, 14),
        "max_seqlen_q": 6,
        "max_seqlen_k": 8,
    }


def right_paged() -> dict[str, Any]:
    return {
        "q": torch.zeros(2, 5, 4, 16),
        "k": torch.zeros(6, 4, 2, 16),
        "v": torch.zeros(6, 4, 2, 24),
        "page_table": torch.zeros(2, 3, dtype=torch.int32),
        "seqused_k": int32(12, 9),
    }


def right_varlen_paged() -> dict[str, Any]:
    dense, varlen = right_paged(), right_varlen()
    del varlen["k"], varlen["v"], dense["q"]
    return varlen | dense | {"cu_seqlens_k": None, "max_seqlen_k": 12}


def right_combine() -> dict[str, Any]:
    return {"out_partial": torch.zeros(3, 2, 5, 4, 16), "lse_partial": torch.zeros(3, 2, 5, 4)}


def right_bwd() -> dict[str, Any]:
    out, lse = torch.zeros(2, 5, 4, 24), torch.zeros(2, 4, 5)
    return {"dout": out.clone(), **right_dense(), "out": out, "lse": lse, "dlse": lse.clone()}


def fwd_buffers() -> dict[str, Tensor]:
    return {"out": torch.full((2, 5, 4, 24), 7.0), "lse": torch.full((2, 4, 5), 7.0)}


def bwd_buffers() -> dict[str, Tensor]:
    return {f"d{name}": torch.full_like(x, 7.0) for name, x in right_dense().items()}


NOTHING = Wrong({}, ValueError, "")


def changed(arguments: dict[str, Any], wrong: Wrong, device: Device) -> dict[str, Any]:
    if wrong.contents and device.name != "cpu":
        pytest.skip(f"on {device.name} the contents of int32 tensors are not read")

    def moved(x: Any) -> Any:
        return x.to(device.torch) if isinstance(x, Tensor) and x.device.type == "cpu" else x

    # Moved before the change, which may be one of strides.
    arguments = {name: moved(x) for name, x in arguments.items()}
    for name, change in wrong.change.items():
        arguments[name] = moved(change(arguments[name]) if callable(change) else change)
    return arguments


def expected_text(wrong: Wrong, device: Device) -> str:
    if wrong.error is NotImplementedError and device.name != "cpu":
        pytest.skip(f"the reasons on {device.name} depend on the kernels of the build")
    return wrong.text.replace("(cpu)", f"({device.torch})")


def check(
    function: Callable[..., object], right: dict[str, Any], wrong: Wrong, device: Device
) -> None:
    arguments = changed(right, wrong, device)
    text = expected_text(wrong, device)
    with pytest.raises(wrong.error) as caught:
        function(**arguments)
    assert type(caught.value) is wrong.error
    assert str(caught.value) == f"{function.__name__}: {text}"


def check_op(op: Any, arguments: dict[str, Any], wrong: Wrong, device: Device) -> None:
    """Ops have RuntimeError only, and put the kind into the text."""
    text = expected_text(wrong, device)
    with pytest.raises(RuntimeError) as caught:
        op(**arguments)
    assert str(caught.value) == f"{op.name()}: {wrong.error.__name__}: {text}"


@pytest.mark.parametrize("wrong", DENSE, ids=str)
def test_flash_attn_func_refuses(wrong: Wrong, device: Device) -> None:
    check(flash_attn_func, right_dense(), wrong, device)


@pytest.mark.parametrize("wrong", PAGED, ids=str)
def test_flash_attn_func_refuses_pages(wrong: Wrong, device: Device) -> None:
    check(flash_attn_func, right_paged(), wrong, device)


@pytest.mark.parametrize("wrong", VARLEN, ids=str)
def test_flash_attn_varlen_func_refuses(wrong: Wrong, device: Device) -> None:
    check(flash_attn_varlen_func, right_varlen(), wrong, device)


@pytest.mark.parametrize("wrong", VARLEN_PAGED, ids=str)
def test_flash_attn_varlen_func_refuses_pages(wrong: Wrong, device: Device) -> None:
    check(flash_attn_varlen_func, right_varlen_paged(), wrong, device)


@pytest.mark.parametrize("wrong", COMBINE, ids=str)
def test_flash_attn_combine_refuses(wrong: Wrong, device: Device) -> None:
    check(flash_attn_combine, right_combine(), wrong, device)


@pytest.mark.parametrize("wrong", BWD, ids=str)
def test_bwd_refuses(wrong: Wrong, device: Device) -> None:
    check_op(torch.ops.fa4.bwd.default, changed(right_bwd(), wrong, device), wrong, device)


@pytest.mark.parametrize("wrong", FWD_BUFFERS, ids=str)
def test_fwd_out_refuses_buffers(wrong: Wrong, device: Device) -> None:
    arguments = changed(right_dense() | fwd_buffers(), wrong, device)
    check_op(torch.ops.fa4.fwd_out.default, arguments, wrong, device)


@pytest.mark.parametrize("wrong", BWD_BUFFERS, ids=str)
def test_bwd_out_refuses_buffers(wrong: Wrong, device: Device) -> None:
    arguments = changed(right_bwd() | bwd_buffers(), wrong, device)
    check_op(torch.ops.fa4.bwd_out.default, arguments, wrong, device)


def _of_op(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of flash_attn_func as the op names them."""
    arguments = dict(arguments)
    if "window_size" in arguments:
        left, right = arguments.pop("window_size")
        arguments |= {"window_left": left, "window_right": right}
    return arguments


CHECKED_BY_OPS = [wrong for wrong in DENSE if "must be a pair" not in wrong.text]


def check_fwd_out_writes_nothing(right: dict[str, Any], wrong: Wrong, device: Device) -> None:
    buffers = changed(fwd_buffers(), NOTHING, device)
    arguments = _of_op(changed(right, wrong, device))
    with pytest.raises(RuntimeError, match="fa4::fwd"):
        torch.ops.fa4.fwd_out(**arguments, **buffers)
    for buffer in buffers.values():
        assert bool((buffer == 7.0).all())


@pytest.mark.parametrize("wrong", CHECKED_BY_OPS, ids=str)
def test_fwd_out_writes_nothing(wrong: Wrong, device: Device) -> None:
    check_fwd_out_writes_nothing(right_dense(), wrong, device)


@pytest.mark.parametrize("wrong", PAGED, ids=str)
def test_fwd_out_writes_nothing_with_pages(wrong: Wrong, device: Device) -> None:
    check_fwd_out_writes_nothing(right_paged(), wrong, device)


@pytest.mark.parametrize("wrong", BWD, ids=str)
def test_bwd_out_writes_nothing(wrong: Wrong, device: Device) -> None:
    buffers = changed(bwd_buffers(), NOTHING, device)
    arguments = changed(right_bwd(), wrong, device)
    with pytest.raises(RuntimeError, match="fa4::bwd"):
        torch.ops.fa4.bwd_out(**arguments, **buffers)
    for buffer in buffers.values():
        assert bool((buffer == 7.0).all())


def test_right_calls_pass(device: Device) -> None:
    """What the wrong calls differ from."""
    flash_attn_func(**changed(right_dense(), NOTHING, device))
    flash_attn_func(**changed(right_paged(), NOTHING, device))
    flash_attn_varlen_func(**changed(right_varlen(), NOTHING, device))
    flash_attn_varlen_func(**changed(right_varlen_paged(), NOTHING, device))
    flash_attn_combine(**changed(right_combine(), NOTHING, device))
    torch.ops.fa4.bwd_out(**changed(right_bwd() | bwd_buffers(), NOTHING, device))


@pytest.mark.cpu_only("the contents of int32 tensors are not read")
def test_backward_names_the_function(device: Device) -> None:
    """An error of the op that runs in backward keeps its type and says where it comes from."""
    arguments = changed(right_dense(), NOTHING, device)
    q = arguments.pop("q").requires_grad_()
    seqused = int32(7, 7)
    out = flash_attn_func(q, **arguments, seqused_k=seqused)
    seqused.data.fill_(8)
    with pytest.raises(ValueError, match=r"^backward of flash_attn_func: seqused_k: must lie in"):
        out.sum().backward()


def test_missing_library_names_the_file(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    library = sys.modules["flash_attn4._library"]
    monkeypatch.setattr(library, "LIBRARY_PATH", tmp_path / "libfa4_ops.so")
    with pytest.raises(ImportError, match=r"libfa4_ops.so does not exist: the package was not"):
        library.load()
    (tmp_path / "libfa4_ops.so").write_bytes(b"no library")
    with pytest.raises(ImportError, match=r"libfa4_ops.so does not load into torch"):
        library.load()
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(ImportError, match=r"needs torch >= 2.10, found torch 2.9.1\+cpu"):
        library.load()
