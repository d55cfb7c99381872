"""Streams features of whole data sets to a .parquet, .npz, .npy or .csv file."""

import contextlib
import csv
import dataclasses
import glob
import io
import os
import re
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float

from afterimage.checkpoints.files import alive
from afterimage.console import ProgressBar, say_once
from afterimage.data import ImageSet, Preprocessing, Splits, open_data
from afterimage.encoder import Encoder, load_encoder
from afterimage.errors import DataError, UserError, disk_errors
from afterimage.evaluation.configs import EvaluateConfig, FeaturesConfig, Split
from afterimage.evaluation.spectrum import Moments
from afterimage.fields import output_file
from afterimage.models.vector import principal_axes
from afterimage.storage.outputs import uploads
from afterimage.training.batches import subsample

_MOST_FITTED, _WIDEST_PCA = 20_000, 4096
# Vectors buffered and written as one row group of a Parquet file.
_ROWS_TOGETHER = 8192


def export_features(
    encoder: Encoder,
    sets: Mapping[str, ImageSet],
    out: str | os.PathLike[str],
    *,
    pool: str = "vector",
    views: str = "none",
    batch_size: int = 256,
    pca: "PCA | None" = None,
) -> int:
    """Write a feature vector for each image in `sets` ({split: images}); their number.

    `pool` and `views` are as in `Encoder.features`; `pca` then reduces the vectors.

    - `.parquet`: split, id, label and class (null where unknown; absent if no image
      is labelled), vector (fixed-size list of float32). Memory stays bounded.
    - `.npz`: arrays split, id, label (-1 where unknown), vector [N, D].
    - `.npy`: the vectors alone, [N, D], in the order of the images.
    - `.csv`: split, id, label and class as in Parquet, then v0, v1, … with as many
      digits as float32 has.

    The complete file is renamed into place, replacing any existing one, so a killed and
    repeated export has exactly one row per image.

    Raises UserError for another suffix or no images, DiskError for a place that cannot
    be written.
    """
    width = encoder.vector_size(pool) if pca is None else pca.axes.shape[1]
    parts = _rows(encoder, sets, pool, views, batch_size)
    if pca is not None:
        parts = ({**part, "vector": pca(part["vector"])} for part in parts)
    return write_features(parts, sets, out, width)


def write_features(
    parts: Iterable[dict[str, Any]],
    sets: Mapping[str, ImageSet],
    out: str | os.PathLike[str],
    width: int,
) -> int:
    """Write the rows of `parts` (`rows_of`), vectors of `width` numbers; their number.

    Otherwise as `export_features`, which computes them.
    """
    make, out = _writer(out), Path(out)
    total, rows = sum(map(len, sets.values())), 0
    if not total:
        raise UserError("there are no images to compute features of.")
    untouched = " An existing file of this name is unchanged"
    labelled = any(
        images.labels is not None and (images.labels >= 0).any()
        for images in sets.values()
    )
    with (
        disk_errors(f"out={out} was not written", untouched),
        _complete_or_absent(out) as partial,
        partial.open("wb") as file,
        ProgressBar(total, "features") as progress,
    ):
        writer = make(file, (total, width), labelled)
        with contextlib.ExitStack() as failing:
            failing.callback(writer.abandon)
            for part in parts:
                writer.add(part)
                rows += len(part["vector"])
                progress.add(len(part["vector"]))
            writer.close()
            failing.pop_all()
        file.flush()
        os.fsync(file.fileno())
    return rows


def _writer(out: str | os.PathLike[str]) -> Callable[..., "_Rows"]:
    """What writes files of this suffix; UserError if `out` cannot be written."""
    kinds = {".parquet": ParquetRows, ".npz": NpzRows, ".npy": NpyRows}
    kinds[".csv"] = CsvRows
    return kinds[output_file(out, kinds).suffix.lower()]


@contextlib.contextmanager
def _complete_or_absent(out: Path) -> Iterator[Path]:
    """A path to write; renamed to `out` at the end, or deleted if anything fails."""
    out.parent.mkdir(parents=True, exist_ok=True)
    for old in out.parent.glob(f".{glob.escape(out.name)}.partial-*"):
        pid = old.name.rpartition("-")[2]
        if re.fullmatch(r"[0-9]{1,18}", pid) and not alive(int(pid)):
            with contextlib.suppress(OSError):  # not a file, or not ours
                old.unlink(missing_ok=True)
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        yield partial
        partial.replace(out)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _rows(
    encoder: Encoder,
    sets: Mapping[str, ImageSet],
    pool: str,
    views: str,
    batch_size: int,
) -> Iterator[dict[str, Any]]:
    for split, images in sets.items():
        starts = range(0, len(images), batch_size)
        vectors = _vectors(encoder, images, pool, views, batch_size)
        for start, vector in zip(starts, vectors, strict=True):
            yield rows_of(split, images, range(start, start + len(vector)), vector)


