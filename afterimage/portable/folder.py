"""A folder in Hugging Face's form: safetensors, a card, and a loader for PyTorch."""

import importlib.util
import json
import pathlib
import re
import runpy
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np

from afterimage.checkpoints.names import printable
from afterimage.checkpoints.trees import flatten, unflatten
from afterimage.classifier import Classifier
from afterimage.encoder import Encoder, with_statistics
from afterimage.errors import UserError
from afterimage.models import ModelConfig
from afterimage.models.encoders.conv import ConvEncoder
from afterimage.models.encoders.convnext import ConvNeXt
from afterimage.models.encoders.mobile import Mobile
from afterimage.models.encoders.resnet import ResNet
from afterimage.models.encoders.vgg import VGG
from afterimage.models.layers import BATCH_EPSILON
from afterimage.portable.outputs import Portable, ours, prefix

WEIGHTS, CONFIG, LOADER = "model.safetensors", "config.json", "modeling_torch.py"
TORCH_TOLERANCE = 1e-4
_FAMILIES = {
    "plain": ConvEncoder,
    "resnet": ResNet,
    "vgg": VGG,
    "convnext": ConvNeXt,
    "mobile": Mobile,
}
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
}
"""PyTorch's names of our leaves, below the encoder."""
_TOLD = ("objective", "mode", "imported", "steps", "images", "labels", "seed")
"""Entries of a manifest's `trained` that the card names."""


def write_folder(model: Portable, path: pathlib.Path, licence: str) -> str:
    """Weights, config.json, README.md and modeling_torch.py; how they were checked.

    Raises UserError for an encoder that modeling_torch.py does not have.
    """
    from safetensors.numpy import load_file, save_file

    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,40}", licence):
        raise UserError(
            f"licence={licence!r}: must be an identifier such as apache-2.0, mit, "
            "cc-by-4.0, other or unknown"
        )
    config = _config(model.source)
    tensors = {name: array for name, (_, array) in _tensors(model.source).items()}
    path.mkdir()
    save_file(tensors, path / WEIGHTS, metadata={"format": "pt"})
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (path / CONFIG).write_text(text, encoding="utf-8")
    here = pathlib.Path(__file__).parent
    shutil.copyfile(here / LOADER, path / LOADER)
    (path / "README.md").write_text(card(model, licence), encoding="utf-8")
    again = _rebuilt(model.source, load_file(path / WEIGHTS))
    found = model.compare(lambda images: ours(again, images), WEIGHTS)
    checked = f"weights read again: {found}"
    if importlib.util.find_spec("torch") is None:
        return f"{checked}\nPyTorch is not installed, so {LOADER} was not run"
    found = model.compare(torch_outputs(path), LOADER, TORCH_TOLERANCE)
    return f"{checked}\nrun in PyTorch: {found}"


def torch_outputs(folder: pathlib.Path) -> Any:
    """The function of images that the folder's own modeling_torch.py defines."""
    import torch

    model = runpy.run_path(str(folder / LOADER))["load"](folder)

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        with torch.no_grad():
            found = model(torch.from_numpy(images))
        return {name: value.numpy() for name, value in found.items()}

    return run


def _family(config: ModelConfig) -> str:
    for family, base in _FAMILIES.items():
        if issubclass(config.encoder, base):
            return family
    raise UserError(
        f"--to safetensors has conv, ResNet, VGG, ConvNeXt, MobileNetV2 and "
        f"EfficientNet-Lite, and this encoder is {config.name}; --to onnx and --to "
        "stablehlo take every encoder"
    )


def _config(source: Encoder | Classifier) -> dict[str, Any]:
    """config.json: what modeling_torch.py needs to know."""
    model = ModelConfig.from_dict(source.manifest["model"])
    known, vector = source.preprocessing, getattr(source, "vector", None)
    heads, pool = [], None
    if isinstance(source, Classifier):
        for task in source.tasks:
            head = source.network.heads[task][0]
            names = list(source.class_names[task])
            heads.append(
                {"task": task, "prefix": prefix(source, task), "classes": names}
                | {"kind": head.kind, "features": head.features}
                | {"outputs": source.outputs[task].entry()}
            )
    elif vector is None:
        pool = {"pool": "vector"}
    else:
        pool = {"pool": vector.pool, "transform": vector.transform}
        pool |= {"hog": True} if vector.hog else {}
    config = {
        "model_type": "afterimage",
        "architecture": model.name,
        "family": _family(model),
        "image_size": list(known.image_size),
        "channels": known.channels,
        "mean": list(known.mean),
        "std": [max(std, 1 / 255) for std in known.std],
        "normalisation": known.normalisation,
        "norm": model.norm,
        "stem_stride": model.stem_stride,
        "epsilon": getattr(model.encoder, "epsilon", BATCH_EPSILON),
        "same": getattr(model.encoder, "same", False),
        "vector": pool,
        "heads": heads,
    }
    predicts = isinstance(source, Classifier)
    if predicts and source.outputs[heads[0]["task"]].activation != "identity":
        names = dict(enumerate(heads[0]["classes"]))
        config["id2label"] = {str(n): name for n, name in names.items()}
        config["label2id"] = {name: n for n, name in names.items()}
    return config


