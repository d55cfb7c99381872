"""The networks of `afterimage.models` written in PyTorch, as a PyTorch user would.

The architecture is the same layer by layer, for the presets that `speed.py` measures.
`tests/test_torch_models.py` compares the sizes of all parameters and the output's
shape, not values.
"""

import itertools

import torch
from torch import nn
from torch.nn import functional as F

from afterimage.models import ModelConfig
from afterimage.models.encoders.classic import ClassicEncoder
from afterimage.models.encoders.conv import ConvEncoder
from afterimage.models.encoders.convnext import ConvNeXt
from afterimage.models.encoders.resnet import ResNet


class RMSNorm(nn.Module):
    """RMS normalisation over channels, NCHW."""

    def __init__(self, c, *, scale=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.full((c,), scale))
        self.bias = nn.Parameter(torch.zeros(c))

    def forward(self, x):
        y = x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6)
        return y * self.weight[:, None, None] + self.bias[:, None, None]


class LayerNorm(nn.Module):
    """Layer norm over channels, as a channels_last view, for the fused kernel."""

    def __init__(self, c, *, scale=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.full((c,), scale))
        self.bias = nn.Parameter(torch.zeros(c))

    def forward(self, x):
        y = x.permute(0, 2, 3, 1)
        y = F.layer_norm(y, self.weight.shape, self.weight, self.bias, 1e-6)
        return y.permute(0, 3, 1, 2)


NORMS = {"rms": RMSNorm, "layer": LayerNorm}


class BasicBlock(nn.Module):
    """The residual block of two 3x3 convolutions."""

    def __init__(self, i, o, norm, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(i, o, 3, stride, 1, bias=False)
        self.norm1 = norm(o)
        self.conv2 = nn.Conv2d(o, o, 3, 1, 1, bias=False)
        self.norm2 = norm(o, scale=0.0)
        self.shortcut = None
        if i != o or stride != 1:
            conv = nn.Conv2d(i, o, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, norm(o))

    def forward(self, x):
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return F.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ConvNeXtBlock(nn.Module):
    """ConvNeXt V2's: depthwise 7x7, norm, pointwise up and down, GRN between."""

    def __init__(self, c, norm):
        super().__init__()
        self.depthwise = nn.Conv2d(c, c, 7, 1, 3, groups=c)
        self.norm = norm(c)
        self.expand = nn.Linear(c, 4 * c)
        self.scale = nn.Parameter(torch.zeros(4 * c))
        self.shift = nn.Parameter(torch.zeros(4 * c))
        self.project = nn.Linear(4 * c, c)

    def forward(self, x):
        y = self.norm(self.depthwise(x)).permute(0, 2, 3, 1)
        y = F.gelu(self.expand(y))
        energy = torch.sqrt(y.square().sum((1, 2), keepdim=True) + 1e-12)
        response = energy / (energy.mean(-1, keepdim=True) + 1e-6)
        y = y * (1 + self.scale * response) + self.shift
        return x + self.project(y).permute(0, 3, 1, 2)


class Patchify(nn.Conv2d):
    """r x r convolution with stride r; odd sides are padded at the bottom and right."""

    def __init__(self, i, o, r):
        super().__init__(i, o, r, r)

    def forward(self, input):
        r = self.stride[0]
        h, w = input.shape[-2:]
        if h % r or w % r:
            input = F.pad(input, (0, -w % r, 0, -h % r))
        return super().forward(input)


def _conv(config: ModelConfig, norm) -> list[nn.Sequential]:
    stages = []
    i, r = config.channels, config.stem_stride
    for o, depth in zip(config.widths, config.encoder.depths, strict=True):
        blocks = [BasicBlock(o, o, norm) for _ in range(depth)]
        stages.append(nn.Sequential(Patchify(i, o, r), norm(o), nn.ReLU(), *blocks))
        i, r = o, 2
    return stages


def _resnet(config: ModelConfig, norm) -> list[nn.Sequential]:
    stages = []
    i = config.widths[0]
    stem = nn.Conv2d(config.channels, i, 3, 1, 1, bias=False)
    front = [stem, norm(i), nn.ReLU()]
    for o, depth in zip(config.widths, config.encoder.depths, strict=True):
        first = BasicBlock(i, o, norm, 2 if stages else 1)
        blocks = [BasicBlock(o, o, norm) for _ in range(depth - 1)]
        stages.append(nn.Sequential(*front, first, *blocks))
        front, i = [], o
    return stages


def _convnext(config: ModelConfig, norm) -> list[nn.Sequential]:
    stages = []
    i, r = config.channels, config.stem_stride
    for o, depth in zip(config.widths, config.encoder.depths, strict=True):
        down = [norm(i), Patchify(i, o, 2)] if stages else [Patchify(i, o, r), norm(o)]
        blocks = [ConvNeXtBlock(o, norm) for _ in range(depth)]
        stages.append(nn.Sequential(*down, *blocks))
        i = o
    return stages


class Autoencoder(nn.Module):
    """Stages down; 2x2 transposed convolution, norm, relu up to each stage's input."""

    def __init__(self, config: ModelConfig, stages: list[nn.Sequential], norm):
        super().__init__()
        self.downs = nn.ModuleList(stages)
        self.ups = nn.ModuleList()
        self.norms = nn.ModuleList()
        outs = (config.channels, *config.widths)
        for n, (o, i) in enumerate(zip(outs, config.widths, strict=False)):
            r = 2 if n else config.stem_stride
            self.ups.append(nn.ConvTranspose2d(i, o, r, r))
            if n:
                self.norms.append(norm(o))

    def forward(self, x):
        sizes = []
        for down in self.downs:
            sizes.append(x.shape[-2:])
            x = down(x)
        for n in reversed(range(len(self.ups))):
            h, w = sizes[n]
            x = self.ups[n](x)[:, :, :h, :w]
            if n:
                x = F.relu(self.norms[n - 1](x))
        return x


class Classic(nn.Module):
    """3x3 convolution and max-pooling down; max-unpooling and 3x3 convolution up."""

    def __init__(self, config: ModelConfig, norm):
        super().__init__()
        widths = (config.channels, *config.widths)
        self.downs = nn.ModuleList()
        self.ups = nn.ModuleList()
        for n, (i, o) in enumerate(itertools.pairwise(widths)):
            conv = nn.Conv2d(i, o, 3, 1, 1, bias=False)
            self.downs.append(nn.Sequential(conv, norm(o), nn.ReLU()))
            up = nn.Conv2d(o, i, 3, 1, 1, bias=n == 0)
            self.ups.append(nn.Sequential(up, norm(i), nn.ReLU()) if n else up)

    def forward(self, x):
        seen = []
        for down in self.downs:
            x = down(x)
            size = x.shape[-2:]
            x, where = F.max_pool2d(x, 2, ceil_mode=True, return_indices=True)
            seen.append((where, size))
        for up, (where, size) in zip(reversed(self.ups), reversed(seen), strict=True):
            x = up(F.max_unpool2d(x, where, [2, 2], output_size=size))
        return x


def build(config: ModelConfig) -> nn.Module:
    """The autoencoder of `config`: light or unpool decoder, no bottleneck."""
    norm = NORMS[config.norm]
    if issubclass(config.encoder, ClassicEncoder):
        return Classic(config, norm)
    families = {ConvEncoder: _conv, ResNet: _resnet, ConvNeXt: _convnext}
    stages = next(f for e, f in families.items() if issubclass(config.encoder, e))
    return Autoencoder(config, stages(config, norm), norm)
