"""Segmentation from few masks: a pretrained encoder beside the same one from scratch.

Scenes of 32 x 32 px: one to three objects, digits and shapes (discs, squares,
triangles), on a part of one of scikit-learn's two sample photos. The script pastes
them, so every mask is exact. Fonts of digits and parts of photos differ between
training and test scenes.

    python -m benchmarks.segmentation --record

pretrains an encoder on scenes without masks by `afterimage pretrain`, trains segmenters
on 20, 100 and 1,000 other scenes in the modes full and scratch, and writes
`benchmarks/results/segmentation.md`. A stopped command continues.
"""

import argparse
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from afterimage.pictures import draw_rows
from afterimage.runs import write_png
from benchmarks.programs import quietly
from benchmarks.results import markdown, row, with_others, write_results

NAMES = ("background", "digit", "shape")
SIZES = (20, 100, 1000)
MODES = ("full", "scratch")
SIDE, WIDTH = 32, 0.5
TEST, UNLABELLED = 300, 2_000
PARTS = (
    ("unlabelled", "train", UNLABELLED, 0),
    ("labelled", "train", max(SIZES), 1),
    ("test", "test", TEST, 2),
)
"""(folder, split, scenes, seed)."""
PICTURE = pathlib.Path(__file__).parent.parent / "docs/pictures/segmentation.png"
METRIC, TITLE = "mean IoU, %", "Segmentation"


