"""Every kernel of this build loads into the emulator: it has a model of all their instructions."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest
from kernel_list import KERNELS

emulator = pytest.importorskip(
    "flash_attn4.emulator", reason="no emulator in this build", exc_type=ImportError
)

ROOT = Path(__file__).resolve().parents[2]
GENERATED = ROOT / "build" / f"cmake-{sysconfig.get_config_var('SOABI')}" / "generated"


@pytest.mark.parametrize("name", [k.name for k in KERNELS if k.target != "cpu"])
def test_built_kernels_load(name: str) -> None:
    ptx = GENERATED / f"{name}.ptx"
    if not ptx.exists():
        pytest.skip("this build does not hold the kernel's target")
    kernel = emulator.load(ptx).kernels[name]
    assert kernel.instructions == sum(kernel.forms.values()) > 0
