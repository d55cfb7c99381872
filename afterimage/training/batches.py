"""Batches as a pure function of (size, batch, seed, step, host), sent to the devices.

Batches are split over all devices; the training state is replicated. Grain iterates
over steps, not records: a whole batch is gathered at once (measured 1.8 M small
images/s on two cores, against 30-55 k record by record).
"""

import contextlib
import functools
import sys
import threading
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int64

from afterimage import runtime
from afterimage.data.sets import Empty, ImageSet, Rows
from afterimage.errors import DataError, UserError
from afterimage.runtime import cores
from afterimage.training.options import TrainingOptions


def make_mesh(devices: int | None = None) -> Mesh:
    """A mesh with one axis `data` over all devices, or the first local ones.

    Raises:
      UserError: more devices are requested than exist, or some of several processes'.
    """
    if devices is not None and jax.process_count() > 1:
        raise UserError(
            f"devices={devices}: {jax.process_count()} processes form this job, and it "
            "uses the devices of all of them; leave it out"
        )
    available = jax.devices() if devices is None else jax.local_devices()
    if devices is not None:
        if devices > len(available):
            raise UserError(
                f"devices={devices}: this machine has only {len(available)} "
                f"({jax.default_backend()}); leave it out to use all of them"
            )
        available = available[:devices]
    # Auto, because explicit axes refuse space-to-depth reshapes of a sharded batch.
    return Mesh(np.array(available), ("data",), axis_types=(AxisType.Auto,))


def platform_of(mesh: Mesh) -> str:
    """The platform of a mesh: cpu, gpu or tpu. Its devices may be absent."""
    return mesh.devices.flat[0].platform


def steps_per_dispatch(options: TrainingOptions, mesh: Mesh, *, resident: bool) -> int:
    """Steps dispatched together: one on CPU, many on accelerators."""
    if options.steps_per_dispatch is not None:
        return options.steps_per_dispatch
    if platform_of(mesh) == "cpu":
        return 1
    return 32 if resident else 4


