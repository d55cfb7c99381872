"""Pretraining that continues a known encoder: what is kept, what is fresh."""

import dataclasses
import json
import shutil
import tomllib

import numpy as np
import pytest

import afterimage
from afterimage.checkpoints.errors import CheckpointError
from afterimage.checkpoints.store import Store
from afterimage.checkpoints.trees import flatten
from afterimage.checkpoints.weights import read_encoder, write_encoder
from afterimage.commands.flags import parse
from afterimage.commands.pretrain import COMMAND
from afterimage.data import Preprocessing, array_set, channel_statistics
from afterimage.encoder import Encoder
from afterimage.errors import UserError
from afterimage.known import export_encoder, import_encoder
from afterimage.models import ModelConfig, Network, abstract_encoder
from afterimage.planning.devices import here
from afterimage.plugins import ENCODERS
from afterimage.pretrain import PretrainConfig, pretrain, recommend
from afterimage.pretrain.config import CONTINUED_LR
from afterimage.pretrain.origin import Origin
from afterimage.pretrain.plan import config_of
from afterimage.pretrain.plan_config import PlanConfig
from afterimage.pretrain.program import Program
from afterimage.settings import from_dict
from afterimage.training.batches import BatchLoader, make_mesh
from afterimage.training.step import compile_step
from tests import encoder_artefact
from tests.classifier_artefact import write as write_classifier
from tests.encoder_artefact import pictures

STEPS, LR = 4, 1e-2
IMAGES = pictures(40)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """An encoder with BatchNorm, whose statistics are its own."""
    folder = tmp_path_factory.mktemp("source") / "encoder"
    encoder_artefact.write(folder, norm="batch")
    return str(folder)


def config(source, out, **changes):
    settings = {
        "out": str(out),
        "steps": STEPS,
        "batch_size": 8,
        "lr": LR,
        "weight_decay": 0.0,
        "warmup_steps": 0,
        "save_every": 2,
        "eval_every": 2,
        "keep_last": 9,
        "pictures": 0,
        "tensorboard": False,
    }
    return PretrainConfig(from_=source, **settings | changes)


