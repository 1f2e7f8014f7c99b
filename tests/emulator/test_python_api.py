"""flash_attn4.emulator: modules, launches, tensor maps, options, and the exceptions of each."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
import torch

emulator = pytest.importorskip(
    "flash_attn4.emulator", reason="no emulator in this build", exc_type=ImportError
)
EmulatorError, Module, Options = emulator.EmulatorError, emulator.Module, emulator.Options
tensor_map = emulator.tensor_map

pytestmark = pytest.mark.cpu_only("runs the emulator itself")

HEADER = """
.version 8.8
.target sm_90a
.address_size 64
"""
# scale(out, x, factor, shift, count): out[i] = x[i] * factor + shift for i < count.
SCALE = """
.visible .entry scale(
  .param .u64 scale_param_0, .param .u64 scale_param_1, .param .f32 scale_param_2,
  .param .f64 scale_param_3, .param .s16 scale_param_4
)
.maxntid 128, 1, 1
{
  .reg .pred %p<2>;
  .reg .b16 %rs<2>;
  .reg .b32 %r<6>;
  .reg .f32 %f<5>;
  .reg .f64 %fd<2>;
  .reg .b64 %rd<8>;
  ld.param.u64 %rd1, [scale_param_0];
  ld.param.u64 %rd2, [scale_param_1];
  ld.param.f32 %f1, [scale_param_2];
  ld.param.f64 %fd1, [scale_param_3];
  ld.param.s16 %rs1, [scale_param_4];
  cvt.rn.f32.f64 %f2, %fd1;
  cvt.s32.s16 %r1, %rs1;
  mov.u32 %r2, %ctaid.x;
  mov.u32 %r3, %ntid.x;
  mov.u32 %r4, %tid.x;
  mad.lo.s32 %r5, %r2, %r3, %r4;
  setp.ge.s32 %p1, %r5, %r1;
  @%p1 bra DONE;
  mul.wide.s32 %rd3, %r5, 4;
  cvta.to.global.u64 %rd4, %rd2;
  add.s64 %rd5, %rd4, %rd3;
  ld.global.f32 %f3, [%rd5];
  fma.rn.f32 %f4, %f3, %f1, %f2;
  cvta.to.global.u64 %rd6, %rd1;
  add.s64 %rd7, %rd6, %rd3;
  st.global.f32 [%rd7], %f4;
DONE:
  ret;
}
"""
# copy(map, out): a box of 8 x 4 fp32 through the copy engine, element by element to out.
COPY = """
.visible .entry copy(.param .align 64 .b8 copy_param_0[128], .param .u64 copy_param_1)
{
  .reg .pred %p<3>;
  .reg .b32 %r<8>;
  .reg .b64 %rd<6>;
  .shared .align 128 .b8 box[128];
  .shared .align 8 .b64 full;
  mov.u32 %r1, %tid.x;
  mov.u32 %r2, full;
  mov.u32 %r3, box;
  setp.ne.s32 %p1, %r1, 0;
  @%p1 bra WAIT;
  mov.b64 %rd1, copy_param_0;
  cvta.param.u64 %rd1, %rd1;
  mbarrier.init.shared.b64 [%r2], 1;
  fence.mbarrier_init.release.cluster;
  mbarrier.arrive.expect_tx.shared.b64 _, [%r2], 128;
  mov.u32 %r4, 0;
  cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes \
[%r3], [%rd1, {%r4, %r4}], [%r2];
WAIT:
  bar.sync 0;
SPIN:
  mbarrier.try_wait.parity.shared.b64 %p2, [%r2], 0;
  @!%p2 bra SPIN;
  shl.b32 %r5, %r1, 2;
  add.s32 %r6, %r3, %r5;
  ld.shared.u32 %r7, [%r6];
  ld.param.u64 %rd2, [copy_param_1];
  cvta.to.global.u64 %rd3, %rd2;
  mul.wide.u32 %rd4, %r1, 4;
  add.s64 %rd5, %rd3, %rd4;
  st.global.u32 [%rd5], %r7;
  ret;
}
"""


@pytest.fixture(scope="module")
def module() -> Module:
    return Module(HEADER + SCALE + COPY, "scale.ptx")


# ---- Modules -------------------------------------------------------------------------------------


def test_kernels_describe_themselves(module: Module) -> None:
    assert module.target == "sm_90a"
    assert list(module.kernels) == ["scale", "copy"]
    kernel = module.kernels["scale"]
    assert [(p.name, p.offset, p.bytes) for p in kernel.parameters] == [
        ("scale_param_0", 0, 8),
        ("scale_param_1", 8, 8),
        ("scale_param_2", 16, 4),
        ("scale_param_3", 24, 8),
        ("scale_param_4", 32, 2),
    ]
    assert kernel.parameter_bytes >= 34
    assert kernel.max_threads == (128, 1, 1)
    assert kernel.required_threads == kernel.required_cluster == (0, 0, 0)
    assert kernel.static_shared_bytes == 0
    assert kernel.instructions == 22
    assert kernel.forms["fma.rn.f32"] == 1
    assert kernel.forms["ld.param.u64"] == 2
    assert kernel.register_slots > 0
    assert module.kernels["copy"].static_shared_bytes >= 136


def test_load_reads_a_file(tmp_path: Any) -> None:
    path = tmp_path / "scale.ptx"
    path.write_text(HEADER + SCALE)
    assert list(emulator.load(path).kernels) == ["scale"]
    with pytest.raises(FileNotFoundError):
        emulator.load(tmp_path / "absent.ptx")


def test_bad_ptx_names_file_and_line() -> None:
    with pytest.raises(ValueError, match=r"broken\.ptx:\d+: "):
        Module(HEADER + SCALE.replace("mov.u32 %r4, %tid.x;", "mov.u32 %r4 %tid.x;"), "broken.ptx")


def test_unmodelled_instructions_are_named() -> None:
    text = SCALE.replace("mov.u32 %r4, %tid.x;", "frobnicate.u32 %r4, %r3;")
    with pytest.raises(NotImplementedError, match=r"new\.ptx:\d+: .*frobnicate\.u32"):
        Module(HEADER + text, "new.ptx")


# ---- Launches ------------------------------------------------------------------------------------


def scale_arguments(count: int = 100) -> tuple[torch.Tensor, torch.Tensor, float, float, int]:
    return torch.zeros(count), torch.randn(count), 3.0, 0.5, count


def check_scaled(out: torch.Tensor, x: torch.Tensor) -> None:
    torch.testing.assert_close(out, 3 * x + 0.5)


def test_launch_with_a_list(module: Module) -> None:
    args = scale_arguments()
    result = module.launch("scale", 2, 64, args)
    check_scaled(args[0], args[1])
    assert result.statistics["clusters"] == 2
    assert result.statistics["warp_instructions"] > 4 * 13
    assert result.trace == []
    assert json.loads(result.json())


def test_launch_with_a_parameter_block(module: Module) -> None:
    out, x, *_ = scale_arguments()
    block = struct.pack("<QQf4xdh", out.data_ptr(), x.data_ptr(), 3.0, 0.5, 100)
    block = block.ljust(module.kernels["scale"].parameter_bytes, b"\0")
    module.launch("scale", (2,), (64, 1), block)
    check_scaled(out, x)


def test_launch_with_addresses_and_bytes(module: Module) -> None:
    out, x, *_ = scale_arguments()
    factor = struct.pack("<f", 3.0)
    module.launch("scale", 2, 64, [out.data_ptr(), x.data_ptr(), factor, 0.5, 100])
    check_scaled(out, x)


def test_launch_records_a_trace(module: Module) -> None:
    result = module.launch("scale", 1, 64, scale_arguments(64), options=Options(trace=True))
    assert [(warp["cluster"], warp["cta"], warp["warp"]) for warp in result.trace] == [
        (0, 0, 0),
        (0, 0, 1),
    ]
    assert sum(result.trace[0]["classes"].values()) == 21  # the branch is not taken


def test_tensors_in_args_are_all_a_kernel_may_touch(module: Module) -> None:
    out, x, *rest = scale_arguments()
    with pytest.raises(EmulatorError, match="out of bounds") as caught:
        module.launch("scale", 2, 64, [out[:99], x, *rest])
    assert "st.global.f32" in str(caught.value)
    module.launch("scale", 2, 64, [out[:99], x, *rest], memory=[out, x])
    check_scaled(out, x)
    with pytest.raises(EmulatorError, match="out of bounds"):
        module.launch("scale", 2, 64, [out, x, *rest], memory=[])


def test_an_address_in_args_lifts_the_bounds(module: Module) -> None:
    out, x, *rest = scale_arguments()
    module.launch("scale", 2, 64, [out[:99], x.data_ptr(), *rest])
    check_scaled(out, x)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({0: "text"}, TypeError, r"args\[0\]: must be Tensor, TensorMap, int, float or bytes, got"),
        ({2: b"123"}, ValueError, r"args\[2\]: must have the parameter's 4 bytes, got bytes of 3"),
        ({2: torch.zeros(1)}, ValueError, r"args\[2\]: must have the parameter's 4 bytes, got"),
        ({4: 2**16}, ValueError, r"args\[4\]: must fit the parameter's 2 bytes, got 65536"),
        ({4: 1.0}, ValueError, r"args\[4\]: must have the parameter's 2 bytes, got float"),
        ({0: torch.zeros(1, device="meta")}, ValueError, r"must be on cpu, got meta"),
    ],
)
def test_wrong_arguments_are_named(
    module: Module, change: dict[int, Any], error: type[Exception], message: str
) -> None:
    args: list[Any] = list(scale_arguments())
    for index, value in change.items():
        args[index] = value
    with pytest.raises(error, match=message):
        module.launch("scale", 2, 64, args)


def test_wrong_launches_are_named(module: Module) -> None:
    args = scale_arguments()
    with pytest.raises(ValueError, match="kernel_name: must be one of scale, copy, got scales"):
        module.launch("scales", 1, 64, args)
    with pytest.raises(ValueError, match="scale has 5 parameters, got 4"):
        module.launch("scale", 1, 64, args[:4])
    with pytest.raises(ValueError, match="grid: must be 1 to 3 ints from 1, got 0"):
        module.launch("scale", 0, 64, args)
    with pytest.raises(ValueError, match="block: must be 1 to 3 ints from 1, got"):
        module.launch("scale", 1, (1, 2, 3, 4), args)
    with pytest.raises(ValueError, match="2048"):
        module.launch("scale", 1, 2048, args)
    with pytest.raises(ValueError, match="scale"):
        module.launch("scale", 1, 64, b"short")


def test_failed_launches_raise_the_report(module: Module) -> None:
    args = scale_arguments()
    with pytest.raises(EmulatorError, match="3"):
        module.launch("scale", 2, 64, args, options=Options(max_steps=3))
    assert issubclass(EmulatorError, RuntimeError)


# ---- Tensor maps ---------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["eager", "lazy", "random"])
def test_a_box_through_the_copy_engine(module: Module, policy: str) -> None:
    x, out = torch.randn(3, 12), torch.full((4, 8), torch.nan)
    box_of_x = tensor_map(x, dims=(6, 3), strides=(48,), box=(8, 4))
    assert len(box_of_x.bytes) == 128
    assert box_of_x.tensor is x
    result = module.launch("copy", 1, 32, [box_of_x, out], options=Options(policy=policy))
    expected = torch.zeros(4, 8)
    expected[:3, :6] = x[:, :6]
    assert torch.equal(out, expected)
    assert result.statistics["global_load_bytes"] > 0


def test_tensor_map_of_an_address(module: Module) -> None:
    x, out = torch.randn(4, 8), torch.zeros(4, 8)
    by_address = tensor_map(x.data_ptr(), (8, 4), (32,), (8, 4), dtype=torch.float32)
    assert by_address.tensor is None
    module.launch("copy", 1, 32, [by_address, out])
    assert torch.equal(out, x)
    with pytest.raises(TypeError, match=r"dtype: must be one of uint8, .*, got None"):
        tensor_map(x.data_ptr(), (8, 4), (32,), (8, 4))


def test_tensor_map_fills_with_nan(module: Module) -> None:
    x, out = torch.randn(4, 8), torch.zeros(4, 8)
    module.launch("copy", 1, 32, [tensor_map(x, (8, 3), (32,), (8, 4), fill="nan"), out])
    assert torch.equal(out[:3], x[:3])
    assert bool(out[3].isnan().all())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"box": (8, 257)}, "257"),
        ({"box": (8,)}, "box"),
        ({"strides": (40,)}, "40"),
        ({"dims": (0, 4)}, "dims"),
        ({"dims": (-1, 4)}, r"dims: must lie in 0 to 2\*\*40, got \(-1, 4\)"),
        ({"swizzle": 48}, "48"),
        ({"steps": (1, 9)}, "9"),
        ({"fill": "ones"}, "fill: must be 'zeros' or 'nan', got 'ones'"),
    ],
)
def test_wrong_tensor_maps_are_named(change: dict[str, Any], message: str) -> None:
    right: dict[str, Any] = {"dims": (8, 4), "strides": (32,), "box": (8, 4)}
    with pytest.raises(ValueError, match=message):
        tensor_map(torch.zeros(4, 8), **(right | change))


# ---- Options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"policy": "fast"}, "policy: must be one of 'eager', 'lazy', 'random', got 'fast'"),
        ({"accumulate": ""}, "accumulate: must be one of 'sequential', 'exact', got ''"),
        ({"order": None}, "order: must be one of"),
        ({"seed": -1}, "seed: must be an int from 0 to"),
        ({"threads": 2**31}, "threads: must be an int from 0 to 2147483647"),
        ({"max_steps": 1.5}, "max_steps: must be an int from 0 to"),
        ({"stall_steps": 0}, "stall_steps: must be an int from 1 to"),
        ({"perturbation": 0.2}, r"perturbation: must lie in \[0, 0.1\], got 0.2"),
        ({"perturbation": float("nan")}, "perturbation: must lie in"),
        ({"trace": 1}, "trace: must be a bool, got 1"),
        ({"barrier_names": {-1: "full"}}, "barrier_names: must map addresses below"),
    ],
)
def test_wrong_options_are_named(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"Options: {message}"):
        Options(**option)


def test_options_are_values() -> None:
    assert Options() == Options(policy="eager", seed=0, threads=0)
    assert len({Options(seed=1), Options(seed=1)}) == 1


def test_many_hung_blocks_end_together() -> None:
    """Blocks that poll let others start; the bound counts the instructions of all of them."""
    text = """.version 8.8
