"""Wrong PTX: mutations of texts, and what the emulator may answer to them.

    python tests/emulator/ptx_fuzz.py --seconds 600 --seed 1

runs that long and prints, for every text that fails, what happened and the file that holds it.
FA4_FUZZ_EXTENSION names another build of flash_attn4._C, FA4_FUZZ_PRELOAD the runtime of its
sanitizer: see CONTRIBUTING.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import select
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SUFFIX = sysconfig.get_config_var("SOABI")
EXTENSION = ROOT / "flash_attn4" / f"_C.{SUFFIX}.so"
GENERATED = ROOT / "build" / f"cmake-{SUFFIX}" / "generated"
TEST_KERNELS = ROOT / "build" / "emulator-kernels"
SLOWEST_SECONDS = 20.0

# ---- The texts that are mutated -----------------------------------------------------------------

SMALL = """\
.version 8.7
.target sm_100a
.address_size 64
.global .align 16 .b8 table[64] = {1, 2, 3};
.const .u64 pointer = generic(table)+4;
.visible .entry small(.param .u64 small_param_0, .param .align 64 .b8 small_param_1[128])
.reqntid 32
{
  .reg .pred %p<4>;
  .reg .b16 %h<4>;
  .reg .b32 %r<10>;
  .reg .f32 %f<4>;
  .reg .b64 %rd<6>;
  .shared .align 128 .b8 tile[1024];
  .local .align 16 .b8 stack[64];
  ld.param.u64 %rd1, [small_param_0];
  ld.param.v2.u32 {%r7, %r8}, [small_param_1+8];
  cvta.to.global.u64 %rd2, %rd1;
  mov.u32 %r1, %tid.x;
  mov.b64 %rd3, {%r1, %r7};
  mul.wide.u32 %rd4, %r1, 4;
  add.s64 %rd5, %rd2, %rd4;
  ld.global.nc.L1::no_allocate.v4.f32 {%f0, %f1, %f2, %f3}, [%rd2];
  fma.rn.f32 %f1, %f0, 0f3F800000, %f2;
  setp.ge.u32 %p0, %r1, 8;
  setp.lt.and.u32 %p1|%p2, %r1, 16, %p0;
  @%p1 bra again;
  mov.u32 %r2, tile;
  st.shared.v2.b32 [%r2+16], {%r1, %r7};
  st.local.u32 [stack+4], %r1;
again:
  add.u32 %r1, %r1, 40;
  setp.lt.u32 %p2, %r1, 200;
  @%p2 bra.uni again;
  shfl.sync.bfly.b32 %r3|%p3, %r1, 1, 31, -1;
  bar.sync 0;
  atom.global.add.u32 %r4, [%rd2], 1;
  cvt.rn.bf16x2.f32 %r5, %f0, %f1;
  { .reg .b32 inner; mov.b32 inner, 5; add.u32 %r6, inner, 2; }
  st.global.u32 [%rd5], %r6;
  ret;
}
"""


def opcode_of(line: str) -> str | None:
    """The instruction that stands in a line of its own, without its guard."""
    match = re.match(r"\s*(?:@!?%p\d+\s+)?([a-z][\w.:]*)(?:\s|;)", line)
    return match[1] if match else None


def reduced(text: str) -> str:
    """Each form of instruction once, in the order of the text, with all declarations and labels."""
    seen: set[str] = set()
    lines = []
    for line in text.splitlines():
        opcode = opcode_of(line)
        if opcode is None or opcode not in seen:
            lines.append(line)
        if opcode is not None:
            seen.add(opcode)
    return "\n".join(line for line in lines if not line.strip().startswith("//")) + "\n"


def bases(*more: Path) -> list[str]:
    """Built kernels whole where they are small, others with one instruction of a form each.

    Those of the library, which are the same after every build, and those in the folders of `more`.
    """
    texts = [SMALL]
    for file in (file for folder in (GENERATED, *more) for file in sorted(folder.glob("*.ptx"))):
        text = file.read_text()
        short = reduced(text)
        texts.append(text if len(text) < 16_000 else short)
    distinct = {hashlib.sha256(text.encode()).hexdigest(): text for text in texts}
    return [text for text in distinct.values() if len(text) < 100_000]


# ---- Mutations ----------------------------------------------------------------------------------

TOKEN = re.compile(r"\s+|[A-Za-z_%$.][\w$.:]*|\d[\w.]*|.", re.DOTALL)
NUMBERS = (
    *("0", "1", "2", "3", "7", "8", "16", "31", "32", "33", "64", "100", "127", "128", "255"),
    *("256", "4096", "32764", "65535", "65536", "131072", "232448", "1048576", "16777216"),
    *("2147483647", "2147483648", "4294967295", "4294967296", "1099511627776"),
    *("9223372036854775807", "9223372036854775808", "18446744073709551615"),
    *("18446744073709551616", "99999999999999999999999", "0x7fffffffffffffff", "0xFFFFFFF0"),
    *("0b1", "017", "09", "1.5", "1e400", "0f7FC00000", "0dFFF0000000000000", "0f", "1e", "0x"),
)
OPERANDS = (
    *("_", "5", "-1", "%r1", "%rd1", "%p1", "%f1", "%r0", "%rs1", "%h1", "%tid.x", "%clock64"),
    *("{%r1, %r2}", "{%r1, %r2, %r3, %r4}", "{%rd1, %rd2}", "{_, _}", "[%rd1]", "[%r1+4]"),
    *("[%rd1, {%r1, %r2}]", "[5]", "[0]", "%r1|%p1", "!%p1", "-%r1", "0f3F800000", "tile", "table"),
    *("small_param_0", "[small_param_0+99999]", "[small_param_1-4]", "WARP_SZ", "{%r1}", "{}"),
    "{" + ", ".join(["%r1"] * 200) + "}",
)
MARKS = ("{", "}", "[", "]", "(", ")", "<", ">", ",", ";", ":", "|", "@", "!", "-", "+", "=", '"')
OTHER = (
    *("/*", "//", "\\", "\x00", "\xff", ".reg .b32 %r<1048576>;", ".reg .pred %q<1048576>;"),
    *(".shared .b8 big[4294967296];", ".local .b8 deep[1099511627776];"),
    *(
        ".global .b8 wide[1099511627776];",
        ".param .b8 p[1099511627776];",
        ".extern .shared .b8 e[];",
    ),
    *("{ { { {", "} } }", ".loc 1 2 3", ".pragma", "x: .branchtargets x, again;", "call f;"),
    *("call (%r1), f, (%r2);", "brx.idx %r1, x;", "bra.uni again;", ".entry small()", "trap;"),
)
MODIFIERS = (
    *("u8", "s8", "u16", "s16", "b16", "u32", "s32", "b32", "u64", "s64", "b64", "b128", "f16"),
    *("bf16", "f16x2", "bf16x2", "f32", "f32x2", "f64", "pred", "v2", "v4", "v8", "rn", "ftz"),
    *("sat", "cc", "wide", "lo", "hi", "shared", "global", "local", "param", "const", "async"),
    *("sync", "aligned", "trans", "x1", "x4", "x128", "shared::cluster", "cta_group::2", "5d"),
    *("m64n256k16", "m64n8k16", "m64n0k16", "multicast::cluster", "add", "cas", "exch", "nonsense"),
)

Edit = tuple[int, int, int]


def choice(values: Sequence[str], number: int) -> str:
    return values[number % len(values)]


def places(tokens: list[str], pattern: str) -> list[int]:
    matches = re.compile(pattern)
    return [i for i, token in enumerate(tokens) if matches.fullmatch(token)]


def edit_opcode(tokens: list[str], at: int, number: int) -> None:
    """Deletes, doubles, adds or replaces one part of an opcode or directive."""
    words = places(tokens, r"\.?[a-z][\w]*(?:[.:]+\w+)*")
    if not words:
        return
    index = words[at % len(words)]
    parts = re.split(r"(?<!:)\.", tokens[index])
    part = number % len(parts)
    action, other = number // 7 % 4, choice(MODIFIERS, number // 28)
    if action == 0:
        del parts[part]
    elif action == 1:
        parts.insert(part, parts[part])
    elif action == 2:
        parts.insert(part + 1, other)
    else:
        parts[part] = other
    tokens[index] = ".".join(parts)


def edit_number(tokens: list[str], at: int, number: int) -> None:
    if found := places(tokens, r"\d[\w.]*"):
        tokens[found[at % len(found)]] = choice(NUMBERS, number)


def edit_operand(tokens: list[str], at: int, number: int) -> None:
    if found := places(tokens, r"%\w+|\d[\w.]*|_"):
        own = tokens[found[number % len(found)]]
        tokens[found[at % len(found)]] = choice((*OPERANDS, own), number)


def edit_token(tokens: list[str], at: int, number: int) -> None:
    index, other = at % len(tokens), number // 6 % len(tokens)
    action = number % 6
    if action == 0:
        del tokens[index]
    elif action == 1:
        tokens.insert(index, tokens[index])
    elif action == 2:
        tokens[index], tokens[other] = tokens[other], tokens[index]
    elif action == 3:
        tokens[index] = tokens[other]
    elif action == 4:
        tokens.insert(index, choice((*MARKS, *OTHER, *NUMBERS), number // 6))
    else:
        tokens.insert(index, choice(MARKS, number) * (1 + 997 * number % 100_000))


def edit_lines(tokens: list[str], at: int, number: int) -> None:
    """Deletes, repeats or moves what ends with a semicolon; or cuts the text off."""
    ends = places(tokens, ";")
    if not ends:
        return
    index = at % len(ends)
    begin = ends[index - 1] + 1 if index else 0
    statement = tokens[begin : ends[index] + 1]
    action = number % 5
    if action in (0, 3):
        del tokens[begin : ends[index] + 1]
    if action in (1, 3):
        to = ends[number // 5 % len(ends)] + 1
        tokens[to:to] = statement
    elif action == 2:
        tokens[begin:begin] = statement * (1 + number % 50)
    elif action == 4:
        del tokens[begin + number % (len(statement) + 1) :]


KINDS = (edit_opcode, edit_operand, edit_operand, edit_number, edit_token, edit_lines)


def mutated(base: str, edits: Sequence[Edit]) -> str:
    tokens = TOKEN.findall(base)
    for kind, at, number in edits:
        if tokens:
            KINDS[kind % len(KINDS)](tokens, at, number)
    return "".join(tokens)


# ---- What may be answered -----------------------------------------------------------------------

PLACED = re.compile(r"fuzz\.ptx:\d+: \S")
# An exception of C++ in place of a report. A launch fails because of what the kernel did, or
# because it does not take the shape.
INTERNAL = re.compile(r"emulator: |std::|basic_string|vector::|bad_alloc")


def problem(answer: dict[str, Any]) -> str | None:
    """What is wrong with an answer, None for success and documented errors."""
    load = answer["load"]
    if load != "ok":
        kind, message = load
        good = kind in ("ValueError", "NotImplementedError") and PLACED.match(message)
        return None if good else f"load: {kind}: {message}"
    for launch in answer["launches"]:
        if launch == "ok":
            continue
        kind, message = launch
        if kind not in ("RuntimeError", "ValueError") or INTERNAL.search(message) or not message:
            return f"launch: {kind}: {message}"
    return None


class Worker:
    """A process that answers; a new one after it crashed or hung."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.answers = {"loaded": 0, "refused": 0, "ran": 0, "failed": 0}

    def _start(self) -> subprocess.Popen[bytes]:
        script = Path(__file__).with_name("ptx_fuzz_worker.py")
        extension = os.environ.get("FA4_FUZZ_EXTENSION", str(EXTENSION))
        environment = dict(os.environ)
        if preload := environment.pop("FA4_FUZZ_PRELOAD", None):
            environment["LD_PRELOAD"] = preload
        return subprocess.Popen(
            [sys.executable, str(script), extension],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        )

    def close(self) -> str:
        """Ends the process; what it had to say."""
        if self.process is None:
            return ""
        self.process.kill()
        _, errors = self.process.communicate()
        self.process = None
        return errors.decode(errors="replace")[-6000:]

    def check(self, text: str) -> str | None:
        """What is wrong with the emulator's answer to `text`, None: nothing."""
        if self.process is None:
            self.process = self._start()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        job = text.encode("latin-1", errors="replace")
        try:
            self.process.stdin.write(b"%d\n%s" % (len(job), job))
            self.process.stdin.flush()
        except BrokenPipeError:
            return f"crash\n{self.close()}"
        ready, _, _ = select.select([self.process.stdout], [], [], SLOWEST_SECONDS)
        line = self.process.stdout.readline() if ready else b""
        if not ready:
            return f"no answer within {SLOWEST_SECONDS} s\n{self.close()}"
        if not line:
            self.process.wait()
            status = self.process.returncode
            return f"crash, status {status}\n{self.close()}"
        answer = json.loads(line)
        self._count(answer)
        return problem(answer)

    def _count(self, answer: dict[str, Any]) -> None:
        self.answers["loaded" if answer["load"] == "ok" else "refused"] += 1
        for launch in answer["launches"]:
            self.answers["ran" if launch == "ok" else "failed"] += 1


