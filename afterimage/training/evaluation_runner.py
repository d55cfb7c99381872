"""One pass over an image set, on all devices, in padded batches of one shape."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from afterimage import runtime
from afterimage.data import ImageSet
from afterimage.training.batches import eval_batches
from afterimage.training.mesh import place, replicated


def subsample(images: ImageSet, most: int) -> ImageSet:
    """At most `most` images, evenly spaced over the set."""
    if len(images) <= most:
        return images
    return images.subset(np.linspace(0, len(images) - 1, most).round().astype(np.int64))


class EvaluationRunner:
    """Runs jitted functions over image sets; every process feeds its devices' share."""

    def __init__(self, mesh: Mesh, batch_size: int):
        self.mesh, self.batch_size = mesh, batch_size

    def jit(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Jitted, with results that every process can read."""
        return runtime.jit(function, out_shardings=replicated(self.mesh))

    def batches(self, images: ImageSet) -> Iterator[tuple[int, Any, np.ndarray]]:
        """(number, {"image", "mask"} on the devices, the whole mask on the host)."""
        share = self.batch_size // jax.process_count()
        mine = slice(jax.process_index() * share, (jax.process_index() + 1) * share)
        for number, batch in enumerate(eval_batches(images, self.batch_size)):
            host = {key: batch[key][mine] for key in ("image", "mask")}
            yield number, place(host, self.mesh), batch["mask"]
