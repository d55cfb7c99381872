"""Exports: each file gives what the package gives, whatever reads it."""

import dataclasses
import importlib.util
import json
import pathlib
import sys

import jax
import numpy as np
import pytest

from afterimage import load_encoder
from afterimage.classifier import load_classifier
from afterimage.commands import main
from afterimage.errors import UserError
from afterimage.outputs.multi_label import MultiLabel
from afterimage.outputs.regression import Regression
from afterimage.portable import export_model, outputs
from tests import classifier_artefact, encoder_artefact
from tests.encoder_artefact import pictures
from tests.helpers import run_python

TOY = {
    "conv": 16,
    "resnet18": 16,
    "vgg11_bn": 32,
    **dict.fromkeys(("convnext-atto", "convnext_atto", "convnextv2_atto"), 16),
}


@pytest.fixture(scope="module")
def whitened(tmp_path_factory):
    """A small encoder: per-image normalisation, whitened 2x2 grid."""
    folder = tmp_path_factory.mktemp("whitened")
    encoder_artefact.write(folder / "plain")
    path = folder / "plain" / "manifest.json"
    values = json.loads(path.read_text())["preprocessing"]
    encoder = load_encoder(folder / "plain")
    encoder.manifest["preprocessing"] = values | {"normalisation": "image"}
    encoder.manifest["probes"] = PROBES
    encoder.save(folder / "image")
    made = load_encoder(folder / "image").with_vector("grid", "whiten", pictures(64))
    made.manifest["probes"] = PROBES
    made.save(folder / "encoder")
    return folder / "encoder"


PROBES = {"effective_rank": 3.5, "classes": 10, "images": 900, "per_class": 10} | {
    "accuracy": {"this encoder": {"knn": 0.875}, "raw pixels": {"knn": 0.5}}
}


def test_stablehlo_runs_in_a_process_without_afterimage(whitened, tmp_path):
    out, images = tmp_path / "x.stablehlo", pictures(5)
    text = export_model(whitened, "stablehlo", out)
    assert "read again" in text
    np.save(tmp_path / "images.npy", images)
    code = """
import sys
sys.modules["afterimage"] = None
import numpy as np
from jax import export
program = export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
assert program.platforms == ("cpu", "cuda", "tpu")
images = np.load(sys.argv[2])
found = [program.call(images[:n])["features"] for n in (2, 5)]
assert np.abs(found[0] - found[1][:2]).max() < 1e-5
np.save(sys.argv[3], found[1])
"""
    features = tmp_path / "features.npy"
    run_python(code, str(out), str(tmp_path / "images.npy"), str(features))
    want = load_encoder(whitened).features(images)
    np.testing.assert_allclose(np.load(features), want, atol=1e-5)


@pytest.mark.parametrize(
    ("form", "suffix", "needs"),
    [
        ("stablehlo", ".stablehlo", "jax"),
        ("onnx", ".onnx", "jax2onnx"),
        ("safetensors", "", "torch"),
    ],
)
@pytest.mark.parametrize("size", [(40, 40), (56, 50)])
def test_a_vector_joined_with_patches_and_hog(
    tiny, tmp_path, form, suffix, needs, size
):
    """Of images that are reduced for both; `export_model` compares."""
    pytest.importorskip(needs)
    images = pictures(40, size)
    encoder_artefact.write(tmp_path / "plain", image_size=size)
    encoder = load_encoder(tmp_path / "plain").with_vector(
        "grid", "standardise", images, patches=True, hog=True
    )
    encoder.save(tmp_path / "encoder")
    text = export_model(tmp_path / "encoder", form, tmp_path / f"out{suffix}")
    assert "read again" in text or "run in PyTorch" in text


@pytest.mark.slow
def test_stablehlo_of_a_classifier_with_two_tasks(tmp_path):
    heads = {"classes": ("a", "b"), "shape": ("round", "square", "flat")}
    folder = classifier_artefact.write(tmp_path / "classifier", heads=heads)
    out = tmp_path / "x.stablehlo"
    main(["export", folder, "--to", "stablehlo", "--out", str(out)])
    program = jax.export.deserialize(bytearray(out.read_bytes()))
    found = program.call(pictures(3))
    ours = load_classifier(folder)
    for name, task in (("probabilities", None), ("shape_probabilities", "shape")):
        want = ours.predict_proba(pictures(3), task=task)
        np.testing.assert_allclose(found[name], want, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        MultiLabel(names=("a", "b", "c")),
        Regression(names=("x", "y", "z"), mean=(100.0, 0.0, 1.0), std=(10.0, 1.0, 2.0)),
    ],
    ids=lambda kind: kind.kind,
)
def test_labels_and_numbers(kind, tmp_path):
    """The program and PyTorch give probabilities of each label, or numbers in units."""
    path = classifier_artefact.write(tmp_path / "c", outputs={"classes": kind})
    images, classifier = pictures(2), load_classifier(path)
    out = tmp_path / "x.stablehlo"
    assert kind.values_name in export_model(path, "stablehlo", out)
    found = jax.export.deserialize(bytearray(out.read_bytes())).call(images)
    want = classifier.predict(images)
    if kind.kind == "multi-label":
        want = classifier.predict_proba(images)
    np.testing.assert_allclose(found[kind.values_name], want, rtol=1e-4, atol=1e-5)
    pytest.importorskip("safetensors")
    text = export_model(path, "safetensors", tmp_path / "hub")
    assert "weights read again" in text
    assert ("run in PyTorch" in text) == (importlib.util.find_spec("torch") is not None)


