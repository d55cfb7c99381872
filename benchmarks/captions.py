"""Image and text: classes left out of training, and search, beside baselines.

Two tables. Scenes of 32 x 32 px: a striped, dotted or plain shape of one colour on a
part of one of scikit-learn's two sample photos; the text is "a striped red triangle". A
fifth of the 90 combinations is in no training image. Emoji: Noto's pictures and their
Unicode names, from npm's emoji-datasource-google (data MIT, pictures Apache-2.0).

    npm install --prefix packages emoji-datasource-google
    python -m benchmarks.captions --record \
        --emoji packages/node_modules/emoji-datasource-google

pretrains an encoder for each seed on its training scenes alone, aligns it by
`afterimage align`, and writes `benchmarks/results/captions.md`. A
stopped command continues.
"""

import argparse
import csv
import dataclasses
import functools
import itertools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.programs import pretrained, quietly
from benchmarks.results import markdown, row, write_results
from benchmarks.segmentation import Scenes

COLOURS = {
    "red": (210, 30, 30),
    "green": (30, 150, 40),
    "blue": (40, 60, 220),
    "yellow": (235, 215, 40),
    "white": (245, 245, 245),
    "black": (15, 15, 15),
}
SHAPES = ("circle", "triangle", "square", "star", "cross")
PATTERNS = ("plain", "striped", "dotted")
CLASSES = tuple(itertools.product(PATTERNS, COLOURS, SHAPES))
SIDE, WIDTH, EACH, TESTED = 32, 0.25, 20, 10
"""Pixels; of the encoder; training and test images of a class."""
MODES = ("full", "frozen", "scratch")
TITLE = "Image and text"
ATTRIBUTES = {
    "attributes, the maps that frozen reads": "pyramid-grid",
    "attributes, the encoder's vector": "vector",
}
"""{row of the attribute baseline: its features}."""


def name_of(combination: Sequence[str]) -> str:
    """`a striped red triangle`."""
    return f"a {' '.join(combination)}"


