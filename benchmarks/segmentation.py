"""Segmentation from few masks: a pretrained encoder beside the same one from scratch.

Scenes of 48 x 48 px: one to four objects, a digit, a disc, a square or a triangle, on
a part of one of scikit-learn's two sample photos. The script pastes them, so every mask
is exact. Fonts of digits and parts of photos differ between training and test scenes.

    python -m benchmarks.segmentation --record

pretrains encoders on scenes without masks by `afterimage pretrain`, trains segmenters
on 20, 100 and 1,000 of other scenes in the modes full, frozen and scratch, and writes
`benchmarks/results/segmentation.md`. A stopped command continues.
"""

import pathlib

import numpy as np
from PIL import Image

NAMES = ("background", "digit", "disc", "square", "triangle")
SIZES = (20, 100, 1000)
MODES = ("full", "frozen", "scratch")
SIDE = 48
TEST, UNLABELLED = 300, 2_000
PRETRAIN_MINUTES = 1.0


class Scenes:
    """Scenes of one split: `scene(rng)` gives (image, mask)."""

    def __init__(self, split: str, side: int = SIDE):
        from sklearn.datasets import load_sample_images

        from afterimage.data.sources.characters import FILE

        self.side = side
        with np.load(FILE, allow_pickle=False) as stored:
            known = stored["classes"][stored[f"y_{split}"]]
            self.digits = stored[f"x_{split}"][np.char.isdigit(known.astype(str))]
        # The test's parts of the photos are right of the training's.
        cut = slice(None, 440) if split == "train" else slice(460, None)
        self.photos = [photo[:, cut] for photo in load_sample_images().images]

    def __call__(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A scene, uint8 [h, w, 3], and its mask, uint8 [h, w]."""
        image = self._part(rng).astype(np.float32)
        mask = np.zeros((self.side, self.side), np.uint8)
        for _ in range(rng.integers(1, 5)):
            kind = int(rng.integers(1, len(NAMES)))
            cover = self._object(kind, rng)
            # A part of a photo, tinted: neither colour nor texture tells a class.
            paint = self._part(rng) * 0.5 + 0.5 * rng.integers(0, 256, 3)
            image = np.where(cover[..., None], paint, image)
            mask[cover] = kind
        noisy = image + rng.normal(0, 6, image.shape)
        return np.clip(noisy, 0, 255).astype(np.uint8), mask

    def _part(self, rng: np.random.Generator) -> np.ndarray:
        """A part of a photo, 48 to 160 pixels wide, perhaps mirrored."""
        import cv2

        photo = self.photos[rng.integers(len(self.photos))]
        wide = int(rng.integers(self.side, 161))
        top, left = (int(rng.integers(n - wide + 1)) for n in photo.shape[:2])
        part = photo[top : top + wide, left : left + wide]
        part = cv2.resize(part, (self.side, self.side), interpolation=cv2.INTER_AREA)
        return part[:, :: rng.choice((-1, 1))]

    def _object(self, kind: int, rng: np.random.Generator) -> np.ndarray:
        """Where an object of 12 to 24 pixels is, bool [h, w]."""
        import cv2

        size = int(rng.integers(12, 25))
        cover = np.zeros((self.side, self.side), np.uint8)
        top, left = rng.integers(0, self.side - size + 1, 2).tolist()
        here = cover[top : top + size, left : left + size]
        if NAMES[kind] == "digit":
            drawn = self.digits[rng.integers(len(self.digits))]
            here[:] = cv2.resize(drawn, (size, size), interpolation=cv2.INTER_AREA) > 96
        elif NAMES[kind] == "disc":
            cv2.circle(cover, (left + size // 2, top + size // 2), size // 2 - 1, 1, -1)
        else:
            corners = 4 if NAMES[kind] == "square" else 3
            turn = rng.uniform(0, 2 * np.pi) + 2 * np.pi * np.arange(corners) / corners
            points = np.stack([np.cos(turn), np.sin(turn)], 1) * size / 2 + size / 2
            points = np.round(points + np.array((left, top))).astype(np.int32)
            cv2.fillConvexPoly(cover, points, 1)
        return cover > 0


def write_scenes(folder: pathlib.Path, split: str, count: int, seed: int) -> None:
    """`count` scenes as images/ and masks/, unless they are there."""
    if (folder / "images").is_dir():
        return
    scenes, rng = Scenes(split), np.random.default_rng([seed, split == "test"])
    for part in ("masks", "images"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        image, mask = scenes(rng)
        Image.fromarray(image).save(folder / "images" / f"{number:05}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{number:05}.png")