def test_a_file_that_differs_is_removed(whitened, tmp_path, monkeypatch):
    right = outputs.ours
    wrong = {"factor": 1 + 1e-4}

    def ours(source, images):
        return {k: v * wrong["factor"] for k, v in right(source, images).items()}

    monkeypatch.setattr(outputs, "ours", ours)
    with pytest.raises(UserError, match=r"differs from this encoder by 1.*removed"):
        export_model(whitened, "stablehlo", tmp_path / "x.stablehlo")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [*TOY, "conv-patches", "conv-classic"])
def test_onnx(tiny, name, tmp_path):
    """Any encoder, any batch; class names are in the file."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("jax2onnx")
    folder = tmp_path / "encoder"
    encoder_artefact.write(folder, name, (TOY.get(name, 16),) * 2)
    export_model(folder, "onnx", tmp_path / "x.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "x.onnx")
    images = pictures(7, (TOY.get(name, 16),) * 2)
    (found,) = session.run(["features"], {"images": images})
    np.testing.assert_allclose(
        found, load_encoder(folder).features(images), rtol=1e-4, atol=1e-4
    )


def test_onnx_of_a_classifier(tiny, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("jax2onnx")
    folder = classifier_artefact.write(tmp_path / "classifier", kind="mlp", keep=5)
    export_model(folder, "onnx", tmp_path / "x.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "x.onnx")
    (found,) = session.run(["logits"], {"images": pictures(4)})
    want = load_classifier(folder).logits(pictures(4))
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4)
    known = session.get_modelmeta().custom_metadata_map
    assert json.loads(known["classes"]) == ["a", "b", "c"]


def test_a_folder_for_hugging_face(whitened, tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    out = tmp_path / "hf"
    arguments = [str(whitened), "--to", "safetensors", "--out", str(out)]
    main(["export", *arguments, "--licence", "mit"])
    assert sorted(path.name for path in out.iterdir()) == [
        *("README.md", "config.json", "model.safetensors", "modeling_torch.py")
    ]
    config = json.loads((out / "config.json").read_text())
    assert config["normalisation"] == "image"
    assert config["vector"] == {"pool": "grid", "transform": "whiten"}
    tensors = safetensors.load_file(out / "model.safetensors")
    kernel = load_encoder(whitened).params["stages"]["0"]["down"]["kernel"]
    np.testing.assert_array_equal(
        tensors["stages.0.down.weight"], np.transpose(kernel, (3, 2, 0, 1))
    )
    card = (out / "README.md").read_text()
    _, fields, text = card.split("---\n")
    assert "license: mit\n" in fields
    assert "87.5 %" in text


def test_the_card_of_a_run_has_its_accuracy(tmp_path):
    classifier_artefact.write(tmp_path / "run")
    share = {"value": 0.75, "low": 0.5, "high": 0.9}
    results = {"validation": None, "test": {"accuracy": share, "examples": 40}}
    (tmp_path / "run" / "results.json").write_text(json.dumps(results))
    export_model(tmp_path / "run", "safetensors", tmp_path / "hf")
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "- test accuracy 75.0 % (50.0-90.0) on 40 images\n" in card


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in TOY),
        ("conv", {"norm": "layer", "stem_stride": 4}),
        ("resnet18", {"norm": "frozen", "stem_stride": 4}),
        ("resnet50", {"norm": "group"}),
        ("vgg16", {"bottleneck": 6}),
        ("mobilenet_v2", {"norm": "frozen", "stem_stride": 2}),
        ("efficientnet_lite0", {"norm": "batch", "stem_stride": 2}),
    ],
)
def test_pytorch_gives_the_same(tiny, name, options, tmp_path):
    pytest.importorskip("torch")
    side = TOY.get(name, 32)
    encoder_artefact.write(tmp_path / "e", name, (side, side), **options)
    text = export_model(tmp_path / "e", "safetensors", tmp_path / "hf")
    assert "run in PyTorch" in text


def test_pytorch_gives_the_same_of_a_classifier(whitened, tmp_path):
    pytest.importorskip("torch")
    heads = {"classes": ("a", "b"), "a.b": ("c", "d", "e")}
    options = {"kind": "mlp", "features": "pyramid-grid", "keep": 5}
    folder = classifier_artefact.write(tmp_path / "c", heads=heads, **options)
    for n, source in enumerate((folder, whitened)):
        text = export_model(source, "safetensors", tmp_path / f"hf-{n}")
        assert "run in PyTorch" in text


@dataclasses.dataclass
class Refused:
    message: str
    to: str = "stablehlo"
    out: str = "x.stablehlo"
    model: str = "conv"
    options: dict = dataclasses.field(default_factory=dict)


@pytest.mark.parametrize(
    "case",
    [
        Refused("to='onxx' must be one of onnx, stablehlo, safetensors", to="onxx"),
        Refused("must end in .stablehlo, not .bin", out="x.bin"),
        Refused("give the name of a folder", to="safetensors", out="x.safetensors"),
        Refused("part=classifier: ", options={"part": "classifier"}),
        Refused("--to onnx and", to="safetensors", out="x", model="conv-masci"),
        Refused("licence='My own'", "safetensors", "x", options={"licence": "My own"}),
        Refused("afterimage.onnx", to="onnx", out="x.onnx"),
        Refused("has files", to="safetensors", out="."),
    ],
    ids=lambda case: case.message,
)
def test_bad_input(case, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    monkeypatch.setattr("afterimage.portable._installed", lambda name: False)
    encoder_artefact.write(tmp_path / "e", case.model)
    before = sorted(tmp_path.rglob("*"))
    out = pathlib.Path(tmp_path / case.out)
    with pytest.raises(UserError, match=case.message):
        export_model(tmp_path / "e", case.to, out, **case.options)
    assert sorted(tmp_path.rglob("*")) == before
