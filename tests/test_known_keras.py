"""InceptionV3 from Keras: TensorFlow.js's quantised shards and `.h5` files."""

import base64
import json
import pathlib
import re
import tarfile

import numpy as np
import pytest
from sklearn.datasets import load_sample_image

from afterimage import load_encoder
from afterimage.checkpoints.errors import CheckpointError
from afterimage.checkpoints.keras_file import read_tfjs
from afterimage.checkpoints.trees import flatten
from afterimage.checkpoints.weights import decode, read_encoder
from afterimage.commands import main
from afterimage.errors import UserError
from afterimage.known import export_encoder, import_encoder, read_weights
from afterimage.models.encoders.inception import convolutions
from tests import encoder_artefact
from tests.encoder_artefact import pictures


def _array(name, shape, dtype="float32", how=None):
    entry = {"name": name, "shape": shape, "dtype": dtype}
    return entry if how is None else entry | {"quantization": how}


def _write(folder, arrays, shards):
    """A model.json with one group, and its shards; returns its path."""
    group = {"paths": [name for name, _ in shards], "weights": arrays}
    path = folder / "model.json"
    path.write_text(json.dumps({"modelTopology": {}, "weightsManifest": [group]}))
    for name, data in shards:
        if "/" not in name:
            (folder / name).write_bytes(data)
    return path


def test_quantised_arrays_run_on_through_the_shards(tmp_path):
    plain = np.array([[1.5, -2.0]], "<f4")
    half = np.array([0.5, 0.25], "<f2")
    arrays = [
        _array("a/kernel", [1, 2]),
        _array("b/bias", [3], how={"dtype": "uint8", "scale": 0.5, "min": -1.0}),
        _array("c/beta", [2], how={"dtype": "float16"}),
    ]
    body = plain.tobytes() + bytes([0, 2, 255]) + half.tobytes()
    path = _write(tmp_path, arrays, [("s1", body[:5]), ("s2", body[5:])])
    found = read_weights(path)
    np.testing.assert_array_equal(found["a/kernel"], plain)
    np.testing.assert_array_equal(found["b/bias"], np.float32([-1, 0, 126.5]))
    np.testing.assert_array_equal(found["c/beta"], np.float32(half))


