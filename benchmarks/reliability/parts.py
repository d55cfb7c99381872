"""Shared by the PyTorch jobs: images, network, noise and reports.

The dataset reads images like torchvision's ImageFolder; the network is that of our
model `conv` (patches down, residual blocks, transposed convolutions up).
"""

import pathlib

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from benchmarks.reliability.words import nan_step, report_final

SUFFIXES = {".png", ".jpg", ".jpeg"}


class Folder(torch.utils.data.Dataset):
    """Images under a folder with a subfolder for each class."""

    def __init__(self, root: str):
        found = pathlib.Path(root).rglob("*")
        self.paths = sorted(path for path in found if path.suffix in SUFFIXES)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        with open(self.paths[index], "rb") as file:
            image = Image.open(file).convert("RGB")
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return pixels.float() / 127.5 - 1


class Block(nn.Module):
    """Two 3x3 convolutions, added to the identity."""

    def __init__(self, width: int):
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return F.relu(x + self.second(F.relu(self.first(x))))


class Autoencoder(nn.Module):
    """32x32x3 to 4x4x128 and back, with new noise for each batch."""

    def __init__(self, noise: float):
        super().__init__()
        self.noise = noise
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 32, 2, 2),
            nn.ReLU(),
            nn.Conv2d(32, 64, 2, 2),
            nn.ReLU(),
            Block(64),
            nn.Conv2d(64, 128, 2, 2),
            nn.ReLU(),
            Block(128),
        )
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(128, 64, 2, 2),
            nn.ReLU(),
            nn.ConvTranspose2d(64, 32, 2, 2),
            nn.ReLU(),
            nn.ConvTranspose2d(32, 3, 2, 2),
        )

    def loss(self, images: torch.Tensor, step: int) -> torch.Tensor:
        """Mean squared error of the reconstruction; NaN if that is the fault."""
        if step == nan_step():
            images = torch.full_like(images, torch.nan)
        given = images
        if self.noise:
            given = images + self.noise * torch.randn_like(images)
        return F.mse_loss(self.decoder(self.encoder(given)), images)


def report_module(step: int, module: nn.Module) -> None:
    """Calls `report_final` with a module's state."""
    report_final(step, [x.detach().cpu().numpy() for x in module.state_dict().values()])
