"""Several bands, value ranges and channels-first arrays, from the data to features."""

import dataclasses
import json

import numpy as np
import pytest
import tifffile
from PIL import Image

from afterimage.data import Preprocessing, open_data
from afterimage.data.pixels import parse_range, range_of
from afterimage.data.preprocessing import prepare
from afterimage.errors import DataError, UserError
from afterimage.export import open_for

RNG = np.random.default_rng(0)
LOW, HIGH = 300, 3800


def bands(count, dtype="u2", n=4, size=(12, 12), top=HIGH):
    return RNG.integers(LOW if top == HIGH else 0, top, (n, *size, count)).astype(dtype)


def folder(root, images, split="train"):
    """Images of two classes as TIFFs."""
    for i, image in enumerate(images):
        path = root / split / "ab"[i % 2] / f"{i}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        one = image.shape[-1] == 1
        layout = {} if one else {"planarconfig": "contig"}
        image = image[..., 0] if one else image
        tifffile.imwrite(path, image, photometric="minisblack", **layout)
    return f"folder:{root}"


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8, 16])
@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_bands_are_taken_where_they_are_asked_for(tmp_path, count, dtype):
    top = np.iinfo(dtype).max + 1
    images = bands(count, dtype, top=top)
    spec = folder(tmp_path, images)
    with pytest.raises(DataError, match=rf"{count} bands.*--channels {count}"):
        open_data(spec)
    for wrong in (1, count + 1):
        with pytest.raises(DataError, match=f"{count} bands"):
            open_data(spec, channels=wrong)
    found = open_data(spec, channels=count).train
    assert found.shape == (12, 12, count)
    order = [int(name.split("/")[-1][0]) for name in found.ids]
    wanted = np.rint(images[order] * (255 / (top - 1)))
    np.testing.assert_array_equal(found.gather(range(4)), wanted)
    assert open_data(spec, channels=count, image_size=6).train.shape == (6, 6, count)


def test_colour_is_no_band(tmp_path):
    (tmp_path / "a.png").parent.mkdir(exist_ok=True)
    Image.new("RGB", (9, 9), "red").save(tmp_path / "a.png")
    with pytest.raises(DataError, match="channels=5"):
        open_data(f"folder:{tmp_path}", channels=5)


@pytest.mark.parametrize("image_size", [None, 16])
@pytest.mark.parametrize("channels", [None, 1, 3, 16])
@pytest.mark.parametrize("shape", [(40, 3, 16, 16), (40, 1, 16, 16), (9, 4, 20, 16)])
def test_channels_first_is_said(tmp_path, shape, channels, image_size):
    np.savez(tmp_path / "a.npz", images=np.zeros(shape, np.uint8))
    with pytest.raises(UserError, match=r"transpose\(0, 2, 3, 1\)"):
        open_data(f"npz:{tmp_path}/a.npz", channels=channels, image_size=image_size)
    for count in (channels or 3, shape[1]):
        rule = Preprocessing((16, 16), (0.5,) * count, (0.2,) * count, count)
        for see in (rule.fit, lambda x, rule=rule: prepare(x, rule)):
            with pytest.raises(UserError, match=r"transpose\(0, 2, 3, 1\)"):
                see(np.zeros(shape, np.uint8))


def test_bands_first_are_said_where_so_many_are_expected(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((4, 6, 32, 32), np.uint8))
    for channels in (None, 6):
        with pytest.raises(DataError, match=r"transpose\(0, 2, 3, 1\)"):
            open_data(f"npz:{tmp_path}/a.npz", channels=channels)


def test_bands_of_an_npz_are_asked_for_too(tmp_path):
    images = bands(6, "u1", top=256)
    np.savez(tmp_path / "a.npz", images=images)
    with pytest.raises(DataError, match=r"6 bands.*--channels 6"):
        open_data(f"npz:{tmp_path}/a.npz")
    found = open_data(f"npz:{tmp_path}/a.npz", channels=6).train
    np.testing.assert_array_equal(found.gather(range(4)), images)


@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_a_value_range_scales_what_is_wide(tmp_path, kind):
    images = bands(1)
    np.savez(tmp_path / "a.npz", images=images)
    spec = f"npz:{tmp_path}/a.npz" if kind == "npz" else folder(tmp_path, images)
    found = open_data(spec, value_range="300,3800").train
    order = [int(name.split("/")[-1].split(".")[0]) for name in found.ids]
    wanted = np.rint((images[order].astype(float) - LOW) * (255 / (HIGH - LOW)))
    np.testing.assert_array_equal(found.gather(range(4)), wanted)
    assert found.value_range == (300.0, 3800.0)
    other = open_data(spec, value_range="0,4095").train
    assert other.fingerprint != found.fingerprint
    assert not np.array_equal(other.gather([0]), found.gather([0]))


