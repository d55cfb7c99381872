"""Small images with masks on disk: a bright square or a dark one on grey."""

import pathlib

import numpy as np
from PIL import Image

NAMES = ("background", "bright", "dark")


def scene(rng: np.random.Generator, side: int = 16) -> tuple[np.ndarray, np.ndarray]:
    image = rng.integers(100, 140, (side, side, 3)).astype(np.uint8)
    mask = np.zeros((side, side), np.uint8)
    for value in (1, 2):
        top, left = rng.integers(0, side - 6, 2)
        image[top : top + 6, left : left + 6] = 240 if value == 1 else 10
        mask[top : top + 6, left : left + 6] = value
    return image, mask


def write(folder: pathlib.Path, count: int = 20, seed: int = 0, side: int = 16) -> None:
    """Writes `count` scenes to images/ and masks/."""
    rng = np.random.default_rng(seed)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        image, mask = scene(rng, side)
        save(folder / "images" / f"{number:02}.png", image)
        save(folder / "masks" / f"{number:02}.png", mask)


def save(path: pathlib.Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
