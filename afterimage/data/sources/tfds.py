"""`tfds:NAME[/CONFIG][:VERSION]`: TensorFlow Datasets, read without TensorFlow.

Prepared data are found in TFDS's own folder ($TFDS_DATA_DIR, else
~/tensorflow_datasets) and read through `as_data_source`, never from TFDS's bucket.
The encoded bytes use the same decoder and cache as those of a folder.
"""

import contextlib
import importlib.util
import io
import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Sequence
from typing import Any

from afterimage.checkpoints.names import class_name
from afterimage.data.images import image_sets
from afterimage.data.sets import Request, Splits
from afterimage.data.sources import Source
from afterimage.data.workers import check_size
from afterimage.errors import DataError, UserError
from afterimage.plugins import SOURCES

_SPLITS = {"train": "train", "validation": "validation", "test": "test"}


class _Records:
    """Encoded images of a builder's splits, as Files."""

    def __init__(self, builder: Any, image: str, label: str | None):
        import tensorflow_datasets as tfds

        decoders = {image: tfds.decode.SkipDecoding()}
        sources = {
            split: builder.as_data_source(split=split, decoders=decoders)
            for split in _SPLITS
            if split in builder.info.splits
        }
        self._image = image
        self._places: list[tuple[Any, int]] = []
        self.names: Sequence[str] = []
        self.groups: dict[str, tuple[list[int], list[str | None]]] = {}
        version = builder.info.full_name
        for split, source in sources.items():
            first = len(self._places)
            self._places += [(source, i) for i in range(len(source))]
            rows = list(range(first, len(self._places)))
            classes = _classes(builder, source, label)
            self.groups[split] = (rows, classes)
            self.names = [*self.names, *(f"{split}/{i}" for i in range(len(source)))]
        # A prepared version never changes; its folder's date detects a rebuilt one.
        self._stamp = (version, builder.data_path.stat().mtime)

    def stamp(self, row: int) -> Sequence[int | str]:
        return (self._stamp[0], str(self._stamp[1]))

    def size(self, row: int) -> int:
        return 0  # unknown until `open` has read the whole record

    def open(self, row: int) -> io.BufferedIOBase:
        source, position = self._places[row]
        data = source[position][self._image]
        check_size(len(data))
        return io.BytesIO(data)


def _classes(builder: Any, source: Any, label: str | None) -> list[str | None]:
    if label is None:
        return [None] * len(source)
    names = [class_name(name) for name in builder.info.features[label].names]
    records = (source[i] for i in range(len(source)))
    found = (int(record[label]) for record in records)
    return [names[value] if value >= 0 else None for value in found]


@SOURCES.add("tfds")
class TfdsSource(Source):
    """A TensorFlow data set that is prepared, or can be prepared now.

    Needs a train split and one image feature; the first ClassLabel feature labels it.
    Raises DataError naming what is missing: the network, TensorFlow, or the name.
    """

    form = "NAME[/CONFIG][:VERSION]"

    def open(self, rest: str, request: Request) -> Splits:
        if not re.fullmatch(r"\w+(/[\w.-]+)?(:[\d.*]+)?", rest):
            raise UserError(f"tfds:{rest}: expected tfds:NAME[/CONFIG][:VERSION]")
        _hide_accelerators()
        builder = _prepared(rest)
        source = f"tfds:{builder.info.full_name}"
        image, label = _features(builder, source)
        if "train" not in builder.info.splits:
            raise DataError(
                f"{source} has no train split; it has {sorted(builder.info.splits)}"
            )
        try:
            records = _Records(builder, image, label)
        except NotImplementedError as error:
            raise DataError(
                f"{source} was prepared as {builder.info.file_format.value} files, "
                "which cannot be read in random order. Prepare it again as "
                f"ArrayRecord: tfds build {rest} --file_format=array_record"
            ) from error
        return image_sets(records, source, records.groups, request)


def _hide_accelerators() -> None:
    """Keep TensorFlow, if installed, from taking the memory of JAX's devices."""
    if importlib.util.find_spec("tensorflow") is None:
        return
    import tensorflow as tf  # pyright: ignore[reportMissingImports]

    tf.config.set_visible_devices([], "GPU")


def _prepared(name: str) -> Any:
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, file_format="array_record")
        if builder.is_prepared():
            return builder
    except Exception as error:  # unknown names raise various long errors
        raise DataError(_not_found(name, error)) from error
    if not _reachable(builder):
        raise DataError(_cannot(name, _no_network(builder)))
    try:
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )
    except Exception as error:  # whatever a download or a parser raises
        raise DataError(_cannot(name, _missing(builder, error))) from error
    return builder


def _reachable(builder: Any) -> bool:
    """Whether its download hosts resolve: TFDS would retry for minutes."""
    hosts = {urllib.parse.urlparse(url).hostname for url in builder.url_infos or ()}
    if not hosts or urllib.request.getproxies():
        return True
    for host in hosts:
        with contextlib.suppress(OSError):
            socket.getaddrinfo(host, 443)
            return True
    return False


def _no_network(builder: Any) -> str:
    return (
        "the network is not reachable for a download; connect, or copy the prepared "
        f"data set to {builder.data_path}"
    )


def _features(builder: Any, source: str) -> tuple[str, str | None]:
    import tensorflow_datasets as tfds

    features = builder.info.features
    images = [k for k, f in features.items() if isinstance(f, tfds.features.Image)]
    labels = [k for k, f in features.items() if isinstance(f, tfds.features.ClassLabel)]
    if len(images) != 1:
        raise DataError(
            f"{source} has {len(images)} image features ({', '.join(features)}); "
            "expected exactly one"
        )
    return images[0], labels[0] if labels else None


def _not_found(name: str, error: Exception) -> str:
    import difflib

    import tensorflow_datasets as tfds

    base = re.split("[/:]", name)[0]
    known = tfds.list_builders(with_community_datasets=False)
    if base in known:
        return f"tfds:{name}: {str(error).splitlines()[0]}"
    near = difflib.get_close_matches(base, known, 3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"tfds:{name}: TFDS has no data set {base!r}{hint}"


def _missing(builder: Any, error: BaseException) -> str:
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    said = " ".join(f"{type(link).__name__} {link}" for link in chain)
    if re.search(r"ModuleNotFoundError.*tensorflow", said):
        return (
            "its builder needs TensorFlow, which is not installed: pip install "
            "tensorflow-cpu (the [tensorflow] extra)"
        )
    if re.search("ConnectionError|resolve|URLError|DownloadError|timed out", said):
        return _no_network(builder)
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _cannot(name: str, missing: str) -> str:
    return (
        f"tfds:{name} is not prepared on this machine and cannot be prepared now: "
        f"{missing}"
    )
