"""Pairs of image and text: a table in, uint8 images and frozen text vectors out."""

import dataclasses
import functools
import hashlib
import io
import pathlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from afterimage.checkpoints.files import read_bytes, reason
from afterimage.checkpoints.names import class_name, spelling
from afterimage.console import say_reading
from afterimage.data import ImageSet, open_data
from afterimage.data.sets import Empty, Range, with_held_out
from afterimage.data.sources import source_of
from afterimage.data.sources.npz import check_sizes
from afterimage.errors import DataError, UserError
from afterimage.evaluation.probes import unit_rows
from afterimage_captions.config import AlignConfig

_SHOWN = 5
_SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs(ImageSet):
    """Images, each with one of the `texts`; the `Rows` of a run."""

    column: str = "text"
    vectors: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 0)))
    """Unit vectors of all texts, float32 [t, d]."""

    @property
    def text(self) -> Int[np.ndarray, " n"]:
        """The number of each image's text."""
        return self.tasks[self.column].values

    @property
    def texts(self) -> tuple[str, ...]:
        """The different texts of all splits."""
        return self.tasks[self.column].class_names

    @property
    def row_bytes(self) -> int:
        """Bytes of an image and of its text's number and vector."""
        return super().row_bytes + 4 + 4 * self.vectors.shape[1]

    def inputs(
        self, rows: np.ndarray, empty: Empty | None = None
    ) -> dict[str, np.ndarray]:
        """{"image": uint8 [b, h, w, c], "text": int32 [b], "vector": [b, d]}."""
        text = self.text[rows]
        more = {"text": text, "vector": self.vectors[text]}
        return super().inputs(rows, empty) | more

    def targets(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """None: texts are inputs, and classes are not learned."""
        return {}

    @property
    def seen(self) -> list[str]:
        """The classes of these images; their texts if they have no classes."""
        if self.labels is None or self.class_names is None:
            return [self.texts[number] for number in np.unique(self.text).tolist()]
        known = np.unique(self.labels[self.labels >= 0]).tolist()
        return [self.class_names[number] for number in known]


def open_pairs(
    config: AlignConfig, side: int | None, channels: int, value_range: Range | None
) -> tuple[dict[str, Pairs], str]:
    """({split: its pairs}, a SHA-256 of all that a run depends on).

    Raises DataError for a table without texts, images without one, too few pairs, and
    texts without a vector.
    """
    if not source_of(config.pairs).tasks:
        raise UserError(
            f"pairs={config.pairs}: give a table with the columns image and "
            f"{config.text_column}, such as pairs.csv"
        )
    say_reading(config.pairs)
    splits = open_data(
        config.pairs,
        image_size=side,
        channels=channels,
        value_range=value_range,
        on_bad_image=config.on_bad_image,
        tasks=(config.text_column,),
        reading=config,
    )
    sets = {name: s for name in _SPLITS if (s := getattr(splits, name)) is not None}
    _require_texts(sets, config.text_column)
    sets = with_held_out(
        sets,
        {"test": config.hold_out, "validation": config.validation},
        config.seed,
        ImageSet.subset,
        source=f"pairs={config.pairs}",
        what="pairs",
        fewest=2,
    )
    digest = hashlib.sha256(repr([s.fingerprint for s in sets.values()]).encode())
    if is_file(config.text):
        digest.update(_bytes(config.text))
    task = splits.train.tasks[config.text_column]
    vectors = text_vectors(config.text, task.class_names)
    fields = [field.name for field in dataclasses.fields(ImageSet)]
    pairs = {
        name: Pairs(
            **{field: getattr(part, field) for field in fields},
            column=config.text_column,
            vectors=vectors,
        )
        for name, part in sets.items()
    }
    return pairs, digest.hexdigest()


def _require_texts(sets: Mapping[str, ImageSet], column: str) -> None:
    missing = []
    for part in sets.values():
        if (task := part.tasks.get(column)) is None:
            raise DataError(
                f"{part.name}: no image has a text in the column {column!r}; name the "
                "column of the texts with --text-column"
            )
        missing += [part.ids[int(row)] for row in np.flatnonzero(task.values < 0)]
        if part is sets["train"] and task.values.max() == task.values.min():
            raise DataError(
                f"{part.name}: all images have one text; at least two are needed, to "
                "tell them apart"
            )
    if missing:
        raise DataError(f"images without a text in {column!r}: {_some(missing)}")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(map(spelling, names[:_SHOWN])) + more


def is_file(place: str) -> bool:
    """Whether a setting `text` names a file of vectors, not a text encoder."""
    return pathlib.PurePath(place).suffix.lower() in (".npz", ".parquet")


def text_vectors(place: str, texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
    """Unit vectors of texts, by a text encoder or from a file of vectors.

    Raises UserError or DataError for a place that has none, and for texts that the file
    does not have.
    """
    if not is_file(place):
        return unit_rows(_encoder(place).features(texts))
    names, vectors = _read(place)
    row = {class_name(str(name)): n for n, name in enumerate(names)}
    if missing := [text for text in texts if text not in row]:
        raise DataError(
            f"text={place} has no vector for {len(missing):,} of {len(texts):,} texts: "
            f"{_some([repr(text) for text in missing])}. It needs a row for each"
        )
    chosen = vectors[[row[text] for text in texts]]
    wrong = ~np.isfinite(chosen).all(1) | ~chosen.any(1)
    if wrong.any():
        raise DataError(
            f"text={place}: the vector of {texts[int(np.argmax(wrong))]!r} is zero or "
            "not finite"
        )
    return unit_rows(chosen)


@functools.lru_cache(maxsize=1)
def _encoder(place: str) -> Any:
    from afterimage_text import load_text_encoder

    return load_text_encoder(place)


def _bytes(place: str) -> bytes:
    try:
        return read_bytes(place)
    except OSError as error:
        raise DataError(f"text={place} {reason(error)}") from error


def _read(place: str) -> tuple[Sequence[str], np.ndarray]:
    """(texts, their vectors [n, d]) of a file."""
    content, parquet = io.BytesIO(_bytes(place)), place.lower().endswith(".parquet")
    try:
        if parquet:
            import pyarrow.parquet as pq

            table = pq.read_table(content, columns=["text", "vector"])
            names, given = (table[n].to_pylist() for n in ("text", "vector"))
        else:
            check_sizes(content)
            content.seek(0)
            with np.load(content, allow_pickle=False) as file:
                names, given = file["text"], file["vector"]
        vectors = np.asarray(given, np.float32)
        if vectors.ndim != 2 or len(vectors) != len(names) or not vectors.size:
            raise ValueError(f"{len(names)} texts and vectors {vectors.shape}")
    except (
        *(ValueError, TypeError, LookupError, EOFError, OSError),
        *(AttributeError, zipfile.BadZipFile),
    ) as error:
        raise DataError(
            f"text={place} cannot be read ({error}); expected text, n texts, and "
            "vector, n rows of equally many numbers"
        ) from error
    return names, vectors
