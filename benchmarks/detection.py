"""Detection from few boxes: a pretrained encoder beside the same one from scratch.

Scenes of 64 x 64 px: one to five digits and shapes of 10 to 28 px, as in
`benchmarks.segmentation`, which pastes them on photos, so every box is exact: that of
an object's visible pixels. In every scene at least half of each object is visible.

    python -m benchmarks.detection --record

pretrains an encoder on scenes without boxes by `afterimage pretrain`, trains detectors
on 20, 100 and 1,000 other scenes in the modes full and scratch, and writes
`benchmarks/results/detection.md`. A stopped command continues.
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
from benchmarks.segmentation import NAMES, Scenes

CLASSES = NAMES[1:]
SIZES = (20, 100, 1000)
MODES = ("full", "scratch")
SIDE, MOST, OBJECTS, WIDTH = 64, 5, (10, 28), 0.5
BATCH, EVERY = 8, 80
TEST, UNLABELLED = 300, 2_000
PARTS = (
    ("unlabelled", "train", UNLABELLED, 0),
    ("train", "train", max(SIZES), 1),
    ("test", "test", TEST, 2),
)
"""(folder, split, scenes, seed)."""
PICTURE = pathlib.Path(__file__).parent.parent / "docs/pictures/detection.png"
TITLE = "Detection"


def scene(
    scenes: Scenes, rng: np.random.Generator
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """An image, and the annotations of its objects without ids."""
    while True:
        image, covers = scenes.pasted(rng)
        found, above = [], np.zeros(image.shape[:2], bool)
        for kind, cover in covers[::-1]:
            seen = cover & ~above
            if 2 * seen.sum() < cover.sum():
                break
            above |= cover
            y, x = (np.flatnonzero(seen.any(axis)) for axis in (1, 0))
            box = [x[0], y[0], x[-1] + 1 - x[0], y[-1] + 1 - y[0]]
            found.append({"category_id": kind, "bbox": [int(side) for side in box]})
        else:
            return image, found


def write_scenes(folder: pathlib.Path, split: str, count: int, seed: int) -> None:
    """`count` scenes, and boxes.json beside them, unless they are there."""
    if (folder / "boxes.json").exists():
        return
    scenes, rng = Scenes(split, SIDE, MOST, OBJECTS), np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    every = []
    for number in range(count):
        image, boxes = scene(scenes, rng)
        Image.fromarray(image).save(folder / f"{number:05}.png")
        every.append(boxes)
    (folder / "boxes.json").write_text(json.dumps(every))


def boxes_file(out: pathlib.Path, images: int, seed: int) -> pathlib.Path:
    """A COCO file of this many scenes, drawn by seed, and of all test scenes."""
    chosen = np.random.default_rng(seed).permutation(max(SIZES))[:images]
    listed, boxes = [], []
    for part, rows in (("train", sorted(chosen.tolist())), ("test", range(TEST))):
        every = json.loads((out / "scenes" / part / "boxes.json").read_text())
        for n in rows:
            name, number = f"{part}/{n:05}.png", len(listed)
            size = {"height": SIDE, "width": SIDE}
            listed.append({"id": number, "file_name": name, **size})
            boxes += [{"image_id": number, **box} for box in every[n]]
    kinds = [{"id": n, "name": name} for n, name in enumerate(CLASSES, 1)]
    path = out / f"{images}-{seed}.json"
    content = {"images": listed, "annotations": boxes, "categories": kinds}
    path.write_text(json.dumps(content))
    return path


def pretrained(given: argparse.Namespace) -> None:
    """The encoder, by the default command but for width and length."""
    words = f"--out {given.out}/encoder --steps {given.pretrain_steps} --width {WIDTH}"
    more = ["--probe-images", "0", "--no-tensorboard"]
    _run(["pretrain", str(given.out / "unlabelled"), *words.split(), *more])


def measure(given: argparse.Namespace, mode: str, images: int, seed: int) -> Any:
    """The test scores of one detector."""
    out = given.out / f"{mode}-{images}-{seed}"
    words = f"--boxes {boxes_file(given.out, images, seed)} --mode {mode} --out {out} "
    words += f"--from {given.out}/encoder --seed {seed} --steps {given.steps} "
    words += f"--batch-size {BATCH} --eval-every {EVERY} "
    # Not resident: then all runs of a mode are one program, compiled once.
    words += "--no-resident --no-tensorboard"
    _run(["detect", str(given.out / "scenes"), *words.split()])
    return json.loads((out / "results.json").read_text())["test"]


def _run(words: Sequence[str]) -> None:
    from afterimage.commands import main

    if code := quietly(main, words):
        raise SystemExit(f"afterimage {' '.join(words)}: exit code {code}")


def picture(given: argparse.Namespace) -> np.ndarray:
    """Test scenes with their boxes, and those found with the most labels."""
    from afterimage_detection import load_detector
    from afterimage_detection.detector import drawn

    folder = given.out / "scenes" / "test"
    detector = load_detector(given.out / f"full-{max(given.sizes)}-0")
    truth = json.loads((folder / "boxes.json").read_text())
    rows: dict[str, list[np.ndarray]] = {"boxes": [], "found": []}
    for number in range(10):  # the first ones, not the best
        image = np.asarray(Image.open(folder / f"{number:05}.png"))
        own = [[*one["bbox"], one["category_id"] - 1] for one in truth[number]]
        (found,) = detector.rows(image)
        some = (np.array(own, float), found[found[:, 5] >= 0.3])
        for shown, boxes in zip(rows.values(), some):
            pixels = np.asarray(drawn(image, boxes, CLASSES))
            shown.append(pixels / np.float32(255))
    return draw_rows(rows)


def notes(given: argparse.Namespace) -> str:
    """What was measured, for the page."""
    return (
        "mAP (COCO's: IoU of 0.5 to 0.95) and AP at IoU 0.5 over "
        f"{' and '.join(CLASSES)}, on {TEST} test scenes of {SIDE} x {SIDE} px with "
        "other fonts and other parts of the two photos. One encoder: `afterimage "
        f"pretrain` with its defaults, width {WIDTH}, {given.pretrain_steps} steps, on "
        f"{UNLABELLED:,} scenes without boxes. Detectors: `afterimage detect` with its "
        f"defaults, {given.steps} steps of {BATCH} images, evaluated every {EVERY}; a "
        "tenth of the labelled scenes chooses the step. Each seed draws its labelled "
        f"scenes from the same {max(SIZES):,}, so with {max(SIZES):,} all seeds have "
        "the same ones; its order, head and the tenth are its own, and in mode scratch "
        "its encoder. All pretrained rows and seeds start from the one encoder, so "
        "their deviation leaves out that of pretraining."
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Measures what is missing, prints the table and, with `--record`, keeps it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    parser.add_argument("--modes", nargs="+", default=MODES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--pretrain-steps", type=int, default=1000)
    parser.add_argument("--out", type=pathlib.Path, default="runs/detection")
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args(argv)
    for part, split, count, seed in PARTS:
        beside = given.out if part == "unlabelled" else given.out / "scenes"
        write_scenes(beside / part, split, count, seed)
    pretrained(given)
    rows = []
    for images in given.sizes:
        for mode in given.modes:
            found = [measure(given, mode, images, s) for s in range(given.seeds)]
            name = "scratch" if mode == "scratch" else f"pretrained, {mode}"
            for metric, key in (("mAP, %", "map"), ("AP at IoU 0.5, %", "map50")):
                values = [100 * each[key] for each in found]
                rows.append(row("scenes", f"{images} images, {name}", metric, values))
                print(rows[-1]["row"], metric, values, flush=True)
    print(markdown(rows, TITLE, notes(given)))
    if given.record:
        every = with_others("detection", rows)
        write_results("detection", every, title=TITLE, notes=notes(given))
        write_png(picture(given), PICTURE)


if __name__ == "__main__":
    main()
