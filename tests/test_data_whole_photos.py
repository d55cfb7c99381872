"""Photos kept whole: their views come from all of them, all else is their centre."""

import dataclasses
import io
import itertools
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from afterimage.checkpoints.trees import flatten
from afterimage.commands.pretrain import main as pretrain_command
from afterimage.data import ImageSet, Joined, make_augment, open_data
from afterimage.data.augmentations import moves, resampling
from afterimage.data.whole_photos import WholePhotos
from afterimage.encoder import load_encoder
from afterimage.errors import UserError
from afterimage.finetune.config import FinetuneConfig
from afterimage.finetune.method import Stream
from afterimage.finetune.run import finetune
from afterimage.pretrain import PretrainConfig, pretrain, recommend
from afterimage.training.batches import BatchLoader
from tests.test_data_augmentations import alike, reference_part
from tests.test_data_shards import pack, parquet_file

SIZES = [(90, 60), (60, 90), (64, 64), (160, 40), (48, 120), (75, 100)]
"""(height, width) of the photos."""
SIDE = 48


def photo(number):
    """A smooth photo: the same one at another size is nearly the same picture."""
    rng = np.random.default_rng(number)
    rough = rng.uniform(0, 255, (6, 6, 3))
    size = np.array(SIZES[number % len(SIZES)])
    smooth = ndimage.zoom(
        rough, (*size / 6, 1), order=3, mode="nearest", grid_mode=True
    )
    return np.clip(smooth, 0, 255).round().astype(np.uint8)


def encoded(number):
    file = io.BytesIO()
    Image.fromarray(photo(number)).save(file, "PNG")
    return file.getvalue()


NUMBERS = range(12)


def as_folder(root):
    for number in NUMBERS:
        place = root / "photos" / f"{number:02}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(encoded(number))
    return f"folder:{root / 'photos'}"


def as_zip(root):
    with zipfile.ZipFile(root / "photos.zip", "w") as archive:
        for number in NUMBERS:
            archive.writestr(f"{number:02}.png", encoded(number))
    return f"zip:{root / 'photos.zip'}"


def as_csv(root):
    as_folder(root)
    rows = [f"photos/{number:02}.png" for number in NUMBERS]
    (root / "photos.csv").write_text("\n".join(["image", *rows]) + "\n")
    return f"csv:{root / 'photos.csv'}"


def as_tar(root):
    return pack(root / "photos.tar", {f"{n:02}.png": encoded(n) for n in NUMBERS})


def as_parquet(root):
    rows = [{"bytes": encoded(n), "path": f"{n:02}.png"} for n in NUMBERS]
    features = {"image": {"_type": "Image"}}
    return parquet_file(root / "photos.parquet", {"image": rows}, features)


SOURCES = {
    "folder": as_folder,
    "zip": as_zip,
    "csv": as_csv,
    "tar": as_tar,
    "parquet": as_parquet,
    "files": lambda _: [encoded(number) for number in NUMBERS],
    "records": lambda _: [{"image": photo(number)} for number in NUMBERS],
}


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_keeps_photos_whole(tmp_path, kind, cache):
    data = SOURCES[kind](tmp_path)
    usual = open_data(data, image_size=SIDE).train
    for _ in range(2):  # the second time from the cache, if there is one
        kept = open_data(data, image_size=SIDE, cache=cache, whole=True).train
        assert kept.shape == usual.shape == (SIDE, SIDE, 3)
        assert kept.ids == usual.ids
        every = np.arange(12)
        np.testing.assert_array_equal(kept.gather(every), usual.gather(every))
        rows = np.array([4, 0, 7])
        found = WholePhotos(kept.subset(range(2, 12))).inputs(rows)
        for image, aspect, number in zip(*found.values(), rows + 2, strict=True):
            height, width = SIZES[number % len(SIZES)]
            assert aspect == np.float32(width / height)
            stretched = Image.fromarray(photo(number)).resize(
                (SIDE, SIDE), Image.Resampling.BILINEAR
            )
            assert np.abs(image.astype(int) - np.asarray(stretched)).mean() < 3


