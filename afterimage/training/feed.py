"""From an image set to batches on devices, one step or a stretch of steps at a time."""

import contextlib
import zlib
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from afterimage.data.batches import Batches
from afterimage.data.sets import ImageSet
from afterimage.training.mesh import check_batch, place, replicate
from afterimage.training.options import TrainingOptions

_CPU_RESIDENT_BYTES = 512 * 2**20
_ACCELERATOR_SHARE = 0.25


def _fits(sets: Iterable[ImageSet]) -> bool:
    """Whether the images fit in the share of device memory they may take."""
    size = sum(len(images) * int(np.prod(images.shape)) for images in sets)
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return size <= _CPU_RESIDENT_BYTES
    stats = device.memory_stats() or {}
    return size <= _ACCELERATOR_SHARE * stats.get("bytes_limit", 0)


class Feed:
    """Batches of `images` for a run, a pure function of (images, seed, step, host).

    Further `streams`, by name, give as many images a step, or `times` as many, each in
    an order of its own; their entries are `NAME/image`, `NAME/index`, `NAME/label`
    where labelled. `data` is what stays on the devices: `{"image", "label"}` of each
    stream, or empty. A step takes (state, batch, data) and reads images from whichever
    has them.
    """

    def __init__(
        self,
        images: ImageSet,
        *,
        options: TrainingOptions,
        mesh: Mesh,
        streams: Mapping[str, ImageSet] | None = None,
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
                arrays[f"{prefix}image"] = part.gather(np.arange(len(part)))
                if part.labels is not None:
                    arrays[f"{prefix}label"] = np.asarray(part.labels, np.int32)
                for name, task in part.tasks.items():
                    arrays[f"{prefix}label.{name}"] = task.values
            self.data = replicate(arrays, mesh)

    @property
    def stretch(self) -> int:
        """Steps a dispatch: one on CPU, many on accelerators."""
        if self.options.steps_per_dispatch is not None:
            return self.options.steps_per_dispatch
        if jax.default_backend() == "cpu":
            return 1
        return 32 if self.data else 4

    def host_batches(self, start: int, prefix: str = "") -> Batches:
        """This host's batches of one stream from step `start` on, without end."""
        # The name enters the seed: sets of one size must not come in one order.
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

        A block of one step is a plain batch; of several, stacked along a first axis.
        The next block is on its way to the device while the caller works on this one.
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
