"""Data as objects: arrays, mappings, records, and the data sets of other libraries."""

import io
import tracemalloc
import zipfile

import numpy as np
import pytest
from PIL import Image

from afterimage.data import objects, open_data
from afterimage.errors import DataError, UserError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (12, 8, 10, 3), np.uint8)
LABELS = np.arange(12) % 3
NAMES = ("ant", "bee", "cat")


class Map:
    """A map-style data set: `make` gives each record."""

    def __init__(self, make, count=12):
        self.make, self.count, self.read = make, count, []

    def __len__(self):
        return self.count

    def __getitem__(self, row):
        if not 0 <= row < self.count:
            raise IndexError(row)
        self.read.append(row)
        return self.make(row)


def records(**changes):
    return [
        {"image": PIXELS[i], "label": int(LABELS[i]), "id": f"r{i}", **changes}
        for i in range(12)
    ]


def encoded(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def same(found, pixels=PIXELS, labels=LABELS):
    np.testing.assert_array_equal(found.gather(range(len(found))), pixels)
    np.testing.assert_array_equal(found.gather([1, 0]), pixels[[1, 0]])
    if labels is None:
        assert found.labels is None
    else:
        np.testing.assert_array_equal(found.labels, labels)


def test_an_array_is_used_in_place():
    found = open_data(PIXELS)
    same(found.train, labels=None)
    assert np.shares_memory(found.train.images, PIXELS)
    assert found.validation is found.test is None
    grey = open_data(PIXELS[..., 0])
    assert grey.train.shape == (8, 10, 1)
    assert open_data(PIXELS, image_size=4, channels=1).train.shape == (4, 4, 1)


def test_a_memory_map_stays_on_disk(tmp_path):
    np.save(tmp_path / "a.npy", PIXELS)
    found = open_data(np.load(tmp_path / "a.npy", mmap_mode="r"))
    same(found.train, labels=None)
    assert not found.train.in_memory
    assert found.train.fingerprint == open_data(PIXELS).train.fingerprint


def test_a_mapping_of_arrays_is_what_its_npz_file_is(tmp_path):
    arrays = {"x_train": PIXELS, "y_train": LABELS, "x_test": PIXELS[:4]}
    arrays |= {"y_test": LABELS[:4], "y_train_size": LABELS[::-1]}
    np.savez(tmp_path / "a.npz", **arrays)
    found = open_data(arrays, tasks=("size",))
    from_file = open_data(f"npz:{tmp_path / 'a.npz'}", tasks=("size",))
    same(found.train)
    same(found.test, PIXELS[:4], LABELS[:4])
    for split in ("train", "test"):
        one, two = getattr(found, split), getattr(from_file, split)
        assert one.fingerprint == two.fingerprint
    assert found.train.of_task("size").labels.tolist() == LABELS[::-1].tolist()
    split = open_data({"train": PIXELS, "val": PIXELS[:2], "test": PIXELS[:4]})
    assert (len(split.train), len(split.validation), len(split.test)) == (12, 2, 4)


def test_arrays_of_another_library_are_arrays():
    import jax.numpy as jnp

    found = open_data({"images": jnp.asarray(PIXELS), "labels": jnp.asarray(LABELS)})
    same(found.train)


FORMS = {
    "records": records,
    "pairs": lambda: Map(lambda i: (PIXELS[i], int(LABELS[i]))),
    "Pillow": lambda: [(Image.fromarray(PIXELS[i]), LABELS[i]) for i in range(12)],
    "encoded": lambda: [
        {"image": encoded(p), "label": n} for p, n in zip(PIXELS, LABELS)
    ],
    "undecoded": lambda: Map(
        lambda i: {
            "image": {"bytes": encoded(PIXELS[i]), "path": None},
            "label": LABELS[i],
        }
    ),
    "floats": lambda: Map(lambda i: (PIXELS[i] / 255, LABELS[i : i + 1])),
}


@pytest.mark.parametrize("form", FORMS)
def test_records_of_every_form(form):
    found = open_data(FORMS[form]()).train
    same(found)
    assert found.class_names == ("0", "1", "2")
    assert found.fingerprint == open_data(FORMS[form]()).train.fingerprint


def test_images_alone_names_and_ids():
    same(open_data(list(PIXELS)).train, labels=None)
    found = open_data(records()).train
    assert found.ids[:2] == ["r0", "r1"]
    texts = open_data([{**r, "label": NAMES[r["label"]]} for r in records()]).train
    assert texts.class_names == NAMES
    same(texts)
    some = [{**r, "label": None if i < 2 else i % 2} for i, r in enumerate(records())]
    assert open_data(some).train.labels.tolist()[:4] == [-1, -1, 0, 1]


def test_splits_of_records_share_classes_and_tasks():
    data = {"train": records(size=5), "validation": records(size=7)[:6]}
    found = open_data(data, tasks=("size",))
    same(found.train)
    same(found.validation, PIXELS[:6], LABELS[:6])
    assert found.validation.of_task("size").labels.tolist() == [1] * 6
    assert found.train.of_task("size").class_names == ("5", "7")


def test_images_of_any_size_are_brought_to_one():
    images = [
        Image.new("L" if i % 2 else "RGB", (20 + i, 10 + 2 * i)) for i in range(6)
    ]
    with pytest.raises(DataError, match=r"record 1.*image_size"):
        open_data(images)
    found = open_data(images, image_size=8, channels=3).train
    assert found.shape == (8, 8, 3)


def test_orientation_and_transparency_are_those_of_files():
    image = Image.fromarray(PIXELS[0])
    image.getexif()[0x0112] = 6
    (turned,) = open_data([image]).train.gather([0])
    np.testing.assert_array_equal(turned, np.rot90(PIXELS[0], -1))
    clear = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    assert open_data([clear]).train.gather([0]).min() == 255
    assert open_data([clear], channels=4).train.shape == (4, 4, 4)


def test_wide_numbers_want_a_range():
    wide = [(PIXELS[i].astype(np.uint16) * 16, 0) for i in range(12)]
    with pytest.raises(DataError, match=r"record \d.*value_range"):
        open_data(wide)
    same(open_data(wide, value_range=(0.0, 4080.0)).train, labels=np.zeros(12))
    low, high = open_data(wide, value_range="auto").train.value_range
    assert 0 <= low < high <= 4080
    deep = [Image.fromarray(PIXELS[i, ..., 0].astype(np.uint16) * 16) for i in range(3)]
    found = open_data(deep, value_range="0,4080").train
    np.testing.assert_array_equal(found.gather([2])[0, ..., 0], PIXELS[2, ..., 0])
    with pytest.raises(DataError, match="8 bits"):
        open_data(records(), value_range="auto")


def nan():
    pixels = PIXELS[3] / 255
    pixels[0, 0, 0] = np.nan
    return pixels


@pytest.mark.parametrize(
    ("image", "said"),
    [
        pytest.param(nan(), "NaN", id="NaN"),
        pytest.param(PIXELS[3] * 1.0, "value_range", id="range"),
        pytest.param(PIXELS[3].transpose(2, 0, 1), "transpose", id="channels first"),
        pytest.param(np.zeros((8, 10, 5), np.uint8), "channels=5", id="bands"),
        pytest.param(np.zeros(5), "(5,)", id="a vector"),
        pytest.param("a.png", "csv:PATH", id="a path"),
        pytest.param(encoded(PIXELS[3])[:60], "record 3", id="broken"),
        pytest.param(None, "record 3", id="nothing"),
    ],
)
def test_a_bad_record_is_named_or_skipped(image, said):
    data = records()
    data[3]["image"] = image
    with pytest.raises(DataError, match="record 3") as error:
        open_data(data)
    assert said in str(error.value)
    found = open_data(data, on_bad_image="skip").train
    assert [bad.path for bad in found.skipped] == ["record 3"]
    rest = np.delete(np.arange(12), 3)
    same(found, PIXELS[rest], LABELS[rest])


def test_what_raises_is_named():
    def make(row):
        if row == 5:
            raise OSError("the disk is gone")
        return PIXELS[row]

    with pytest.raises(DataError, match=r"record 5.*the disk is gone"):
        open_data(Map(make))


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        pytest.param([np.eye(3)[i % 3] for i in range(12)], "argmax", id="one-hot"),
        pytest.param([0.5] * 12, "0.5", id="fraction"),
        pytest.param([-2] * 12, "-2", id="negative"),
        pytest.param([0, "a"] * 6, None, id="mixed"),
    ],
)
def test_labels_that_are_none(labels, said):
    data = [(PIXELS[i], label) for i, label in enumerate(labels)]
    if said is None:
        assert open_data(data).train.class_names == ("0", "a")
        return
    with pytest.raises(DataError, match=said):
        open_data(data)


