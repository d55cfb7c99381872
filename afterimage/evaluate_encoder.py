"""Evaluates an encoder, with labels or without: tables, figures, a picture."""

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from afterimage.checkpoints.names import printable
from afterimage.console import say_once
from afterimage.data import (
    WAYS_TO_LABEL,
    ImageSet,
    Splits,
    hold_out,
)
from afterimage.data.views import suited_augment, two_views
from afterimage.encoder import Encoder, load_encoder
from afterimage.errors import DataError, UserError, require_writable
from afterimage.evaluation import (
    Protocol,
    draw_embedding,
    embed,
    encoder_representation,
    hog_representation,
    label_free_report,
    pixel_representation,
    representation_report,
    representation_text,
)
from afterimage.evaluation.configs import EvaluateConfig, write
from afterimage.evaluation.criteria import CRITERIA, DEFAULT_CRITERION
from afterimage.evaluation.embedding import import_umap
from afterimage.evaluation.text import table
from afterimage.export import open_for, report_skipped, select
from afterimage.storage.urls import is_remote
from afterimage.training.batches import subsample

THIS, UNTRAINED = "this encoder", "untrained encoder"
_COMPARED, _FEWEST = 1000, 20
"""Most and fewest images that encoders are compared on without labels."""
_FITTED = 2000
"""Images that the untrained network's vector takes its statistics of."""
_CAPTION = 80
"""Maximum length of a data spec in a picture's caption."""


def evaluate_encoder(config: EvaluateConfig) -> tuple[dict[str, Any], str]:
    """(`representation_report`, its tables) of an encoder, beside three baselines.

    They are the untrained network, HOG (`hog_vectors`) and pixels; the encoder
    `config.against` joins them, if given. Figures, tables and a picture of the features
    are written to the place that the text names.

    If no image has a label, the `label_free_report` of the encoder, of the untrained
    network and of `config.against`, on at most 1,000 training images.

    Raises DataError for data with fewer than two labelled classes to learn from, or
    without labelled images to score; UserError for a place that cannot be written.
    """
    place = _place(config)
    if place is not None and not is_remote(place):  # before hours of work
        require_writable(f"out={place}", Path(place).parent)
    if config.embedding == "umap":
        import_umap()  # before hours of work
    encoder = load_encoder(config.from_)
    splits = open_for(encoder.preprocessing, config)
    report_skipped(select(splits, "all", config.data))
    parts = (splits.train, splits.validation, splits.test)
    unlabelled = not any(part and len(_rows_with_labels(part)) for part in parts)
    train, test = (splits.train,) * 2 if unlabelled else _probe_sets(splits, config)
    untrained = _untrained(encoder, train, config)
    named = {THIS: encoder, UNTRAINED: untrained}
    if config.against is not None:
        other = load_encoder(config.against)
        named[f"against {config.against}"] = other
        if said := other.preprocessing.other_range(encoder.preprocessing):
            say_once(f"against={config.against} {said}")
    if unlabelled:
        figures, text = _without_labels(named, train, config)
    else:
        figures, text = _with_labels(named, train, test, config)
    if place is None:
        said = (
            "No file was written, as this is not in a run folder; to keep the "
            "results, add --out FILE.json."
        )
        return figures, f"{text}\n\n{said}"
    stem = place.removesuffix(".json")
    files = {
        place: (json.dumps(figures, indent=1) + "\n").encode(),
        f"{stem}.md": printable(f"{text}\n", keep="\n").encode(),
    }
    if config.embedding != "none":
        files[f"{stem}.png"] = _picture(encoder, test, config)
    for file, content in files.items():
        write(file, content)
    return figures, f"{text}\n\nWritten: {', '.join(files)}"


def _with_labels(
    named: Mapping[str, Encoder],
    train: ImageSet,
    test: ImageSet,
    config: EvaluateConfig,
) -> tuple[dict[str, Any], str]:
    """(`representation_report`, its tables) of these encoders, HOG and pixels."""
    how: Any = {n: getattr(config, n) for n in ("batch_size", "views", "grid_3")}
    representations = [encoder_representation(n, e, **how) for n, e in named.items()]
    protocol = Protocol(
        per_class=config.per_class,
        seeds=config.label_seeds,
        most=config.most,
        seed=config.seed,
        batch_size=config.batch_size,
    )
    figures = representation_report(
        [*representations, hog_representation(), pixel_representation()],
        train,
        test,
        protocol,
    )
    figures["settings"]["views"] = config.views
    figures["notes"] += _notes(config, figures["layers"][THIS])
    return figures, representation_text(figures)


