"""`parquet:PATTERN`: images in Parquet files, in the layout of Hugging Face.

Parquet reads row groups, not rows, so the encoded images are copied once, in order, to
the cache folder, and read from there.
https://huggingface.co/docs/hub/datasets-image
"""

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from afterimage.checkpoints.errors import readable_size
from afterimage.checkpoints.files import reason
from afterimage.checkpoints.names import class_name, printable, spelling
from afterimage.console import ProgressBar
from afterimage.data.index import MISSING, PACKED, Index, IndexWriter, kept
from afterimage.data.pixels import MAX_BYTES
from afterimage.data.ranged import LocalFile, Ranged, RangedFile, Shards
from afterimage.data.shards import (
    ShardFiles,
    ShardSource,
    column_for,
    sample_digest,
)
from afterimage.data.table import cell_text
from afterimage.data.workers import inflates_too_much
from afterimage.errors import DataError, UserError
from afterimage.plugins import SOURCES
from afterimage.runtime import cores

_TOGETHER_BYTES = 2**25  # read at once
_MOST_ROWS = 4096
_SEPARATOR = "|"


@SOURCES.add("parquet")
class ParquetSource(ShardSource):
    """Images in Parquet files, such as a data set's from Hugging Face.

    A file, a folder of them, or a pattern such as `data/train-*.parquet`. A column has
    the encoded images, as bytes or `{bytes, path}`; `label`, `split` and further
    columns are those of a table.
    """

    suffix = ".parquet"

    def files(self, shards: Shards, columns: list[str]) -> ShardFiles:
        def build(writer: IndexWriter) -> None:
            _Copy(writer, shards.source, columns).every(shards)

        def digest(index: Index) -> bytes:
            return sample_digest(index, lambda _: LocalFile(str(index.folder / PACKED)))

        key = ["parquet", list(zip(shards.paths, shards.stamps)), columns]
        index = kept(key, build, digest)
        packed: Ranged = LocalFile(str(index.folder / PACKED))
        return ShardFiles(index, shards.names, lambda _: packed, cores())


@dataclasses.dataclass(frozen=True)
class _Fields:
    """What the columns of a file are."""

    image: str
    struct: bool
    """Whether an image is {bytes, path}."""
    columns: Mapping[str, str]
    """{column of the index: column of the file}."""
    classes: Mapping[str, Sequence[str]]
    """{column of the file: class names of its numbers}."""


class _Copy:
    """Copies the images of all files into one, and adds them to an index."""

    def __init__(self, writer: IndexWriter, source: str, columns: Sequence[str]):
        self._writer, self._source, self._columns = writer, source, columns
        self._place = 0

    def every(self, shards: Shards) -> None:
        """Copy every file, in order."""
        import pyarrow as pa

        target = self._writer.folder / PACKED
        doing = f"copying {self._source}"
        with (
            target.open("wb") as file,
            ProgressBar(len(shards.paths), doing, "files") as bar,
        ):
            for number, name in enumerate(shards.names):
                where = f"parquet:{spelling(name)}"
                try:
                    self._one(shards.open(number), where, file)
                except UserError:
                    raise
                except (pa.ArrowException, OSError, ValueError) as error:
                    said = printable(reason(error).partition("\n")[0])
                    raise DataError(
                        f"{where} cannot be read ({said}); expected a Parquet file"
                    ) from error
                self._writer.end_shard()
                bar.add(1)

    def _one(self, source: Ranged, where: str, file: Any) -> None:
        import pyarrow.parquet as pq

        parquet = pq.ParquetFile(RangedFile(source))
        fields = _fields(parquet.schema_arrow, where, self._columns)
        groups = [
            _group(parquet.metadata, g, fields.image, where)
            for g in range(parquet.num_row_groups)
        ]
        self._require_space(sum(size for size, _ in groups), where)
        asked = [fields.image, *dict.fromkeys(fields.columns.values())]
        row = 0
        for group, (_, together) in enumerate(groups):
            for batch in parquet.iter_batches(together, [group], columns=asked):
                for values in batch.to_pylist():
                    self._add(row, values, fields, file)
                    row += 1

    def _add(
        self, row: int, values: Mapping[str, Any], fields: _Fields, file: Any
    ) -> None:
        image, path = values[fields.image], None
        if fields.struct and image is not None:
            image, path = image.get("bytes"), image.get("path")
        data = image or b""
        if len(data) > MAX_BYTES:
            data = b""
        name = f"{row}/{path}" if path else str(row)
        texts = {
            column: _text(values[own], fields.classes.get(own))
            for column, own in fields.columns.items()
        }
        self._writer.add(name, self._place, len(data), texts)
        file.write(data)
        self._place += len(data)

    def _require_space(self, needed: int, where: str) -> None:
        free = shutil.disk_usage(self._writer.folder).free
        if needed > free:
            raise DataError(
                f"{where}: its images take {readable_size(needed)}, and are copied to "
                f"the cache folder, whose disk has {readable_size(free)} free. Set "
                "AFTERIMAGE_CACHE to a folder on a disk with more space"
            )