def _parts(source: Encoder | Classifier) -> dict[str, Mapping[str, Any]]:
    if isinstance(source, Encoder):
        stats = with_statistics(source.stats, source.vector)
        return {"params": source.params, "stats": stats}
    return {"params": source.params, "stats": source.stats}


def _tensors(
    source: Encoder | Classifier,
) -> dict[str, tuple[tuple[str, str], np.ndarray]]:
    """{name in the file: ((params or stats, our path), array in PyTorch's layout)}."""
    found = {}
    for part, tree in _parts(source).items():
        for path, leaf in flatten(tree).items():
            array = np.asarray(leaf)
            if path.endswith("kernel"):
                array = array.transpose((3, 2, 0, 1) if array.ndim == 4 else (1, 0))
            name = _name(source, path)
            found[name] = ((part, path), np.ascontiguousarray(array))
    return found


def _name(source: Encoder | Classifier, path: str) -> str:
    """`encoder/stages/0/down/kernel` -> `stages.0.down.weight`; heads by number."""
    parts = path.split("/")
    if parts[0] == "heads":
        assert isinstance(source, Classifier)
        parts[1] = str(source.tasks.index(parts[1]))
    elif parts[0] == "encoder":
        del parts[0]
    fitted = parts[0] == "vector" or (parts[0] == "heads" and len(parts) == 3)
    leaf = parts[-1] if fitted else _LEAVES.get(parts[-1], parts[-1])
    return ".".join([*parts[:-1], leaf])


def _rebuilt(
    source: Encoder | Classifier, tensors: Mapping[str, np.ndarray]
) -> Encoder | Classifier:
    """The network again, from the tensors of the file alone."""
    flat: dict[str, dict[str, np.ndarray]] = {"params": {}, "stats": {}}
    for name, ((part, path), _) in _tensors(source).items():
        array = tensors[name]
        if path.endswith("kernel"):
            array = array.transpose((2, 3, 1, 0) if array.ndim == 4 else (1, 0))
        flat[part][path] = array
    params, stats = (unflatten(flat[part]) for part in ("params", "stats"))
    if isinstance(source, Encoder):
        return Encoder(params, stats, source.manifest)
    stats = {"encoder": {}, "heads": {}, **stats}
    return Classifier(params, stats, source.manifest)


def card(model: Portable, licence: str) -> str:
    """README.md: Hugging Face's fields, what it is, its figures, how to load it."""
    source, manifest = model.source, model.source.manifest
    classifies = isinstance(source, Classifier)
    task = "image-classification" if classifies else "image-feature-extraction"
    h, w, c = model.image_shape
    name, trained = manifest["model"]["name"], dict(manifest["trained"])
    # The folders that the images lay in are no one else's business.
    data = re.sub(r"[^\s:]*/", "", str(manifest["data"]["name"] or "unknown images"))
    lines = [
        "---",
        f"license: {licence}",
        "library_name: afterimage",
        f"pipeline_tag: {task}",
        "tags:",
        *(f"- {tag}" for tag in ("afterimage", "self-supervised", name)),
        "---",
        f"# {name}, trained on {data}",
        "",
        f"An image {model.kind} made with Afterimage. It takes uint8 images "
        f"[n, {h}, {w}, {c}], scaled and cropped to {h} x {w} pixels, normalises them "
        f"itself, and gives `{'`, `'.join(model.names)}`.",
        "",
        f"- Licence: {licence}",
        f"- Data: {data}",
        f"- Training: {_words(trained)}",
    ]
    if isinstance(source, Classifier):
        for task, names in source.class_names.items():
            what = source.outputs[task].kind.capitalize()
            lines.append(f"- {what} ({task}): {', '.join(names)}")
    figures = model.figures or ("None were recorded with these weights.",)
    lines += ["", "## Figures", "", *(f"- {figure}" for figure in figures)]
    lines += ["", "## Loading", "", _LOADING]
    return printable("\n".join(lines), keep="\n")


_LOADING = """\
```python
import sys, torch
from huggingface_hub import snapshot_download

folder = snapshot_download("USER/NAME")  # or this folder
sys.path.insert(0, folder)
from modeling_torch import load

model = load(folder)
h, w = model.config["image_size"]
images = torch.zeros(1, h, w, model.config["channels"], dtype=torch.uint8)
outputs = model(images)
print({name: tuple(value.shape) for name, value in outputs.items()})
```

`modeling_torch.py` needs `torch` and `safetensors`, nothing else. `config.json` holds
the size, the normalisation and the names of the classes.
"""


def _words(trained: Mapping[str, Any]) -> str:
    """`objective masked, steps 2000`: what a manifest says about the training."""
    known = [(key, trained.get(key)) for key in _TOLD]
    # A choice with settings is stored as a mapping with its name.
    named = [(key, v["name"] if isinstance(v, dict) else v) for key, v in known]
    words = [f"{key} {value}" for key, value in named if value is not None]
    return ", ".join(words) or "not recorded"
