"""What a fine-tuning run leaves behind to be loaded: `encoder/` and `classifier/`."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from afterimage.checkpoints.errors import CheckpointError, TransferError
from afterimage.checkpoints.names import printable
from afterimage.checkpoints.transfer import transfer
from afterimage.checkpoints.weights import (
    read_classifier,
    write_classifier,
    write_encoder,
)
from afterimage.errors import UserError
from afterimage.finetune.classifier import Classifier, HeadConfig
from afterimage.manifest import stored_model, stored_preprocessing

Tree = dict[str, Any]


def head_entry(head: HeadConfig, class_names: Sequence[str]) -> dict[str, Any]:
    """One head in a classifier's manifest."""
    return {**head.to_dict(), "class_names": list(class_names)}


def write_artefacts(
    run: pathlib.Path,
    params: Tree,
    stats: Tree,
    manifest: Mapping[str, Any],
    heads: Mapping[str, Any],
) -> None:
    """`encoder/` and `classifier/` in a run folder: the encoder, and it with these
    heads. What else a stage trained (a discriminator, an anchor) stays behind."""
    write_encoder(run / "encoder", params["encoder"], stats["encoder"], manifest)
    kept = [
        {
            "encoder": tree["encoder"],
            "heads": {name: tree["heads"][name] for name in heads},
        }
        for tree in (params, stats)
    ]
    manifest = {**manifest, "heads": dict(heads)}
    write_classifier(run / "classifier", kept[0], kept[1], manifest)


@dataclasses.dataclass(frozen=True)
class LoadedClassifier:
    """A classifier artefact, ready to predict."""

    classifier: Classifier
    params: Tree
    stats: Tree
    class_names: Mapping[str, tuple[str, ...]]
    """The class names of each head, in the order of its logits."""
    manifest: Mapping[str, Any]


def load_classifier(path: str, *, dtype: str = "float32") -> LoadedClassifier:
    """The classifier of a finished fine-tuning run, or of its `classifier/` folder.

    Raises CheckpointError where it is missing or damaged, or its arrays are not those
    of its model (all differences are listed).
    """
    params, stats, manifest = read_classifier(path)
    entries = {name: dict(entry) for name, entry in manifest["heads"].items()}
    # Foreign artefacts are shown too: no name may steer a terminal.
    names = {
        name: tuple(map(printable, entry.pop("class_names")))
        for name, entry in entries.items()
    }
    try:
        classifier, fresh_params, fresh_stats = Classifier.create(
            stored_model(manifest, path),
            {name: HeadConfig(**entry) for name, entry in entries.items()},
            stored_preprocessing(manifest, path),
            dtype=dtype,
            fresh=False,
        )
        params, _ = transfer(params, fresh_params)
        stats, _ = transfer(stats, fresh_stats)
    except (TransferError, UserError) as error:
        raise CheckpointError(f"{path}: not what its manifest says. {error}") from error
    return LoadedClassifier(classifier, params, stats, names, manifest)