def _without_labels(
    named: Mapping[str, Encoder], images: ImageSet, config: EvaluateConfig
) -> tuple[dict[str, Any], str]:
    """({encoder: `label_free_report`} with what was measured, a table)."""
    some = subsample(images, min(config.most, _COMPARED))
    if len(some) < _FEWEST:
        raise DataError(
            f"{images.name} has {len(some)} images and no labels; without labels, "
            f"encoders are compared on at least {_FEWEST} images."
        )
    pixels = some.gather(np.arange(len(some)))
    spec = suited_augment(pixels)
    views = two_views(pixels, spec, config.seed)
    found = {}
    for name, encoder in named.items():
        vectors = (
            encoder.features(part, batch_size=config.batch_size)
            for part in (pixels, *views)
        )
        found[name] = label_free_report(*vectors)
    figures = {
        "settings": {"images": len(some), "augment": spec, "seed": config.seed},
        "criterion": DEFAULT_CRITERION,
        "criteria": found,
    }
    rows = [
        [
            f"{criterion} *" if criterion == DEFAULT_CRITERION else criterion,
            *(f"{values[criterion]:.4g}" for values in found.values()),
        ]
        for criterion in CRITERIA
    ]
    said = (
        f"No image has a label, so features are judged by {len(some):,} images and two "
        f"views of each (augment={spec}). More is better in every row. * is the "
        "criterion to choose by: of all, it ranked encoders most as labels did. Label "
        f"some images to know more: {WAYS_TO_LABEL}."
    )
    return figures, f"{table(['criterion', *found], rows)}\n\n{said}"


def _untrained(encoder: Encoder, train: ImageSet, config: EvaluateConfig) -> Encoder:
    """The untrained network with the same kind of vector; statistics are its own."""
    untrained, vector = encoder.untrained(config.seed), encoder.vector
    if vector is None or vector.transform == "none":
        return untrained
    some = subsample(train, _FITTED)
    images = some.gather(np.arange(len(some)))
    return untrained.with_vector(vector.pool, vector.transform, images)


def _notes(config: EvaluateConfig, layers: list[dict[str, Any]]) -> list[str]:
    """Notes on where `--views` and `--grid-3` do not apply as one might expect."""
    notes = []
    if config.views != "none":
        notes.append(
            "encoder vectors are averaged over several views of each image "
            f"({config.views}); pixels are of one view"
        )
    if config.grid_3 and not any(row["layer"].endswith("grid-3") for row in layers):
        notes.append("no grid-3: the last level has at most 2x2 sites")
    return notes


def _probe_sets(splits: Splits, config: EvaluateConfig) -> tuple[ImageSet, ImageSet]:
    train, test = splits.train, splits.test or splits.validation
    if test is None:
        train, test = hold_out(train, config.validation, config.seed)
    train, test = _labelled(train), _labelled(test)
    assert train.labels is not None
    if len(np.unique(train.labels)) < 2:
        raise DataError(
            f"{train.name}: probes need training images of at least two classes."
        )
    return train, test


def _labelled(images: ImageSet) -> ImageSet:
    rows = _rows_with_labels(images)
    if not len(rows):
        raise DataError(
            f"{images.name} has no labels, and an encoder is scored by how well its "
            f"features separate the classes. Add them: {WAYS_TO_LABEL}."
        )
    return images if len(rows) == len(images) else images.subset(rows)


def _rows_with_labels(images: ImageSet) -> np.ndarray:
    return np.flatnonzero([] if images.labels is None else images.labels >= 0)


def _place(config: EvaluateConfig) -> str | None:
    """The JSON file; the others share its stem. None if nothing should be written."""
    if config.out is not None:
        if not config.out.endswith(".json"):
            raise UserError(
                f"out={config.out}: the results of an encoder are written as JSON, "
                "with tables and a picture of the same name beside it; give a name "
                "ending in .json."
            )
        return config.out
    if is_remote(config.from_) or not (Path(config.from_) / "config.json").is_file():
        return None  # an artefact, whose files are listed with their checksums
    name = re.sub(r"[^A-Za-z0-9.=-]+", "-", config.data).strip("-.")
    return str(Path(config.from_) / "evaluation" / f"{name}.json")


def _short(name: str) -> str:
    """A long data spec, shortened to its two ends to fit the picture."""
    keep = _CAPTION // 2
    return name if len(name) <= _CAPTION else f"{name[:keep]} … {name[-keep:]}"


def _picture(encoder: Encoder, test: ImageSet, config: EvaluateConfig) -> bytes:
    from PIL import Image

    assert config.embedding != "none"
    some = np.random.default_rng(config.seed).permutation(len(test))
    images = test.subset(np.sort(some[: config.picture_images]))
    pixels = images.gather(np.arange(len(images)))
    vectors = encoder.features(pixels, batch_size=config.batch_size)
    places, how = embed(vectors, config.embedding, seed=config.seed)
    of = f"{len(images):,} of {len(test):,} images of {_short(test.name)}"
    names = images.class_names or ()
    caption = f"{of}: {how}"
    picture = draw_embedding(places, pixels, images.labels, names, caption=caption)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
