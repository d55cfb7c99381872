"""The largest batch that fits, with few compilations."""

import dataclasses
import time
from collections.abc import Callable, Sequence

MOST = 5
"""Compilations of one search."""
_CLOSE = 0.04
"""It ends when the result leaves at most this share of the memory unused, or the least
batch known not to fit is at most this share above it."""
_LARGEST = 2**20


@dataclasses.dataclass(frozen=True)
class Trial:
    """A batch that was compiled."""

    batch: int
    needs: int | None
    """Bytes of a device; None if only known to be more than there are."""


@dataclasses.dataclass(frozen=True)
class Largest:
    """The largest batch found."""

    batch: int
    """0 if none fits."""
    needs: int
    """Bytes of a device."""
    above: int | None
    """The least batch that was found not to fit; None if all did."""


def largest(
    needs: Callable[[int], int | None],
    memory: int,
    *,
    unit: int,
    start: int,
    known: Sequence[Trial] = (),
    tell: Callable[[int, int, int, float], None] = lambda *_: None,
) -> Largest:
    """The largest multiple of `unit` images that needs at most `memory` bytes.

    `needs(batch)` compiles, at most five times. Memory is nearly a line in the batch:
    two points give the next guess, and what is returned was compiled. `tell(batch,
    done, most, seconds each)` is called before each.
    """
    trials = list(known)
    began, done = time.perf_counter(), 0
    while done < MOST:
        batch = _next(trials, memory, unit, max(start // unit, 1) * unit)
        if batch is None:
            break
        tell(batch, done, MOST, (time.perf_counter() - began) / done if done else 0.0)
        trials.append(Trial(batch, needs(batch)))
        done += 1
    good, bad = _sides(trials, memory)
    above = min((t.batch for t in bad), default=None)
    if not good:
        return Largest(0, 0, above)
    best = max(good, key=lambda t: t.batch)
    assert best.needs is not None
    return Largest(best.batch, best.needs, above)


def _sides(trials: Sequence[Trial], memory: int) -> tuple[list[Trial], list[Trial]]:
    """(those that fit, those that do not)."""
    good = [t for t in trials if t.needs is not None and t.needs <= memory]
    return good, [t for t in trials if t not in good]


def _next(trials: Sequence[Trial], memory: int, unit: int, start: int) -> int | None:
    """The batch to compile next; None if the result is close enough."""
    if not trials:
        return start
    good, bad = _sides(trials, memory)
    low = max((t.batch for t in good), default=0)
    high = min((t.batch for t in bad), default=_LARGEST + unit)
    best = max((t.needs or 0 for t in good), default=0)
    if best >= (1 - _CLOSE) * memory or high - low <= max(unit, _CLOSE * low):
        return None
    guess = 2 * low if not bad else (low + high) // 2
    line = _line(good, [t for t in bad if t.needs is not None])
    if line is not None:
        guess = line(memory)
    guess = guess // unit * unit
    # Strictly between what fits and what does not.
    guess = min(max(guess, low + unit), high - unit, _LARGEST // unit * unit)
    return guess if low < guess < high else None


def _line(good: Sequence[Trial], bad: Sequence[Trial]) -> Callable[[int], int] | None:
    """The batch size for a number of bytes, by a line through the two trials nearest to
    the limit."""

    def size(trial: Trial) -> int:
        return trial.batch

    points = sorted(good, key=size)[-1:] + sorted(bad, key=size)[:1]
    if len(points) < 2:
        points = sorted(good, key=size)[-2:] or sorted(bad, key=size)[:2]
    if len(points) == 1 and bad:
        points = [Trial(0, 0), *points]  # as if all of it grew with the batch
    if len(points) < 2:
        return None
    first, second = points
    rise = (second.needs or 0) - (first.needs or 0)
    if rise <= 0:
        return None
    run = second.batch - first.batch
    return lambda memory: first.batch + (memory - (first.needs or 0)) * run // rise
