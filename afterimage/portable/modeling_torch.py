"""This folder's network in PyTorch, in evaluation mode.

    model = load("FOLDER")
    outputs = model(images)  # uint8 [n, H, W, C] of the size in config.json

`outputs` are named tensors: features, map_0 (the finest) ..., and for a classifier
logits and probabilities. It needs torch and safetensors; there are no other files.
"""

import json
import math
import pathlib

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F


def load(folder):
    folder = pathlib.Path(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return Model(config, load_file(folder / "model.safetensors")).eval()


def each(module):
    """The numbered children of a module, in order."""
    return [] if module is None else [module[str(n)] for n in range(len(module))]


class Tree(nn.ModuleDict):
    """Named parameters, buffers and further trees."""

    def get(self, name):
        return self._modules.get(name)


class Model(Tree):
    def __init__(self, config, weights):
        super().__init__()
        self.config = config
        for name, value in weights.items():
            *path, leaf = name.split(".")
            at = self
            for part in path:
                if part not in at:
                    at[part] = Tree()
                at = at[part]
            if leaf in ("weight", "bias"):
                at.register_parameter(leaf, nn.Parameter(value))
            else:
                at.register_buffer(leaf, value)

    def forward(self, images):
        c = self.config
        mean, std = (torch.tensor(c[k], device=images.device) for k in ("mean", "std"))
        x = (images.float() / (255 * std) - mean / std).permute(0, 3, 1, 2)
        if c["normalisation"] == "image":
            x = x - x.mean((2, 3), keepdim=True)
            power = x.square().mean((1, 2, 3), keepdim=True)
            x = x / ((power + 1e-12).sqrt() + 0.1)
        maps = list(getattr(self, c["family"])(x))
        outputs = {f"map_{n}": m.permute(0, 2, 3, 1) for n, m in enumerate(maps)}
        if c["vector"]:
            outputs["features"] = self.features(maps, x)
        for n, head in enumerate(c["heads"]):
            outputs |= self.head(maps, self["heads"][str(n)], head)
        return outputs

    def features(self, maps, images):
        x, known = self.pool(maps, self.config["vector"]["pool"]), self.get("vector")
        if hasattr(known, "filters"):
            x = torch.cat([x, self.patches(images, known)], 1)
        if self.config["vector"].get("hog"):
            x = torch.cat([x, self.hog(images)], 1)
        if hasattr(known, "mean"):
            x = x - known.mean
            x = x / known.scale if hasattr(known, "scale") else x @ known.axes
        return x

    def patches(self, x, known):
        """How strongly each filter responds in each quarter, over small patches."""
        x, k = self.reduced(x, 32), known.filters.shape[0]
        x = x - x.mean(
            (1, 2, 3), keepdim=True
        )  # less cancellation; filters have mean 0
        first, second = (
            F.avg_pool2d(part.mean(1, keepdim=True), k, 1) for part in (x, x.square())
        )
        scale = ((second - first.square()).clamp(min=0) + 0.0025).rsqrt()
        y = F.conv2d(x, known.filters.permute(3, 2, 0, 1)) * scale
        y = (y + known.shift[:, None, None]).relu()
        return self.pool([y], "grid")

    def reduced(self, x, shorter):
        """Images with a shorter side of at most this."""
        h, w = x.shape[2:]
        if min(h, w) <= shorter:
            return x
        side = [round(n * shorter / min(h, w)) for n in (h, w)]
        return F.interpolate(x, side, mode="bilinear", antialias=True)

    def hog(self, x):
        """Histograms of oriented gradients, in overlapping blocks of cells."""
        x = self.reduced(x, 48)
        cell = min(max(round(max(x.shape[2:]) / 5), 2), 8)
        x = F.pad(x, (1, 1, 1, 1), mode="replicate")
        across = x[:, :, 1:-1, 2:] - x[:, :, 1:-1, :-2]
        down = x[:, :, 2:, 1:-1] - x[:, :, :-2, 1:-1]
        turn = torch.atan2(down, across) * (9 / math.pi) % 9
        size = (across.square() + down.square()).sqrt()
        cells = []
        for n in range(9):
            apart = (turn - n - 0.5).abs()
            vote = size * (1 - torch.minimum(apart, 9 - apart)).clamp(min=0)
            cells.append(vote.sum(1))
        y = torch.stack(cells, 1)
        h, w = y.shape[2:]
        y = F.avg_pool2d(F.pad(y, (0, -w % cell, 0, -h % cell)), cell) * cell**2
        a, b = (min(2, n) for n in y.shape[2:])
        y = y.permute(0, 2, 3, 1)
        rows, columns = y.shape[1] - a + 1, y.shape[2] - b + 1
        parts = [
            y[:, i : i + rows, j : j + columns] for i in range(a) for j in range(b)
        ]
        y = torch.cat(parts, -1)
        y = y / (y.square().sum(-1, keepdim=True) + (0.01 * cell) ** 2 + 1e-12).sqrt()
        y = y.clamp(max=0.2)
        y = y / (y.square().sum(-1, keepdim=True) + 1e-12).sqrt()
        return y.flatten(1)

    def pool(self, maps, kind):
        """Means of the last map or all, over the whole or a grid; or the network's own
        vector: its bottleneck, or the mean of the last map, with its norm if any."""
        if kind == "vector" and "bottleneck" in self:
            flat = maps[-1].permute(0, 2, 3, 1).flatten(1)
            return F.linear(flat, self["bottleneck"].weight, self["bottleneck"].bias)
        cells = (3 if kind == "grid-3" else 2) if "grid" in kind else 1
        parts = []
        for m in maps if kind.startswith("pyramid") else maps[-1:]:
            m = F.adaptive_avg_pool2d(m, tuple(min(cells, n) for n in m.shape[2:]))
            parts.append(m.permute(0, 2, 3, 1).flatten(1))
        x = torch.cat(parts, 1)
        if kind == "vector" and (norm := self.get("vector_norm")) is not None:
            x = F.layer_norm(x, x.shape[1:], norm.weight, norm.bias, 1e-6)
        return x

    def head(self, maps, at, head):
        x = (self.pool(maps, head["features"]) - at.mean) / at.std
        x = x[:, at.kept.long()] if hasattr(at, "kept") else x
        y = x
        if "hidden" in at:
            hidden = F.linear(y, at["hidden"].weight, at["hidden"].bias)
            y = F.gelu(hidden, approximate="tanh")
        y = F.linear(y, at["linear"].weight, at["linear"].bias)
        found, kind = {"features": x, "logits": y}, head.get("outputs") or {}
        if kind.get("kind") == "regression":
            std, mean = y.new_tensor(kind["std"]), y.new_tensor(kind["mean"])
            found["values"] = y * std + mean
        elif kind.get("kind") == "multi-label":
            found["probabilities"] = y.sigmoid()
        else:
            found["probabilities"] = y.softmax(1)
        return {head["prefix"] + name: value for name, value in found.items()}

    def conv(self, x, at, stride=1):
        side, groups = at.weight.shape[-1], x.shape[1] // at.weight.shape[1]
        pad, bias = side // 2, getattr(at, "bias", None)
        if self.config.get("same") and stride > 1:  # as TensorFlow pads
            lacks = [
                max((-(-n // stride) - 1) * stride + side - n, 0)
                for n in (x.shape[3], x.shape[2])
            ]
            x = F.pad(x, [p for n in lacks for p in (n // 2, n - n // 2)])
            pad = 0
        return F.conv2d(x, at.weight, bias, stride, pad, groups=groups)

    def patchify(self, x, at):
        r, (h, w) = at.weight.shape[-1], x.shape[2:]
        return F.conv2d(F.pad(x, (0, -w % r, 0, -h % r)), at.weight, at.bias, r)

    def norm(self, x, parent, name="norm"):
        kind, at = self.config["norm"], None if parent is None else parent.get(name)
        if at is None:
            return x
        if kind in ("batch", "frozen"):
            moments, epsilon = (at.running_mean, at.running_var), self.config["epsilon"]
            return F.batch_norm(x, *moments, at.weight, at.bias, eps=epsilon)
        if kind == "group":
            return F.group_norm(x, math.gcd(8, x.shape[1]), at.weight, at.bias, 1e-6)
        x = x - x.mean(1, keepdim=True) if kind == "layer" else x
        x = x * (x.square().mean(1, keepdim=True) + 1e-6).rsqrt()
        return x * at.weight[:, None, None] + at.bias[:, None, None]

    def block(self, x, at, stride=1):
        deep = "conv3" in at
        y = self.norm(self.conv(x, at["conv1"], 1 if deep else stride), at, "norm1")
        y = self.conv(y.relu(), at["conv2"], stride if deep else 1)
        y = self.norm(y, at, "norm2")
        if deep:
            y = self.norm(self.conv(y.relu(), at["conv3"]), at, "norm3")
        if (short := at.get("shortcut")) is not None:
            x = self.norm(self.conv(x, short["conv"], stride), short)
        return (x + y).relu()

    def convnext_block(self, x, at):
        deep, n = at["depthwise"], x.shape[1]
        y = F.conv2d(x, deep.weight, deep.bias, padding="same", groups=n)
        y = self.norm(y, at).permute(0, 2, 3, 1)
        y = F.gelu(F.linear(y, at["expand"].weight, at["expand"].bias))
        if (norm := at.get("response")) is not None:
            energy = (y.square().sum((1, 2), keepdim=True) + 1e-12).sqrt()
            response = energy / (energy.mean(-1, keepdim=True) + 1e-6)
            y = y * (1 + norm.weight * response) + norm.bias
        y = F.linear(y, at["project"].weight, at["project"].bias)
        y = y * at.weight if hasattr(at, "weight") else y  # V1's layer scale
        return x + y.permute(0, 3, 1, 2)

    def plain(self, x):
        """The encoder `conv`."""
        for stage in each(self["stages"]):
            x = self.norm(self.patchify(x, stage["down"]), stage).relu()
            for block in each(stage.get("blocks")):
                x = self.block(x, block)
            yield x

    def resnet(self, x):
        stem, stride = self["stem"], self.config["stem_stride"]
        x = self.norm(self.conv(x, stem["conv"], min(stride, 2)), stem).relu()
        x = F.max_pool2d(x, 3, 2, 1) if stride == 4 else x
        for n, stage in enumerate(each(self["stages"])):
            for m, block in enumerate(each(stage["blocks"])):
                x = self.block(x, block, 2 if n and not m else 1)
            yield x

    def vgg(self, x):
        for stage in each(self["stages"]):
            for n, conv in enumerate(each(stage["convs"])):
                x = self.norm(self.conv(x, conv), stage.get("norms"), str(n)).relu()
            x = F.max_pool2d(x, 2)
            yield x

    def mobile(self, x):
        """MobileNetV2 and EfficientNet-Lite."""
        stem = self["stem"]
        x = self.conv(x, stem["conv"], self.config["stem_stride"])
        x = self.norm(x, stem).clamp(0, 6)
        for n, stage in enumerate(each(self["stages"])):
            for m, block in enumerate(each(stage["blocks"])):
                x = self.mobile_block(x, block, 2 if n and not m else 1)
            yield x

    def mobile_block(self, x, at, stride):
        """An inverted residual; at the end of the network only a convolution."""
        if "conv" in at:
            return self.norm(self.conv(x, at["conv"]), at).clamp(0, 6)
        y = x
        if "expand" in at:
            y = self.norm(self.conv(y, at["expand"]), at, "expand_norm").clamp(0, 6)
        y = self.conv(y, at["depthwise"], stride)
        y = self.norm(y, at, "depthwise_norm").clamp(0, 6)
        y = self.norm(self.conv(y, at["project"]), at, "project_norm")
        return x + y if stride == 1 and x.shape == y.shape else y

    def convnext(self, x):
        x = self.norm(self.patchify(x, self["stem"]["conv"]), self["stem"])
        for stage in each(self["stages"]):
            if (down := stage.get("down")) is not None:
                x = self.patchify(self.norm(x, down), down["conv"])
            for block in each(stage["blocks"]):
                x = self.convnext_block(x, block)
            yield x
