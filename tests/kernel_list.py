"""csrc/dispatch/kernel_list.py as a module of the tests."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_spec = importlib.util.spec_from_file_location(
    "fa4_kernel_list", ROOT / "csrc" / "dispatch" / "kernel_list.py"
)
assert _spec is not None
assert _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = _module  # dataclasses look their module up by name
_spec.loader.exec_module(_module)

Kernel = _module.Kernel
FEATURES = _module.FEATURES
KERNELS = _module.KERNELS
TARGETS = _module.TARGETS
instantiate = _module.instantiate
markdown = _module.markdown
