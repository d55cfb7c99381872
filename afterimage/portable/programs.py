"""Whole programs: StableHLO for JAX, ONNX for onnxruntime and its like."""

import contextlib
import json
import logging
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from afterimage.classifier import Classifier
from afterimage.models import ops
from afterimage.portable.outputs import Portable, prefix

PLATFORMS = ("cpu", "cuda", "tpu")


def write_stablehlo(model: Portable, path: pathlib.Path, licence: str) -> str:
    """One file for CPU, CUDA and TPU that `jax.export.deserialize` reads."""
    from jax import export

    del licence
    (batch,) = export.symbolic_shape("n")
    images = jax.ShapeDtypeStruct((batch, *model.image_shape), jnp.uint8)
    made = export.export(jax.jit(model.function), platforms=PLATFORMS)(images)
    path.write_bytes(made.serialize())
    read = export.deserialize(bytearray(path.read_bytes()))

    def run(images: np.ndarray) -> Any:
        return read.call(images)

    found = model.compare(run, "the StableHLO program")
    return f"read again with jax.export on {jax.default_backend()}: {found}"


def write_onnx(model: Portable, path: pathlib.Path, licence: str) -> str:
    """An ONNX file; its metadata holds the names of the classes."""
    import onnxruntime

    del licence
    with _quietly(), ops.plain_forms():
        import jax2onnx

        made = jax2onnx.to_onnx(
            lambda images: tuple(model.function(images).values()),
            inputs=[jax.ShapeDtypeStruct(("n", *model.image_shape), jnp.uint8)],
            input_names=["images"],
            output_names=model.names,
            model_name=f"afterimage {model.kind}",
        )
    for key, value in _metadata(model).items():
        made.metadata_props.add(key=key, value=json.dumps(value))
    path.write_bytes(made.SerializeToString())
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(model.names, session.run(None, {"images": images})))

    return f"read again with onnxruntime: {model.compare(run, 'the ONNX program')}"


def _metadata(model: Portable) -> dict[str, object]:
    values: dict[str, object] = {"model": model.source.manifest["model"]["name"]}
    if isinstance(model.source, Classifier):
        for task, names in model.source.class_names.items():
            values[f"{prefix(model.source, task)}classes"] = list(names)
    return values


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the converter's messages on plugins for packages that are not used."""
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