# ---- A long run ---------------------------------------------------------------------------------


def random_edits(source: random.Random) -> list[Edit]:
    count = source.choice((1, 1, 1, 2, 2, 3, 5, 8))
    return [tuple(source.randrange(1 << 20) for _ in range(3)) for _ in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "ptx-fuzz")
    parser.add_argument("--files", nargs="*", type=Path, help="check these texts and end")
    options = parser.parse_args()
    worker = Worker()
    if options.files:
        for file in options.files:
            print(f"{file}: {worker.check(file.read_bytes().decode('latin-1')) or 'good'}")
        worker.close()
        return
    texts, source = bases(TEST_KERNELS), random.Random(options.seed)
    end, count, failures = time.monotonic() + options.seconds, 0, 0
    while time.monotonic() < end:
        text = mutated(source.choice(texts), random_edits(source))
        count += 1
        wrong = worker.check(text)
        if wrong is None:
            continue
        failures += 1
        options.out.mkdir(parents=True, exist_ok=True)
        file = options.out / f"{hashlib.sha256(text.encode()).hexdigest()[:12]}.ptx"
        file.write_bytes(text.encode("latin-1", errors="replace"))
        print(f"{file}: {wrong}", flush=True)
    worker.close()
    print(
        f"seed {options.seed}: {count} texts of {len(texts)} bases, {failures} failures,", end=" "
    )
    print(", ".join(f"{name} {n}" for name, n in worker.answers.items()))
    raise SystemExit(1 if failures else 0)


if __name__ == "__main__":
    main()