def _text(value: Any, classes: Sequence[str] | None) -> str:
    """A value as the text of a cell; a list as `a|b`."""
    if isinstance(value, list):
        return _SEPARATOR.join(_text(one, classes) for one in value) or _SEPARATOR
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    if classes is not None and isinstance(value, int):
        return classes[value] if 0 <= value < len(classes) else MISSING
    if isinstance(value, str | int | float | bool | dict) or value is None:
        return cell_text(value)
    return str(value)


def _group(metadata: Any, group: int, image: str, where: str) -> tuple[int, int]:
    """(bytes of the images of a row group, rows to read at once)."""
    rows = metadata.row_group(group)
    size = packed = 0
    for at in range(rows.num_columns):
        chunk = rows.column(at)
        if chunk.path_in_schema.split(".")[0] != image:
            continue
        size += chunk.total_uncompressed_size
        packed += chunk.total_compressed_size
    if inflates_too_much(size, packed):
        raise DataError(
            f"{where}: row group {group} has {packed:,} bytes of images that "
            f"decompress to {size:,}"
        )
    each = max(1, size // max(1, rows.num_rows))
    return size, max(1, min(_MOST_ROWS, _TOGETHER_BYTES // each))


def _fields(schema: Any, where: str, wanted: Sequence[str]) -> _Fields:
    """What the columns are, by Hugging Face's features, their types and their names."""
    features = _features(schema.metadata or {})
    images = [field.name for field in schema if _holds_bytes(field.type)]
    named = [n for n in images if features.get(n, {}).get("_type") == "Image"]
    image = column_for("image", images)
    if image is None or (named and image not in named):
        found = named or images
        image = found[0] if len(found) == 1 else None
    if image is None:
        types = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise DataError(
            f"{where} has the columns {types[:500]}; expected one with the bytes of "
            "encoded images, binary or a struct {bytes, path}, called image if there "
            "are several"
        )
    names = {class_name(name): name for name in schema.names if name != image}
    columns = {name: names[name] for name in wanted if name in names}
    rest = [name for name in names if name not in wanted]
    label, split = column_for("label", rest), column_for("split", rest)
    classes = {n: c for n in names.values() if (c := _class_names(features.get(n)))}
    if label is None:
        label = next((name for name in rest if names[name] in classes), None)
    columns |= {} if label is None else {"label": names[label]}
    columns |= {} if split is None else {"split": names[split]}
    return _Fields(image, _is_struct(schema.field(image).type), columns, classes)


def _features(metadata: Mapping[bytes, bytes]) -> dict[str, Any]:
    """Hugging Face's description of the columns; empty without a usable one."""
    try:
        found = json.loads(metadata[b"huggingface"])["info"]["features"]
        return {n: f for n, f in found.items() if isinstance(f, dict)}
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
        return {}


def _class_names(feature: Any) -> list[str] | None:
    """The class names of a ClassLabel, or of a list of them."""
    for _ in range(4):
        if not isinstance(feature, dict):
            return None
        names = feature.get("names")
        if feature.get("_type") == "ClassLabel" and isinstance(names, list):
            return [class_name(str(name)) for name in names]
        feature = feature.get("feature")
    return None


def _is_struct(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_struct(kind)


def _holds_bytes(kind: Any) -> bool:
    """Whether a type is binary, or a struct whose `bytes` are."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _holds_bytes(kind.field(place).type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
