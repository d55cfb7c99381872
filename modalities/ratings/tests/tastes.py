"""Ratings of users of two tastes: each rates items of their own, some of them low."""

import csv
import pathlib

import numpy as np

ITEMS = 24


def rows(users: int, seed: int, prefix: str = "", first: int = 0):
    """Ratings (user, item, rating); even users like even items."""
    rng, found = np.random.default_rng(seed), []
    for user in range(users):
        own = first + 2 * rng.permutation(ITEMS // 2)[:8] + user % 2
        other = first + 2 * rng.permutation(ITEMS // 2)[:2] + (user + 1) % 2
        found += [(f"u{user}", f"{prefix}i{n}", rng.integers(4, 6)) for n in own]
        found += [(f"u{user}", f"{prefix}i{n}", rng.integers(1, 3)) for n in other]
    return found


def write(place: str | pathlib.Path, lines, head=("user", "item", "rating")) -> str:
    """A CSV file; its path."""
    with pathlib.Path(place).open("w", newline="") as file:
        csv.writer(file).writerows([head, *lines])
    return str(place)
