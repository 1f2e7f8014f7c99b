"""The fixture `machine`: a test that takes it runs on every machine that --device names.

--device cpu (the default)    both emulated architectures, in every schedule
--device sm90-emulated        one of them; sm100-emulated
--device cuda                 the GPU

@pytest.mark.archs("sm100") names what a test supports; without it that is both.

Each of CUTLASS's kernels compiles for half a minute or more: that begins with the first test of the
emulator and goes on beside all others, and the tests that want them come last.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from pathlib import Path
from typing import Any

import machines
import pytest

ARCHS = ("sm90", "sm100")
CUTLASS_TESTS = Path(__file__).with_name("test_cutlass_gemm.py")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "archs(*names): architectures that a test supports")
    # Tests of other folders import names of tests/conftest.py as module `conftest`. Of two files of
    # that name the one that was loaded last would answer.
    parent = config.pluginmanager.get_plugin(
        str(Path(__file__).resolve().parents[1] / "conftest.py")
    )
    if parent is not None:
        sys.modules["conftest"] = parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path == CUTLASS_TESTS)


@pytest.fixture(scope="session", autouse=True)
def _compile_ahead(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--device") != "cpu":
        return  # those tests are skipped
    items = [item for item in request.session.items if item.path == CUTLASS_TESTS]
    params = [item.callspec.params for item in items if hasattr(item, "callspec")]
    variants = dict.fromkeys(values["variant"] for values in params if "variant" in values)
    threading.Thread(target=_compile, args=([*variants],), daemon=True).start()


def _compile(variants: list[Any]) -> None:
    import cutlass_gemm

    # A test that wants a kernel builds it again, and tells what is wrong.
    with contextlib.suppress(cutlass_gemm.Unavailable, RuntimeError):
        for variant in variants:
            cutlass_gemm.build(variant)


def supported(node: pytest.Item) -> tuple[str, ...]:
    marker = node.get_closest_marker("archs")
    return ARCHS if marker is None else marker.args


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "machine" not in metafunc.fixturenames:
        return
    device = metafunc.config.getoption("--device")
    if device == "cuda":
        metafunc.parametrize("machine", ["gpu"], indirect=True)
        return
    wanted = ARCHS if device == "cpu" else (device.removesuffix("-emulated"),)
    archs = [arch for arch in wanted if arch in supported(metafunc.definition)]
    names = [f"{arch}-{schedule}" for arch in archs for schedule in machines.SCHEDULES]
    metafunc.parametrize("machine", names, indirect=True)


@pytest.fixture(scope="session")
def _gpu() -> machines.Gpu:
    pytest.importorskip("cuda.bindings.driver", reason="no package cuda-bindings")
    return machines.Gpu()


@pytest.fixture
def machine(request: pytest.FixtureRequest) -> machines.Machine:
    if request.param == "gpu":
        gpu = request.getfixturevalue("_gpu")
        if gpu.arch not in supported(request.node):
            pytest.skip(f"needs {' or '.join(supported(request.node))}, the GPU is {gpu.arch}")
        return gpu
    pytest.importorskip("flash_attn4.emulator", reason="no emulator in this build")
    return machines.Emulated(*request.param.split("-"))


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> object:
    try:
        return (yield)
    except machines.NoCompiler as reason:
        pytest.skip(str(reason))
