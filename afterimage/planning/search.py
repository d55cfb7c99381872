"""The largest batch that fits, with few compilations."""

import dataclasses
import time
from collections.abc import Callable, Sequence

MOST = 5
"""Compilations of one search."""
_CLOSE = 0.04
"""It ends when the least batch known not to fit is this share above the result."""
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
    if high - low <= max(unit, round(_CLOSE * low)):
        return None
    measured = [t for t in trials if t.needs is not None]
    guess = 2 * low if not bad else (low + high) // 2
    if len(measured) > 1:
        first, second = sorted(measured, key=lambda t: t.batch)[-2:]
        if good:  # the line through the two nearest to the limit
            near = sorted(measured, key=lambda t: abs((t.needs or 0) - memory))
            first, second = sorted(near[:2], key=lambda t: t.batch)
        slope = ((second.needs or 0) - (first.needs or 0)) / (
            second.batch - first.batch
        )
        if slope > 0:
            guess = int(first.batch + (memory - (first.needs or 0)) / slope)
    elif measured and not good:
        # One point, above: as if all of it grew with the batch.
        guess = int(measured[0].batch * memory / (measured[0].needs or 1))
    guess = guess // unit * unit
    # Strictly between what fits and what does not.
    guess = min(max(guess, low + unit), high - unit, _LARGEST // unit * unit)
    return guess if low < guess < high else None
