"""Checks that kernel objects of an instruction set define no symbol the linker may share.

An inline function that such an object emits out of line is a weak symbol. The linker keeps one of
the equal names, and if that is the one compiled for AVX-512, the whole library needs AVX-512.

usage: check_isa_symbols.py OBJECT...
"""

import subprocess
import sys


def shared_symbols(path: str) -> list[str]:
    """Names of weak and unique definitions in an object file."""
    listing = subprocess.run(["nm", "-C", path], check=True, capture_output=True, text=True).stdout
    lines = (line.split(maxsplit=2) for line in listing.splitlines())
    return [fields[2] for fields in lines if len(fields) == 3 and fields[1] in "WVu"]


def main() -> int:
    failures = [(path, name) for path in sys.argv[1:] for name in shared_symbols(path)]
    for path, name in failures:
        print(f"{path}: {name} is weak: give it internal linkage or force it inline")
    if len(sys.argv) < 2:
        print("no object given")
    return 1 if failures or len(sys.argv) < 2 else 0


if __name__ == "__main__":
    sys.exit(main())