BAD = {
    "a path elsewhere": ([_array("a", [1])], [("../s", b"1234")], "only files beside"),
    "too few bytes": ([_array("a", [2])], [("s", b"1234")], "4 bytes.*need 8"),
    "too many bytes": ([_array("a", [1])], [("s", b"12345")], "at most 4"),
    "a huge shape": ([_array("a", [2**40, 2**40])], [("s", b"")], "larger than any"),
    "a negative shape": ([_array("a", [-1])], [("s", b"")], "non-negative"),
    "twice": ([_array("a", [1])] * 2, [("s", b"12345678")], "'?a'? twice"),
    "another type": ([_array("a", [1], "string")], [("s", b"1")], "not a model.json"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_contradicts_itself(case, tmp_path):
    arrays, shards, says = BAD[case]
    with pytest.raises(CheckpointError, match=says):
        read_tfjs(_write(tmp_path, arrays, shards))


def test_a_missing_shard_and_json_of_another_kind(tmp_path):
    path = _write(tmp_path, [_array("a", [1])], [("s", b"1234")])
    (tmp_path / "s").unlink()
    with pytest.raises(CheckpointError, match="s cannot be read"):
        read_tfjs(path)
    path.write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=r"not a model\.json"):
        read_tfjs(path)


def _keras(folder, first):
    """Keras' names of a random encoder's weights, numbered from `first`."""
    options = {"name": "inception_v3_keras", "norm": "frozen", "width": 1.0}
    encoder_artefact.write(folder / "e", image_size=(75, 75), **options)
    export_encoder(folder / "e", folder / "x.safetensors")
    theirs = decode((folder / "x.safetensors").read_bytes(), "x")
    found = {"predictions/kernel": np.zeros((2048, 3), np.float32)}
    leaves = {"beta": "bias", "moving_mean": "running_mean"}
    leaves |= {"moving_variance": "running_var", "gamma": "weight"}
    for number, unit in enumerate(convolutions(), first):
        kernel = theirs[f"{unit}.conv.weight"].transpose(2, 3, 1, 0)
        found[f"conv2d_{number}/kernel" if number else "conv2d/kernel"] = kernel
        norm = f"batch_normalization_{number}" if number else "batch_normalization"
        for leaf, name in leaves.items():
            found[f"{norm}/{leaf}"] = theirs[f"{unit}.bn.{name}"]
    return found


@pytest.fixture
def shards(tmp_path):
    """A folder with model.json and the encoder `e` that it is of."""
    weights = _keras(tmp_path, first=0)
    arrays = [_array(name, list(a.shape)) for name, a in weights.items()]
    body = b"".join(np.ascontiguousarray(a).tobytes() for a in weights.values())
    _write(tmp_path, arrays, [("s1", body[:1000]), ("s2", body[1000:])])
    return tmp_path


def _assert_same(a, b):
    for found, want in zip(read_encoder(a)[:2], read_encoder(b)[:2], strict=True):
        found, want = flatten(found), flatten(want)
        assert found.keys() == want.keys()
        for leaf, array in want.items():
            np.testing.assert_array_equal(found[leaf], array, leaf)


def test_layers_by_their_numbers(shards, capsys):
    path = str(shards / "model.json")
    arguments = ["import", path, "--model", "inception_v3_keras"]
    main([*arguments, "--out", str(shards / "back")])
    assert "left out: fc.predictions/kernel" in capsys.readouterr().out
    _assert_same(shards / "back", shards / "e")
    with pytest.raises(UserError, match="--model inception_v3_keras"):
        import_encoder(path, "inception_v3", shards / "no")


def test_an_h5_file(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for name, array in _keras(tmp_path, first=95).items():
            if not name.endswith("gamma"):  # Keras' InceptionV3 has none
                layer = name.partition("/")[0]
                file[f"model_weights/{layer}/{name}:0"] = array
    import_encoder(tmp_path / "x.h5", "inception_v3_keras", tmp_path / "back")
    found, want = (flatten(read_encoder(tmp_path / n)[1]) for n in ("back", "e"))
    for leaf, array in want.items():
        scale = leaf.endswith("scale")
        np.testing.assert_array_equal(found[leaf], 1 if scale else array, leaf)
    with h5py.File(tmp_path / "packed.h5", "w") as file:
        file.create_dataset("conv2d/kernel", data=np.zeros(9999), compression="gzip")
    with pytest.raises(CheckpointError, match="not stored as Keras does"):
        read_weights(tmp_path / "packed.h5")
    (tmp_path / "text.h5").write_text("no")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_weights(tmp_path / "text.h5")


BUILD = pathlib.Path(__file__).parents[1] / "build"
# Keras' variables do not know NumPy's `copy`.
OF_KERAS = pytest.mark.filterwarnings("ignore:__array__ impl:DeprecationWarning")


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    """Keras' module of InceptionV3, and a network without weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_BACKEND", "jax")
        patch.setenv("KERAS_HOME", str(tmp_path_factory.mktemp("keras")))
        keras = pytest.importorskip("keras")
    module = keras.applications.inception_v3
    options = {"weights": None, "include_top": False, "pooling": "avg"}
    return module, module.InceptionV3(input_shape=(None, None, 3), **options)


def _assert_same_features(net, folder, images):
    module, model = net
    encoder = load_encoder(folder)
    given = module.preprocess_input(images.astype(np.float32))
    theirs = np.asarray(model(given, training=False))
    found = encoder.features(images, resize=False)
    np.testing.assert_allclose(found, theirs, rtol=1e-4, atol=1e-4 * theirs.max())


@OF_KERAS
@pytest.mark.slow
def test_the_same_features_as_keras(net, tmp_path):
    pytest.importorskip("h5py")
    rng = np.random.default_rng(0)
    for weight in net[1].weights:
        value = rng.normal(size=weight.shape)
        if weight.name == "kernel":
            value *= (2 / np.prod(weight.shape[:3])) ** 0.5
        elif weight.name == "moving_variance":
            value = rng.uniform(0.5, 1.5, weight.shape)
        else:
            value *= 0.1
        weight.assign(value.astype(np.float32))
    net[1].save(tmp_path / "x.h5")
    import_encoder(tmp_path / "x.h5", "inception_v3_keras", tmp_path / "e")
    for size in ((75, 75), (120, 150), (299, 299)):
        _assert_same_features(net, tmp_path / "e", pictures(2, size))
    net[1].save_weights(tmp_path / "x.weights.h5")
    with pytest.raises(CheckpointError, match=r"model\.save\('model\.h5'\)"):
        read_weights(tmp_path / "x.weights.h5")


def _unpacked(package, folder):
    """model.json and shards of InceptionV3, which nsfwjs carries as scripts."""
    at = "package/dist/models/inception_v3/{}.min.js"

    def script(name):
        return archive.extractfile(at.format(name)).read().decode()

    with tarfile.open(package) as archive:
        text = script("model").partition("weightsManifest:")[2]
        text = text[: text.index("]}]") + 3]
        text = re.sub(r"([{,])(\w+):", r'\1"\2":', text)
        group = json.loads(re.sub(r"([:,\[]-?)\.", r"\g<1>0.", text))[0]
        data = {
            name: re.search(r'exports="([\w+/=]+)"', script(name))[1]
            for name in group["paths"]
        }
    shards = [(name, base64.b64decode(text)) for name, text in data.items()]
    return _write(folder, group["weights"], shards)


def _number(name):
    return int((re.search(r"_(\d+)$", name) or (0, 0))[1])


@OF_KERAS
@pytest.mark.slow
def test_real_quantised_weights_give_the_features_of_keras(net, tmp_path):
    found = sorted(BUILD.glob("nsfwjs-*.tgz"))
    if not found:
        pytest.skip("npm pack --pack-destination build nsfwjs")
    path = _unpacked(found[-1], tmp_path)
    import_encoder(path, "inception_v3_keras", tmp_path / "e")
    weights = read_weights(path)
    for kind in ("conv2d", "batch_normalization"):
        layers = [one for one in net[1].layers if one.name.startswith(kind)]
        names = {n.partition("/")[0] for n in weights if n.startswith(kind)}
        pairs = zip(
            sorted(layers, key=lambda one: _number(one.name)),
            sorted(names, key=_number),
            strict=True,
        )
        for layer, name in pairs:
            for weight in layer.weights:
                weight.assign(weights[f"{name}/{weight.name}"])
    photos = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    images = np.stack([photo[64:363, 170:469] for photo in photos])
    _assert_same_features(net, tmp_path / "e", images)
