"""Manifests as small as the schemas admit, for tests that build no network."""

from typing import Any


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