def test_an_automatic_range_is_of_the_training_images_alone(tmp_path):
    images = bands(2, n=6, size=(40, 40))
    folder(tmp_path, images)
    spec = folder(tmp_path, images * 9, "test")
    low, high = np.quantile(images, [0.001, 0.999])
    for _ in range(2):  # the second time from the cache
        found = open_data(spec, channels=2, value_range="auto")
        assert found.train.value_range == found.test.value_range == (low, high)
        clipped = np.clip(images.astype(float), low, high)
        mean = 255 * (clipped.mean() - low) / (high - low)
        assert abs(found.train.gather(range(6)).mean() - mean) < 0.1
    assert found.test.gather(range(6)).mean() > 250


def test_an_automatic_range_of_constant_or_8_bit_images_is_refused(tmp_path):
    spec = folder(tmp_path / "c", np.full((2, 9, 9, 1), 77, np.uint16))
    with pytest.raises(DataError, match="77"):
        open_data(spec, value_range="auto")
    images = bands(1, "u1", top=256)
    np.savez(tmp_path / "a.npz", images=images)
    for spec in (folder(tmp_path / "b", images), f"npz:{tmp_path}/a.npz"):
        with pytest.raises(DataError, match="8 bits"):
            open_data(spec, value_range="auto")


def test_a_range_of_few_outliers_is_the_whole():
    assert range_of([np.r_[np.zeros(5000), 9.0]], "x") == (0.0, 9.0)


@pytest.mark.parametrize(
    "text", ["", "5", "a,b", "5,5", "9,2", "0,inf", "nan,1", "Auto"]
)
def test_a_range_that_is_none_is_refused(text):
    with pytest.raises(UserError, match="value_range"):
        parse_range(text)
    with pytest.raises(UserError, match="value_range"):
        open_data("digits", value_range=text)


def test_an_encoder_applies_its_range_to_the_same_kinds_of_images():
    rule = Preprocessing((4, 4), (0.5,), (0.2,), 1, (100.0, 900.0))
    assert Preprocessing.from_dict(json.loads(json.dumps(rule.to_dict()))) == rule
    numbers = RNG.integers(100, 901, (3, 4, 4, 1))
    wanted = np.rint((numbers - 100) * (255 / 800))
    for dtype in (np.uint16, np.int32, np.float32, np.float64):
        np.testing.assert_array_equal(rule.fit(numbers.astype(dtype)), wanted)
        np.testing.assert_array_equal(prepare(numbers.astype(dtype), rule), wanted)
    np.testing.assert_array_equal(rule.fit(wanted.astype(np.uint8)), wanted)
    with pytest.raises(UserError, match="from 100 to 900"):
        rule.fit(numbers / 900)
    plain = dataclasses.replace(rule, value_range=None)
    with pytest.raises(UserError, match="uint16"):
        plain.fit(numbers.astype(np.uint16))


def test_what_is_left_aside_is_counted_by_suffix(tmp_path, capsys):
    spec = folder(tmp_path, bands(1))
    for name in ("a.heic", "b.HEIC", "notes.txt", "README", ".hidden.heic"):
        (tmp_path / "train" / name).write_bytes(b"x")
    open_data(spec)
    said = capsys.readouterr().err
    for count in ("2 .heic", "1 .txt", "1 without suffix"):
        assert count in said


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_bands_and_their_range_go_through_both_stages(tmp_path):
    """Pretraining, features, fine-tuning and evaluation of five bands of 12 bits."""
    from afterimage.encoder import load_encoder
    from afterimage.evaluation.configs import EvaluateConfig
    from afterimage.finetune.config import FinetuneConfig
    from afterimage.finetune.evaluate import evaluate
    from afterimage.finetune.run import finetune
    from afterimage.pretrain.config import PretrainConfig
    from afterimage.pretrain.run import pretrain

    images = bands(5, n=16)
    folder(tmp_path / "data", images)
    spec = folder(tmp_path / "data", images[:4], "test")
    config = PretrainConfig(
        data=spec,
        out=str(tmp_path / "run"),
        channels=5,
        value_range="auto",
        steps=2,
        batch_size=8,
        augment="crop-flip",
        normalise="image",
    )
    pretrain(config)
    with pytest.raises(UserError, match="value_range"):
        pretrain(dataclasses.replace(config, value_range="0,4095"))
    encoder = load_encoder(str(tmp_path / "run"))
    rule = encoder.preprocessing
    assert rule.channels == 5
    assert rule.value_range == tuple(np.quantile(images, [0.001, 0.999]))
    wanted = EvaluateConfig(from_=str(tmp_path / "run"), data=spec)
    seen = open_for(rule, wanted).test
    assert seen is not None
    order = [int(name.split("/")[-1][0]) for name in seen.ids]
    from_files = encoder.features(seen.gather(range(4)))
    np.testing.assert_allclose(encoder.features(images[order]), from_files, atol=1e-5)
    result = finetune(
        FinetuneConfig(
            from_=str(tmp_path / "run"),
            data=spec,
            out=str(tmp_path / "cls"),
            mode="probe",
            steps=2,
            batch_size=8,
        )
    )
    assert result is not None
    found = evaluate(EvaluateConfig(from_=str(tmp_path / "cls"), data=spec))
    assert found["examples"] == 4
    manifest = json.loads((tmp_path / "cls/encoder/manifest.json").read_text())
    assert tuple(manifest["preprocessing"]["value_range"]) == rule.value_range
    assert rule.normalisation == "image"
    assert manifest["preprocessing"]["normalisation"] == "image"