class Scenes:
    """Scenes of one split: `scene(rng)` gives (image, mask).

    Of one to `most` objects, each of `sizes` pixels.
    """

    def __init__(
        self,
        split: str,
        side: int = SIDE,
        most: int = 3,
        sizes: tuple[int, int] = (10, 18),
    ):
        from sklearn.datasets import load_sample_images

        from afterimage.data.sources.characters import FILE

        self.side, self.most, self.sizes = side, most, sizes
        with np.load(FILE, allow_pickle=False) as stored:
            known = stored["classes"][stored[f"y_{split}"]]
            self.digits = stored[f"x_{split}"][np.char.isdigit(known.astype(str))]
        # The test's parts of the photos are right of the training's.
        cut = slice(None, 440) if split == "train" else slice(460, None)
        self.photos = [photo[:, cut] for photo in load_sample_images().images]

    def __call__(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A scene, uint8 [h, w, 3], and its mask, uint8 [h, w]."""
        image, covers = self.pasted(rng)
        mask = np.zeros((self.side, self.side), np.uint8)
        for kind, cover in covers:
            mask[cover] = kind
        return image, mask

    def pasted(
        self, rng: np.random.Generator
    ) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
        """A scene, and (class, where it is) of its objects, the lowest first."""
        image, covers = self._part(rng).astype(np.float32), []
        for _ in range(rng.integers(1, self.most + 1)):
            kind = int(rng.integers(1, len(NAMES)))
            cover = self._object(kind, rng)
            # A part of a photo, tinted: neither colour nor texture tells a class.
            paint = self._part(rng) * 0.5 + 0.5 * rng.integers(0, 256, 3)
            image = np.where(cover[..., None], paint, image)
            covers.append((kind, cover))
        noisy = image + rng.normal(0, 6, image.shape)
        return np.clip(noisy, 0, 255).astype(np.uint8), covers

    def _part(self, rng: np.random.Generator) -> np.ndarray:
        """A part of a photo, 32 to 160 pixels wide, perhaps mirrored."""
        import cv2

        photo = self.photos[rng.integers(len(self.photos))]
        wide = int(rng.integers(self.side, 161))
        top, left = (int(rng.integers(n - wide + 1)) for n in photo.shape[:2])
        part = photo[top : top + wide, left : left + wide]
        part = cv2.resize(part, (self.side, self.side), interpolation=cv2.INTER_AREA)
        return part[:, :: rng.choice((-1, 1))]

    def _object(self, kind: int, rng: np.random.Generator) -> np.ndarray:
        """Where an object is, bool [h, w]."""
        import cv2

        size = int(rng.integers(self.sizes[0], self.sizes[1] + 1))
        cover = np.zeros((self.side, self.side), np.uint8)
        top, left = rng.integers(0, self.side - size + 1, 2).tolist()
        corners = int(rng.choice((0, 3, 4)))
        here = cover[top : top + size, left : left + size]
        if NAMES[kind] == "digit":
            drawn = self.digits[rng.integers(len(self.digits))]
            here[:] = cv2.resize(drawn, (size, size), interpolation=cv2.INTER_AREA) > 96
        elif corners == 0:
            cv2.circle(cover, (left + size // 2, top + size // 2), size // 2 - 1, 1, -1)
        else:
            turn = rng.uniform(0, 2 * np.pi) + 2 * np.pi * np.arange(corners) / corners
            points = np.stack([np.cos(turn), np.sin(turn)], 1) * size / 2 + size / 2
            points = np.round(points + np.array((left, top))).astype(np.int32)
            cv2.fillConvexPoly(cover, points, 1)
        return cover > 0


def write_scenes(folder: pathlib.Path, split: str, count: int, seed: int) -> None:
    """`count` scenes as images/ and masks/, unless they are there."""
    if (folder / "images" / f"{count - 1:05}.png").exists():
        return
    scenes, rng = Scenes(split), np.random.default_rng(seed)
    for part in ("masks", "images"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        image, mask = scenes(rng)
        Image.fromarray(mask).save(folder / "masks" / f"{number:05}.png")
        Image.fromarray(image).save(folder / "images" / f"{number:05}.png")


def table(out: pathlib.Path, images: int, seed: int) -> pathlib.Path:
    """A table of this many labelled scenes, drawn by seed, and of all test scenes."""
    chosen = np.random.default_rng(seed).permutation(max(SIZES))[:images]
    rows = [("labelled", n, "train") for n in sorted(chosen)]
    rows += [("test", n, "test") for n in range(TEST)]
    lines = [
        f"{part}/images/{n:05}.png,{part}/masks/{n:05}.png,{split}"
        for part, n, split in rows
    ]
    path = out / f"{images}-{seed}.csv"
    path.write_text("\n".join(["image,mask,split", *lines]) + "\n")
    return path


def pretrained(given: argparse.Namespace) -> None:
    """The encoder, by the default command but for width and length."""
    words = f"--out {given.out}/encoder --steps {given.pretrain_steps} --width {WIDTH}"
    data = str(given.out / "unlabelled" / "images")
    _run(["pretrain", data, *words.split(), "--probe-images", "0", "--no-tensorboard"])


def measure(given: argparse.Namespace, mode: str, images: int, seed: int) -> Any:
    """The test scores of one segmenter."""
    out = given.out / f"{mode}-{images}-{seed}"
    words = f"--from {given.out}/encoder --out {out} --mode {mode} --seed {seed} "
    words += f"--steps {given.steps} --eval-every 50 --no-tensorboard "
    # Not resident: then all runs of a mode are one program, compiled once.
    words += f"--no-resident --classes {' '.join(NAMES)}"
    _run(["segment", str(table(given.out, images, seed)), *words.split()])
    return json.loads((out / "results.json").read_text())["test"]


def _run(words: Sequence[str]) -> None:
    from afterimage.commands import main

    if code := quietly(main, words):
        raise SystemExit(f"afterimage {' '.join(words)}: exit code {code}")


def picture(given: argparse.Namespace) -> np.ndarray:
    """Test scenes, their masks, and predictions of the one with the most masks."""
    from afterimage_segmentation import load_segmenter
    from afterimage_segmentation.segmenter import painted

    segmenter = load_segmenter(given.out / f"full-{max(given.sizes)}-0")
    rows: dict[str, list[np.ndarray]] = {"scene": [], "mask": [], "prediction": []}
    for number in range(10):  # the first ones, not the best
        image, mask = (
            np.asarray(Image.open(given.out / "test" / part / f"{number:05}.png"))
            for part in ("images", "masks")
        )
        classes = np.asarray(segmenter.predict(image))[0]
        shown = [image, *(painted(c, segmenter.colours) for c in (mask, classes))]
        for row_of, one in zip(rows.values(), shown):
            row_of.append(one / np.float32(255))
    return draw_rows(rows)


def notes(given: argparse.Namespace) -> str:
    """What was measured, for the page."""
    return (
        f"Mean IoU over {', '.join(NAMES)}, on {TEST} test scenes of {SIDE} x {SIDE} "
        "px with other fonts and other parts of the two photos. One encoder: "
        f"`afterimage pretrain` with its defaults, width {WIDTH}, "
        f"{given.pretrain_steps} steps, on {UNLABELLED:,} scenes without masks. "
        f"Segmenters: `afterimage segment` with its defaults, {given.steps} steps of "
        "16 images, evaluated every 50; a tenth of the labelled scenes chooses the "
        f"step. Each seed draws its labelled scenes from the same {max(SIZES):,}, so "
        f"with {max(SIZES):,} all seeds have the same ones; its order, decoder and "
        "the tenth are its own, and in mode scratch its encoder. All pretrained rows "
        "and seeds start from the one encoder, so their deviation leaves out that of "
        "pretraining."
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Measures what is missing, prints the table and, with `--record`, keeps it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    parser.add_argument("--modes", nargs="+", default=MODES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--pretrain-steps", type=int, default=1000)
    parser.add_argument("--out", type=pathlib.Path, default="runs/segmentation")
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args(argv)
    for part, split, count, seed in PARTS:
        write_scenes(given.out / part, split, count, seed)
    rows = []
    pretrained(given)
    for images in given.sizes:
        for mode in given.modes:
            found = [measure(given, mode, images, s) for s in range(given.seeds)]
            values = [100 * each["miou"] for each in found]
            name = "scratch" if mode == "scratch" else f"pretrained, {mode}"
            rows.append(row("scenes", f"{images} masks, {name}", METRIC, values))
            print(rows[-1]["row"], values, flush=True)
    print(markdown(rows, TITLE, notes(given)))
    if given.record:
        every = with_others("segmentation", rows)
        write_results("segmentation", every, title=TITLE, notes=notes(given))
        write_png(picture(given), PICTURE)


if __name__ == "__main__":
    main()
