"""torchvision's ResNet (v1.5), VGG and MobileNetV2, and EfficientNet-Lite, with their
names; random weights and moments."""

import math

import numpy as np

from afterimage.plugins import ENCODERS

try:
    import torch
    from torch import nn
except ImportError:  # test_known skips itself
    torch = None

_RESNET, _VGG = (64, 128, 256, 512), (64, 128, 256, 512, 512)
# (widths, depths) as published.
SHAPES = {
    "resnet18": (_RESNET, (2, 2, 2, 2)),
    "resnet34": (_RESNET, (3, 4, 6, 3)),
    "resnet50": (_RESNET, (3, 4, 6, 3)),
    "vgg11": (_VGG, (1, 1, 2, 2, 2)),
    "vgg11_bn": (_VGG, (1, 1, 2, 2, 2)),
    "vgg16": (_VGG, (2, 2, 3, 3, 3)),
    "vgg16_bn": (_VGG, (2, 2, 3, 3, 3)),
}
# The same kinds of layers in the same places, in two narrow stages: every kind of block
# and shortcut is there.
NARROW = {
    "resnet18": ((8, 16), (1, 2)),
    "resnet50": ((8, 16), (2, 1)),
    "vgg11": ((8, 16), (1, 2)),
    "vgg16_bn": ((8, 16), (2, 1)),
}


def make_narrow(patch):
    """Our models of these names are as narrow as `build(name, seed, NARROW)`'s."""
    for name, (widths, depths) in NARROW.items():
        patch.setattr(ENCODERS.get(name), "widths", widths)
        patch.setattr(ENCODERS.get(name), "depths", depths)


def build(name, seed, shapes=SHAPES):
    """A model in evaluation mode, its running moments drawn at random too."""
    torch.manual_seed(seed)
    if name in MOBILE:
        model = _mobile(name)
    else:
        model = (_resnet if name.startswith("resnet") else _vgg)(name, *shapes[name])
    return _randomised(model)


def of_torchvision(name, torchvision):
    """The same of torchvision itself, without a VGG's large classifier."""
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(weights=None)
    if name.startswith("vgg"):
        del model.classifier
    return _randomised(model)


def _randomised(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def feature_maps(model, images):
    """Maps of normalised NHWC images: after each ResNet layer or VGG pooling, or before
    each stride of the others and at their end."""
    x, maps = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2), []
    with torch.no_grad():
        units = getattr(model, "units", None)
        if type(model).__name__ == "MobileNetV2":
            units = model.features
        if units is not None:
            for unit in units:
                if unit is not units[0] and getattr(unit, "stride", 1) == 2:
                    maps.append(x)
                x = unit(x)
            maps.append(x)
        elif hasattr(model, "features"):
            for layer in model.features:
                x = layer(x)
                if isinstance(layer, nn.MaxPool2d):
                    maps.append(x)
        else:
            x = nn.functional.max_pool2d(torch.relu(model.bn1(model.conv1(x))), 3, 2, 1)
            for name, layer in model.named_children():
                if name.startswith("layer"):
                    x = layer(x)
                    maps.append(x)
    return [y.permute(0, 2, 3, 1).numpy() for y in maps]


