"""Makes the modules of benchmarks/ importable, behind everything else that has their names."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

sys.path.append(str(ROOT / "benchmarks"))


def pytest_configure(config: pytest.Config) -> None:
    # As in tests/emulator/conftest.py: module `conftest` stays tests/conftest.py.
    parent = config.pluginmanager.get_plugin(str(ROOT / "tests" / "conftest.py"))
    if parent is not None:
        sys.modules["conftest"] = parent