def check_batch(batch_size: int, accumulate: int, mesh: Mesh) -> None:
    """Raises a `UserError` unless each device gets the same number of images."""
    unit = mesh.size * accumulate
    if batch_size % unit:
        low, high = batch_size // unit * unit, -(-batch_size // unit) * unit
        near = f"{low} or {high}" if low else f"{high}"
        raise UserError(
            f"batch_size={batch_size} cannot be divided over {mesh.size} devices and "
            f"accumulate={accumulate}; try {near}"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays that every device holds in full."""
    return NamedSharding(mesh, PartitionSpec())


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Copy host arrays, the same on every process, to all devices."""
    sharding = replicated(mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree
    )


def split(mesh: Mesh, *, stacked: bool = False) -> NamedSharding:
    """The sharding of a batch, split over the devices.

    `stacked` batches have steps on the first axis and are split along the second.
    """
    spec = PartitionSpec(None, "data") if stacked else PartitionSpec("data")
    return NamedSharding(mesh, spec)


def place(batch: Mapping[str, Any], mesh: Mesh, *, stacked: bool = False) -> Any:
    """This process's rows of a batch -> global arrays, sharded as `split` says."""
    sharding = split(mesh, stacked=stacked)
    return {
        k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()
    }


_LAST_STEP = 2**31 - 1  # steps are int32 in the training state
_PREFETCH = 4
_TOGETHER, _TOGETHER_BYTES = 8, 2**23
_LARGE_BYTES = 2**22  # from here on, copying is worth a second thread
_MOST_THREADS = 4  # beyond this, memory is the limit
_CPU_RESIDENT_BYTES = 512 * 2**20
_ACCELERATOR_SHARE = 0.25


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
    where epoch e is a permutation drawn from (seed, e). The number of workers and hosts
    does not matter.
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
    """Grain's data source: item i is `together` batches from start + i·together on."""

    def __init__(self, batches: "Batches", together: int):
        self._batches, self._together = batches, together
        self._empty = Buffers().take if batches.large else None

    def __len__(self) -> int:
        return (_LAST_STEP - self._batches.start) // self._together

    def __getitem__(self, item: Any) -> list[dict[str, Any]]:
        first = self._batches.start + int(item) * self._together
        steps = range(first, first + self._together)
        return [self._batches.batch(step, self._empty) for step in steps]


class Batches:
    """Endless training batches from step `start` on; to resume, start later.

    Each is {"step": int, "index": int32 [b]} and the set's inputs and targets, of
    images "image": uint8 [b, H, W, C], "label" and "label.NAME"; b = batch_size / hosts
    is this host's share. `resident` leaves the inputs out, for a set that is already on
    the device. Threads prepare batches ahead of use; the iterator raises their errors.
    """

    def __init__(
        self,
        images: Rows,
        *,
        batch_size: int,
        seed: int,
        start: int = 0,
        host: int = 0,
        hosts: int = 1,
        resident: bool = False,
    ):
        if not len(images):
            raise DataError(f"{images.name} has nothing to train on")
        if batch_size < 1 or hosts < 1 or batch_size % hosts:
            raise UserError(
                f"batch_size={batch_size} cannot be divided over {hosts} hosts; try "
                f"{max(1, batch_size // max(hosts, 1)) * max(hosts, 1)}"
            )
        if not 0 <= host < hosts or seed < 0 or start < 0:
            raise UserError(
                f"host={host} of {hosts}, seed={seed}, start={start}: host must be in "
                "[0, hosts); seed and start must be at least 0"
            )
        self.images, self.batch_size, self.seed = images, batch_size, seed
        self.start, self.host, self.hosts = start, host, hosts
        self.resident = resident

    def __getitem__(self, step: int) -> dict[str, Any]:
        """This host's share of the batch of one step."""
        return self.batch(step)

    def batch(self, step: int, empty: Empty | None = None) -> dict[str, Any]:
        """The same, with the inputs in memory allocated by `empty`, e.g. np.empty."""
        share = self.batch_size // self.hosts
        index = batch_indices(len(self.images), self.batch_size, self.seed, step)
        index = index[self.host * share : (self.host + 1) * share]
        batch: dict[str, Any] = {"step": step, "index": index.astype(np.int32)}
        if not self.resident:
            batch |= self.images.inputs(index, empty)
        return batch | self.images.targets(index)

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
        """How many threads prepare batches.

        Small batches get one, which overlaps with the device; more make Grain slower
        (docs/design/speed.md).
        """
        return min(_MOST_THREADS, cores()) if self.large else 1

    @property
    def large(self) -> bool:
        """Whether a batch is large enough for its own thread and memory."""
        return self._bytes() >= _LARGE_BYTES

    def _together(self) -> int:
        """How many batches Grain's thread hands to ours at once.

        A handover costs about as much as gathering a small batch. Batches read from
        disk come one at a time, so that a bad file fails at its own step.
        """
        if not (self.resident or self.images.in_memory):
            return 1
        return min(max(1, _TOGETHER_BYTES // self._bytes()), _TOGETHER)

    def _bytes(self) -> int:
        """Bytes of one batch's inputs, or of their indices."""
        share = self.batch_size // self.hosts
        return share * (4 if self.resident else self.images.row_bytes)


_WHOLE = slice(None)


def eval_batches(
    images: Rows, batch_size: int, part: slice = _WHOLE
) -> Iterator[dict[str, Any]]:
    """Every row once, in order, in batches of one size.

    Like the items of `Batches`, without "step" and with "mask": bool [batch_size],
    False where the last batch is padded with repeats of its first row. Of the inputs,
    only this part of the batch is read.
    """
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size}: must be at least 1")
    for start in range(0, len(images), batch_size):
        index = np.arange(start, start + batch_size)
        mask = index < len(images)
        index = np.where(mask, index, start)
        batch = {"index": index.astype(np.int32), "mask": mask}
        yield batch | images.inputs(index[part]) | images.targets(index)


def _references(kept: list[np.ndarray], place: int) -> int:
    return sys.getrefcount(kept[place])


# The reference count of an array held only by the list; measured, since Python versions
# count differently.
_UNUSED = _references([np.empty(0)], 0)


class Buffers:
    """A pool of arrays, reused once nothing else refers to them.

    Anything that shares an array's memory refers to it: a view, or a device array that
    was made without a copy or is still being copied. Each thread has its own `most`
    arrays; beyond these it gets new ones.
    """

    def __init__(self, most: int = 8):
        self._most = most
        self._own = threading.local()

    def take(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array of this shape with arbitrary values."""
        kept = vars(self._own).setdefault("kept", [])
        for row in range(len(kept)):
            if _references(kept, row) == _UNUSED:
                array = kept[row]
                if (array.shape, array.dtype) == (shape, dtype):
                    return array
        made = np.empty(shape, dtype)
        if len(kept) < self._most:
            kept.append(made)
        return made


def _fits(sets: Iterable[Rows]) -> bool:
    """Whether the inputs fit in their share of device memory."""
    size = sum(len(images) * images.row_bytes for images in sets)
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return size <= _CPU_RESIDENT_BYTES
    stats = device.memory_stats() or {}
    return size <= _ACCELERATOR_SHARE * stats.get("bytes_limit", 0)


class BatchLoader:
    """Batches of `images` for a run, a pure function of (images, seed, step, host).

    Further `streams`, by name, give the same number of images per step, or `times` as
    many, each in its own order; their entries are `NAME/image`, `NAME/index`, and
    `NAME/label` if labelled. `data` is what stays on the devices: the inputs and
    targets of each stream, or empty. A step takes (state, batch, data) and reads each
    from whichever has it.
    """

    def __init__(
        self,
        images: Rows,
        *,
        options: TrainingOptions,
        mesh: Mesh,
        streams: Mapping[str, Rows] | None = None,
        times: Mapping[str, int] | None = None,
    ):
        check_batch(options.batch_size, options.accumulate, mesh)
        self.images, self.options, self.mesh = images, options, mesh
        self._sets = {"": images}
        self._sets |= {f"{name}/": other for name, other in (streams or {}).items()}
        self._times = {f"{name}/": factor for name, factor in (times or {}).items()}
        resident = options.resident
        resident = _fits(self._sets.values()) if resident is None else resident
        self.data: dict[str, Any] = {}
        if resident:
            arrays = {}
            for prefix, part in self._sets.items():
                every = np.arange(len(part))
                whole = part.inputs(every) | part.targets(every)
                arrays |= {f"{prefix}{name}": array for name, array in whole.items()}
            self.data = replicate(arrays, mesh)

    @property
    def steps_per_dispatch(self) -> int:
        """Steps dispatched together: one on CPU, many on accelerators."""
        return steps_per_dispatch(self.options, self.mesh, resident=bool(self.data))

    def host_batches(self, start: int, prefix: str = "") -> Batches:
        """This host's batches of one stream from step `start` on, without end."""
        # The seed includes the name: sets of equal size must be shuffled differently.
        apart = zlib.crc32(prefix.encode()) if prefix else 0
        return Batches(
            self._sets[prefix],
            batch_size=self.options.batch_size * self._times.get(prefix, 1),
            seed=self.options.seed + apart,
            start=start,
            host=jax.process_index(),
            hosts=jax.process_count(),
            resident=bool(self.data),
        )

    def _rows(self, start: int) -> Generator[dict[str, Any]]:
        """Batches of all streams from step `start` on, joined by prefixed names."""
        with contextlib.ExitStack() as stack:
            sources: dict[str, Any] = {}
            for prefix in self._sets:
                sources[prefix] = iter(self.host_batches(start, prefix))
                stack.callback(sources[prefix].close)
            while True:
                yield {
                    prefix + key: value
                    for prefix, source in sources.items()
                    for key, value in next(source).items()
                    if key != "step"
                }

    def blocks(
        self, start: int, lengths: Iterator[int]
    ) -> Generator[tuple[int, np.ndarray, Any]]:
        """Yields (steps, their host indices [steps, b], batches on the devices).

        A block of one step is a plain batch; several steps are stacked along a new
        first axis. The next block is sent to the device while the caller works on this
        one.
        """
        source = self._rows(start)
        ready: deque = deque()
        try:
            for length in lengths:
                rows = [next(source) for _ in range(length)]
                index = np.stack([row["index"] for row in rows])
                if length == 1:
                    host = rows[0]
                else:
                    host = {key: np.stack([r[key] for r in rows]) for key in rows[0]}
                ready.append(
                    (length, index, place(host, self.mesh, stacked=length > 1))
                )
                if len(ready) > 1:
                    yield ready.popleft()
            yield from ready
        finally:
            source.close()


def spaced(size: int, most: int) -> np.ndarray:
    """At most `most` of the rows 0 … size - 1, evenly spaced."""
    if size <= most:
        return np.arange(size)
    return np.linspace(0, size - 1, most).round().astype(np.int64)


def subsample(images: ImageSet, most: int) -> ImageSet:
    """At most `most` images, evenly spaced over the set."""
    if len(images) <= most:
        return images
    return images.subset(spaced(len(images), most))


class EvaluationRunner:
    """Runs jitted functions over image sets; every process feeds its devices' share."""

    def __init__(self, mesh: Mesh, batch_size: int):
        self.mesh, self.batch_size = mesh, batch_size

    def jit(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Jit a function so that every process can read its results."""
        return runtime.jit(function, out_shardings=replicated(self.mesh))

    def batches(self, images: Rows) -> Iterator[tuple[int, Any, np.ndarray]]:
        """(number, {inputs, "mask"} on the devices, the whole mask on the host)."""
        share = self.batch_size // jax.process_count()
        mine = slice(jax.process_index() * share, (jax.process_index() + 1) * share)
        whole = {"index", *images.targets(np.arange(0))}
        for number, batch in enumerate(eval_batches(images, self.batch_size, mine)):
            mask = batch.pop("mask")
            host = {n: v for n, v in batch.items() if n not in whole}
            yield number, place({**host, "mask": mask[mine]}, self.mesh), mask