def rows_of(
    split: str, images: ImageSet, numbers: Sequence[int], vector: np.ndarray
) -> dict[str, Any]:
    """The columns of the images with these numbers, whose vectors are `vector`."""
    known = images.labels
    labels = [-1 if known is None else int(known[number]) for number in numbers]
    names = images.class_names or ()
    return {
        "split": [split] * len(vector),
        "id": [images.ids[number] for number in numbers],
        "label": labels,
        "class": [names[c] if 0 <= c < len(names) else None for c in labels],
        "vector": vector,
    }


def _vectors(
    encoder: Encoder, images: ImageSet, pool: str, views: str, batch_size: int
) -> Iterator[np.ndarray]:
    """The vectors of a set, batch by batch."""
    rows = np.arange(len(images))
    starts = range(0, len(images), batch_size)
    batches = (images.gather(rows[start : start + batch_size]) for start in starts)
    return encoder.stream(batches, pool=pool, views=views, batch_size=batch_size)


@dataclasses.dataclass(frozen=True)
class PCA:
    """Principal components of feature vectors: (x - mean) axes."""

    mean: Float[np.ndarray, " d"]
    axes: Float[np.ndarray, "d k"]
    """Orthonormal, largest variance first; each one's largest entry is positive."""
    share: float
    """Share of the variance that they keep."""
    images: int
    """Number of images they are fitted to."""

    def __call__(self, vectors: Float[np.ndarray, "b d"]) -> Float[np.ndarray, "b k"]:
        """The components of vectors, in float32."""
        return (vectors - self.mean[None]) @ self.axes

    @classmethod
    def fit(
        cls,
        encoder: Encoder,
        images: ImageSet,
        dim: int,
        *,
        pool: str = "vector",
        views: str = "none",
        batch_size: int = 256,
    ) -> "PCA":
        """The first `dim` components of at most 20,000 images, evenly spaced.

        Memory holds the vectors' covariance and a few batches, whatever the number of
        images. Raises UserError if the vectors or the images are too few for `dim`, or
        the vectors have more than 4,096 numbers.
        """
        images, size = subsample(images, _MOST_FITTED), encoder.vector_size(pool)
        if dim > size:
            raise UserError(
                f"dim={dim}: the vectors have {size} numbers; take fewer, or leave "
                "--dim out"
            )
        if dim >= len(images):
            raise UserError(
                f"dim={dim}: {len(images)} images have at most {len(images) - 1} "
                "principal components; take fewer"
            )
        if size > _WIDEST_PCA:
            raise UserError(
                f"dim={dim}: vectors of {size} numbers are too long for PCA, which "
                f"takes at most {_WIDEST_PCA}; take another --pool"
            )
        moments = Moments(size)
        with ProgressBar(len(images), "PCA") as progress:
            for part in _vectors(encoder, images, pool, views, batch_size):
                moments.add(part)
                progress.add(len(part))
        energy, axes = principal_axes(moments, dim)
        total = float(np.square(moments.deviation).sum())
        share = float(energy.sum()) / total if total > 0 else 1.0
        mean = moments.mean.astype(np.float32)
        return cls(mean, axes.astype(np.float32), min(share, 1.0), len(images))


class _Rows:
    """A file under construction."""

    def add(self, rows: Mapping[str, Any]) -> None:
        """{"split", "id", "label", "class"} (lists), {"vector"} (float32 [b, D])."""

    def close(self) -> None:
        """Finish the file."""

    def abandon(self) -> None:
        """Discard the unfinished file."""


class ParquetRows(_Rows):
    """Row groups of a Parquet file."""

    def __init__(self, file: BinaryIO, shape: tuple[int, int], labelled: bool):
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = [("split", pa.string()), ("id", pa.string())]
        if labelled:
            columns += [("label", pa.int32()), ("class", pa.string())]
        columns.append(("vector", pa.list_(pa.float32(), shape[1])))
        self._schema = pa.schema(columns)
        self._file = pq.ParquetWriter(file, self._schema)
        self._held: list[Any] = []

    def add(self, rows: Mapping[str, Any]) -> None:
        import pyarrow as pa

        flat = pa.array(rows["vector"].reshape(-1))
        width = rows["vector"].shape[1]
        columns = dict(rows)
        columns["label"] = [None if c < 0 else c for c in rows["label"]]
        columns["vector"] = pa.FixedSizeListArray.from_arrays(flat, width)
        arrays = [pa.array(columns[f.name], f.type) for f in self._schema]
        self._held.append(pa.record_batch(arrays, schema=self._schema))
        if sum(batch.num_rows for batch in self._held) >= _ROWS_TOGETHER:
            self._write()

    def close(self) -> None:
        self._write()
        self._file.close()

    def abandon(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()

    def _write(self) -> None:
        import pyarrow as pa

        self._file.write_table(pa.Table.from_batches(self._held, self._schema))
        self._held = []


def _header(file: Any, shape: tuple[int, int]) -> None:
    description = np.lib.format.dtype_to_descr(np.dtype(np.float32))
    np.lib.format.write_array_header_1_0(
        file, {"descr": description, "fortran_order": False, "shape": shape}
    )


class NpyRows(_Rows):
    """The vectors as one NumPy array, written as they come."""

    def __init__(self, file: BinaryIO, shape: tuple[int, int], labelled: bool):
        self._file = file
        _header(file, shape)

    def add(self, rows: Mapping[str, Any]) -> None:
        self._file.write(np.ascontiguousarray(rows["vector"]).data)


class NpzRows(_Rows):
    """An archive of arrays: the vectors as they come, the rest at the end."""

    def __init__(self, file: BinaryIO, shape: tuple[int, int], labelled: bool):
        self._zip = zipfile.ZipFile(file, "w")
        self._file = self._zip.open("vector.npy", "w", force_zip64=True)
        _header(self._file, shape)
        self._rest: dict[str, list[Any]] = {"split": [], "id": []}
        if labelled:
            self._rest["label"] = []

    def add(self, rows: Mapping[str, Any]) -> None:
        self._file.write(np.ascontiguousarray(rows["vector"]).data)
        for name, values in self._rest.items():
            values.extend(rows[name])

    def close(self) -> None:
        self._file.close()
        for name, values in self._rest.items():
            kind = np.int32 if name == "label" else np.str_
            with self._zip.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, np.asarray(values, kind))
        self._zip.close()

    def abandon(self) -> None:
        # Both write footers when garbage-collected: send those to memory, not disk.
        self._zip.fp = io.BytesIO()
        self._file.close()
        self._zip.close()


