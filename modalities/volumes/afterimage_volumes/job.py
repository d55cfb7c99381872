"""What both stages share: the volumes in one geometry, what is said and kept."""

from typing import Any

from afterimage.checkpoints.errors import readable_size
from afterimage.runs import Run
from afterimage.stages import OwnStage
from afterimage_volumes.config import VolumeOptions
from afterimage_volumes.files import Geometry
from afterimage_volumes.network import DEPTHS, Encoder, VolumeModel, network
from afterimage_volumes.volumes import Found


class VolumeStage(OwnStage):
    """A stage on volumes; subclasses add parameters, the phase and scores."""

    best = "loss"
    chosen_by = "the lowest validation loss"

    def __init__(
        self,
        config: VolumeOptions,
        run: Run,
        found: Found,
        model: VolumeModel,
        geometry: Geometry,
        **more: Any,
    ):
        self.found, self.model, self.geometry = found, model, geometry
        self.volumes = found.pixels(geometry)
        mark = found.fingerprint(self.volumes)
        super().__init__(config, run, found.name, mark, **more)
        self.encoder_network = network(
            Encoder, model, config.precision, remat=config.remat
        )

    def facts(self) -> dict[str, str]:
        memory = readable_size(self.step_bytes())
        return {
            "Volumes": f"{self.counts()} of {self.found.name}, each {self.geometry}",
            "Memory": f"about {memory} for a step",
        }

    def step_bytes(self) -> int:
        """About what the activations of a step take, as the compiler counts them."""
        sites = [(self.geometry.size // 2**n) ** 3 for n in (1, 2, 3)]
        blocks = zip(sites, self.model.widths, DEPTHS)
        each = sum(s * width * (depth + 1) for s, width, depth in blocks)
        return 4 * 12 * self.config.batch_size // self.config.accumulate * each

    def content(self) -> dict[str, Any]:
        return {
            "width": self.model.width,
            "size": self.geometry.size,
            "spacing": float(self.geometry.spacing),
            "window": self.geometry.window,
            **super().content(),
        }
