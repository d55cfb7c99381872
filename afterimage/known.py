"""Known encoders: converts weights of torchvision and timm to our tree, and back.

Each of our paths determines a file's name, so one table serves both directions. Kernels
are OIHW there and HWIO here. A file's classification head is ignored.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

import afterimage
from afterimage.checkpoints import files, names, schemas
from afterimage.checkpoints.errors import CheckpointError
from afterimage.checkpoints.torch_file import read_torch
from afterimage.checkpoints.trees import flatten, unflatten
from afterimage.checkpoints.weights import (
    decode,
    encode,
    read_encoder,
    require_finite,
    write_encoder,
)
from afterimage.data import Preprocessing
from afterimage.encoder import stored_model
from afterimage.errors import UserError, did_you_mean, disk_errors
from afterimage.models import ModelConfig, Network, abstract_encoder
from afterimage.models.encoders.vgg import VGG
from afterimage.models.vector import STATS

KNOWN = (
    *("resnet18", "resnet34", "resnet50"),
    *("vgg11", "vgg11_bn", "vgg16", "vgg16_bn"),
)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
Norm = Literal["frozen", "batch"]

_HEAD = re.compile(r"^(?:fc|classifier|head|pre_logits)\.")
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
_PICKLED = (".pth", ".pt", ".bin")


@dataclasses.dataclass(frozen=True)
class Imported:
    """Result of an import: the model, the leaves read, and the names ignored."""

    model: ModelConfig
    leaves: int
    head: tuple[str, ...]

    def __str__(self) -> str:
        text = f"{self.model.name}: {self.leaves} arrays read, norm {self.model.norm}"
        if self.head:
            text += f"; the classification head was left out: {', '.join(self.head)}"
        return text


def import_encoder(
    path: str | os.PathLike[str],
    model: str,
    out: str | os.PathLike[str],
    *,
    image_size: int = 224,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    norm: Norm = "frozen",
) -> Imported:
    """Write a bare encoder folder from a torchvision or timm file.

    `norm="frozen"` keeps BatchNorm's statistics, scale and shift constant during any
    fine-tuning; `"batch"` trains scale and shift and updates the statistics.

    Raises UserError that lists every name that is missing, unexpected or has another
    shape, and the model that the file does fit, if any; CheckpointError for a file that
    is damaged, hostile, or holds NaN or infinite numbers.
    """
    config = _config(model, image_size, norm)
    found = read_weights(path)
    head = tuple(sorted(name for name in found if _HEAD.match(name)))
    weights = {name: array for name, array in found.items() if name not in head}
    if wrong := _mismatches(weights, config):
        others = {name: _config(name, image_size, "frozen") for name in KNOWN}
        fits = [name for name in KNOWN if not _mismatches(weights, others[name])]
        cure = f"it is a {fits[0]}: use --model {fits[0]}" if fits else "see below"
        raise UserError(
            f"{path} is not a {config.name} of torchvision or timm; {cure}"
            + schemas.in_lines(wrong)
        )
    wanted = _expected(config)
    with np.errstate(over="ignore"):  # values beyond float32 become infinite
        read = {name: weights[name].astype(np.float32) for name in wanted}
    require_finite(read, str(path))
    trees: dict[str, Any] = {"params": {}, "stats": {}}
    trees |= unflatten(
        {
            ours: read[name].transpose(2, 3, 1, 0)
            if read[name].ndim == 4
            else read[name]
            for name, (ours, _) in wanted.items()
        }
    )
    size = config.image_size
    content = {
        "model": config.to_dict(),
        "preprocessing": Preprocessing(size, mean, std, config.channels).to_dict(),
        "feature_info": [
            dataclasses.asdict(info) for info in abstract_encoder(config).feature_info
        ],
        "data": {"name": f"weights:{pathlib.Path(path).name}", "fingerprint": ""},
        "trained": {
            "imported": pathlib.Path(path).name,
            "afterimage": afterimage.__version__,
        },
    }
    write_encoder(out, trees["params"], trees["stats"], content)
    return Imported(config, len(wanted), head)


def export_encoder(
    path: str | os.PathLike[str], out: str | os.PathLike[str]
) -> ModelConfig:
    """Write an encoder as safetensors under torchvision's names, without a head.

    Raises UserError if its architecture is not one of torchvision's.
    """
    params, stats, manifest = read_encoder(path)
    stats.pop(STATS, None)  # torchvision's files have no place for it
    config = stored_model(manifest, path)
    wrong = [] if config.name in KNOWN else [f"model {config.name}"]
    if "resnet" in config.name and config.stem_stride != 4:
        wrong.append(f"stem_stride={config.stem_stride}, not 4")
    # VGG is published with and without BatchNorm, ResNet only with.
    norms = ("frozen", "batch", *(() if "resnet" in config.name else ("none",)))
    if config.norm not in norms:
        wrong.append(f"norm={config.norm}, not {' or '.join(norms)}")
    if config.width != 1:
        wrong.append(f"width={config.width}, not 1")
    if config.bottleneck is not None:
        wrong.append("a bottleneck")
    if pathlib.Path(out).suffix != ".safetensors":
        wrong.append(f"out={out} does not end in .safetensors")
    if wrong:
        raise UserError(
            f"{path} cannot be exported under torchvision's names: {'; '.join(wrong)}. "
            f"Known models: {', '.join(KNOWN)}."
        )
    leaves = flatten({"params": params, "stats": stats})
    weights = {torch_name(ours, config): _theirs(a) for ours, a in leaves.items()}
    for name in [name for name in weights if name.endswith(".running_var")]:
        counter = name.removesuffix("running_var") + "num_batches_tracked"
        weights[counter] = np.zeros((), np.int64)
    with disk_errors(f"out={out} was not written"):
        files.replace_file(pathlib.Path(out), encode(weights))
    return config


def read_weights(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """{name: array} of a .safetensors, .pth, .pt or .bin file; none of its code is run.

    A state dict inside `state_dict` or `model` is unwrapped, a common `module.` prefix
    removed, and BatchNorm's counters are dropped.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist, or is not a regular file")
    if path.suffix == ".safetensors":
        try:
            data = files.read_bytes(path)
        except OSError as error:
            raise CheckpointError(f"{path} {files.reason(error)}.") from error
        tree: Any = decode(data, str(path))
    elif path.suffix in _PICKLED:
        tree = read_torch(path)
    else:
        raise UserError(
            f"{path} ends in {path.suffix!r}; expected .safetensors, "
            f"{', '.join(_PICKLED)}"
        )
    for key in ("state_dict", "model"):
        if isinstance(tree, Mapping) and isinstance(tree.get(key), Mapping):
            tree = tree[key]
    if not isinstance(tree, Mapping) or not all(
        isinstance(name, str) and isinstance(array, np.ndarray)
        for name, array in tree.items()
    ):
        raise CheckpointError(
            f"{path} does not contain a state dict (names and tensors)."
        )
    kept = [name for name in tree if not name.endswith("num_batches_tracked")]
    found = {name.removeprefix("module."): tree[name] for name in kept}
    if len(found) < len(kept):
        raise CheckpointError(
            f"{path} contains a name both with and without `module.`."
        )
    return found