class CsvRows(_Rows):
    """A line of text for each image."""

    def __init__(self, file: BinaryIO, shape: tuple[int, int], labelled: bool):
        self._file = file
        self._named = ["split", "id", *(["label", "class"] if labelled else [])]
        self._write([[*self._named, *(f"v{n}" for n in range(shape[1]))]])

    def add(self, rows: Mapping[str, Any]) -> None:
        known = dict(rows)
        known["label"] = [None if c < 0 else c for c in rows["label"]]
        named = zip(*(known[name] for name in self._named))
        # The shortest text that is read back as the same float32.
        digits = rows["vector"].astype(np.str_).tolist()
        self._write([*first, *rest] for first, rest in zip(named, digits))

    def _write(self, lines: Iterable[Sequence[Any]]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(lines)
        self._file.write(text.getvalue().encode())


@uploads
def features(config: FeaturesConfig) -> int:
    """Write the file that `config` describes; returns its number of rows."""
    _writer(config.out)  # before hours of work
    if config.ray is not None:
        # Imported here: it needs the [ray] extra.
        from afterimage.ray.features import features as on_ray

        return on_ray(config)
    encoder = load_encoder(config.from_, dtype=config.dtype)
    splits = open_for(encoder.preprocessing, config)
    chosen = select(splits, config.split, config.data)
    report_skipped(chosen)
    pca = fit_pca(config, encoder, splits)
    return export_features(encoder, chosen, config.out, pca=pca, **how(config))


def how(config: FeaturesConfig) -> dict[str, Any]:
    """The settings that say how a vector is computed."""
    return {name: getattr(config, name) for name in ("pool", "views", "batch_size")}


def fit_pca(config: FeaturesConfig, encoder: Encoder, splits: Splits) -> PCA | None:
    """The principal components that `config` asks for, if any."""
    if config.dim is None:
        return None
    # Always of the training images: all splits share the axes.
    pca = PCA.fit(encoder, splits.train, config.dim, **how(config))
    say_once(
        f"{config.dim} principal components of {pca.images:,} images of "
        f"{splits.train.name}: {pca.share:.1%} of the variance. Other --data has "
        "other components"
    )
    return pca


def open_for(
    preprocessing: Preprocessing,
    config: FeaturesConfig | EvaluateConfig,
    *,
    lazily: bool = False,
) -> Splits:
    """The data at the encoder's size and channels, if the source can convert them.

    `lazily` as in `open_data`.
    """
    height, width = preprocessing.image_size
    return open_data(
        config.data,
        image_size=height if height == width else None,
        channels=preprocessing.channels,
        value_range=preprocessing.value_range,
        rendering=preprocessing.rendering,
        on_bad_image=config.on_bad_image,
        cache=config.cache,
        reading=config,
        lazily=lazily,
    )


def select(splits: Splits, split: Split, data: str) -> dict[str, ImageSet]:
    """{name: images} of the requested split; DataError if the data lacks it."""
    present = {
        field.name: images
        for field in dataclasses.fields(splits)
        if (images := getattr(splits, field.name)) is not None
    }
    if split == "all":
        return present
    if split not in present:
        raise DataError(
            f"{data} has no {split} split; it has {', '.join(present)}. Use one of "
            "these, or all."
        )
    return {split: present[split]}


def report_skipped(sets: dict[str, ImageSet]) -> None:
    """List the skipped images on standard error."""
    bad = list(dict.fromkeys(b for images in sets.values() for b in images.skipped))
    for image in bad:
        print(f"skipped {image.path}: {image.reason}", file=sys.stderr)
    if bad:
        print(f"{len(bad)} images were skipped", file=sys.stderr)