.target sm_90a
.address_size 64
.visible .entry spin(.param .u64 flag) {
  .reg .pred %p<2>; .reg .b32 %r<2>; .reg .b64 %rd<2>;
  ld.param.u64 %rd1, [flag];
again:
  ld.acquire.gpu.global.u32 %r1, [%rd1];
  setp.eq.u32 %p1, %r1, 0;
  @%p1 bra again;
  ret;
}
"""
    options = Options(stall_steps=1_000_000, max_steps=3_000_000)
    with pytest.raises(EmulatorError, match="hung: 1000000 warp instructions"):
        Module(text).launch("spin", 200, 32, [torch.zeros(1, dtype=torch.int32)], options=options)


# twice(out): out[i] = 2 i. The copy that %r2 comes from stands below its use, as in loops of
# compilers.
OUT_OF_ORDER = """
.visible .entry twice(.param .u64 twice_param_0)
{
  .reg .b32 %r<5>;
  .reg .b64 %rd<5>;
  bra.uni COPY;
USE:
  add.s32 %r3, %r1, %r2;
  st.global.u32 [%rd4], %r3;
  ret;
COPY:
  ld.param.u64 %rd1, [twice_param_0];
  cvta.to.global.u64 %rd2, %rd1;
  mov.u32 %r1, %tid.x;
  mov.u32 %r2, %tid.x;
  mul.wide.u32 %rd3, %r1, 4;
  add.s64 %rd4, %rd2, %rd3;
  bra.uni USE;
}
"""

# odd(out): out[i] = 1 for odd i. Compilers negate predicates with an immediate.
NEGATED = """
.visible .entry odd(.param .u64 odd_param_0)
{
  .reg .pred %p<3>;
  .reg .b32 %r<4>;
  .reg .b64 %rd<5>;
  ld.param.u64 %rd1, [odd_param_0];
  cvta.to.global.u64 %rd2, %rd1;
  mov.u32 %r1, %tid.x;
  and.b32 %r2, %r1, 1;
  setp.eq.s32 %p1, %r2, 0;
  xor.pred %p2, %p1, -1;
  selp.u32 %r3, 1, 0, %p2;
  mul.wide.u32 %rd3, %r1, 4;
  add.s64 %rd4, %rd2, %rd3;
  st.global.u32 [%rd4], %r3;
  ret;
}
"""


def test_predicate_with_an_immediate() -> None:
    out = torch.full((32,), 7, dtype=torch.int32)
    Module(HEADER + NEGATED).launch("odd", 1, 32, [out])
    assert out.tolist() == [0, 1] * 16


def test_code_need_not_stand_in_the_order_of_its_flow() -> None:
    out = torch.zeros(32, dtype=torch.int32)
    Module(HEADER + OUT_OF_ORDER).launch("twice", 1, 32, [out])
    assert out.tolist() == list(range(0, 64, 2))