def test_arrays_of_oblong_images_are_kept_whole():
    images = np.stack([photo(5)] * 10)
    kept = open_data(images, image_size=SIDE, whole=True).train
    assert np.all(WholePhotos(kept).inputs(np.arange(10))["aspect"] == 100 / 75)
    assert kept.shape == (SIDE, SIDE, 3)


@pytest.mark.parametrize("size", [(75, 100), (49, 48), (97, 48)])
def test_images_that_keep_their_size_are_as_they_are(size):
    images = np.random.default_rng(0).integers(0, 256, (10, *size, 3), np.uint8)
    kept = open_data(images, whole=True).train
    rows = WholePhotos(kept)
    found = rows.inputs(np.arange(3))
    np.testing.assert_array_equal(found["image"], images[:3])
    np.testing.assert_allclose(found["aspect"], size[1] / size[0])
    assert rows.in_memory
    assert kept.shape == images.shape[1:]


@pytest.mark.parametrize("size", [(1200, 2000), (1500, 600)])
def test_parts_are_drawn_in_the_photos_own_proportions(size):
    """As torchvision draws them from the photo itself."""
    n, (height, width) = 4000, size
    aspect = jnp.full(n, width / height)
    pieces = [(moves.crop, (0.3,))]
    drawn, view = jax.jit(
        lambda key: resampling.composed(key, pieces, n, (96, 96), 64, aspect)
    )(jax.random.key(0))
    assert view == (64, 64)
    rng = np.random.default_rng(1)
    boxes = [reference_part(rng, height, width, 0.3, 4 / 3) for _ in range(n)]
    left, top, w, h = np.array(boxes).T / [[width], [height], [width], [height]]
    across, down = drawn.linear[:, 0, 0], drawn.linear[:, 1, 1]
    for ours, wanted in (
        (across * down, w * h),
        (across / down, w / h),
        (drawn.offset[:, 0], 2 * left + w - 1),
        (drawn.offset[:, 1], 2 * top + h - 1),
    ):  # what is drawn often, such as the middle, differs by a part of a pixel
        blur = rng.uniform(-0.01, 0.01, (2, n))
        assert alike(np.asarray(ours) + blur[0], wanted + blur[1])


@pytest.mark.parametrize("number", range(6))
def test_views_are_the_photos_parts(number):
    """For a given part: as Pillow cuts it out of the photo itself."""
    image, (height, width) = photo(number), SIZES[number]
    kept = open_data([image] * 4, image_size=96, whole=True).train
    given = WholePhotos(kept).inputs(np.arange(1))
    key, area = jax.random.key(number), 0.4
    aspect = jnp.asarray(given["aspect"])
    move, _ = resampling.composed(key, [(moves.crop, (area,))], 1, (96, 96), 32, aspect)
    pixels = given["image"].astype(np.float32) / 255
    view = make_augment(f"crop:{area}", 32)(key, jnp.asarray(pixels), aspect)[0]
    w, h = width * float(move.linear[0, 0, 0]), height * float(move.linear[0, 1, 1])
    assert 0.7 < w / h < 1.4
    left = (float(move.offset[0, 0]) + 1) * width / 2 - w / 2
    top = (float(move.offset[0, 1]) + 1) * height / 2 - h / 2
    part = Image.fromarray(image).resize(
        (32, 32), Image.Resampling.BILINEAR, box=(left, top, left + w, top + h)
    )
    error = np.abs(np.asarray(view) - np.asarray(part, np.float32) / 255)
    assert error.mean() < 4 / 255