CHANGES = {
    "pixel": lambda d: d[7].update(image=PIXELS[7] ^ 1),
    "label": lambda d: d[7].update(label=0),
    "id": lambda d: d[7].update(id="other"),
    "order": lambda d: d.reverse(),
    "fewer": lambda d: d.pop(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_another_fingerprint(change):
    data = records()
    before = open_data(data).train.fingerprint
    assert open_data(data).train.fingerprint == before
    CHANGES[change](data)
    assert open_data(data).train.fingerprint != before


def test_random_transformations_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(DataError, match="random"):
        open_data(Map(lambda i: rng.integers(0, 256, (8, 8, 3), np.uint8)))


def test_what_does_not_fit_stays_lazy_and_is_compared(monkeypatch):
    pixels = PIXELS.copy()
    data = Map(lambda i: (pixels[i], LABELS[i]))
    inside = open_data(data).train
    monkeypatch.setattr(objects, "_IN_MEMORY", 1000)
    found = open_data(data).train
    assert inside.in_memory
    assert not found.in_memory
    assert found.fingerprint == inside.fingerprint
    data.read.clear()
    np.testing.assert_array_equal(found.gather([5, 2]), PIXELS[[5, 2]])
    assert data.read == [5, 2]
    pixels[5] ^= 1
    with pytest.raises(DataError, match="record 5"):
        found.gather([5])


def test_memory_of_lazy_records_is_bounded(monkeypatch):
    monkeypatch.setattr(objects, "_IN_MEMORY", 2**20)
    data = Map(lambda i: np.full((256, 256, 3), i % 256, np.uint8), 100)
    tracemalloc.start()
    found = open_data(data, image_size=128).train
    assert found.gather([99])[0, 0, 0, 0] == 99
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 40 * 2**20


class _Frame:
    """Rows in order only."""

    def __iter__(self):
        return iter(())


_Frame.__module__ = "tensorflow.data"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param((i for i in range(3)), id="generator"),
        pytest.param(iter(PIXELS), id="iterator"),
        pytest.param({1, 2}, id="set"),
        pytest.param(None, id="None"),
        pytest.param(7, id="number"),
        pytest.param(b"bytes", id="bytes"),
        pytest.param(_Frame(), id="tf.data"),
        pytest.param({"a": PIXELS, "b": PIXELS}, id="mapping"),
        pytest.param({}, id="empty mapping"),
        pytest.param([], id="empty list"),
        pytest.param({"train": PIXELS, "training": PIXELS}, id="split twice"),
        pytest.param(Map(lambda i: 0, 2**40), id="endless"),
        pytest.param({"images": [[1, 2], [3]]}, id="ragged"),
        pytest.param(np.ma.masked_equal(PIXELS, 3), id="masked"),
        pytest.param(np.zeros((3, 3)), id="no images"),
        pytest.param((PIXELS, LABELS), id="arrays in a tuple"),
        pytest.param([{"pixels": PIXELS[0]}], id="no image"),
    ],
)
def test_everything_else_is_an_error(data):
    with pytest.raises(UserError):
        open_data(data)