@pytest.mark.parametrize("channels", [None, 4])
def test_a_fourth_band_that_is_called_transparency_is_named(tmp_path, channels, capsys):
    image = bands(4, "u1", n=1, top=256)[0]
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb")
    found = open_data(f"folder:{tmp_path}", channels=channels).train
    said = capsys.readouterr().err
    assert ("--channels 4" in said) == (channels is None)
    assert found.shape[2] == (channels or 3)
    if channels:
        np.testing.assert_array_equal(found.gather([0])[0], image)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((5, 12, 10), "12 pixels high and 10 wide"),
        ((12, 10, 5), "10 pixels high and 5"),
    ],
)
def test_bands_that_were_written_as_pages_are_named(tmp_path, capsys, shape, said):
    """What tifffile does with an array whose axes are not named."""
    image = RNG.integers(0, 255, shape).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="minisblack")
    found = open_data(f"folder:{tmp_path}", cache=False).train
    np.testing.assert_array_equal(found.gather([0])[0, ..., 0], image[0])
    error = capsys.readouterr().err
    assert "several pages" in error
    assert said in error
    assert "a.tif" in error
    with pytest.raises(DataError, match=r"first page.*one page"):
        open_data(f"folder:{tmp_path}", channels=5)


def test_thumbnails_behind_an_image_are_no_pages(tmp_path, capsys):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(np.zeros((20, 20), np.uint8), photometric="minisblack")
        for side in (10, 20):
            small = np.zeros((side, side), np.uint8)
            file.write(small, photometric="minisblack", subfiletype=1)
    assert len(open_data(f"folder:{tmp_path}", cache=False).train) == 1
    assert "several pages" not in capsys.readouterr().err


@pytest.mark.parametrize("value_range", [None, (0.0, 1.0), "auto"])
def test_no_numbers_are_called_so(tmp_path, value_range):
    image = np.full((9, 9), np.nan, np.float32)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="minisblack")
    np.savez(tmp_path / "a.npz", images=image[None])
    wanted = "no value is a finite" if value_range == "auto" else "NaN"
    for spec in (f"folder:{tmp_path}", f"npz:{tmp_path / 'a.npz'}"):
        with pytest.raises(DataError, match=wanted):
            open_data(spec, value_range=value_range, cache=False)


@pytest.mark.slow
def test_an_encoder_of_another_value_range_is_said_to_be_so(tmp_path, capsys):
    """Two encoders see one decoding of the images, scaled for the first of them."""
    from afterimage.evaluate_encoder import evaluate_encoder
    from afterimage.evaluation.configs import EvaluateConfig
    from tests.encoder_artefact import write
    from tests.manifests import reseal

    for name, limits in {
        "one": [0, 4095],
        "two": [300, 3800],
        "same": [0, 4095],
    }.items():
        write(tmp_path / name, channels=1, image_size=(12, 12))
        change = {"value_range": limits}
        reseal(tmp_path / name, lambda m, c=change: m["preprocessing"].update(c))
    folder(tmp_path / "data", bands(1, n=16))
    spec = folder(tmp_path / "data", bands(1, n=16), "test")
    for other, said in {"same": False, "two": True}.items():
        evaluate_encoder(
            EvaluateConfig(
                from_=str(tmp_path / "one"),
                against=str(tmp_path / other),
                data=spec,
                per_class=(),
                label_seeds=1,
                embedding="none",
                out=str(tmp_path / "out.json"),
            )
        )
        assert ("300 to 3800" in capsys.readouterr().err) == said