def test_what_is_rotated_before_it_is_cut_is_not_distorted():
    """A disc in a wide photo stays round."""
    wide = np.zeros((64, 160, 1), np.uint8)
    y, x = np.mgrid[:64, :160]
    wide[(y - 32) ** 2 + (x - 80) ** 2 < 20**2] = 255
    kept = open_data([wide] * 64, image_size=128, whole=True).train
    given = WholePhotos(kept).inputs(np.arange(64))
    augment = jax.jit(make_augment("rotate:90,crop:0.35:1", 48))
    pixels = given["image"].astype(np.float32) / 255
    views = (
        np.asarray(augment(jax.random.key(0), pixels, given["aspect"]))[..., 0] > 0.5
    )
    inner = views[:, [0, -1]].any((1, 2)) | views[:, :, [0, -1]].any((1, 2))
    assert (~inner).sum() > 8
    for view in views[~inner]:
        rows, columns = view.any(1).sum(), view.any(0).sum()
        assert abs(rows - columns) <= 2


def settings(out, **more):
    usual = {"steps": 2, "batch_size": 4, "view_size": 16, "image_size": 32}
    usual |= {"augment": "crop,flip", "tensorboard": False, "pictures": 0}
    usual |= {"whole_photos": True, "width": 0.25}
    return PretrainConfig(out=str(out), **{**usual, **more})


@pytest.mark.slow
def test_a_run_on_whole_photos(tmp_path, tiny):
    """The same from the device as from a folder, to rounding; another from centres."""
    folder, leaves = as_folder(tmp_path), {}
    for name, more in {
        "resident": {"resident": True},
        "batches": {"resident": False, "cache": False},
        "centres": {"whole_photos": False},
    }.items():
        result = pretrain(settings(tmp_path / name, data=folder, **more))
        encoder = load_encoder(result.encoder)
        assert encoder.preprocessing.image_size == (32, 32)
        leaves[name] = flatten(encoder.params)
    apart = {
        name: sum(
            float(np.abs(leaf - leaves["resident"][path]).sum())
            for path, leaf in found.items()
        )
        for name, found in leaves.items()
    }
    # A sum: AdamW moves a number whose gradient is nearly zero either way.
    assert apart["batches"] < 0.02 * apart["centres"], apart


def test_the_command_shows_views_of_whole_photos(tmp_path, capsys, tiny):
    folder = as_folder(tmp_path).removeprefix("folder:")
    run = tmp_path / "run"
    given = [folder, "--out", str(run), "--image-size", "32", "--whole-photos"]
    given += ["--objective", "simclr", "--augment", "crop,flip"]
    pretrain_command([*given, "--show-augment"])
    assert (run / "pictures" / "augment.png").is_file()
    capsys.readouterr()


@pytest.mark.parametrize("augment", ["none", "flip,color", "color,crop", "symmetries"])
def test_views_must_be_cut_first(augment):
    with pytest.raises(UserError, match="crop must come first"):
        settings("run", augment=augment, view_size=None)


@pytest.mark.parametrize("augment", ["crop", "rotate:5,crop,color", "photos"])
def test_what_may_come_before_the_cut(augment):
    assert settings("run", augment=augment).whole_photos


def test_packed_photos_survive_any_order_of_rows():
    data = [photo(number) for number in NUMBERS]
    kept = open_data(data, image_size=32, whole=True).train
    rows = WholePhotos(kept)
    every = rows.inputs(np.arange(12))
    for one, other in itertools.permutations([3, 9, 11], 2):
        found = rows.inputs(np.array([one, other]))
        np.testing.assert_array_equal(found["image"], every["image"][[one, other]])
        np.testing.assert_array_equal(found["aspect"], every["aspect"][[one, other]])
    assert rows.row_bytes == 32 * 32 * 3 + 4
    assert rows.inputs(np.arange(0))["image"].shape == (0, 32, 32, 3)
    assert kept.gather([]).shape == (0, 32, 32, 3)


