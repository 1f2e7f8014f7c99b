"""Wrong PTX gives a documented error that names its line: never a crash, a hang or much memory.

The texts go to a process of their own, so that a crash is a failed test with the text that did it.
Without --full the examples are the same in every run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import ptx_fuzz
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ptx_fuzz import Worker

pytest.importorskip(
    "flash_attn4.emulator", reason="no emulator in this build", exc_type=ImportError
)

pytestmark = pytest.mark.cpu_only("parses and emulates")

EXAMPLES, FULL_EXAMPLES = 800, 20_000
BASES = ptx_fuzz.bases()


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.close()


def check(request: pytest.FixtureRequest, strategy: object, good: Callable[[str], object]) -> None:
    """good(text) for as many texts of the strategy as the run asks for."""
    full = request.config.getoption("--full")

    @settings(
        max_examples=FULL_EXAMPLES if full else EXAMPLES,
        derandomize=not full,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def run(text: str) -> None:
        good(text)

    run()


def answers(worker: Worker, text: str) -> None:
    wrong = worker.check(text)
    assert wrong is None, wrong


# ---- Mutations and noise ------------------------------------------------------------------------

NUMBERS = st.integers(0, (1 << 20) - 1)
EDITS = st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=6)
HEADER = ".version 8.7\n.target sm_90a\n.address_size 64\n"
WORDS = sorted(
    {
        *(*ptx_fuzz.MARKS, *ptx_fuzz.NUMBERS, *ptx_fuzz.OPERANDS, *ptx_fuzz.OTHER),
        *ptx_fuzz.TOKEN.findall(ptx_fuzz.SMALL),
    }
)
BODIES = st.lists(st.sampled_from(WORDS), max_size=60).map(" ".join)


@pytest.mark.parametrize("whole", [True, False], ids=["a small kernel", "built kernels"])
def test_mutated_kernels(whole: bool, request: pytest.FixtureRequest, worker: Worker) -> None:
    bases = st.just(ptx_fuzz.SMALL) if whole else st.sampled_from(BASES)
    texts = st.builds(ptx_fuzz.mutated, bases, EDITS)
    check(request, texts, lambda text: answers(worker, text))


def test_random_characters(request: pytest.FixtureRequest, worker: Worker) -> None:
    texts = st.text(st.characters(max_codepoint=255), max_size=400)
    check(request, texts.map(lambda text: HEADER + text), lambda text: answers(worker, text))
    check(request, texts, lambda text: answers(worker, text))


def test_random_words(request: pytest.FixtureRequest, worker: Worker) -> None:
    kernels = BODIES.map(lambda body: f"{HEADER}.entry k() {{ .reg .b32 %r<9>; {body} ret; }}")
    check(request, kernels, lambda text: answers(worker, text))
    check(request, BODIES.map(lambda words: HEADER + words), lambda text: answers(worker, text))


def test_texts_that_end_anywhere(request: pytest.FixtureRequest, worker: Worker) -> None:
    step = 1 if request.config.getoption("--full") else 7
    for end in range(0, len(ptx_fuzz.SMALL), step):
        answers(worker, ptx_fuzz.SMALL[:end])


# ---- Large and deep -----------------------------------------------------------------------------


def kernel(body: str) -> str:
    return f"{HEADER}.entry k() {{ {body} }}\n"


LARGE = {
    "scopes": kernel("{" * 200_000),
    "balanced scopes": kernel("{" * 250 + "}" * 250),
    "braces of an initialiser": f"{HEADER}.global .b32 x[1] = {'{' * 200_000};",
    "operators": kernel(".reg .b32 %r1; mov.b32 %r1, " + "-" * 300_000 + "1;"),
    "terms": kernel(".reg .b32 %r1; mov.b32 %r1, 1" + "+1" * 100_000 + ";"),
    "operands": kernel(".reg .b32 %r1; mov.b32 %r1" + ", 1" * 100_000 + ";"),
    "registers in a list": kernel(".reg .b32 %r1; mov.b64 {%r1" + ", %r1" * 70_000 + "}, 1;"),
    "registers": kernel(".reg .b32 %r<1048576>; mov.b32 %r1048575, 1;"),
    "more registers": kernel(".reg .b32 %r<1048577>;"),
    "predicates": kernel(
        ".reg .pred %p<70000>;" + "".join(f"mov.pred %p{i}, 1;" for i in range(70_000))
    ),
    "live registers": kernel(
        ".reg .b32 %r<40000>;"
        + "".join(f"mov.u32 %r{i}, %clock;" for i in range(40_000))
        + "".join(f"st.shared.u32 [%r{i}], 1;" for i in range(40_000))
    ),
    "labels": kernel(".reg .pred %p1;" + "".join(f"l{i}: @%p1 bra l{i};" for i in range(30_000))),
    "labels and registers": kernel(
        ".reg .pred %p1; .reg .b32 %r<40000>;"
        + "".join(f"l{i}: add.u32 %r{i}, %r{i}, 1; @%p1 bra l{i};" for i in range(40_000))
    ),
    "global memory": f"{HEADER}.global .b8 x[1099511627776];",
    "global memory in parts": HEADER + "".join(f".global .b8 x{i}[1073741824];" for i in range(9)),
    "dimensions": f"{HEADER}.global .b8 x{'[99999]' * 16};",
    "shared memory": kernel(".shared .b8 x[4294967296];"),
    "local memory": kernel(".local .b8 x[4294967280];"),
    "call parameters": kernel(".param .b8 x[1099511627776];"),
    "parameters": f"{HEADER}.entry k(.param .b8 x[1099511627776]) {{ }}",
    "number of a file": f'{HEADER}.file 99999999 "x"',
    "an unclosed comment": HEADER + "/*" + "x" * 1_000_000,
    "an unclosed string": HEADER + '.pragma "' + "x" * 1_000_000,
    "a word": HEADER + "x" * 1_000_000,
    "parts of an opcode": kernel("add" + ".u32" * 100_000 + " x;"),
    "blank lines": "\n" * 1_000_000,
}


@pytest.mark.parametrize("name", LARGE)
def test_large_texts(name: str, worker: Worker) -> None:
    answers(worker, LARGE[name])


# ---- What fuzzing has found ---------------------------------------------------------------------

FOUND = {
    "an immediate as a result": "ld.shared.u32 5, [%r1];",
    "an immediate among results": "ld.shared.v2.u32 {%r1, WARP_SZ}, [%r1];",
    "a register narrower than its value": "ld.shared.f64 %r1, [%r1];",
    "a list wider than its register": "mov.b128 %r1, %r2;",
    "a load without a type": "ld.shared %r1, [%r1];",
    "a store without a type": "st.shared [%r1], %r1;",
    "more registers than .v4": "st.shared.v4.u32 [%r1], {" + ", ".join(["%r1"] * 40) + "};",
    "a store of 64 bytes": "st.shared.v8.b64 [%r1], {" + ", ".join(["%rd1"] * 8) + "};",
    "a parameter behind the last": "ld.param.u32 %r1, [p+99999999];",
    "a parameter before the first": "ld.param.u32 %r1, [p-4];",
    "a parameter without brackets": "ld.param.u32 %r1, p;",
    "eight matrices": "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {"
    + ", ".join(["%r1"] * 8)
    + "}, [%r2];",
    "a wgmma without N": "wgmma.mma_async.sync.aligned.m64nk16.f32.f16.f16 {%r1}, %rd1, %rd1, 1;",
    "a wgmma without K": "wgmma.mma_async.sync.aligned.m64n8.f32.f16.f16 {%r1}, %rd1, %rd1, 1;",
    "a wgmma of N = 1000": "wgmma.mma_async.sync.aligned.m64n1000k16.f32.f16.f16 {"
    + ", ".join(["%r1"] * 500)
    + "}, %rd1, %rd1, 1, 1, 1, 0, 0;",
    "fewer coordinates than dimensions": "cp.async.bulk.tensor.5d.global.shared::cta.bulk_group "
    "[%rd1, {%r1}], [%r1];",
    "tcgen05.ld of fewer registers": "tcgen05.ld.sync.aligned.16x256b.x1.b32 {%r1}, [%r2];",
    "a far second half": "tcgen05.ld.sync.aligned.16x32bx2.x1.b32 {%r1}, [%r2], 4294967295;",
    "an atomic of unequal lists": "atom.shared.v2.add.f32 {%r1}, [%r2], {%r1, %r2, %r3};",
    "an election among nobody": "elect.sync %r1|%p1, 0;",
    "a cp.async of 300 bytes": "cp.async.ca.shared.global [%r1], [%rd1], 300;",
    "bytes that wrap": "mbarrier.init.shared.b64 [b], 1; "
    "mbarrier.expect_tx.relaxed.cta.shared.b64 [b], 0x7fffffff; "
    "mbarrier.complete_tx.relaxed.cta.shared.b64 [b], 0x80000000;",
    "a field of 128 bits": "bfi.b128 %rd1, %rd1, %rd1, 100, 9;",
    "a conversion without types": "cvt.rn.sat %r1, %r2;",
    "a call without arguments": "call vprintf, ();",
    "arguments that are no parameters": "call vprintf, (%r1, %r2);",
}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found(name: str, worker: Worker) -> None:
    text = (
        ".version 8.7\n.target sm_100a\n.extern .func vprintf();\n.entry k(.param .u32 p) {\n"
        ".reg .pred %p<3>; .reg .b32 %r<9>; .reg .b64 %rd<9>; .shared .b64 b;\n"
        f"mov.u32 %r1, 1024; mov.u32 %r2, 0;\n{FOUND[name]}\nret;\n}}\n"
    )
    before = dict(worker.answers)
    answers(worker, text)
    assert (worker.answers["refused"], worker.answers["failed"]) != (
        before["refused"],
        before["failed"],
    ), "neither refused nor failed"


def test_formats_of_printf(worker: Worker) -> None:
    """A format comes from the text: it may name no memory and write none."""
    for form in ("%d", "%-8.3x", "%*d", "%s", "%n %d", "%999999999f", "%lld", "%", "%%", "%p%c"):
        values = ", ".join(str(byte) for byte in (*form.encode(), 0))
        text = (
            ".version 8.7\n.target sm_90a\n"
            ".extern .func (.param .b32 r) vprintf (.param .b64 a, .param .b64 b);\n"
            f".global .b8 form[{len(form) + 1}] = {{{values}}};\n.entry k() {{\n"
            ".local .align 8 .b8 list[16]; .reg .b64 %rd<4>; .reg .b32 %r1;\n"
            "mov.u64 %rd1, form; cvta.global.u64 %rd1, %rd1;\n"
            "mov.u64 %rd2, list; cvta.local.u64 %rd2, %rd2; st.local.u64 [list], 7;\n"
            "{ .param .b64 x; .param .b64 y; .param .b32 z; st.param.b64 [x], %rd1;\n"
            "st.param.b64 [y], %rd2; call.uni (z), vprintf, (x, y); }\nret;\n}\n"
        )
        before = dict(worker.answers)
        answers(worker, text)
        ran = worker.answers["ran"] - before["ran"]
        assert ran == (form not in ("%*d", "%s", "%n %d", "%999999999f")), form


# ---- The judge ----------------------------------------------------------------------------------


def test_what_counts_as_a_problem() -> None:
    good = {"load": "ok", "launches": ["ok", ["RuntimeError", "deadlock: no warp can go on"]]}
    assert ptx_fuzz.problem(good) is None
    assert (
        ptx_fuzz.problem({"load": ["ValueError", "fuzz.ptx:3: x, got y"], "launches": []}) is None
    )
    for load in (["MemoryError", "std::bad_alloc"], ["ValueError", "stoi"], ["IndexError", "x"]):
        assert ptx_fuzz.problem({"load": load, "launches": []}) is not None
    launch = ["RuntimeError", "emulator: std::bad_alloc"]
    assert ptx_fuzz.problem({"load": "ok", "launches": [launch]}) is not None


def test_a_crash_is_noticed(worker: Worker) -> None:
    answers(worker, ptx_fuzz.SMALL)
    assert worker.process is not None
    worker.process.kill()
    worker.process.wait()
    assert "crash" in (worker.check(ptx_fuzz.SMALL) or "")
    answers(worker, ptx_fuzz.SMALL)


def test_mutations_load_and_run_too() -> None:
    """Fuzzing would be useless if everything were refused at once."""
    worker = Worker()
    answers(worker, ptx_fuzz.SMALL)
    assert worker.answers["ran"] == 1
    for number in range(200):
        answers(worker, ptx_fuzz.mutated(ptx_fuzz.SMALL, [(3, 7 * number, 11 * number)]))
    for base in BASES:
        answers(worker, ptx_fuzz.mutated(base, [(3, 7, 11)]))
    worker.close()
    assert worker.answers["loaded"] > worker.answers["refused"] / 5
    assert worker.answers["ran"] > 50
    assert worker.answers["failed"] > 0
