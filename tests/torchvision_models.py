"""torchvision's ResNet (v1.5) and VGG, with its names; random weights and moments."""

import numpy as np

try:
    import torch
    from torch import nn
except ImportError:  # test_known skips itself
    torch = None

DEPTHS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "vgg11": (1, 1, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
}


def build(name, seed):
    """A model in evaluation mode, its running moments drawn at random too."""
    torch.manual_seed(seed)
    model = _resnet(name) if name.startswith("resnet") else _vgg(name)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def feature_maps(model, images):
    """Maps of normalised NHWC images: after each ResNet layer or VGG pooling."""
    x, maps = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2), []
    with torch.no_grad():
        if hasattr(model, "features"):
            for layer in model.features:
                x = layer(x)
                if isinstance(layer, nn.MaxPool2d):
                    maps.append(x)
        else:
            x = nn.functional.max_pool2d(torch.relu(model.bn1(model.conv1(x))), 3, 2, 1)
            for n in range(1, 5):
                x = getattr(model, f"layer{n}")(x)
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


def _resnet(name):
    bottleneck, i = name == "resnet50", 64
    model = nn.Module()
    model.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
    model.bn1 = nn.BatchNorm2d(64)
    for n, depth in enumerate(DEPTHS[name]):
        width, blocks = 64 * 2**n, []
        for j in range(depth):
            blocks.append(_block(i, width, 2 if n and not j else 1, bottleneck))
            i = 4 * width if bottleneck else width
        model.add_module(f"layer{n + 1}", nn.Sequential(*blocks))
    model.fc = nn.Linear(i, 10)
    return model


def _vgg(name):
    layers, i = [], 3
    for o, depth in zip(
        (64, 128, 256, 512, 512), DEPTHS[name.removesuffix("_bn")], strict=True
    ):
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
