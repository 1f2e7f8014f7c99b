"""Makes .venv, installs what is pinned and builds flash_attn4 in place. Standard library only.

Called by every make target; a second call installs nothing and rebuilds what changed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
REQUIREMENTS = ROOT / "requirements-dev.txt"
TORCH = "2.13.0"
CUTLASS = "nvidia-cutlass==4.2.0.0"  # its headers; the Python packages it asks for are not used
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"

sys.path.insert(0, str(ROOT / "tools" / "build_backend"))
from fa4_environment import NVCC_PACKAGES, find_nvcc, gpu_targets  # noqa: E402


def run(*command: str | Path, **environment: str) -> None:
    """Runs a command; its failure ends this program with the command in one line."""
    words = [str(word) for word in command]
    if subprocess.run(words, env={**os.environ, **environment}, cwd=ROOT).returncode != 0:
        raise SystemExit(f"bootstrap: failed: {' '.join(words)}")


def check_machine() -> None:
    if sys.version_info < (3, 10):  # noqa: UP036  (whoever runs this may have an older one)
        raise SystemExit(
            f"bootstrap: Python 3.10 or newer is needed, found {platform.python_version()}"
        )
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        raise SystemExit(f"bootstrap: a C++20 compiler is needed, found no {compiler}: install g++")


def torch_requirement() -> list[str]:
    """The CPU build of torch unless this machine has a GPU; it is 200 MB instead of several GB."""
    if platform.system() != "Linux" or shutil.which("nvidia-smi"):
        return [f"torch=={TORCH}"]
    return [f"torch=={TORCH}+cpu", "--retries", "1", "--extra-index-url", TORCH_CPU_INDEX]


def install() -> None:
    """Fills .venv; its stamp names what it was filled with."""
    compiler = NVCC_PACKAGES if gpu_targets() and find_nvcc() is None else []
    wanted = "\n".join([sys.version, TORCH, CUTLASS, REQUIREMENTS.read_text(), *compiler])
    digest = hashlib.sha256(wanted.encode()).hexdigest()
    stamp = VENV / "installed"
    if stamp.is_file() and stamp.read_text() == digest:
        return
    if not PYTHON.is_file():
        print("bootstrap: creating .venv", flush=True)
        run(sys.executable, "-m", "venv", VENV)
    print("bootstrap: installing pinned packages", flush=True)
    pip = [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run(*pip, *torch_requirement())
    run(*pip, "-r", REQUIREMENTS, *compiler)
    run(*pip, "--no-deps", CUTLASS)
    run(*pip, "--no-build-isolation", "--no-deps", "-e", ROOT, PATH=path_with_venv())
    stamp.write_text(digest)


def path_with_venv() -> str:
    return f"{VENV / 'bin'}{os.pathsep}{os.environ['PATH']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tests", action="store_true", help="build the C++ tests too")
    options = parser.parse_args()
    check_machine()
    install()
    run(
        PYTHON,
        "setup.py",
        "-q",
        "build_ext",
        "--inplace",
        PATH=path_with_venv(),
        FA4_TESTS="ON" if options.tests else "OFF",
    )


if __name__ == "__main__":
    main()
