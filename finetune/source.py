"""The source model: the pretrained encoder that fine-tuning starts from.

Methods that keep a model near its source read a frozen copy, `stats["source"]`. Every
checkpoint holds it, so a run can continue without the folder it came from.

    {"params": {"encoder", "heads/source"}, "stats": {"encoder", "heads/source"}}

The heads are there only if a method asks for the source's own classifier.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from afterimage.checkpoints.errors import CheckpointError
from afterimage.checkpoints.names import shortened
from afterimage.checkpoints.trees import TransferReport, transfer
from afterimage.checkpoints.weights import CLASSIFIER, read_classifier, read_encoder
from afterimage.data import Preprocessing
from afterimage.encoder import Encoder, stored_model, stored_preprocessing
from afterimage.errors import UserError
from afterimage.finetune.config import FinetuneConfig
from afterimage.finetune.modes import Mode
from afterimage.models import ModelConfig
from afterimage.models.classifier import HEAD, ClassifierNetwork, HeadConfig
from afterimage.models.vector import STATS
from afterimage.storage.reading import local
from afterimage.training.stage import Context

Tree = dict[str, Any]
SOURCE_HEAD = "source"


@dataclasses.dataclass(frozen=True)
class SourceModel:
    """An encoder artefact, read and verified."""

    path: str
    params: Tree
    stats: Tree
    manifest: Mapping[str, Any]

    @classmethod
    def read(cls, path: str) -> "SourceModel":
        """Raises UserError if the folder is missing, CheckpointError if it is bad."""
        place = local(path)
        if not place.is_dir():
            raise UserError(
                f"from={path} does not exist; expected a run folder, one of its "
                "checkpoints/STEP, or an encoder/ folder"
            )
        params, stats, manifest = read_encoder(place)
        # Heads read the maps as `--features` says, not the encoder's own vector.
        stats.pop(STATS, None)
        manifest.pop("vector", None)
        return cls(path, params, stats, manifest)

    @property
    def model(self) -> ModelConfig:
        """The architecture of the stored encoder."""
        return stored_model(self.manifest, self.path)

    @property
    def preprocessing(self) -> Preprocessing:
        """How its training images were prepared."""
        return stored_preprocessing(self.manifest, self.path)

    @property
    def encoder(self) -> Encoder:
        """The encoder as it was pretrained."""
        return Encoder(self.params, self.stats, self.manifest)

    def describe(self) -> dict[str, Any]:
        """The origin of the weights, for artefacts and results."""
        return {
            "path": self.path,
            "data": self.manifest.get("data"),
            "trained": self.manifest.get("trained"),
        }

    def architecture(self, mode: Mode) -> ModelConfig:
        """The stored architecture, as changed by the mode.

        Raises UserError for a model that is unknown or cannot be built at this image
        size, and for a model from scratch that would have no normalisation.
        """
        model = mode.architecture(self.model)
        if not mode.loads_source and model.norm == "frozen":
            raise UserError(
                f"mode scratch: the encoder in {self.path} has norm 'frozen', which "
                "with random weights does nothing and never learns, so the "
                "comparison would be unfair. Import its file again with --norm batch "
                "into another folder, and give that as --from"
            )
        return model


@dataclasses.dataclass(frozen=True)
class SourceHead:
    """The source's own classifier."""

    config: HeadConfig
    params: Tree
    stats: Tree


def read_head(config: FinetuneConfig) -> SourceHead | None:
    """The source's own classifier; None if no method asks for it.

    Raises UserError if the source has none.
    """
    asking = [method.name for method in config.methods if method.needs_source_head]
    if not asking:
        return None
    try:
        params, stats, manifest = read_classifier(config.from_)
    except CheckpointError as error:
        if (local(config.from_, "classifier") / CLASSIFIER).is_dir():
            raise  # there is one, but it is damaged
        names = " and ".join(asking)
        raise UserError(
            f"from={config.from_} has no classifier, but {names} needs the source's "
            f"own predictions: give a finished fine-tuning run, or leave {names} out"
        ) from error
    if HEAD not in manifest["heads"]:
        heads = ", ".join(map(shortened, manifest["heads"]))
        raise UserError(
            f"from={config.from_} has a classifier without the head {HEAD!r}; it has "
            f"{heads}"
        )
    entry = {k: v for k, v in manifest["heads"][HEAD].items() if k != "class_names"}
    outputs = entry.pop("outputs", None)
    if outputs is not None:
        raise UserError(
            f"from={config.from_} has a classifier for {outputs['kind']}, but "
            f"{' and '.join(asking)} needs one of classes"
        )
    try:
        return SourceHead(
            HeadConfig(**entry), params["heads"][HEAD], stats["heads"][HEAD]
        )
    except KeyError as error:
        raise CheckpointError(
            f"{config.from_}: its classifier has no weights for the head {HEAD!r}."
        ) from error


def frozen_copy(source: SourceModel, head: SourceHead | None) -> Tree:
    """The initial value of `stats["source"]`."""
    tree: Tree = {
        "params": {"encoder": source.params},
        "stats": {"encoder": source.stats},
    }
    if head is not None:
        tree["params"]["heads"] = {SOURCE_HEAD: head.params}
        tree["stats"]["heads"] = {SOURCE_HEAD: head.stats}
    # Copies: the state is donated, and one buffer cannot be donated twice.
    return jax.tree.map(jnp.array, tree)


def source_rules(
    classifier: ClassifierNetwork, kept: Tree
) -> dict[str, Callable[[Context], Any]]:
    """`source/params`, `source/maps` and `source/logits`.

    The source model runs in evaluation mode on the same augmented training images.
    """
    params, stats = kept["params"], kept["stats"]
    rules: dict[str, Callable[[Context], Any]] = {
        "source/params": lambda _: params,
        "source/maps": lambda ctx: classifier.maps(params, stats, ctx["train/image"])[
            0
        ],
    }
    if "heads" in params:
        rules["source/logits"] = lambda ctx: classifier.logits(
            params, stats, ctx["source/maps"], SOURCE_HEAD
        )
    return rules


def load_weights(
    source: SourceModel, params: Tree, stats: Tree, may_differ: tuple[str, ...]
) -> tuple[Tree, Tree, dict[str, TransferReport]]:
    """(params, stats, reports): the encoder's leaves from the source, heads fresh.

    If the frozen copy has the source's own head, that head keeps its weights.

    Raises TransferError, listing every leaf that does not fit and is not named in
    `may_differ`.
    """
    expected = ("^heads/", *may_differ)
    loaded, reports = [], {}
    kept = stats.get("source", {})
    for name, encoder, tree in (
        ("params", source.params, params),
        ("stats", source.stats, stats),
    ):
        # Copies: the state is donated, and one buffer cannot be donated twice.
        heads = jax.tree.map(jnp.copy, kept.get(name, {}).get("heads", {}))
        stored = {"encoder": encoder, "heads": heads}
        # The methods' state does not come from the source.
        model = {part: tree[part] for part in ("encoder", "heads")}
        model, reports[name] = transfer(stored, model, may_differ=expected)
        loaded.append({**tree, **model})
    return loaded[0], loaded[1], reports