@pytest.mark.parametrize("name", ["pandas", "polars"])
def test_frames_are_refused_with_what_to_do(name):
    kind = type("DataFrame", (Map,), {"__module__": f"{name}.core"})
    with pytest.raises(UserError, match="csv:PATH") as error:
        open_data(kind(lambda i: 0))
    assert "x_train" in str(error.value)


def test_options_of_folders_do_not_apply():
    from afterimage.reading import ReadingOptions

    with pytest.raises(UserError, match="mapping"):
        open_data(PIXELS, reading=ReadingOptions(train="a"))
    assert open_data(PIXELS, reading=ReadingOptions(train="a"), strict=False)


def test_splits_of_different_shapes_want_a_size():
    data = {"train": list(PIXELS), "test": list(PIXELS[:, :7])}
    with pytest.raises(DataError, match="image_size"):
        open_data(data)
    assert open_data(data, image_size=6, channels=3).test.shape == (6, 6, 3)


class ClassLabel:
    names = NAMES


class FakeImage:
    """Named as the feature of Hugging Face and TFDS is."""


FakeImage.__name__ = "Image"


class Columns(Map):
    """Like `datasets.Dataset`: labels are read without the images."""

    column_names = ("picture", "kind")

    def __init__(self, count=12):
        super().__init__(
            lambda i: {"picture": PIXELS[i % 12], "kind": int(LABELS[i % 12])}, count
        )
        self.features = {"picture": FakeImage(), "kind": ClassLabel()}

    def __getitem__(self, row):
        if row == "kind":
            return [int(LABELS[i % 12]) for i in range(self.count)]
        return super().__getitem__(row)


def test_features_name_image_label_and_classes():
    found = open_data(Columns()).train
    same(found)
    assert found.class_names == NAMES


