"""Devices, the size of the matrices, and what both mean for a test.

pytest                   a sample of every matrix on the CPU
pytest --full            whole matrices
pytest --device cuda     the same tests on a GPU; what no kernel serves there is skipped
"""

from __future__ import annotations

import os
from collections.abc import Generator
from dataclasses import dataclass

import pytest

# Threads that spin while they wait make small operations several times slower on a busy machine.
# OpenMP reads this when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from cases import sampled


@dataclass(frozen=True)
class Device:
    """What runs the ops under test."""

    name: str  # value of --device
    torch: torch.device  # where tensors live


DEVICES = {
    "cpu": Device("cpu", torch.device("cpu")),
    "cuda": Device("cuda", torch.device("cuda", 0)),
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


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Where no kernel serves a call on a GPU, the test is skipped, with the reasons."""
    try:
        return (yield)
    except NotImplementedError as error:
        if pyfuncitem.config.getoption("--device") == "cpu" or "kernel for this call on" not in str(
            error
        ):
            raise
        pytest.skip(str(error))
