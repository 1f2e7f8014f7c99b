"""What is mutated: kernels of the library with small calls that use all of their buffers several
times, and the idioms of tests/emulator/kernels with their tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import fwd_schedules
import machines
import test_atomics
import test_barriers
import test_mbarrier
import test_ordering
import test_tcgen05
import test_tma
import test_wgmma
import torch
from cases import Case
from fwd_schedules import Packed
from machines import Emulated, EmulatedProgram
from mutations import Call, Subject, WrongValues
from test_use import GENERATED, partials
from torch import Tensor

from flash_attn4 import emulator, flash_attn_combine
from flash_attn4.emulator import Options

# ---- Kernels of the library ----------------------------------------------------------------------

# What a call of the library returns, under options of the emulator.
Results = Callable[[Options], Sequence[Tensor]]


@dataclass(frozen=True)
class LibraryCall:
    name: str
    run: Results
    exact: bool = True  # the same bits in every schedule
    ctas: int = 1  # per tile, where there are kernels of one CTA and of a pair

    @cached_property
    def expected(self) -> Sequence[Tensor]:
        return self.run(Options(threads=1, ctas=self.ctas))

    def check(self, kernel: str, ptx: str, options: Options) -> None:
        expected = self.expected
        results = self.run(replace(options, images={kernel: ptx}, ctas=self.ctas))
        for index, (got, want) in enumerate(zip(results, expected, strict=True)):
            if self.exact or options.policy == "eager":
                same = torch.equal(got, want)
            else:
                same = bool((got - want).abs().max() <= 0.01 * want.abs().max())
            if not same:
                raise WrongValues(f"{self.name}: result {index} is wrong")


class LibraryKernel(Subject):
    def __init__(self, name: str, calls: Callable[[], list[LibraryCall]]) -> None:
        self.name = name
        self._make_calls = calls

    @property
    def path(self) -> Path:
        return GENERATED / f"{self.name}.ptx"

    @cached_property
    def ptx(self) -> str:  # type: ignore[override]
        return self.path.read_text()

    @cached_property
    def _calls(self) -> list[Call]:
        return [partial(call.check, self.name) for call in self._make_calls()]

    def calls(self, kernel: str) -> Sequence[Call]:
        return self._calls


def _forward(arch: str, call: fwd_schedules.Call) -> LibraryCall:
    work = fwd_schedules.problem(call)
    return LibraryCall(str(call), lambda options: fwd_schedules.run(arch, work, options))


def _for_first(blocks: int, keys: Sequence[int]) -> list[int]:
    """Keys of sequences of one tile each: `keys` for the first block of threads, none for the
    others, which costs next to nothing."""
    return [keys[i // blocks] if i % blocks == 0 else 0 for i in range(len(keys) * blocks)]


def _many_tiles(arch: str, blocks: int, dims: dict[str, int]) -> LibraryCall:
    """More than any ring has stages, of one block of keys and of two; the last one of one, full."""
    lengths_k = tuple(_for_first(blocks, [60, 150] * 6 + [128]))
    lengths_q = tuple(2 * min(keys, 1) for keys in lengths_k)
    call = Packed(lengths_q, lengths_k, lengths_k, Case(heads_q=1, heads_k=1, **dims))
    return replace(_forward(arch, call), name="many tiles")


def _many_tiles_by_map(arch: str, blocks: int, dims: dict[str, int]) -> LibraryCall:
    """The copy engine stores the output. Tiles with and without values behind their last key."""
    used = _for_first(blocks, (60, 128, 150, 256, 60, 128))
    case = Case(batch=len(used), seqlen_q=2, seqlen_k=256, heads_q=1, heads_k=1, **dims)
    work = fwd_schedules.problem(case)
    work.arguments["seqused_k"] = torch.tensor(used, dtype=torch.int32)
    for index, keys in enumerate(used):
        work.inputs.v[index, keys:] = torch.nan
    return LibraryCall("many tiles by map", lambda options: fwd_schedules.run(arch, work, options))


def forward_calls(arch: str, head_dim: int, ctas: int = 1) -> list[LibraryCall]:
    blocks = {"sm90": 132, "sm100": 148 // ctas}[arch]
    dims = {"head_dim": head_dim, "head_dim_v": min(head_dim, 128)}
    one = {"heads_q": 1, "heads_k": 1, **dims}
    calls: list[fwd_schedules.Call] = [
        Case(batch=1, seqlen_q=500, seqlen_k=900, data="hot", **one),
        Packed((70, 260, 1), (200, 300, 129), (170, 257, 128), Case(causal=True, **dims)),
        Case(batch=1, seqlen_q=200, seqlen_k=333, window=(70, 20), softcap=4.0, **one),
        Case(batch=1, seqlen_q=9, seqlen_k=300, sink="float32", heads_q=5, heads_k=1, **dims),
    ]
    found = [*(_forward(arch, call) for call in calls), _many_tiles(arch, blocks, dims)]
    if arch == "sm90":
        found.append(_many_tiles_by_map(arch, blocks, dims))
    if arch == "sm100":
        # Two tiles for some blocks of threads, without rows of V that would have to be cleared.
        found.append(_forward(arch, Case(batch=150, seqlen_q=2, seqlen_k=128, **one)))
    return [replace(call, ctas=ctas) for call in found]


def _backward(arch: str, call: fwd_schedules.Call, deterministic: bool) -> LibraryCall:
    work = fwd_schedules.problem(call)
    work = replace(work, arguments={**work.arguments, "deterministic": deterministic})

    @cache
    def graph() -> tuple[list[Tensor], Tensor]:
        x = work.inputs
        leaves = [t.detach().requires_grad_() for t in (x.q, x.k, x.v)]
        arguments = dict(work.arguments)
        if isinstance(sink := arguments["learnable_sink"], Tensor):
            leaves.append(sink.detach().requires_grad_())
            arguments["learnable_sink"] = leaves[-1]
        inputs = replace(x, **dict(zip("qkv", leaves, strict=False)))
        with emulator.use(arch):
            out, _ = replace(work, inputs=inputs, arguments=arguments).forward()
        return leaves, out

    def run(options: Options) -> Sequence[Tensor]:
        leaves, out = graph()
        with emulator.use(arch, replace(options, ctas=options.ctas or 1)):
            dout = work.inputs.dout.reshape(out.shape)
            return torch.autograd.grad(out, leaves, dout, retain_graph=True)

    name = f"{call},{'deterministic' if deterministic else 'any order'}"
    return LibraryCall(name, run, deterministic)


def backward_calls(arch: str, head_dim: int, ctas: int = 1) -> list[LibraryCall]:
    """Of one step per tile and of many, with what makes a tile clear rows, masks, softcap."""
    dims = {"head_dim": head_dim, "head_dim_v": head_dim}
    one = {"batch": 1, "heads_q": 1, "heads_k": 1, **dims}
    calls: list[tuple[fwd_schedules.Call, bool]] = [
        (Case(seqlen_q=300, seqlen_k=420, causal=True, **one), True),
        (Case(seqlen_q=500, seqlen_k=300, **one), False),
        (Case(seqlen_q=200, seqlen_k=333, window=(70, 20), softcap=4.0, **one), True),
        # Whose only addition to dq waits for its turn; in so many sums another order shows.
        (Case(seqlen_q=60, seqlen_k=420, sink="float32", **(one | {"batch": 16})), True),
        (Case(seqlen_q=60, seqlen_k=420, softcap=4.0, **(one | {"batch": 16})), True),
        (Packed((70, 160, 1), (200, 140, 29), (170, 97, 28), Case(causal=True, **one)), True),
        (Packed((70, 160, 1), (200, 140, 29), (170, 97, 28), Case(softcap=4.0, **one)), False),
        # Queries that see no key, in the first step, the second and later ones.
        (Case(seqlen_q=60, seqlen_k=40, causal=True, **(one | {"heads_q": 3})), True),
        (Case(seqlen_q=60, seqlen_k=40, causal=True, softcap=4.0, **(one | {"heads_q": 3})), False),
        (Case(seqlen_q=420, seqlen_k=300, causal=True, softcap=4.0, **one), True),
        # Rows of keys, or of queries of a third step, that are cleared where no others are.
        (Case(seqlen_q=140, seqlen_k=150, seqused=True, **(one | {"batch": 2})), True),
        (Case(seqlen_q=140, seqlen_k=150, seqused=True, softcap=4.0, **one), True),
        (Packed((300,), (140,), (140,), Case(**one)), True),
        (Packed((300,), (140,), (140,), Case(softcap=4.0, **one)), True),
    ]
    return [replace(_backward(arch, *call), ctas=ctas) for call in calls]


def combine_calls(arch: str, dtype: torch.dtype) -> list[LibraryCall]:
    def run(options: Options) -> Sequence[Tensor]:
        with emulator.use(arch, options):
            return flash_attn_combine(*partials(dtype))

    return [LibraryCall("combine", run)]


def library_kernels() -> list[Subject]:
    names = {
        "fa4_fwd_sm90_hd64_bf16": partial(forward_calls, "sm90", 64),
        "fa4_fwd_sm100_hd128_bf16": partial(forward_calls, "sm100", 128),
        "fa4_fwd_sm100_hd128_pair_bf16": partial(forward_calls, "sm100", 128, 2),
        "fa4_bwd_sm90_hd64_bf16": partial(backward_calls, "sm90", 64),
        "fa4_bwd_sm90_hd128_bf16": partial(backward_calls, "sm90", 128),
        "fa4_bwd_sm100_hd128_bf16": partial(backward_calls, "sm100", 128),
        "fa4_bwd_sm100_hd128_pair_bf16": partial(backward_calls, "sm100", 128, 2),
        **{
            f"fa4_bwd_{step.format(arch)}": lambda arch=arch: backward_calls(arch, 64)[3:4]
            for arch in ("sm90", "sm100")
            for step in ("prepare_{}_bf16", "finish_{}_bf16", "sink_{}")
        },
        **{
            f"fa4_combine_{arch}_bf16": partial(combine_calls, arch, torch.bfloat16)
            for arch in ("sm90", "sm100")
        },
    }
    return [LibraryKernel(name, calls) for name, calls in names.items()]


# ---- Idioms --------------------------------------------------------------------------------------


class _Recorded:
    """A module that remembers which of its kernels were launched."""

    def __init__(self, module: emulator.Module) -> None:
        self._module = module
        self.launched: set[str] = set()

    def launch(self, name: str, *args: Any, **keywords: Any) -> emulator.LaunchResult:
        self.launched.add(name)
        return self._module.launch(name, *args, **keywords)


class _Mutant(Emulated):
    """A machine that runs another text for one source."""

    def __init__(self, arch: str, source: str, ptx: str, options: Options) -> None:
        super().__init__(arch, "eager")
        self.options = options
        self.source = source
        self.module = _Recorded(emulator.Module(ptx, source))

    def compile(self, source: str, defines: tuple[str, ...] = ()) -> EmulatedProgram:
        assert source == self.source, source
        return EmulatedProgram(self.module, self.options)


Test = Callable[[machines.Machine], None]


class Idioms(Subject):
    """A source of tests/emulator/kernels and tests of its kernels."""

    def __init__(self, arch: str, source: str, tests: list[Test]) -> None:
        self.name = f"{source.removesuffix('.cu')}-{arch}"
        self._arch, self._source, self._tests = arch, source, tests

    @cached_property
    def ptx(self) -> str:  # type: ignore[override]
        return machines.compiled(self._source, self._arch, "ptx").decode()

    def _run(self, test: Test, ptx: str, options: Options) -> set[str]:
        machine = _Mutant(self._arch, self._source, ptx, options)
        test(machine)
        return machine.module.launched

    @cached_property
    def _kernels(self) -> list[set[str]]:
        """What each test launches."""
        return [self._run(test, self.ptx, Options(threads=1)) for test in self._tests]

    def calls(self, kernel: str) -> Sequence[Call]:
        pairs = zip(self._tests, self._kernels, strict=True)
        return [partial(self._check, test) for test, launched in pairs if kernel in launched]

    def _check(self, test: Test, ptx: str, options: Options) -> None:
        self._run(test, ptx, options)


def _idiom(idiom: test_ordering.Idiom) -> Test:
    return lambda machine: test_ordering.launch(machine, idiom, 0)


def _with(test: Callable[..., None], **arguments: Any) -> Test:
    return lambda machine: test(machine, **arguments)


def idioms() -> list[Subject]:
    ordering = [
        test_ordering.THREADS,
        test_ordering.STORES,
        test_ordering.COPIES,
        test_ordering.NAMED,
        test_ordering.LANES,
        test_ordering.TURNS,
        test_ordering.THREAD_COPIES,
        test_ordering.PEERS,
    ]
    by_arch: list[tuple[str, str, list[Test]]] = [
        ("sm100", "ordering.cu", [_idiom(idiom) for idiom in ordering]),
        ("sm90", "ordering_wgmma.cu", [_idiom(test_ordering.WGMMA)]),
        ("sm100", "ordering_tmem.cu", [_idiom(test_ordering.TMEM)]),
        (
            "sm100",
            "barriers.cu",
            [
                _with(test_barriers.test_named_barriers, rounds=6),
                test_barriers.test_named_turns,
                _with(test_barriers.test_cluster_shared, ranks=4),
            ],
        ),
        (
            "sm100",
            "mbarrier.cu",
            [
                _with(test_mbarrier.test_phases, threads=256, phases=9),
                _with(test_mbarrier.test_ring, steps=25),
                _with(test_mbarrier.test_remote_arrivals, ranks=4),
            ],
        ),
        (
            "sm100",
            "tma.cu",
            [
                _with(test_tma.test_tensor_ring, steps=8),
                _with(test_tma.test_tensor_multicast_ring, ranks=4),
                test_tma.test_tensor_store_ring,
            ],
        ),
        (
            "sm100",
            "copies.cu",
            [
                test_tma.test_bulk_load_announced,
                test_tma.test_bulk_store_then_flag,
                test_tma.test_bulk_reduce_ring,
                _with(test_tma.test_bulk_copy_to_peer, ranks=4, sender_announces=1),
                _with(test_tma.test_cp_async_zero_fill, noinc=1),
                test_tma.test_cp_async_groups,
            ],
        ),
        ("sm100", "atomics.cu", [test_atomics.test_semaphore_order, test_atomics.test_last_block]),
        ("sm90", "wgmma.cu", [_with(test_wgmma.test_attention_hand_over, blocks=4)]),
        (
            "sm100",
            "tcgen05_attention.cu",
            [_with(test_tcgen05.test_attention_hand_over, ctas=n, blocks=5) for n in (1, 2)],
        ),
    ]
    return [Idioms(*row) for row in by_arch]


@cache
def subjects() -> dict[str, Subject]:
    return {subject.name: subject for subject in (*library_kernels(), *idioms())}
