"""SM100 kernels with another configuration or other headers than those that are built.

The emulator runs them in place of the kernel of that name, through its launch code: see images of
flash_attn4.emulator.Options. What nvcc makes is kept in build/emulator-kernels by a hash of all
that goes into it.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import kernel_list
import machines
from machines import BUILDS, ROOT, TARGETS

HEADERS = ("include/flash_attn4", "csrc/common", "csrc/sm100")

# Nothing that trades accuracy for speed: no slack, no exponentials on the FMA units, weights in one
# piece (csrc/sm100/fwd/plan.h).
PLAIN = "FA4_PLAIN_SOFTMAX"


def source(kernel: str, changes: Sequence[str]) -> str:
    """The kernel's CUDA source with statements that change `config` before it is used."""
    text = kernel_list.instantiate(kernel)
    if not changes:
        return text
    config = re.search(r"fa4::sm100::fwd_config\([^)]*\)", text)
    assert config is not None, text
    changed = [
        "FA4_HD constexpr fa4::sm100::FwdConfig changed_config() {",
        f"  fa4::sm100::FwdConfig config = {config[0]};",
        *(f"  {change};" for change in changes),
        "  return config;",
        "}",
    ]
    text = text.replace(config[0], "changed_config()")
    return text.replace('extern "C"', "\n".join([*changed, "", 'extern "C"']), 1)


@functools.cache
def _headers() -> str:
    """All text that a kernel may include."""
    files = (path for name in HEADERS for path in (ROOT / name).rglob("*.*h"))
    return "\0".join(f"{path}\0{path.read_text()}" for path in sorted(files))


@functools.cache
def compiled(
    kernel: str,
    changes: tuple[str, ...] = (),
    defines: tuple[str, ...] = (),
    replaced: tuple[tuple[str, str], ...] = (),
) -> str:
    """PTX of the variant. replaced: paths of headers with the text that stands in for them.

    Raises machines.NoCompiler.
    """
    nvcc = machines.find_nvcc()
    if nvcc is None:
        raise machines.NoCompiler("no nvcc on this machine")
    target = TARGETS["sm100"]
    options = ["-std=c++20", "-O3", "-ftz=true", "-ptx", *(f"-D{name}" for name in defines)]
    options.append(f"-gencode=arch=compute_{target},code=sm_{target}")
    text = source(kernel, changes)
    parts = [str(nvcc), *options, text, _headers(), *itertools.chain(*replaced)]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]
    result = BUILDS / f"{kernel}-{key}.ptx"
    if not result.exists():
        BUILDS.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=BUILDS) as work:
            folder = Path(work)
            for path, header in replaced:
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_text(header)
            (folder / "variant.cu").write_text(text)
            folders = [f"-I{x}" for x in (folder, ROOT / "include", ROOT)]
            command = [nvcc, *options, *folders, "-o", f"{work}/variant.ptx", f"{work}/variant.cu"]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, f"{kernel} with {changes}:\n{done.stdout}{done.stderr}"
            os.replace(folder / "variant.ptx", result)  # whole or not at all, beside another run
    return result.read_text()