def test_a_large_set_with_columns_is_sampled(monkeypatch):
    monkeypatch.setattr(objects, "_IN_MEMORY", 1000)
    monkeypatch.setattr(objects, "_SAMPLE", 10)
    data = Columns(400)
    found = open_data(data).train
    assert len(data.read) < 20
    assert found.labels.tolist() == (np.arange(400) % 12 % 3).tolist()
    assert found.class_names == NAMES
    np.testing.assert_array_equal(found.gather([399, 13]), PIXELS[[3, 1]])
    assert found.fingerprint == open_data(Columns(400)).train.fingerprint
    assert found.fingerprint != open_data(Columns(399)).train.fingerprint


def test_tfds_data_sources():
    """As `tfds.data_source("…")` gives them: a mapping of splits."""
    import tensorflow_datasets as tfds

    from afterimage.data.sources.digits import _records

    splits = _records()
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(),
            "label": tfds.features.ClassLabel(names=list("abcdefghij")),
        }
    )

    class Source(Map):
        dataset_info = type("Info", (), {"features": features})()

    data = {s: Source(r.__getitem__, len(r)) for s, r in splits.items()}
    found, digits = open_data(data), open_data("digits")
    for split in ("train", "test"):
        one, two = getattr(found, split), getattr(digits, split)
        same(one, two.gather(range(len(two))), two.labels)
        assert one.ids == list(two.ids)
    assert found.train.class_names == tuple("abcdefghij")


def test_grain_data_sets():
    import grain

    data = grain.MapDataset.source(records())
    same(open_data(data).train)
    same(
        open_data(data.map(lambda r: {**r, "image": r["image"] ^ 1})).train, PIXELS ^ 1
    )
    with pytest.raises(DataError, match="repeat"):
        open_data(data.repeat())


def test_hugging_face_data_sets(monkeypatch):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=list(NAMES))}
    )
    rows = {
        "picture": [Image.fromarray(p) for p in PIXELS],
        "kind": LABELS.tolist(),
    }
    whole = datasets.Dataset.from_dict(rows, features=features)
    found = open_data(datasets.DatasetDict(train=whole, test=whole.select([3, 1])))
    same(found.train)
    same(found.test, PIXELS[[3, 1]], LABELS[[3, 1]])
    assert found.train.class_names == NAMES
    raw = whole.cast_column("picture", datasets.Image(decode=False))
    same(open_data(raw).train)
    monkeypatch.setattr(objects, "_IN_MEMORY", 1000)
    monkeypatch.setattr(objects, "_SAMPLE", 4)
    sampled = open_data(whole).train
    assert not sampled.in_memory
    same(sampled)


@pytest.mark.slow
def test_pretraining_takes_an_object_and_resumes_with_it_only(tmp_path):
    from afterimage.pretrain import PretrainConfig, pretrain

    def run(data, steps=2):
        config = PretrainConfig(
            out=str(tmp_path / "run"),
            steps=steps,
            batch_size=4,
            pictures=0,
            width=0.5,
        )
        return pretrain(config, data=data)

    assert run(records()).steps == 2
    assert run(records()).steps == 2
    other = records()
    other[0]["image"] = PIXELS[1]
    with pytest.raises(UserError, match="list"):
        run(other)
    with pytest.raises(UserError, match="object:ndarray"):
        run(PIXELS)


@pytest.mark.parametrize("spelt", [str, lambda path: path], ids=["text", "Path"])
def test_a_path_is_enough(tmp_path, spelt):
    folder = tmp_path / "photos" / "ant"
    folder.mkdir(parents=True)
    for i in range(4):
        Image.fromarray(PIXELS[i]).save(folder / f"{i}.png")
    rows = "".join(f"ant/{i}.png,{LABELS[i]}\n" for i in range(4))
    (tmp_path / "photos" / "list.csv").write_text(f"image,label\n{rows}")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for i in range(4):
            archive.write(folder / f"{i}.png", f"{i}.png")
    np.savez(tmp_path / "a.npz", images=PIXELS[:4])
    for name in ("photos", "photos/list.csv", "a.zip", "a.npz"):
        found = open_data(spelt(tmp_path / name)).train
        np.testing.assert_array_equal(found.gather([2]), PIXELS[2:3])
    single = open_data(spelt(tmp_path / "photos/ant/1.png")).train
    np.testing.assert_array_equal(single.gather([0]), PIXELS[1:2])
    with pytest.raises(UserError, match="nothing"):
        open_data(spelt(tmp_path / "nothing"))