def _block(i, width, stride, bottleneck):
    o = 4 * width if bottleneck else width
    shapes = [(i, width, 3, stride), (width, width, 3, 1)]
    if bottleneck:
        shapes = [(i, width, 1, 1), (width, width, 3, stride), (width, o, 1, 1)]
    block = nn.Module()
    for n, (a, b, k, s) in enumerate(shapes, 1):
        block.add_module(f"conv{n}", nn.Conv2d(a, b, k, s, k // 2, bias=False))
        block.add_module(f"bn{n}", nn.BatchNorm2d(b))
    if stride != 1 or i != o:
        block.downsample = nn.Sequential(
            nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o)
        )

    def forward(x):
        y = x
        for n in range(1, len(shapes) + 1):
            y = getattr(block, f"bn{n}")(getattr(block, f"conv{n}")(y))
            y = torch.relu(y) if n < len(shapes) else y
        skip = block.downsample(x) if hasattr(block, "downsample") else x
        return torch.relu(y + skip)

    block.forward = forward
    return block


def _resnet(name, widths, depths):
    bottleneck, i = name == "resnet50", widths[0]
    model = nn.Module()
    model.conv1 = nn.Conv2d(3, i, 7, 2, 3, bias=False)
    model.bn1 = nn.BatchNorm2d(i)
    for n, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        blocks = []
        for j in range(depth):
            blocks.append(_block(i, width, 2 if n and not j else 1, bottleneck))
            i = 4 * width if bottleneck else width
        model.add_module(f"layer{n + 1}", nn.Sequential(*blocks))
    model.fc = nn.Linear(i, 10)
    return model


def _vgg(name, widths, depths):
    layers, i = [], 3
    for o, depth in zip(widths, depths, strict=True):
        for _ in range(depth):
            layers.append(nn.Conv2d(i, o, 3, padding=1))
            layers += [nn.BatchNorm2d(o)] if name.endswith("_bn") else []
            layers.append(nn.ReLU())
            i = o
        layers.append(nn.MaxPool2d(2, 2))
    model = nn.Module()
    model.features = nn.Sequential(*layers)
    model.classifier = nn.Sequential(nn.Linear(8, 4))
    return model


# Of every block: factor, kernel size, channels, stride.
_V2 = [(1, 3, 16, 1), (6, 3, 24, 2), (6, 3, 24, 1), (6, 3, 32, 2), (6, 3, 32, 1)]


def _lite(width, depth):
    """EfficientNet-Lite's blocks by its rules: channels to the nearest multiple of 8,
    depths up; the first and last groups keep one block."""
    groups = [(1, 3, 16, 1, 1), (6, 3, 24, 2, 2), (6, 5, 40, 2, 2), (6, 3, 80, 2, 3)]
    groups += [(6, 5, 112, 1, 3), (6, 5, 192, 2, 4), (6, 3, 320, 1, 1)]
    blocks = []
    for factor, k, o, stride, number in groups:
        o = int(o * width + 4) // 8 * 8
        number = number if number == 1 else math.ceil(number * depth)
        blocks += [(factor, k, o, stride), *[(factor, k, o, 1)] * (number - 1)]
    return blocks


MOBILE = {
    "mobilenet_v2": [
        *(*_V2, (6, 3, 32, 1), (6, 3, 64, 2), *[(6, 3, 64, 1)] * 3),
        *([(6, 3, 96, 1)] * 3),
        *((6, 3, 160, 2), *[(6, 3, 160, 1)] * 2, (6, 3, 320, 1)),
    ],
    "efficientnet_lite0": _lite(1.0, 1.0),
    "efficientnet_lite1": _lite(1.0, 1.1),
    "efficientnet_lite2": _lite(1.1, 1.2),
}


def _mobile(name):
    lite = name.startswith("efficientnet")
    model = nn.Module()
    model.units = []

    def conv(parent, names, i, o, k, stride=1, groups=1, active=True):
        """A convolution and its norm, in parent under two names."""
        pad = 0 if lite and stride == 2 else k // 2
        layer = nn.Conv2d(i, o, k, stride, pad, groups=groups, bias=False)
        norm = nn.BatchNorm2d(o, eps=1e-3 if lite else 1e-5)
        for dotted, module in zip(names, (layer, norm)):
            *path, last = dotted.split(".")
            owner = parent
            for part in path:
                if part not in dict(owner.named_children()):
                    owner.add_module(part, nn.Module())
                owner = getattr(owner, part)
            owner.add_module(last, module)

        def run(x):
            if lite and stride == 2:  # TensorFlow's SAME
                rests = [max((-(-n // 2) - 1) * 2 + k - n, 0) for n in x.shape[:1:-1]]
                pads = [p for rest in rests for p in (rest // 2, -(-rest // 2))]
                x = nn.functional.pad(x, pads)
            x = norm(layer(x))
            return nn.functional.relu6(x) if active else x

        return run

    class Unit:
        def __init__(self, steps, stride=1, adds=False):
            self.steps, self.stride, self.adds = steps, stride, adds

        def __call__(self, x):
            y = x
            for step in self.steps:
                y = step(y)
            return x + y if self.adds else y

    stem = ("_conv_stem", "_bn0") if lite else ("features.0.0", "features.0.1")
    model.units.append(Unit([conv(model, stem, 3, 32, 3, 2)], 2))
    i = 32
    for n, (factor, k, o, stride) in enumerate(MOBILE[name]):
        m, steps = i * factor, []
        if lite:
            at = f"_blocks.{n}."
            parts = ["_expand_conv", "_depthwise_conv", "_project_conv"]
            names = [(at + part, f"{at}_bn{j}") for j, part in enumerate(parts)]
        else:
            at = f"features.{n + 1}.conv."
            inner = ["0.0", "0.1"] if factor == 1 else ["1.0", "1.1"]
            outer = ["1", "2"] if factor == 1 else ["2", "3"]
            pairs = (["0.0", "0.1"], inner, outer)
            names = [tuple(at + part for part in pair) for pair in pairs]
        if factor > 1:
            steps.append(conv(model, names[0], i, m, 1))
        steps.append(conv(model, names[1], m, m, k, stride, groups=m))
        steps.append(conv(model, names[2], m, o, 1, active=False))
        model.units.append(Unit(steps, stride, stride == 1 and i == o))
        i = o
    end = len(MOBILE[name]) + 1
    last = f"features.{end}.0", f"features.{end}.1"
    last = ("_conv_head", "_bn1") if lite else last
    model.units.append(Unit([conv(model, last, i, 1280, 1)]))
    return model
