"""Feature vectors of whole data sets by Ray Data: an actor per device.

Batches travel as numbers: every actor opens the data itself and reads its own images,
so no pixels pass through Ray. Batches are those of a run without Ray and come back in
order, so the file is the same. Ray repeats the batches of an actor that dies; all are
counted here, so none is lost or written twice.
"""

import dataclasses
import itertools
import logging
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from afterimage.checkpoints.names import printable
from afterimage.data import ImageSet
from afterimage.data.images import read_or_reason
from afterimage.data.sets import BadImage
from afterimage.encoder import load_encoder
from afterimage.errors import DataError
from afterimage.evaluation.configs import FeaturesConfig
from afterimage.export import (
    fit_pca,
    how,
    open_for,
    report_skipped,
    rows_of,
    select,
    write_features,
)
from afterimage.ray.cluster import accelerators, connect, on_cpu
from afterimage.runtime import enable_compile_cache

_TOGETHER = 4
"""Batches that Ray hands out at once, and repeats if an actor dies."""


def features(config: FeaturesConfig) -> int:
    """Write the file that `config` describes, with its cluster; the number of rows.

    Raises UserError if the cluster is not reached, DataError for broken images.
    """
    ray = connect(config.ray)
    encoder = load_encoder(config.from_, dtype=config.dtype)
    splits = open_for(encoder.preprocessing, config, lazily=True)
    sets = select(splits, config.split, config.data)
    pca = fit_pca(config, encoder, splits)
    width = encoder.vector_size(config.pool) if pca is None else pca.axes.shape[1]
    bad: list[BadImage] = []

    def parts() -> Iterator[dict[str, Any]]:
        for split, numbers, vectors, reasons in computed(ray, config, sets):
            good = reasons == ""
            for number, reason in zip(numbers[~good].tolist(), reasons[~good].tolist()):
                bad.append(BadImage(sets[split].ids[int(number)], printable(reason)))
            if bad and config.on_bad_image == "fail":
                raise DataError(_bad_message(config.data, bad))
            if good.any():
                vectors = vectors[good] if pca is None else pca(vectors[good])
                yield rows_of(split, sets[split], numbers[good].tolist(), vectors)

    rows = write_features(parts(), sets, config.out, width)
    first = next(iter(sets.values()))
    report_skipped({"all": dataclasses.replace(first, skipped=tuple(bad))})
    return rows


def _bad_message(data: str, bad: Sequence[BadImage]) -> str:
    shown = "\n  ".join(f"{one.path}: {one.reason}" for one in bad[:10])
    return (
        f"{data}: not usable images:\n  {shown}\nRemove or repair them and repeat the "
        "command, or skip them with --on-bad-image skip"
    )


def computed(
    ray: Any, config: FeaturesConfig, sets: Mapping[str, ImageSet]
) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """(split, numbers, vectors, why each is broken or "") of the batches, in order."""
    import ray.data as ray_data

    batches = [
        {"split": split, "start": start}
        for split, images in sets.items()
        for start in range(0, len(images), config.batch_size)
    ]
    kind, count = accelerators(ray)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray_data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    needs: dict[str, Any] = {"num_cpus": 1, "runtime_env": {"env_vars": on_cpu()}}
    if kind == "GPU":
        needs = {"num_gpus": 1}
    elif kind == "TPU":
        needs = {"resources": {"TPU": 1}}
    wanted = ray_data.from_items(
        batches, override_num_blocks=max(1, len(batches) // _TOGETHER)
    )
    found = wanted.map_batches(
        _Actor,
        fn_constructor_args=(config,),
        batch_size=None,
        compute=ray_data.ActorPoolStrategy(size=config.actors or count),
        udf_modifying_row_count=True,
        **needs,
    )
    expected = iter(batches)
    blocks: Any = found.iter_batches(batch_size=None, batch_format="numpy")
    for block in blocks:
        done = 0
        while done < len(block["number"]):
            split, start = next(expected, {"split": "", "start": 0}).values()
            stop = min(start + config.batch_size, len(sets[split])) if split else start
            rows = slice(done, done + stop - start)
            numbers = block["number"][rows]
            if not split or not np.array_equal(numbers, np.arange(start, stop)):
                raise RuntimeError(f"Ray did not return images {start} to {stop}")
            yield split, numbers, block["vector"][rows], block["reason"][rows]
            done = rows.stop
    if lost := list(expected):
        raise RuntimeError(f"Ray returned no rows for {len(lost)} batches")


class _Actor:
    """Computes the vectors of batches that are named by split and first image."""

    def __init__(self, config: FeaturesConfig):
        enable_compile_cache()
        self.config = config
        self.encoder = load_encoder(config.from_, dtype=config.dtype)
        splits = open_for(self.encoder.preprocessing, config, lazily=True)
        self.sets = select(splits, config.split, config.data)

    def __call__(self, block: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """{"split", "start"} [batches] -> {"number", "vector", "reason"} [images]."""
        pairs = zip(block["split"].tolist(), block["start"].tolist())
        parts = [
            self._of_split(self.sets[split], [start for _, start in group])
            for split, group in itertools.groupby(pairs, key=operator.itemgetter(0))
        ]
        return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}

    def _of_split(self, images: ImageSet, starts: Sequence[int]) -> dict[str, Any]:
        size = self.config.batch_size
        numbers: list[np.ndarray] = []
        reasons: list[str] = []
        counts: list[int] = []

        def read() -> Iterator[np.ndarray]:
            for start in starts:
                own = np.arange(start, min(start + size, len(images)))
                found = read_or_reason(images, own)
                good = [one for one in found if not isinstance(one, str)]
                numbers.append(own)
                reasons.extend(one if isinstance(one, str) else "" for one in found)
                if good:
                    counts.append(len(good))
                    # One size for every batch of a set: one program, as without Ray.
                    whole = size if len(images) > size else len(good)
                    empty = [np.zeros_like(good[0])] * (whole - len(good))
                    yield np.stack(good + empty)

        computed = list(self.encoder.stream(read(), **how(self.config)))
        why = np.array(reasons, np.str_)
        width = self.encoder.vector_size(self.config.pool)
        vector = np.zeros((len(why), width), np.float32)
        if computed:
            good = [rows[:count] for rows, count in zip(computed, counts)]
            vector[why == ""] = np.concatenate(good)
        return {"number": np.concatenate(numbers), "vector": vector, "reason": why}
