"""Every step of a hand-over is needed, and the emulator tells when it is missing or altered.

Of each kernel's PTX one line is changed at a time (mutations.py). What nothing notices is listed
with the reason (mutation_survivors.py), and what is listed is not noticed.
"""

from __future__ import annotations

import pytest

emulator = pytest.importorskip("flash_attn4.emulator", reason="no emulator in this build")

import mutation_subjects  # noqa: E402
import mutation_survivors  # noqa: E402
from mutation_subjects import LibraryKernel  # noqa: E402
from mutations import SCHEDULES, SURVIVES, UNREACHED, Mutation, Subject  # noqa: E402

pytestmark = pytest.mark.cpu_only("switches the emulator on itself")

SUBJECTS = mutation_subjects.subjects()
# Without --full: one of so many mutations, of a kernel of the library and of idioms.
SAMPLED, SAMPLED_IDIOMS = 72, 4
# ... and none of kernels that are much like another one.
WITH_FULL_ALONE = (
    "fa4_fwd_sm100_hd128_pair_bf16",
    "fa4_bwd_sm90_hd128_bf16",
    "fa4_bwd_sm100_hd128_pair_bf16",
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "subject" not in metafunc.fixturenames:
        return
    full = metafunc.config.getoption("--full")
    names = [name for name in SUBJECTS if full or name not in WITH_FULL_ALONE]
    metafunc.parametrize("subject", names, indirect=True)


@pytest.fixture
def subject(request: pytest.FixtureRequest) -> Subject:
    subject = SUBJECTS[request.param]
    if isinstance(subject, LibraryKernel) and not subject.path.exists():
        pytest.skip(f"no {subject.path}: the build was made elsewhere")
    return subject


def chosen(subject: Subject, full: bool) -> list[Mutation]:
    if full:
        return subject.mutations
    step = SAMPLED if isinstance(subject, LibraryKernel) else SAMPLED_IDIOMS
    return subject.mutations[step // 2 :: step] or subject.mutations[:1]


def test_as_it_is_nothing_objects(subject: Subject, request: pytest.FixtureRequest) -> None:
    full = request.config.getoption("--full")
    for kernel in {mutation.kernel for mutation in subject.mutations}:
        calls = subject.calls(kernel)
        for options in SCHEDULES if full else SCHEDULES[2:3]:
            for call in calls if full else calls[::3]:
                call(subject.ptx, options)


def test_mutations_are_noticed(subject: Subject, request: pytest.FixtureRequest) -> None:
    full = request.config.getoption("--full")
    wrong = []
    for mutation in chosen(subject, full):
        fate = subject.fate(mutation)
        if fate.kind == UNREACHED and not isinstance(subject, LibraryKernel):
            continue  # idioms hold broken variants of themselves, which their tests leave out
        missed = fate.kind in (SURVIVES, UNREACHED)
        # In a sample not which of equal instructions it is: that takes many runs.
        if not full and (not missed or mutation_survivors.may_survive(subject, mutation)):
            continue
        expected = mutation_survivors.reason(subject, mutation)
        if missed and expected is None:
            wrong.append(f"{fate.kind}: {mutation}, {subject.site(mutation)}")
        if not missed and expected is not None:
            wrong.append(
                f"listed, but noticed: {mutation}, {subject.site(mutation)}: {fate.report}"
            )
    assert not wrong, "\n".join(wrong)


def test_every_survivor_on_the_list_is_one(request: pytest.FixtureRequest) -> None:
    """Entries name mutations that there are."""
    full = request.config.getoption("--full")
    for name, survivors in mutation_survivors.SURVIVORS.items():
        subject = SUBJECTS[name]
        if isinstance(subject, LibraryKernel) and (not full or not subject.path.exists()):
            continue
        for survivor in survivors:
            found = {
                subject.site(mutation)[1]
                for mutation in subject.mutations
                if survivor.matches(subject, mutation)
            }
            assert found == set(survivor.numbers), f"{name}: {survivor}"
