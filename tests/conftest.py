"""Devices, the size of the matrices, and what both mean for a test.

pytest                           a sample of every matrix on the CPU
pytest --full                    whole matrices
pytest --device cuda             the same tests on a GPU; what no kernel serves there is skipped
pytest --device sm100-emulated   ... on an emulated one; sm90-emulated
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

# Threads that spin while they wait make small operations several times slower on a busy machine.
# OpenMP reads this when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import tolerances
import torch
from cases import sampled


@dataclass(frozen=True)
class Device:
    """What runs the ops under test."""

    name: str  # value of --device
    torch: torch.device  # where tensors live
    emulated: str | None = None  # architecture for flash_attn4.emulator.use

    @property
    def dtype(self) -> torch.dtype:
        """For tests that take any element type: the finest one that kernels there serve."""
        return torch.float32 if self.name == "cpu" else torch.bfloat16

    @property
    def exp2_error(self) -> float:
        """Largest relative error of an exponential there."""
        arch = self.emulated or (
            f"sm{torch.cuda.get_device_capability(self.torch)[0]}0" if self.name == "cuda" else ""
        )
        return tolerances.EXP2_POLYNOMIAL_ERROR if arch == "sm100" else tolerances.EXP2_ERROR

    def tolerance(self, float32: float) -> dict[str, float]:
        """atol and rtol between two results of one kernel in that type; 16 bit: of the rounding."""
        allowed = float32 if self.dtype == torch.float32 else 1e-2
        return {"atol": allowed, "rtol": allowed}


DEVICES = {
    "cpu": Device("cpu", torch.device("cpu")),
    "cuda": Device("cuda", torch.device("cuda", 0)),
    "sm90-emulated": Device("sm90-emulated", torch.device("cpu"), "sm90"),
    "sm100-emulated": Device("sm100-emulated", torch.device("cpu"), "sm100"),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", choices=sorted(DEVICES), default="cpu", help="what runs the ops")
    parser.addoption("--full", action="store_true", help="whole matrices instead of samples")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "sampled(name, values, count): parametrize; without --full only `count` values"
    )
    config.addinivalue_line("markers", "cpu_only(reason): skipped on other devices")
    if config.getoption("--device") == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda: torch finds no GPU")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for marker in metafunc.definition.iter_markers("sampled"):
        name, values, count = marker.args
        if not metafunc.config.getoption("--full"):
            values = sampled(values, count)
        metafunc.parametrize(name, values, ids=str)


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> Device:
    return DEVICES[request.config.getoption("--device")]


@pytest.fixture(autouse=True)
def _skip_other_devices(request: pytest.FixtureRequest) -> None:
    marker = request.node.get_closest_marker("cpu_only")
    name = request.config.getoption("--device")
    if marker is not None and name != "cpu":
        pytest.skip(f"not on {name}: {marker.args[0]}")


@pytest.fixture(autouse=True)
def _emulate(request: pytest.FixtureRequest, _skip_other_devices: None) -> Iterator[None]:
    """On an emulated device every call of the test goes there."""
    arch = DEVICES[request.config.getoption("--device")].emulated
    if arch is None:
        yield
        return
    from flash_attn4 import emulator

    with emulator.use(arch):
        yield


@contextmanager
def skip_without_kernel(device: str) -> Iterator[None]:
    """Where no kernel serves a call on a GPU, the test is skipped, with the reasons.

    Functions raise NotImplementedError, ops RuntimeError, and tools of torch wrap that.
    """
    try:
        yield
    except Exception as error:
        reasons = re.search(r"no \w+ kernel for this call on .*", str(error))
        if device == "cpu" or reasons is None:
            raise
        pytest.skip(reasons[0])


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    with skip_without_kernel(pyfuncitem.config.getoption("--device")):
        return (yield)
