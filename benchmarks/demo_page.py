"""The page of the demo: its table, neighbours, predictions and odd images."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from afterimage.data import ImageSet
from afterimage.data.pixels import cover_and_crop
from afterimage.evaluation import pixel_vectors
from afterimage.evaluation.nearest import nearest
from afterimage.evaluation.probes import unit_rows
from afterimage.pictures import draw_rows
from afterimage.report import write_report
from afterimage.runs import write_png

_QUERIES, _NEIGHBOURS = 6, 8
_SHOWN, _EXAMPLES, _HIGHEST = 8, 4, 10
_TILE = 48


def odd_images(test: ImageSet) -> dict[str, np.ndarray]:
    """Images that are no character: {file name: uint8 [28, 28]}.

    scikit-learn's photo of a flower, four characters in one image, a negative, and a
    character that was damaged.
    """
    from sklearn.datasets import load_sample_image

    one, two, three, four = test.gather([397, 700, 1080, 1500])[..., 0]
    halves = [image[::2, ::2] for image in (one, two, three, four)]
    photo = np.asarray(load_sample_image("flower.jpg"))
    photo = cover_and_crop(photo.mean(-1, keepdims=True).astype(np.uint8), one.shape)
    noise = np.random.default_rng(0).integers(0, 256, (12, one.shape[1]), np.uint8)
    return {
        "flower.png": photo[..., 0],
        "four-characters.png": np.block([halves[:2], halves[2:]]),
        "negative.png": 255 - two,
        "damaged.png": np.concatenate([one[:8], noise, one[20:]]),
    }


def write_new(folder: pathlib.Path, test: ImageSet) -> None:
    """Write the test images, without their classes, and the odd ones as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    images = test.gather(np.arange(len(test)))[..., 0]
    new = {f"{row:04d}.png": image for row, image in enumerate(images)}
    for name, image in {**new, **odd_images(test)}.items():
        write_png(image, folder / name)


def neighbours(
    encoder: Any, train: ImageSet, test: ImageSet
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """(rows of a picture: new images and their nearest training images, the share of
    neighbours of the same character over all new images), by features and by
    pixels."""
    assert train.labels is not None
    assert test.labels is not None
    assert test.class_names is not None
    images, new = (one.gather(np.arange(len(one))) for one in (train, test))
    found, shares = {}, {}
    for name, function in {
        "features": encoder.features,
        "pixels": pixel_vectors,
    }.items():
        vectors, queries = (unit_rows(function(one)) for one in (images, new))
        found[name], _ = nearest(queries, vectors, _NEIGHBOURS)
        same = train.labels[found[name]] == test.labels[:, None]
        shares[name] = float(same.mean())
    rows = {}
    for query in np.linspace(0, len(new) - 1, _QUERIES + 2)[1:-1].astype(int):
        for name, near in found.items():
            same = train.labels[near[query]] == test.labels[query]
            label = f"{test.class_names[test.labels[query]]} by {name}: {same.sum()}"
            picked = np.concatenate([new[query][None], images[near[query]]])
            rows[label] = picked.astype(np.float32) / 255
    return rows, shares


def predicted(
    train: ImageSet, test: ImageSet, predictions: Sequence[Mapping[str, str]]
) -> dict[str, np.ndarray]:
    """Rows of a picture: new images beside training images of the predicted class.

    Three of four are drawn at random; the last are mistakes.
    """
    assert train.labels is not None
    assert test.labels is not None
    assert train.class_names is not None
    known = [p for p in predictions if pathlib.Path(p["file"]).stem.isdigit()]
    truth = {i: train.class_names[label] for i, label in enumerate(test.labels)}
    place = {p["file"]: int(pathlib.Path(p["file"]).stem) for p in known}
    wrong = [p for p in known if p["class"] != truth[place[p["file"]]]]
    rng = np.random.default_rng(0)
    chosen = [known[i] for i in rng.permutation(len(known))[: _SHOWN - 2]]
    rows = {}
    for one in [*chosen, *wrong[:: max(1, len(wrong) // 2)][:2]]:
        label = f"{one['class']} {100 * float(one['probability']):.0f} %"
        label += "" if one["class"] == truth[place[one["file"]]] else ", wrong"
        same = np.flatnonzero(train.labels == train.class_names.index(one["class"]))
        images = [test.gather([place[one["file"]]]), train.gather(same[:_EXAMPLES])]
        rows[label] = np.concatenate(images).astype(np.float32) / 255
    return rows


def anomalous(
    run: pathlib.Path, train: ImageSet, test: ImageSet
) -> tuple[dict[str, np.ndarray], int, int]:
    """(a row of a picture: the new images with the highest anomaly scores, how many odd
    images are above the threshold, how many others).

    Nothing is labelled; the threshold is for 1 % false alarms.
    """
    from afterimage.anomalies.detector import AnomalyDetector

    detector = AnomalyDetector.fit(str(run), train.gather(np.arange(len(train))))
    odd = np.stack([*odd_images(test).values()])[..., None]
    new = np.concatenate([test.gather(np.arange(len(test))), odd])
    scores = detector.score(new)
    rows = np.argsort(-scores)[:_HIGHEST]
    above = scores > detector.threshold
    row = {"highest first": new[rows].astype(np.float32) / 255}
    return row, int(above[len(test) :].sum()), int(above[: len(test)].sum())


def write(
    out: pathlib.Path,
    encoder: Any,
    train: ImageSet,
    test: ImageSet,
    accuracy: Mapping[str, float],
    predictions: Sequence[Mapping[str, str]],
) -> pathlib.Path:
    """The page, `demo.html` in `out`."""
    near, shares = neighbours(encoder, train, test)
    far, found, alarms = anomalous(out / "encoder", train, test)
    odd = odd_images(test)
    parts = {
        "Neighbours": (
            f"An image in a new font, and the nearest of {len(train):,} others, by "
            "pretrained features and by pixels; the number of neighbours that are the "
            "same character",
            near,
        ),
        "Predictions": (
            "An image in a new font, and training images of the class that was "
            "predicted, with its probability",
            predicted(train, test, predictions),
        ),
        "Odd images": (
            f"The highest anomaly scores of {len(test):,} characters in new fonts and "
            f"{len(odd)} images that are no character. Above the threshold for 1 % "
            f"false alarms: {found} of the {len(odd)}, and {alarms} characters",
            far,
        ),
    }
    pictures = {}
    for heading, (caption, rows) in parts.items():
        file = out / f"{heading.split()[0].lower()}.png"
        apart = heading != "Odd images"
        write_png(draw_rows(rows, first_apart=apart, tile=_TILE), file)
        pictures[heading] = (caption, file)
    rows = [[name, f"{value:.1f}"] for name, value in accuracy.items()]
    return write_report(
        out / "demo.html",
        title="Afterimage: the demo",
        lead="Letters and digits in handwriting fonts, 47 characters. The encoder was "
        f"pretrained on {len(train):,} images without labels; then there were five "
        "labels for each character. Test images are of fonts that training had none "
        "of.",
        headline={
            "fine-tuned from the encoder": f"{accuracy['fine-tuned']:.0f} %",
            "the same network from random weights": f"{accuracy['scratch']:.0f} %",
            "neighbours of the same character": f"{100 * shares['features']:.0f} %",
            "the same by pixels": f"{100 * shares['pixels']:.0f} %",
        },
        grids={"Test accuracy, 5 labels a class": (["from", "accuracy, %"], rows)},
        pictures=pictures,
    )