def test_what_is_not_augmented_is_the_central_square():
    """On the device, for losses of the image itself."""
    data = [photo(number) for number in NUMBERS]
    kept = open_data(data, image_size=SIDE, whole=True).train
    given = WholePhotos(kept).inputs(np.arange(12))
    pixels = jnp.asarray(given["image"], jnp.float32) / 255
    found = jax.jit(resampling.central_squares)(pixels, jnp.asarray(given["aspect"]))
    wanted = kept.gather(np.arange(12)).astype(np.float32) / 255
    assert np.abs(np.asarray(found) - wanted).mean() < 3 / 255
    wide = jnp.asarray(np.random.default_rng(0).uniform(0, 1, (2, 8, 12, 3)), "float32")
    same = resampling.central_squares(wide, jnp.full(2, 12 / 8, "float32"))
    np.testing.assert_allclose(same, wide, atol=1e-5)


def test_the_recipe_cuts_views_of_whole_photos_even_of_writing(tmp_path, capsys):
    found = recommend(
        "characters", out=str(tmp_path / "run"), steps=2, whole_photos=True
    )
    assert found.augment == "photos"
    assert found.whole_photos
    capsys.readouterr()


def test_photos_of_several_sources_stay_whole():
    """Joined without a copy, as `--sources` joins them."""
    parts = [[photo(n) for n in range(4)], [photo(n) for n in range(4, 10)]]
    sets = [open_data(one, image_size=32, whole=True).train for one in parts]
    alone = [WholePhotos(one).inputs(np.arange(len(one))) for one in sets]
    joined = dataclasses.replace(
        sets[0],
        images=Joined([one.images for one in sets]),
        ids=[str(number) for number in range(10)],
    )
    rows = np.array([7, 0, 9, 3, 4])
    found = WholePhotos(joined.subset(np.arange(10)[::-1])).inputs(9 - rows)
    for name, values in found.items():
        wanted = np.concatenate([one[name] for one in alone])[rows]
        np.testing.assert_array_equal(values, wanted)


@pytest.mark.parametrize(
    ("stream", "whole"),
    [
        ({}, True),
        ({"augment": "shift"}, False),
        ({"augment": "crop:0.5", "views": {"strong": "crop,color"}}, True),
        ({"views": {"strong": "strong"}}, False),
    ],
)
def test_streams_are_whole_if_all_of_their_views_are_cut(stream, whole):
    images = open_data([photo(0)] * 3, image_size=32, whole=True).train
    config = FinetuneConfig(
        data="photos", from_="run", out="x", augment="crop,flip", whole_photos=True
    )
    rows = Stream(images, **stream).rows(config)
    assert isinstance(rows, WholePhotos if whole else ImageSet)
    alone = dataclasses.replace(config, whole_photos=False)
    assert Stream(images, **stream).rows(alone) is images


@pytest.mark.slow
def test_fine_tuning_on_whole_photos(tmp_path, tiny, monkeypatch):
    """The labelled stream is whole; one whose augmentation cuts nothing is centred."""
    root = tmp_path / "photos"
    for number in NUMBERS:
        place = root / "ab"[number % 2] / f"{number:02}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(encoded(number))
    run = pretrain(settings(tmp_path / "run", data=str(root))).encoder
    read, shown = [], BatchLoader.__init__

    def spy(self, images, **more):
        read.append((images, more["streams"]))
        shown(self, images, **more)

    monkeypatch.setattr(BatchLoader, "__init__", spy)
    config = FinetuneConfig(
        data=str(root),
        from_=str(run),
        out=str(tmp_path / "tuned"),
        methods=({"name": "pseudo-labels", "images": str(root)},),
        augment="crop,flip",
        whole_photos=True,
        steps=1,
        batch_size=4,
        tensorboard=False,
    )
    result = finetune(config)
    assert set(result.results["test"]) >= {"accuracy"}
    [(labelled, streams)] = read
    assert isinstance(labelled, WholePhotos)
    assert [type(one) for one in streams.values()] == [ImageSet]
    with pytest.raises(UserError, match="whole_photos"):
        dataclasses.replace(config, augment="shift")