class Shapes(Scenes):
    """Images of one shape on a part of a photo."""

    def draw(self, rng: np.random.Generator, combination: Sequence[str]) -> np.ndarray:
        """An image of this pattern, colour and shape, uint8 [h, w, 3]."""
        pattern, colour, shape = combination
        size, turn = rng.uniform(16, 26), rng.uniform(0, 2 * np.pi)
        centre = rng.uniform(size / 2, SIDE - size / 2, 2)
        y, x = np.mgrid[:SIDE, :SIDE] - centre[:, None, None]
        across = x * np.cos(turn) + y * np.sin(turn)
        down = y * np.cos(turn) - x * np.sin(turn)
        cover = self._inside(shape, across / size * 2, down / size * 2)
        marks = {
            "plain": np.zeros_like(cover),
            "striped": across % 6 < 3,
            "dotted": np.hypot(across % 5.5 - 2.75, down % 5.5 - 2.75) < 1.6,
        }[pattern]
        paint = np.array(COLOURS[colour]) * rng.uniform(0.8, 1.1)
        paint = np.where(marks[..., None], 128.0, paint)
        image = np.where(cover[..., None], paint, self._part(rng))
        noisy = image + rng.normal(0, 6, image.shape)
        return np.clip(noisy, 0, 255).astype(np.uint8)

    def _inside(self, shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Where a shape is that fills the disc of radius 1."""
        radius, angle = np.hypot(x, y), np.arctan2(y, x)
        if shape == "circle":
            return radius < 0.9
        if shape == "cross":
            arms = np.minimum(np.abs(x), np.abs(y)) < 0.3
            return arms & (np.maximum(np.abs(x), np.abs(y)) < 1)
        corners = {"triangle": 3, "square": 4, "star": 5}[shape]
        part = np.pi / corners
        off = np.abs((angle + part) % (2 * part) - part)
        if shape == "star":  # from a tip at 0 to a notch at π / 5
            return radius * (np.cos(off) + 1.9 * np.sin(off)) < 1
        return radius * np.cos(part - off) < np.cos(part)


def write_scenes(folder: pathlib.Path, seed: int) -> pathlib.Path:
    """Scenes and their table.

    A fifth of the classes is only in the test, and a tenth only in the validation,
    which has other images of the training classes too.
    """
    place, rng = folder / "pairs.csv", np.random.default_rng(seed)
    if place.exists():
        return place
    order = rng.permutation(len(CLASSES))
    unseen, chosen = set(order[:18].tolist()), set(order[18:27].tolist())
    sets = {"train": Shapes("train"), "test": Shapes("test")}
    rows = []
    for number, combination in enumerate(CLASSES):
        parts = {"train": EACH, "validation": 2, "test": TESTED}
        if number in unseen:
            parts = {"test": TESTED}
        if number in chosen:
            parts = {"validation": TESTED}
        for split, count in parts.items():
            scenes, name = (
                sets["test" if split == "test" else "train"],
                name_of(combination),
            )
            (folder / split).mkdir(parents=True, exist_ok=True)
            for n in range(count):
                image = f"{split}/{number:02}-{n:02}.png"
                Image.fromarray(scenes.draw(rng, combination)).save(folder / image)
                rows.append((image, name, name, split))
    _write(place, ("image", "text", "class", "split"), rows)
    return place


def _write(
    place: pathlib.Path, head: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    with place.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *rows])


def write_emoji(folder: pathlib.Path, package: pathlib.Path, seed: int) -> pathlib.Path:
    """Emoji on white and their names; a fifth for the test, a tenth for validation."""
    place = folder / "pairs.csv"
    if place.exists():
        return place
    known = json.loads((package / "emoji.json").read_text(encoding="utf-8"))
    some = [
        one
        for one in known
        if one["has_img_google"] and one["category"] not in ("Flags", "Component")
    ]
    order = np.random.default_rng(seed).permutation(len(some))
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for place_in, number in enumerate(order.tolist()):
        one, share = some[number], place_in / len(some)
        split = "test" if share < 0.2 else "validation" if share < 0.3 else "train"
        (folder / split).mkdir(exist_ok=True)
        with Image.open(package / "img/google/64" / one["image"]) as file:
            drawn = file.convert("RGBA")
        page = Image.new("RGBA", drawn.size, "white")
        page.alpha_composite(drawn)
        shown = page.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        shown.save(folder / split / one["image"])
        rows.append((f"{split}/{one['image']}", one["name"].lower(), split))
    _write(place, ("image", "text", "split"), rows)
    return place


def encoder_of(given: argparse.Namespace, seed: int) -> str:
    """The encoder of a seed, pretrained on its training scenes."""
    folder = write_scenes(given.out / "scenes" / str(seed), seed).parent
    images, steps = str(folder / "train"), given.pretrain_steps
    settings = {"steps": steps, "batch_size": 64, "width": WIDTH, "model": "conv"}
    return pretrained(images, folder / "encoder", seed, **settings)


def aligned(
    given: argparse.Namespace, place: pathlib.Path, mode: str, seed: int
) -> Any:
    """The result of `afterimage align` on one table."""
    from afterimage_captions import AlignConfig, align

    folder, encoder = place.parent, encoder_of(given, seed)
    config = AlignConfig(
        pairs=str(place),
        from_=encoder,
        out=str(folder / mode),
        mode=mode,  # pyright: ignore[reportArgumentType]  one of MODES
        seed=seed,
        steps=given.steps,
        lr=3e-3,
        eval_every=50,
        log_every=50,
        tensorboard=False,
    )
    return quietly(align, config)


@dataclasses.dataclass(frozen=True)
class Scene:
    """What is in one folder of scenes."""

    folder: pathlib.Path

    @functools.cached_property
    def rows(self) -> list[dict[str, str]]:
        """The lines of the table."""
        with (self.folder / "pairs.csv").open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    @functools.cached_property
    def images(self) -> np.ndarray:
        """All images, uint8 [n, h, w, 3]."""
        files = [self.folder / each["image"] for each in self.rows]
        return np.stack([np.asarray(Image.open(file)) for file in files])

    @functools.cached_property
    def truth(self) -> np.ndarray:
        """The number of the class of each image."""
        number = {name_of(one): n for n, one in enumerate(CLASSES)}
        return np.array([number[each["class"]] for each in self.rows])

    def of(self, split: str) -> np.ndarray:
        """Which images are in this split."""
        return np.array([each["split"] == split for each in self.rows])

    def figures(self, scores: np.ndarray) -> dict[str, float]:
        """Mean accuracies of test classes by scores [n, classes]."""
        test, train = (np.unique(self.truth[self.of(s)]) for s in ("test", "train"))
        unseen = np.setdiff1d(test, train)

        def accuracy(classes: np.ndarray, among: np.ndarray) -> float:
            hits = among[scores[:, among].argmax(1)] == self.truth
            chosen = [hits[(self.truth == c) & self.of("test")] for c in classes]
            return float(np.mean([each.mean() for each in chosen]))

        seen = np.setdiff1d(test, unseen)
        return _named(
            accuracy(unseen, unseen), accuracy(seen, test), accuracy(unseen, test)
        )


def accuracies(scene: Scene, mode: str) -> dict[str, float]:
    """Zero-shot accuracy of a run: among unseen classes, and among all."""
    from afterimage_captions import load_aligner

    aligner = load_aligner(scene.folder / mode)
    texts = aligner.embed_texts([name_of(one) for one in CLASSES])
    return scene.figures(aligner.embed_images(scene.images) @ texts.T)


def _named(alone: float, seen: float, unseen: float) -> dict[str, float]:
    both = 2 * seen * unseen / max(seen + unseen, 1e-9)
    values = (alone, seen, unseen, both)
    return dict(zip(FIGURES, values, strict=True))


def by_attributes(scene: Scene, pool: str) -> dict[str, float]:
    """Direct attribute prediction (Lampert et al. 2009) on the pretrained features.

    `pool` is that of `Encoder.features`.

    A logistic regression for pattern, colour and shape each; the score of a class is
    the sum of the log-probabilities of its attributes.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    from afterimage.encoder import load_encoder

    train = scene.of("train")
    encoder = load_encoder(scene.folder / "encoder")
    features = encoder.features(scene.images, pool=pool)
    features = StandardScaler().fit(features[train]).transform(features)
    scores = np.zeros((len(train), len(CLASSES)))
    for place in range(3):
        values = np.array([one[place] for one in CLASSES])
        probe = LogisticRegression(max_iter=300, C=0.1)
        probe.fit(features[train], values[scene.truth[train]])
        known = {name: n for n, name in enumerate(probe.classes_)}
        each = probe.predict_log_proba(features)
        scores += each[:, [known[value] for value in values]]
    return scene.figures(scores)


FIGURES = (
    "unseen among 18 unseen, %",
    "seen among 81, %",
    "unseen among 81, %",
    "harmonic mean, %",
)
RECALLS = {
    f"{way.replace('_', ' ')}, recall@{k}, %": (way, f"recall@{k}")
    for way in ("image_to_text", "text_to_image")
    for k in (1, 10)
}


def scenes_rows(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Accuracy of classes that were left out of training."""
    found: dict[str, list[dict[str, float]]] = {
        "chance": [_named(1 / 18, 1 / 81, 1 / 81)]
    }
    for seed in range(given.seeds):
        place = write_scenes(given.out / "scenes" / str(seed), seed)
        scene = Scene(place.parent)
        for mode in given.modes:
            aligned(given, place, mode, seed)
            found.setdefault(label(mode), []).append(accuracies(scene, mode))
        for name, pool in ATTRIBUTES.items():
            found.setdefault(name, []).append(by_attributes(scene, pool))
        print(seed, {name: values[-1] for name, values in found.items()}, flush=True)
    return _rows("scenes", found)


def emoji_rows(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Recall of held-out emoji by their names, and of the names."""
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(given.seeds):
        place = write_emoji(given.out / "emoji" / str(seed), given.emoji, seed)
        for mode in [mode for mode in given.modes if mode != "frozen"]:
            test = aligned(given, place, mode, seed).results["test"]
            for name, ways in ((label(mode), test), ("chance", test["chance"])):
                if name != "chance" or mode == given.modes[0]:
                    each = {m: ways[way][k] for m, (way, k) in RECALLS.items()}
                    found.setdefault(name, []).append(each)
        print(seed, {name: values[-1] for name, values in found.items()}, flush=True)
    return _rows("emoji", {"chance": found.pop("chance"), **found})


def label(mode: str) -> str:
    """The name of a row."""
    return "from scratch" if mode == "scratch" else f"pretrained, {mode}"


def _rows(
    table: str, found: Mapping[str, Sequence[Mapping[str, float]]]
) -> list[dict[str, Any]]:
    return [
        row(table, name, metric, [100 * each[metric] for each in values])
        for name, values in found.items()
        for metric in values[0]
    ]


def notes(given: argparse.Namespace) -> str:
    """What was measured, for the page."""
    return (
        f"Scenes: {TESTED} test images of each of 81 combinations of pattern, colour "
        f"and shape, on other parts of the photos. 63 were trained with {EACH} "
        "images each, 18 were not; 9 others and further images of the 63 choose the "
        "step. Accuracy is the mean over classes. The attribute baseline (Lampert "
        "et al. 2009) is given the three attributes of each class, and learns a "
        "probe for each, on the maps that the frozen mode reads, and on the "
        "encoder's own feature vector, which has a dictionary of patches too. "
        "Emoji: 1,636 of Noto's, all but flags and skin tones, and their Unicode "
        "names; a fifth is the test, whose names were not trained. Texts: MiniLM. "
        "For each seed: its own split, an encoder of its training scenes by "
        f"`afterimage pretrain` ({SIDE} px, width {WIDTH}, {given.pretrain_steps} "
        f"steps of 64), and `afterimage align` ({given.steps} steps of 128, lr "
        "0.003, encoder-lr 1). Chance is that of equal scores."
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Measures what is missing, prints the tables and, with `--record`, keeps them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--emoji", type=pathlib.Path, required=True)
    parser.add_argument("--modes", nargs="+", default=MODES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--pretrain-steps", type=int, default=100)
    parser.add_argument("--out", type=pathlib.Path, default="runs/captions")
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args(argv)
    rows = scenes_rows(given) + emoji_rows(given)
    print(markdown(rows, TITLE, notes(given)))
    if given.record:
        write_results("captions", rows, title=TITLE, notes=notes(given))


if __name__ == "__main__":
    main()
