"""The op library, libfa4_ops.so: loading it, and turning its errors into Python exceptions."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

LIBRARY_PATH = Path(__file__).with_name("libfa4_ops.so")
OLDEST_TORCH = (2, 10)  # the stable ABI the library is built against

_ERRORS: dict[str, type[Exception]] = {
    "ValueError": ValueError,
    "TypeError": TypeError,
    "NotImplementedError": NotImplementedError,
    "RuntimeError": RuntimeError,
}
# What the ops throw: "fa4::<op>: <kind>: <argument>: <rule>, got <value>".
_CODED = re.compile(rf"fa4(?:::\w+)?: ({'|'.join(_ERRORS)}): (.*)", re.DOTALL)
# What torch's dispatcher throws when an argument does not fit the schema, or no kernel fits the
# device.
_SCHEMA = re.compile(
    r"fa4::\w+\(\) Expected a value of type '(?:Optional\[(\w+)\]|(\w+))' for argument '(\w+)' "
    r"but instead found type '(.+?)'"
)
_NO_BACKEND = re.compile(r"Could not run 'fa4::\w+' with arguments from the '(\w+)' backend")
# The ops take the two sides of window_size one by one.
_PYTHON_ARGUMENT = {"window_left": "window_size[0]", "window_right": "window_size[1]"}


def load() -> None:
    """Registers torch.ops.fa4. Raises ImportError, naming the file, when that is impossible."""
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        raise ImportError(f"flash_attn4 needs torch >= {oldest}, found torch {torch.__version__}")
    if not LIBRARY_PATH.exists():
        raise ImportError(
            f"flash_attn4: {LIBRARY_PATH} does not exist: the package was not built. Run "
            "`pip install --no-build-isolation .` in the repository; `pip install -e .` there, or "
            "another working directory, keeps Python from importing the sources."
        )
    try:
        ops: Any = torch.ops
        ops.load_library(str(LIBRARY_PATH))
    except OSError as error:
        raise ImportError(
            f"flash_attn4: {LIBRARY_PATH} does not load into torch {torch.__version__}: {error}"
        ) from error


def python_error(function: str, error: Exception) -> Exception:
    """The exception that users of `function` get for `error`, which an op raised."""
    message = str(error)
    if coded := _CODED.search(message):
        kind, text = coded.groups()
        argument, colon, rule = text.partition(":")
        return _ERRORS[kind](f"{function}: {_PYTHON_ARGUMENT.get(argument, argument)}{colon}{rule}")
    if schema := _SCHEMA.search(message):
        optional, plain, argument, found = schema.groups()
        expected = f"{optional} or None" if optional else plain
        argument = _PYTHON_ARGUMENT.get(argument, argument)
        return TypeError(f"{function}: {argument}: must be {expected}, got {found}")
    if backend := _NO_BACKEND.search(message):
        return NotImplementedError(
            f"{function}: no kernel for {backend[1]} tensors: they must be on cpu or cuda"
        )
    return error
