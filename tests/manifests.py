"""Manifests as small as the schemas admit, for tests that build no network."""

import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from afterimage.checkpoints import manifest
from afterimage.checkpoints.weights import write_encoder


def encoder_manifest(**trained: Any) -> dict[str, Any]:
    """Of an encoder; `trained` is what a test wants to find again."""
    return {
        "model": {
            "name": "conv",
            "image_size": [16, 16],
            "channels": 3,
            "norm": "rms",
            "decoder": "light",
            "bottleneck": None,
            "width": 1.0,
            "stem_stride": 2,
            "remat": False,
        },
        "preprocessing": {
            "image_size": [16, 16],
            "mean": [0.4, 0.5, 0.6],
            "std": [0.2, 0.25, 0.3],
            "channels": 3,
            "value_range": [0.0, 4095.0],
        },
        "feature_info": [{"name": "stage1", "channels": 32, "stride": 2}],
        "data": {"name": "digits", "fingerprint": "f"},
        "trained": trained,
    }


def classifier_manifest(**trained: Any) -> dict[str, Any]:
    """Of a classifier of three classes."""
    head = {
        "classes": 3,
        "kind": "linear",
        "features": "vector",
        "keep": None,
        "width": None,
        "class_names": ["a", "b", "c"],
    }
    return {**encoder_manifest(**trained), "heads": {"classes": head}}


def write_encoder_folder(folder: pathlib.Path) -> pathlib.Path:
    """A good encoder folder, and no network."""
    params = {"stem": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}}
    stats = {"stem": {"mean": np.ones(3, np.float32)}}
    write_encoder(folder, params, stats, encoder_manifest(steps=3))
    return folder


def reseal(folder: pathlib.Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest of a folder, and give it the checksums of what is there."""
    path = folder / "manifest.json"
    content = json.loads(path.read_bytes())
    for name, entry in content["files"].items():
        data = (folder / name).read_bytes()
        entry |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    change(content)
    content.pop("checksum", None)
    path.write_bytes(manifest.encode(content))


def replace_weights(folder: pathlib.Path, data: bytes) -> None:
    """Other bytes as weights, under the right checksum."""
    (folder / "weights.safetensors").write_bytes(data)
    reseal(folder, lambda content: None)


def safetensors(header: dict[str, Any], body: bytes = b"") -> bytes:
    """A safetensors file with this header, true or not."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body
