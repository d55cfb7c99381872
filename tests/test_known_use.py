"""What everything else does with an imported encoder: a narrow ResNet-50, a VGG."""

import json

import numpy as np
import pytest

from afterimage import load_encoder
from afterimage.checkpoints.trees import flatten
from afterimage.checkpoints.weights import encode, read_encoder
from afterimage.commands import evaluate as evaluate_command
from afterimage.commands import features
from afterimage.errors import UserError
from afterimage.evaluation.configs import EvaluateConfig
from afterimage.finetune.evaluate import evaluate
from afterimage.finetune.presets import preset_config
from afterimage.finetune.run import finetune
from afterimage.known import export_encoder, import_encoder, read_weights
from afterimage.models import ModelConfig
from afterimage.sklearn import EncoderTransformer
from tests.encoder_artefact import pictures
from tests.torchvision_models import NARROW, build, make_narrow

pytest.importorskip("torch")

SIZE = (32, 32)


@pytest.fixture(scope="module", autouse=True)
def _narrow():
    with pytest.MonkeyPatch.context() as patch:
        make_narrow(patch)
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory, _narrow):
    """Imported encoders, and images of three shades, that no test changes."""
    folder = tmp_path_factory.mktemp("known")
    for name in ("resnet50", "vgg16_bn"):
        state = build(name, 0, NARROW).state_dict()
        file = folder / f"{name}.safetensors"
        file.write_bytes(encode({k: v.numpy() for k, v in state.items()}))
        import_encoder(file, name, folder / name, image_size=32)
    labels = np.arange(36) % 3
    shade = 60 * labels[:, None, None, None]
    images = (pictures(36, SIZE) // 4 + shade).astype(np.uint8)
    np.savez(
        folder / "shades.npz",
        x_train=images[:24],
        y_train=labels[:24],
        x_test=images[24:],
        y_test=labels[24:],
    )
    return folder


def _config(home, out, encoder="resnet50", **settings):
    usual = {
        "from_": str(home / encoder),
        "data": f"npz:{home / 'shades.npz'}",
        "steps": 4,
        "batch_size": 8,
        "tensorboard": False,
    }
    return preset_config("resnet50-two-phase", out=str(out), **usual | settings)


def _leaves(path):
    params, stats, _ = read_encoder(path)
    return flatten(params), flatten(stats)


@pytest.fixture(scope="module")
def run(home, tmp_path_factory):
    """The preset's two phases, two steps each."""
    out = tmp_path_factory.mktemp("run") / "run"
    mode = {"name": "two-phase", "head_lr": 1e-3, "head_steps": 2}
    return finetune(_config(home, out, mode=mode)).run


def test_two_phases_move_every_kernel_and_no_batchnorm(home, run, tmp_path):
    (before, still), (after, stats) = _leaves(home / "resnet50"), _leaves(run)
    assert all(path.endswith("kernel") for path in after)
    for path, leaf in after.items():
        assert not np.array_equal(leaf, before[path]), path
    assert len(stats) == 4 * len(after)  # a norm's four vectors after every kernel
    for path, leaf in still.items():
        np.testing.assert_array_equal(stats[path], leaf, path)
    export_encoder(run, tmp_path / "back.safetensors")
    theirs = read_weights(home / "resnet50.safetensors")
    for name, array in read_weights(tmp_path / "back.safetensors").items():
        normed = "bn" in name or "downsample.1" in name
        assert np.array_equal(array, theirs[name]) == normed, name


def test_what_was_tuned_is_scored_and_loaded(home, run, tmp_path):
    rows = [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 4
    data = f"npz:{home / 'shades.npz'}"
    scored = evaluate(EvaluateConfig(from_=str(run), data=data))
    stored = json.loads((run / "results.json").read_text())["test"]
    assert scored["confusion"] == stored["confusion"]
    images = pictures(2, SIZE)
    tuned, imported = (
        load_encoder(p).features(images) for p in (run, home / "resnet50")
    )
    assert np.isfinite(tuned).all()
    assert not np.allclose(tuned, imported, atol=1e-6)


@pytest.mark.slow
def test_a_probe_leaves_the_encoder_bit_for_bit(home, tmp_path):
    settings = {"mode": "probe", "steps": 2, "augment": "none"}
    run = finetune(_config(home, tmp_path / "run", **settings)).run
    for before, after in zip(_leaves(home / "resnet50"), _leaves(run), strict=True):
        assert before.keys() == after.keys()
        for path, leaf in before.items():
            np.testing.assert_array_equal(after[path], leaf, path)


@pytest.mark.slow
def test_vgg_is_tuned_with_layerwise_rates(home, tmp_path):
    mode = {"name": "two-phase", "head_steps": 1}
    settings = {"steps": 2, "layer_decay": 0.5, "encoder": "vgg16_bn"}
    run = finetune(_config(home, tmp_path / "run", mode=mode, **settings)).run
    (before, still), (after, stats) = _leaves(home / "vgg16_bn"), _leaves(run)
    moved = {p for p, leaf in after.items() if not np.array_equal(leaf, before[p])}
    assert {p for p in after if p.endswith("kernel")} <= moved
    for path, leaf in still.items():
        np.testing.assert_array_equal(stats[path], leaf, path)


def test_scratch_on_a_frozen_norm_is_refused(home, tmp_path):
    settings = {"mode": "scratch", "steps": 1}
    with pytest.raises(UserError, match=r"norm 'frozen'.*--norm batch"):
        finetune(_config(home, tmp_path / "a", **settings))
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
def test_scratch_on_batchnorm_learns_its_moments(home, tmp_path):
    file = home / "resnet50.safetensors"
    import_encoder(file, "resnet50", tmp_path / "e", image_size=32, norm="batch")
    settings = {"mode": "scratch", "from_": str(tmp_path / "e")}
    run = finetune(_config(home, tmp_path / "b", **settings, steps=1)).run
    (params, stats), (_, imported) = _leaves(run), _leaves(tmp_path / "e")
    assert "stem/norm/scale" in params
    # One step from 1: neither imported nor left alone.
    assert not np.allclose(stats["stem/norm/var"], imported["stem/norm/var"])
    assert not np.array_equal(stats["stem/norm/var"], np.ones(8))


def test_evaluate_sets_it_beside_its_untrained_twin(home, tmp_path, capsys):
    out = tmp_path / "f.json"
    data = f"npz:{home / 'shades.npz'}"
    arguments = ["--from", str(home / "resnet50"), "--data", data, "--per-class", "5"]
    evaluate_command.main([*arguments, "--out", str(out)])
    figures = json.loads(out.read_text())
    ours, untrained = (figures["layers"][f"{n} encoder"] for n in ("this", "untrained"))
    assert ours != untrained
    # Random weights under norms that are the identity still separate three shades.
    accuracy = figures["accuracy"]["untrained encoder"]
    assert accuracy["ridge"]["all"]["mean"] > 0.6
    assert "untrained encoder" in capsys.readouterr().out


def test_features_and_the_transformer_give_its_vectors(home, tmp_path):
    path, out = str(home / "resnet50"), str(tmp_path / "f.npz")
    data = f"npz:{home / 'shades.npz'}"
    features.main(["--from", path, "--data", data, "--out", out])
    with np.load(home / "shades.npz") as arrays:
        images = np.concatenate([arrays["x_train"], arrays["x_test"]])
    want = load_encoder(path).features(images)
    with np.load(out) as arrays:
        np.testing.assert_allclose(arrays["vector"], want, rtol=1e-4, atol=1e-5)
    found = EncoderTransformer(path).fit_transform(images)
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)


def test_a_mean_for_every_channel_and_a_size_vgg_can_halve(home, tmp_path):
    file = home / "vgg16_bn.safetensors"
    with pytest.raises(UserError, match="1 means and 3 standard deviations"):
        import_encoder(file, "vgg16_bn", tmp_path / "e", mean=(0.5,))
    with pytest.raises(UserError, match="multiple of 32"):
        import_encoder(file, "vgg16_bn", tmp_path / "e", image_size=80)
    assert not (tmp_path / "e").exists()
    assert ModelConfig("vgg16_bn", image_size=(64, 96)).stem_stride == 1
