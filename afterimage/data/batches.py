"""Batches as a pure function of (size, batch, seed, step, host), fed by Grain.

Grain walks over steps, not records: a whole batch is gathered at once (measured 1.8 M
small images/s on two cores, against 30-55 k record by record).
"""

import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Int64

from afterimage.data.buffers import Buffers
from afterimage.data.sets import ImageSet
from afterimage.errors import DataError, UserError
from afterimage.runtime import cores

_LAST_STEP = 2**31 - 1  # steps are int32 in the training state
_PREFETCH = 4
_TOGETHER, _TOGETHER_BYTES = 8, 2**23
_LARGE_BYTES = 2**22  # from here on, copying is worth a second thread
_MOST_THREADS = 4  # memory is the limit beyond


@functools.lru_cache(maxsize=4)
def _permutation(size: int, seed: int, epoch: int) -> Int64[np.ndarray, " n"]:
    order = np.random.default_rng([seed, epoch]).permutation(size)
    order.flags.writeable = False  # shared by every caller through the cache
    return order


def batch_indices(
    size: int, batch: int, seed: int, step: int
) -> Int64[np.ndarray, " batch"]:
    """Positions of global batch `step`: shuffled epochs, joined without dropping any.

    Batch s takes positions s·batch … (s+1)·batch - 1 of the endless sequence of epochs,
    epoch e being a permutation drawn from (seed, e). Workers and hosts do not enter.
    """
    if size < 1 or batch < 1 or seed < 0 or step < 0:
        raise UserError(
            f"size={size}, batch={batch}, seed={seed}, step={step}: size and batch "
            "must be at least 1, seed and step at least 0"
        )
    first, last = step * batch, (step + 1) * batch
    parts = []
    for epoch in range(first // size, (last - 1) // size + 1):
        start = epoch * size
        order = _permutation(size, seed, epoch)
        parts.append(order[max(first - start, 0) : last - start])
    return np.concatenate(parts)


class _Steps:
    """What Grain reads: item i is `together` batches, from start + i together on."""

    def __init__(self, batches: "Batches", together: int):
        self._batches, self._together = batches, together
        self._buffers = Buffers() if batches.large else None

    def __len__(self) -> int:
        return (_LAST_STEP - self._batches.start) // self._together

    def __getitem__(self, item: Any) -> list[dict[str, Any]]:
        first = self._batches.start + int(item) * self._together
        steps = range(first, first + self._together)
        return [self._batches.batch(step, self._buffers) for step in steps]


class Batches:
    """Endless training batches from step `start` on: resume is starting later.

    Each is {"step": int, "index": int32 [b], "image": uint8 [b, H, W, C], "label":
    int32 [b] where the set is labelled, "label.NAME" of its tasks}; b = batch_size /
    hosts is this host's share. `resident` leaves the images out, for a set that already
    lies on the device. Batches are prepared by threads ahead of use; what fails there
    is raised by the iterator.
    """

    def __init__(
        self,
        images: ImageSet,
        *,
        batch_size: int,
        seed: int,
        start: int = 0,
        host: int = 0,
        hosts: int = 1,
        resident: bool = False,
    ):
        if not len(images):
            raise DataError(f"{images.name} has no images to train on")
        if batch_size < 1 or hosts < 1 or batch_size % hosts:
            raise UserError(
                f"batch size {batch_size} does not divide by {hosts} hosts; try "
                f"{max(1, batch_size // max(hosts, 1)) * max(hosts, 1)}"
            )
        if not 0 <= host < hosts or seed < 0 or start < 0:
            raise UserError(
                f"host={host} of {hosts}, seed={seed}, start={start}: host must lie in "
                "[0, hosts), seed and start must not be negative"
            )
        self.images, self.batch_size, self.seed = images, batch_size, seed
        self.start, self.host, self.hosts = start, host, hosts
        self.resident = resident

    def __getitem__(self, step: int) -> dict[str, Any]:
        """This host's share of the batch of one step."""
        return self.batch(step)

    def batch(self, step: int, buffers: Buffers | None = None) -> dict[str, Any]:
        """The same, with the images in one of the `buffers`."""
        share = self.batch_size // self.hosts
        index = batch_indices(len(self.images), self.batch_size, self.seed, step)
        index = index[self.host * share : (self.host + 1) * share]
        batch: dict[str, Any] = {"step": step, "index": index.astype(np.int32)}
        if not self.resident:
            batch["image"] = self.images.gather(index, buffers)
        if self.images.labels is not None:
            batch["label"] = self.images.labels[index]
        for name, task in self.images.tasks.items():
            batch[f"label.{name}"] = task.values[index]
        return batch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        import grain

        options = grain.ReadOptions(
            num_threads=self._threads(), prefetch_buffer_size=_PREFETCH
        )
        source: Any = _Steps(self, self._together())
        batches = grain.MapDataset.source(source).to_iter_dataset(options)
        iterator = iter(batches)
        try:
            for several in iterator:
                yield from several
        finally:
            iterator.close()

    def _threads(self) -> int:
        """How many batches are prepared at once.

        One, which overlaps with the device: where batches are small, more of them
        make Grain slower (research/performance.md §3).
        """
        return min(_MOST_THREADS, cores()) if self.large else 1

    @property
    def large(self) -> bool:
        """Whether a batch is worth a thread and memory of its own."""
        return self._bytes() >= _LARGE_BYTES

    def _together(self) -> int:
        """How many batches pass from Grain's thread to ours at once.

        Handing one over costs about as much as gathering a small one. What is read
        from disk comes singly, so that a bad file fails at its own step.
        """
        if not (self.resident or self.images.in_memory):
            return 1
        return min(max(1, _TOGETHER_BYTES // self._bytes()), _TOGETHER)

    def _bytes(self) -> int:
        """Of one batch's images, or of their indices."""
        share = self.batch_size // self.hosts
        return share * (4 if self.resident else math.prod(self.images.shape))


def eval_batches(images: ImageSet, batch_size: int) -> Iterator[dict[str, Any]]:
    """Every image once, in order, in batches of one size.

    As `Batches` gives, without "step" and with "mask": bool [batch_size], False where
    the last batch was filled up with repeats of its first image.
    """
    if batch_size < 1:
        raise UserError(f"batch size {batch_size} is not positive")
    for start in range(0, len(images), batch_size):
        index = np.arange(start, start + batch_size)
        mask = index < len(images)
        index = np.where(mask, index, start)
        batch = {"index": index.astype(np.int32), "mask": mask}
        batch["image"] = images.gather(index)
        if images.labels is not None:
            batch["label"] = images.labels[index]
        yield batch