@pytest.fixture(scope="module")
def finished(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    data = {"images": IMAGES, "labels": np.arange(40) % 2}
    return pretrain(config(source, out), data=data)


def assert_equal(one, other):
    one, other = flatten(one), flatten(other)
    assert one.keys() == other.keys()
    for path in one:
        np.testing.assert_array_equal(one[path], other[path], err_msg=path)


@pytest.mark.parametrize("objective", ["plain", "masked", "byol", "sparse"])
def test_the_encoder_is_kept_and_all_else_is_fresh(source, objective):
    chosen = config(source, "unused", objective=objective, augment="flip")
    images = array_set(IMAGES, None, None, "images")
    mesh = make_mesh(1)

    def initial(settings, origin=None):
        made = Program.build(settings, images, images, mesh, origin=origin)
        return made.initial

    params, stats = initial(chosen, Origin.of(chosen))
    stored, moments, _ = read_encoder(source)
    assert_equal(params["encoder"], stored)
    assert_equal(stats["encoder"], moments)
    if objective == "byol":
        assert_equal(stats["teacher"]["params"]["encoder"], stored)
    new = dataclasses.replace(
        chosen, from_=None, model="conv", width=0.25, norm="batch", normalise="data"
    )
    beside = {name: tree for name, tree in params.items() if name != "encoder"}
    fresh = {name: tree for name, tree in initial(new)[0].items() if name != "encoder"}
    assert beside
    assert_equal(beside, fresh)


def test_the_run_says_where_it_came_from(source, finished):
    came = read_encoder(source)[2]
    made = read_encoder(finished.run)[2]
    assert made["trained"]["from"]["checksum"] == came["checksum"]
    assert made["trained"]["from"]["trained"] == came["trained"]
    assert made["model"] == came["model"]
    for key in ("mean", "std", "image_size", "normalisation"):
        assert made["preprocessing"][key] == came["preprocessing"][key]
    report = finished.report.read_text()
    assert came["checksum"][:12] in report
    assert "encoder before this run" in made["probes"]["accuracy"]
    assert "untrained encoder" not in made["probes"]["accuracy"]
    assert np.isfinite(afterimage.load_encoder(finished.run).features(IMAGES[:3])).all()


def imported(name, folder, monkeypatch):
    """Random weights of a narrow network, through a file with published names."""
    monkeypatch.setattr(ENCODERS.get(name), "widths", (8, 16))
    norm = "layer" if name.startswith("convnext") else "frozen"
    options = {"norm": norm, "width": 1.0, "stem_stride": 4}
    encoder_artefact.write(folder / "e", name, image_size=(32, 32), **options)
    export_encoder(folder / "e", folder / "x.safetensors")
    half = {"mean": (0.5,) * 3, "std": (0.25, 0.2, 0.3)}
    import_encoder(
        folder / "x.safetensors", name, folder / "known", image_size=32, **half
    )
    return str(folder / "known")


@pytest.mark.slow
def test_masked_pretraining_continues_known_convnext(tiny, monkeypatch, tmp_path):
    known = imported("convnextv2_atto", tmp_path, monkeypatch)
    settings = {"steps": 2, "objective": "masked", "augment": "flip"}
    run = pretrain(config(known, tmp_path / "run", **settings), data=IMAGES).run
    before, after = (flatten(read_encoder(path)[0]) for path in (known, run))
    assert before.keys() == after.keys()
    most = 2 * 1.1 * CONTINUED_LR * LR  # two updates by AdamW
    for path, leaf in after.items():
        change = np.abs(leaf - before[path]).max()
        assert change <= most, path
        if not path.startswith("vector_norm"):  # only of the pooled features
            assert change > 0, path


def test_known_resnet_continues_on_grey_images(tiny, monkeypatch, tmp_path):
    known = imported("resnet18", tmp_path, monkeypatch)
    settings = {"steps": 2, "channels": 1, "lr": 1e-5, "objective": "plain"}
    grey = pictures(40, (32, 32), channels=1)
    run = pretrain(config(known, tmp_path / "run", **settings), data=grey).run
    before, after = (flatten(read_encoder(path)[0]) for path in (known, run))
    assert after["stem/conv/kernel"].shape == (7, 7, 1, 8)
    del before["stem/conv/kernel"]
    for path, leaf in before.items():
        assert not np.array_equal(after[path], leaf), path
    one, three = (afterimage.load_encoder(path) for path in (run, known))
    np.testing.assert_allclose(
        one.features(grey, pool="last"),
        three.features(grey.repeat(3, axis=-1), pool="last"),
        rtol=1e-2,
        atol=1e-3,
    )


@pytest.mark.slow
def test_a_resumed_run_is_the_same(source, finished, tmp_path):
    copy = tmp_path / "cut"
    shutil.copytree(finished.run, copy)
    shutil.rmtree(copy / "checkpoints" / str(STEPS))
    shutil.rmtree(copy / "encoder")
    data = {"images": IMAGES, "labels": np.arange(40) % 2}
    again = pretrain(config(source, copy), data=data)
    states = [Store(run).restore()[1] for run in (finished.run, again.run)]
    assert_equal(*states)
    assert_equal(read_encoder(finished.run)[0], read_encoder(again.run)[0])


def test_another_encoder_in_the_same_place_is_refused(source, finished, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(finished.run, copy)
    stored = json.loads((copy / "config.json").read_text())
    stored["from"]["checksum"] = "another"
    (copy / "config.json").write_text(json.dumps(stored))
    data = {"images": IMAGES, "labels": np.arange(40) % 2}
    with pytest.raises(UserError, match=r"has changed.*another --out"):
        pretrain(config(source, copy), data=data)


@pytest.mark.slow
def test_the_encoder_learns_at_its_own_rate(source):
    chosen = config(source, "unused", schedule="constant")
    images, mesh = array_set(IMAGES, None, None, "images"), make_mesh(1)
    origin = Origin.of(chosen)
    program = Program.build(chosen, images, images, mesh, origin=origin)
    trainer = program.trainer
    state = trainer.fresh(*program.initial, seed=0, ema=False)
    batches = BatchLoader(images, options=chosen, mesh=mesh)
    _, _, batch = next(iter(batches.blocks(0, iter([1]))))
    after, _ = compile_step(trainer.phases[0].step)(state, batch, batches.data)
    moved = {"encoder": 0.0, "decoder": 0.0}
    old, new = flatten(program.initial[0]), flatten(after["params"])
    for path in old:
        part = path.partition("/")[0]
        change = float(np.abs(np.asarray(new[path]) - old[path]).max())
        moved[part] = max(moved[part], change)
    # AdamW's first update is the learning rate, whatever the gradient.
    assert moved["encoder"] == pytest.approx(CONTINUED_LR * LR, rel=0.02)
    assert moved["decoder"] == pytest.approx(LR, rel=0.02)


def stored(images, means, stds, normalisation="data", **model):
    """A filled encoder in memory, of some number of channels."""
    channels = images.shape[-1]
    model = dataclasses.replace(encoder_artefact_model(channels), **model)
    _, *shapes = Network.create(abstract_encoder(model))
    rng = np.random.default_rng(2)
    params, stats = (encoder_artefact.filled(tree, rng) for tree in shapes)
    prepared = Preprocessing(
        (16, 16), means, stds, channels, normalisation=normalisation
    )
    manifest = encoder_artefact.manifest_of(model) | {
        "preprocessing": prepared.to_dict()
    }
    return Encoder(params, stats, manifest)


def encoder_artefact_model(channels):
    return ModelConfig("conv", (16, 16), channels, norm="batch", width=0.25)


def adapted(encoder, images, normalise=None):
    """The encoder for images with another number of channels."""
    origin = Origin("memory", encoder)
    shown = array_set(images, None, None, "images")
    rules = origin.preprocessing(shown, normalise)
    params, stats = origin.adapted(rules)
    model = dataclasses.replace(encoder.config, channels=images.shape[-1])
    manifest = encoder.manifest | {
        "model": model.to_dict(),
        "preprocessing": rules.to_dict(),
    }
    return Encoder(params, stats, manifest)


@pytest.mark.parametrize(
    ("means", "normalisation"),
    [
        pytest.param((0.5, 0.5, 0.5), "data", id="equal means"),
        pytest.param((0.4, 0.5, 0.6), "image", id="each image by its own"),
    ],
)
def test_grey_images_keep_their_features_with_one_channel(means, normalisation):
    grey = pictures(5, channels=1)
    colour = grey.repeat(3, axis=-1)
    encoder = stored(colour, means, (0.2, 0.25, 0.3), normalisation)
    one = adapted(encoder, grey)
    assert one.config.channels == 1
    np.testing.assert_allclose(
        one.features(grey), encoder.features(colour), rtol=1e-4, atol=1e-5
    )


def test_repeated_channels_keep_their_features():
    grey = pictures(5, channels=1)
    encoder = stored(grey, (0.4,), (0.2,))
    many = adapted(encoder, grey.repeat(5, axis=-1))
    np.testing.assert_allclose(
        many.features(grey.repeat(5, axis=-1)),
        encoder.features(grey),
        rtol=1e-4,
        atol=1e-5,
    )


def test_bands_are_repeated_and_scaled_and_their_statistics_measured():
    bands = pictures(5, channels=6)
    encoder = stored(bands[..., :3], (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    many = adapted(encoder, bands)
    mean, std = channel_statistics(array_set(bands, None, None, "bands"))
    assert many.preprocessing.mean == mean
    assert many.preprocessing.std == std
    before, after = (flatten(e.params) for e in (encoder, many))
    (path,) = (p for p in before if before[p].shape != after[p].shape)
    kernel, wide = np.asarray(before[path]), np.asarray(after[path])
    np.testing.assert_allclose(wide[:, :, :3], kernel / 2, rtol=1e-6)
    np.testing.assert_allclose(wide[:, :, 3:], kernel / 2, rtol=1e-6)


def test_the_data_can_be_measured_instead():
    images = pictures(5)
    encoder = stored(images, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), "image")
    mean, std = channel_statistics(array_set(images, None, None, "images"))
    kept, own = (adapted(encoder, images, n).preprocessing for n in (None, "data"))
    assert (kept.mean, kept.normalisation) == ((0.4, 0.5, 0.6), "image")
    assert (own.mean, own.std, own.normalisation) == (mean, std, "data")


@pytest.mark.parametrize(
    ("name", "wrong", "own"),
    [
        ("model", "resnet18", "conv"),
        ("width", 1.0, "0.25"),
        ("norm", "rms", "batch"),
        ("bottleneck", 4, "None"),
    ],
)
def test_a_setting_that_contradicts_the_encoder_is_refused(source, name, wrong, own):
    with pytest.raises(UserError, match=rf"{name}={wrong!r}.*has {name}='?{own}"):
        Origin.of(config(source, "unused", **{name: wrong}))


def test_the_encoders_own_settings_may_be_repeated(source):
    same = config(source, "unused", model="conv", width=0.25, norm="batch")
    assert Origin.of(same) is not None


def test_an_objective_for_another_family_is_refused(source):
    with pytest.raises(UserError, match=r"objective dictionary: .*conv-patches"):
        Origin.of(config(source, "unused", objective="dictionary"))


def test_all_mistakes_are_named_at_once(source):
    wrong = config(
        source, "unused", model="vgg11", objective={"name": "masked", "ratio": 2.0}
    )
    with pytest.raises(UserError, match=r"(?s)model='vgg11'.*ratio=2\.0"):
        Origin.of(wrong)


def test_a_size_that_the_encoder_cannot_take_is_refused(tmp_path):
    encoder_artefact.write(tmp_path / "e", bottleneck=4, norm="batch")
    small = config(str(tmp_path / "e"), tmp_path / "run", image_size=8)
    with pytest.raises(UserError, match=r"bottleneck.*\(16, 16\).*--image-size"):
        pretrain(small, data=IMAGES)


def test_filters_of_whitened_patches_keep_their_channels(tmp_path):
    encoder_artefact.write(tmp_path / "e", "conv-patches", (16, 16), 3)
    grey = config(
        str(tmp_path / "e"), tmp_path / "run", channels=1, objective="dictionary"
    )
    with pytest.raises(UserError, match=r"channels=1: .*leave --channels out"):
        pretrain(grey, data=IMAGES)


def test_a_fine_tuning_run_is_refused_unless_its_encoder_is_meant(source, tmp_path):
    params, stats, manifest = read_encoder(source)
    manifest["trained"] = {"stage": "finetune", "labels": 5}
    write_encoder(tmp_path / "cls" / "encoder", params, stats, manifest)
    with pytest.raises(UserError, match=r"fine-tuning run.*cls/encoder"):
        Origin.of(config(str(tmp_path / "cls"), "unused"))
    assert Origin.of(config(str(tmp_path / "cls" / "encoder"), "unused"))
    write_classifier(tmp_path / "run")
    with pytest.raises(CheckpointError, match="classifier"):
        Origin.of(config(str(tmp_path / "run" / "classifier"), "unused"))


def test_a_damaged_encoder_is_refused_before_a_folder_is_made(source, tmp_path):
    shutil.copytree(source, tmp_path / "e")
    file = tmp_path / "e" / "weights.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match="no good encoder"):
        pretrain(config(str(tmp_path / "e"), tmp_path / "run"), data=IMAGES)
    with pytest.raises(UserError, match="nowhere does not exist"):
        pretrain(config(str(tmp_path / "nowhere"), tmp_path / "run"), data=IMAGES)
    assert not (tmp_path / "run").exists()


def test_the_recipe_leaves_the_encoder_as_it_is(source, tmp_path, capsys):
    made = recommend(IMAGES, out=str(tmp_path / "run"), from_=source, steps=1)
    own = (made.model, made.norm, made.width, made.normalise, made.view_size)
    assert own == (None,) * 5
    assert made.objective.name == "simclr"
    assert Origin.of(made) is not None
    assert source in capsys.readouterr().out


def test_a_printed_configuration_starts_the_same_run(source, capsys):
    argv = ["digits", "--objective", "plain", "--from", source, "--out", "y"]
    with pytest.raises(SystemExit):
        parse(COMMAND, [*argv, "--print-config"])
    printed = tomllib.loads(capsys.readouterr().out)
    assert from_dict(PretrainConfig, printed) == parse(COMMAND, argv)
    assert printed["from_"] == source


def test_a_new_encoder_has_the_usual_model():
    made = PretrainConfig(out="x")
    assert (made.model, made.width, made.normalise) == ("conv", 1.0, "data")


def test_a_plan_is_of_the_encoder(source):
    planned = config_of(PlanConfig(from_=source), here())
    assert (planned.from_, planned.image_size, planned.channels) == (source, 16, 3)
