"""Timing of several functions in turn, so that what disturbs the machine disturbs them alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.utils.benchmark import Timer

ROUNDS = 9
ROUND_SECONDS = 0.03  # a round repeats a function for at least this long
CASE_SECONDS = 12.0  # a case stops after this long, but not before MIN_ROUNDS
MIN_ROUNDS = 5


@dataclass(frozen=True)
class Timing:
    """Mean time of a call in each round, in microseconds."""

    rounds_us: tuple[float, ...]
    calls: int  # per round

    @property
    def median_us(self) -> float:
        return statistics.median(self.rounds_us)

    @property
    def spread_us(self) -> tuple[float, float]:
        """20th and 80th percentile of the rounds."""
        fifths = statistics.quantiles(self.rounds_us, n=5, method="inclusive")
        return fifths[0], fifths[3]

    def ratio(self, other: Timing) -> float:
        """How many times as long `other` takes: median over the rounds, pair by pair."""
        pairs = zip(other.rounds_us, self.rounds_us, strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)


def interleave(
    functions: Mapping[str, Callable[[], object]], max_calls: int | None = None
) -> dict[str, Timing]:
    """Times every function once per round. max_calls bounds the calls of a round."""
    timers = {name: _timer(function) for name, function in functions.items()}
    calls, round_seconds = {}, 0.0
    for name, timer in timers.items():
        seconds = timer.timeit(2).mean
        calls[name] = max(1, min(round(ROUND_SECONDS / seconds), max_calls or 10**6))
        round_seconds += calls[name] * seconds
    rounds = max(MIN_ROUNDS, min(ROUNDS, round(CASE_SECONDS / round_seconds)))
    order = list(timers)
    samples: dict[str, list[float]] = {name: [] for name in order}
    for _ in range(rounds):
        for name in order:
            samples[name].append(timers[name].timeit(calls[name]).mean * 1e6)
        order.append(order.pop(0))  # no function always follows the same neighbour
    return {name: Timing(tuple(samples[name]), calls[name]) for name in timers}


def _timer(function: Callable[[], object]) -> Timer:
    """torch's timer warms up, and waits for the GPU before it reads the clock."""
    return Timer("function()", globals={"function": function}, num_threads=torch.get_num_threads())
