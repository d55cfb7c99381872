"""The pretrained encoder as fine-tuning takes it: model, preprocessing, weights."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from afterimage.checkpoints.transfer import Report, transfer
from afterimage.checkpoints.weights import read_encoder
from afterimage.data import Preprocessing, Splits, channel_statistics, open_data
from afterimage.errors import DataError, UserError
from afterimage.finetune.config import FinetuneConfig
from afterimage.manifest import stored_model, stored_preprocessing
from afterimage.models import ModelConfig

Tree = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Source:
    """An encoder artefact, read and verified."""

    path: str
    params: Tree
    stats: Tree
    manifest: Mapping[str, Any]

    @classmethod
    def read(cls, path: str) -> "Source":
        """Raises UserError where there is no folder, CheckpointError for a bad one."""
        if not pathlib.Path(path).is_dir():
            raise UserError(
                f"from={path}: there is no such folder; expected a run folder, one of "
                "its checkpoints/STEP, or an encoder/ folder"
            )
        return cls(path, *read_encoder(path))

    @property
    def model(self) -> ModelConfig:
        """What the stored encoder is built from."""
        return stored_model(self.manifest, self.path)

    @property
    def preprocessing(self) -> Preprocessing:
        """How its images were prepared."""
        return stored_preprocessing(self.manifest, self.path)

    def describe(self) -> dict[str, Any]:
        """Where the weights come from, for artefacts and results."""
        return {
            "path": self.path,
            "data": self.manifest.get("data"),
            "trained": self.manifest.get("trained"),
        }


def chosen_model(config: FinetuneConfig, stored: ModelConfig) -> ModelConfig:
    """The stored architecture, or what `config.model` and `config.width` make of it.

    Raises UserError for a model that is unknown or cannot be built at this image size.
    """
    if config.model in (None, stored.name):
        return dataclasses.replace(stored, width=config.width or stored.width)
    return ModelConfig(
        name=config.model,
        image_size=stored.image_size,
        channels=stored.channels,
        width=config.width or 1.0,
    )


def check_scratch(config: FinetuneConfig, model: ModelConfig) -> None:
    """Raises UserError where mode scratch would train without any normalisation."""
    if config.mode == "scratch" and model.norm == "frozen":
        raise UserError(
            f"mode='scratch': the encoder in {config.from_} has norm 'frozen', which "
            "on random weights is the identity and never learns: a control too weak to "
            "compare with. Import its file again with --norm batch into another "
            "folder, and give that as --from"
        )


def open_for(
    config: FinetuneConfig,
    stored: Preprocessing,
    spec: str | None = None,
    *,
    tasks: Sequence[str] = (),
) -> Splits:
    """The data (or `spec`) at the size and channels the encoder was trained with.

    `config.image_size` and `config.channels` ask for others. Raises DataError where the
    images cannot be had so.
    """
    height, width = stored.image_size
    size = config.image_size
    if size is None and height == width:
        size = height
    channels = config.channels or stored.channels
    splits = open_data(
        spec or config.data,
        image_size=size,
        channels=channels,
        value_range=_value_range(config, stored, spec),
        on_bad_image=config.on_bad_image,
        cache=config.cache,
        tasks=tasks,
        reading=config,
        strict=spec is None,
    )
    wanted = (*((size, size) if size else stored.image_size), channels)
    if splits.train.shape != wanted:
        raise DataError(
            f"{splits.train.name} has images {splits.train.shape}, and the encoder "
            f"takes {wanted} (height, width, channels); give images of that shape, or "
            "--image-size and --channels with --may-differ for the parameters that "
            "then cannot be loaded"
        )
    return splits


def _value_range(
    config: FinetuneConfig, stored: Preprocessing, spec: str | None
) -> str | tuple[float, float] | None:
    """What the settings ask for, else the encoder's; measured on `config.data` only."""
    measured = config.value_range == "auto" and spec not in (None, config.data)
    return stored.value_range if measured else config.value_range or stored.value_range


def adapt(
    model: ModelConfig, stored: Preprocessing, splits: Splits
) -> tuple[ModelConfig, Preprocessing]:
    """Model and preprocessing for these images: the stored ones, at this shape.

    Statistics are the stored ones; only where the channels differ are they measured
    afresh.
    """
    height, width, channels = splits.train.shape
    model = dataclasses.replace(model, image_size=(height, width), channels=channels)
    mean, std = stored.mean, stored.std
    if channels != stored.channels:
        mean, std = channel_statistics(splits.train)
    value_range = splits.train.value_range or stored.value_range
    return model, Preprocessing((height, width), mean, std, channels, value_range)


def load_weights(
    source: Source, params: Tree, stats: Tree, may_differ: tuple[str, ...]
) -> tuple[Tree, Tree, dict[str, Report]]:
    """(params, stats, reports): the encoder's leaves from the source, heads fresh.

    The source's own head, where the anchors keep it, goes on from where it was.

    Raises TransferError, listing all, for every leaf that does not fit and is not named
    in `may_differ`.
    """
    expected = ("^heads/", *may_differ)
    loaded, reports = [], {}
    anchors = stats.get("anchors", {})
    for name, encoder, tree in (
        ("params", source.params, params),
        ("stats", source.stats, stats),
    ):
        # Copies: the state is donated, and one buffer cannot be donated twice.
        heads = jax.tree.map(jnp.copy, anchors.get(name, {}).get("heads", {}))
        stored = {"encoder": encoder, "heads": heads}
        # What terms keep beside the model is none of the source's.
        model = {part: tree[part] for part in ("encoder", "heads")}
        model, reports[name] = transfer(stored, model, may_differ=expected)
        loaded.append({**tree, **model})
    return loaded[0], loaded[1], reports
