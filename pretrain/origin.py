"""The encoder that a run continues from: `--from`.

Everything of the encoder is kept: architecture, parameters, statistics of BatchNorm,
preprocessing. What an objective adds to it (a decoder, a projector) starts fresh.

For another number of channels, the kernels k of the first layer are changed, so that
images whose channels are all alike keep their features:

    one channel            k' = Σ_c k_c σ / σ_c, with the encoder's deviations σ_c
    n channels from m      k'_j = k_(j mod m) · m / n

With one channel on either side the encoder's mean and deviation are kept, as one number
or repeated, and the features are the same: exactly, if the encoder's means are equal or
it normalises each image by its own statistics. Otherwise they are measured on the
images.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from afterimage.checkpoints.names import spelling
from afterimage.checkpoints.trees import flatten, transfer, unflatten
from afterimage.checkpoints.weights import WEIGHTS
from afterimage.data import ImageSet, Preprocessing, channel_statistics
from afterimage.encoder import Encoder, load_encoder
from afterimage.errors import UserError
from afterimage.models import ModelConfig, Network, abstract_encoder
from afterimage.pretrain.config import PretrainConfig
from afterimage.storage.reading import local
from afterimage.training.options import check

Tree = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Origin:
    """An encoder, read and verified, and where it came from."""

    path: str
    encoder: Encoder

    @classmethod
    def of(cls, config: PretrainConfig) -> "Origin | None":
        """The encoder that `config` names; None if it names none.

        Raises UserError if the path has none, or its model, family or training does not
        fit the settings, and CheckpointError if it is damaged.
        """
        if config.from_ is None:
            return None
        origin = cls(config.from_, load_encoder(config.from_))
        check(origin.problems(config))
        return origin

    def problems(self, config: PretrainConfig) -> list[str]:
        """Settings that contradict the encoder, and objectives that refuse it."""
        own = self.encoder.config
        stored = {
            "model": own.name,
            "norm": own.norm,
            "width": own.width,
            "bottleneck": own.bottleneck,
        }
        found = [
            f"{name}={getattr(config, name)!r}: the encoder in {self.path} has "
            f"{name}={value!r}; leave it out, as --from brings the whole model"
            for name, value in stored.items()
            if getattr(config, name) not in (None, value)
        ]
        found += self._labelled()
        try:
            model = self.model(config, own.image_size, own.channels)
        except UserError as error:
            return [*found, str(error)]
        return found + config.objective_problems(model)

    def _labelled(self) -> list[str]:
        """A fine-tuning run has learned from labels; its encoder alone may be meant."""
        bare = (local(self.path) / WEIGHTS).is_file()
        if bare or self.encoder.manifest["trained"].get("stage") != "finetune":
            return []
        return [
            f"from_={spelling(self.path)}: is a fine-tuning run, whose encoder has "
            "learned from labels. Give the pretraining run it came from; or, if you "
            f"mean this encoder, {spelling(self.path)}/encoder"
        ]

    @property
    def checksum(self) -> str:
        """SHA-256 of the encoder's manifest, which has those of its files."""
        return self.encoder.manifest["checksum"]

    def describe(self) -> dict[str, Any]:
        """Where the weights came from, for manifests and the run folder."""
        manifest = self.encoder.manifest
        return {
            "path": self.path,
            "checksum": self.checksum,
            "data": manifest.get("data"),
            "trained": manifest.get("trained"),
        }

    def __str__(self) -> str:
        data = self.encoder.manifest["data"]["name"] or "unknown images"
        return (
            f"{self.path}: {self.encoder.config.name}, trained on {data}, checksum "
            f"{self.checksum[:12]}"
        )

    @property
    def side(self) -> int | None:
        """Side of its images; None if they are not square."""
        height, width = self.encoder.config.image_size
        return height if height == width else None

    def model(
        self, config: PretrainConfig, image_size: tuple[int, int], channels: int
    ) -> ModelConfig:
        """Its model for images of this shape, with the decoder of the settings.

        Raises UserError for a size that it cannot take.
        """
        own = self.encoder.config
        if own.bottleneck is not None and image_size != own.image_size:
            raise UserError(
                f"image_size={image_size}: the bottleneck of the encoder in "
                f"{self.path} was built for {own.image_size} px; leave --image-size out"
            )
        return dataclasses.replace(
            own,
            image_size=image_size,
            channels=channels,
            decoder=config.decoder or config.objective.default_decoder,
            remat=config.remat,
        )

    def preprocessing(self, images: ImageSet, normalise: str | None) -> Preprocessing:
        """How these images are prepared: as the encoder's were, unless `normalise` says
        otherwise."""
        stored = self.encoder.preprocessing
        height, width, channels = images.shape
        mean, std = stored.mean, stored.std
        if normalise is not None or not self._keeps_statistics(channels):
            mean, std = channel_statistics(images)
        elif channels != stored.channels == 1:
            mean, std = channels * mean, channels * std
        elif channels != stored.channels:
            mean, std = _as_one(mean, std)
        return Preprocessing(
            (height, width),
            mean,
            std,
            channels,
            images.value_range or stored.value_range,
            stored.normalisation if normalise is None else normalise,  # pyright: ignore[reportArgumentType]
            images.rendering or stored.rendering,
        )

    def _keeps_statistics(self, channels: int) -> bool:
        own = self.encoder.config.channels
        return channels == own or 1 in (channels, own)

    def load(
        self, params: Tree, stats: Tree, preprocessing: Preprocessing
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """(params, stats) of a fresh network, with the encoder's leaves from here."""
        stored = self.adapted(preprocessing)
        loaded = []
        for own, tree in zip(stored, (params, stats), strict=True):
            target = tree.get("encoder", {})
            found, _ = transfer(own, target)
            loaded.append({**tree, "encoder": found} if target else dict(tree))
        return loaded[0], loaded[1]

    def adapted(
        self, preprocessing: Preprocessing
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """(params, stats) of the encoder for this number of channels.

        Raises UserError if more than kernels of convolutions depends on it.
        """
        own, count = self.encoder.config, preprocessing.channels
        trees = self.encoder.params, self.encoder.stats
        if count == own.channels:
            return trees
        model = dataclasses.replace(own, channels=count)
        _, *wanted = Network.create(abstract_encoder(model))
        gain = np.ones(own.channels, np.float32)
        kept = self.encoder.preprocessing
        if count == 1 and preprocessing.std == _as_one(kept.mean, kept.std)[1]:
            gain = np.divide(preprocessing.std, kept.std, dtype=np.float32)
        changed = functools.partial(_changed, gain=gain, count=count)
        found = []
        for tree, want in zip(trees, wanted, strict=True):
            shapes = {path: leaf.shape for path, leaf in flatten(want).items()}
            leaves = {
                path: leaf if leaf.shape == shapes[path] else changed(path, leaf)
                for path, leaf in flatten(jax.device_get(tree)).items()
            }
            found.append(unflatten(leaves))
        return found[0], found[1]


def reading_of(config: PretrainConfig, origin: Origin | None) -> dict[str, Any]:
    """Size, channels, value range and rendering that images are read with: as set, else
    those of the encoder that is continued."""
    names = "image_size", "channels", "value_range"
    usual: tuple[Any, ...] = (None, None, None)
    rendering = ""
    if origin is not None:
        stored = origin.encoder.preprocessing
        usual = origin.side, stored.channels, stored.value_range
        rendering = stored.rendering
    found = {name: getattr(config, name) or own for name, own in zip(names, usual)}
    return {**found, "rendering": rendering}


def _as_one(
    mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[tuple[float], tuple[float]]:
    """The mean and deviation of one channel in place of several.

    The deviation is that with which images normalised by their own statistics keep
    their contrast: the RMS of 1 / σ_c is 1 / σ. The mean weighs channels by 1 / σ_c.
    """
    weights = 1 / np.asarray(std)
    one = float((weights * np.asarray(mean)).sum() / weights.sum())
    return (one,), (float(np.square(weights).mean() ** -0.5),)


def _changed(path: str, kernel: np.ndarray, *, gain: np.ndarray, count: int) -> Any:
    """A first kernel [h, w, i, o] for another number of input channels."""
    own = len(gain)
    if kernel.ndim != 4 or kernel.shape[2] != own:
        raise UserError(
            f"channels={count}: {path} {kernel.shape} of this encoder cannot be "
            f"changed from {own} channels; leave --channels out, or train a new encoder"
        )
    if count == 1:
        return (kernel * gain[:, None]).sum(2, keepdims=True)
    return kernel[:, :, np.arange(count) % own] * np.float32(own / count)