def torch_name(path: str, config: ModelConfig) -> str:
    """torchvision's name of one leaf: `params/PATH` or `stats/PATH` to `layer1.0...`.

    timm's ResNets and the `features` of its VGGs use the same names.
    """
    parts = path.split("/")[1:]
    leaf = _LEAVES[parts[-1]]
    if parts[0] == "stem":
        return f"{'conv1' if parts[1] == 'conv' else 'bn1'}.{leaf}"
    if issubclass(config.encoder, VGG):
        return _vgg_name(int(parts[1]), parts[2], int(parts[3]), config) + f".{leaf}"
    _, stage, _, block, *layer, _ = parts
    inside = ".".join(layer)
    inside = {"shortcut.conv": "downsample.0", "shortcut.norm": "downsample.1"}.get(
        inside, inside.replace("norm", "bn")
    )
    return f"layer{int(stage) + 1}.{block}.{inside}.{leaf}"


def _vgg_name(stage: int, kind: str, number: int, config: ModelConfig) -> str:
    """`features.N`: convolution, norm if any, relu; one pooling per stage."""
    step = 2 if config.norm == "none" else 3
    depths = config.encoder.depths
    before = sum(step * depth + 1 for depth in depths[:stage])
    return f"features.{before + step * number + (kind == 'norms')}"


def _config(model: str, image_size: int, norm: Norm) -> ModelConfig:
    if model not in KNOWN:
        hint = did_you_mean(model, KNOWN)
        raise UserError(f"unknown model {model!r}{hint} Known: {', '.join(KNOWN)}.")
    plain = model.startswith("vgg") and not model.endswith("_bn")
    return ModelConfig(
        model,
        image_size=(image_size, image_size),
        norm="none" if plain else norm,
        stem_stride=4 if model.startswith("resnet") else 0,
    )


def _expected(config: ModelConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    """{their name: (our path, their shape)}."""
    _, params, stats = Network.create(abstract_encoder(config))
    leaves = flatten({"params": params, "stats": stats})
    return {
        torch_name(ours, config): (ours, _their_shape(leaf.shape))
        for ours, leaf in leaves.items()
    }


def _mismatches(weights: Mapping[str, np.ndarray], config: ModelConfig) -> list[str]:
    wanted = _expected(config)
    wrong = [f"missing {name}" for name in sorted(wanted.keys() - weights.keys())]
    unexpected = sorted(weights.keys() - wanted.keys())
    wrong += [f"unexpected {names.shortened(name)}" for name in unexpected]
    wrong += [
        f"{name} is {weights[name].shape}, expected {wanted[name][1]}"
        for name in sorted(wanted.keys() & weights.keys())
        if weights[name].shape != wanted[name][1]
    ]
    return wrong


def _theirs(array: np.ndarray) -> np.ndarray:
    wide = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
    return np.ascontiguousarray(wide)


def _their_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else tuple(shape)
