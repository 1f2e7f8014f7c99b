"""What the command line of flash_attn4.emulator prints of a kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flash_attn4.emulator import Kernel


def _declared(extent: tuple[int, int, int]) -> str:
    return "not declared" if extent == (0, 0, 0) else " x ".join(map(str, extent))


def kernel_lines(kernel: Kernel) -> list[str]:
    """Parameters, resources, and how often which instruction form stands in the text."""
    lines = [kernel.name, f"  parameters: {kernel.parameter_bytes} bytes"]
    lines.extend(
        f"    {p.offset:>5} {p.bytes:>5} bytes, align {p.align:>3}  {p.name}"
        for p in kernel.parameters
    )
    lines += [
        f"  threads: at most {_declared(kernel.max_threads)}, "
        f"required {_declared(kernel.required_threads)}",
        f"  cluster: {_declared(kernel.required_cluster)}",
        f"  shared memory: {kernel.static_shared_bytes} bytes static",
        f"  instructions: {kernel.instructions}",
        f"  registers: {kernel.registers} virtual, {kernel.register_slots} of 32 bits per thread "
        "in the emulator",
        f"  instruction forms: {len(kernel.forms)}",
    ]
    forms: Mapping[str, int] = kernel.forms
    ordered = sorted(forms.items(), key=lambda form: (-form[1], form[0]))
    lines.extend(f"    {count:>5} {form}" for form, count in ordered)
    return lines
