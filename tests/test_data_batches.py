"""Batches: pure, complete, the same for any number of hosts, honest about failure."""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afterimage.data import array_set
from afterimage.data.sets import Columns
from afterimage.errors import DataError, UserError
from afterimage.training.batches import (
    Batches,
    BatchLoader,
    Buffers,
    EvaluationRunner,
    batch_indices,
    eval_batches,
    make_mesh,
)
from afterimage.training.options import TrainingOptions


def image_set(count=20, labels=True):
    images = np.arange(count, dtype=np.uint8)[:, None, None, None] + np.zeros(
        (1, 8, 8, 1), np.uint8
    )
    numbers = np.arange(count, dtype=np.int32) % 3 if labels else None
    return array_set(images, numbers, ("a", "b", "c") if labels else None, "set")


def take(batches, count):
    iterator = iter(batches)
    try:
        return list(itertools.islice(iterator, count))
    finally:
        iterator.close()


@settings(deadline=None)
@given(
    size=st.integers(1, 50),
    batch=st.integers(1, 70),
    seed=st.integers(0, 2**31),
    epochs=st.integers(1, 3),
)
def test_every_epoch_visits_each_index_once(size, batch, seed, epochs):
    steps = -(-size * epochs // batch)
    seen = np.concatenate([batch_indices(size, batch, seed, s) for s in range(steps)])
    assert len(seen) == steps * batch
    for epoch in range(epochs):
        part = np.sort(seen[epoch * size : (epoch + 1) * size])
        np.testing.assert_array_equal(part, np.arange(size))


def test_the_order_depends_on_seed_and_epoch():
    first = batch_indices(100, 100, 0, 0)
    assert not np.array_equal(first, batch_indices(100, 100, 0, 1))
    assert not np.array_equal(first, batch_indices(100, 100, 1, 0))
    np.testing.assert_array_equal(first, batch_indices(100, 100, 0, 0))


@settings(deadline=None)
@given(hosts=st.sampled_from([1, 2, 3, 4, 6]), step=st.integers(0, 30))
def test_hosts_partition_the_global_batch(hosts, step):
    images = image_set()
    parts = [
        Batches(images, batch_size=12, seed=3, host=h, hosts=hosts)[step]
        for h in range(hosts)
    ]
    joined = np.concatenate([part["index"] for part in parts])
    np.testing.assert_array_equal(joined, batch_indices(20, 12, 3, step))


def test_resume_is_starting_later():
    images = image_set()
    whole = take(Batches(images, batch_size=6, seed=1), 9)
    later = take(Batches(images, batch_size=6, seed=1, start=4), 5)
    for a, b in zip(whole[4:], later, strict=True):
        assert a.keys() == b.keys() == {"step", "index", "image", "label"}
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])
    assert [b["step"] for b in whole] == list(range(9))


@pytest.mark.parametrize("resident", [False, True])
def test_batches_that_travel_together_are_those_of_their_steps(resident):
    for images in (image_set(), image_set().subset(np.arange(15))):
        batches = Batches(images, batch_size=6, seed=1, start=3, resident=resident)
        assert images.in_memory
        for step, batch in enumerate(take(batches, 20), start=3):
            for key, value in batches[step].items():
                np.testing.assert_array_equal(batch[key], value)


def test_large_batches_prepared_by_several_threads_come_in_order(monkeypatch):
    monkeypatch.setattr("afterimage.training.batches.cores", lambda: 3)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (50, 160, 160, 3), np.uint8)
    part = array_set(pixels, None, None, "large").subset(np.arange(49, -1, -1))
    batches = Batches(part, batch_size=64, seed=1, start=3)
    for step, batch in enumerate(take(batches, 9), start=3):
        assert batch["step"] == step
        np.testing.assert_array_equal(batch["image"], pixels[::-1][batch["index"]])


@pytest.mark.parametrize("on_device", [False, True])
def test_memory_is_used_again_only_when_nothing_refers_to_it(on_device, monkeypatch):
    """Batches that are kept, or device arrays made of them, stay as they were."""
    monkeypatch.setattr("afterimage.training.batches.cores", lambda: 2)
    pixels = np.arange(256, dtype=np.uint8).repeat(160 * 160 * 3)
    whole = array_set(pixels.reshape(256, 160, 160, 3), None, None, "large")
    kept, places = [], set()
    iterator = iter(Batches(whole, batch_size=64, seed=1))
    for number, batch in enumerate(itertools.islice(iterator, 60)):
        places.add(batch["image"].ctypes.data)
        if number % 7 == 0:
            image = batch["image"]
            image = jax.device_put(image) if on_device else image[:, ::2]
            kept.append((batch["index"], image))
        del batch
    iterator.close()
    assert len(kept) == 9
    for index, image in kept:
        np.testing.assert_array_equal(np.asarray(image)[:, 0, 0, 0], index)
        np.testing.assert_array_equal(np.asarray(image)[:, -1, -1, -1], index)
    assert len(places) < 30


def test_buffers_of_another_shape_or_thread_are_others():
    buffers = Buffers(most=2)
    a = buffers.take((2, 3), np.dtype(np.uint8))
    b = buffers.take((2, 3), np.dtype(np.uint8))
    c = buffers.take((2, 3), np.dtype(np.uint8))
    assert len({x.ctypes.data for x in (a, b, c)}) == 3
    place, view = a.ctypes.data, b[1:]
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(buffers.take, (2, 3), np.dtype(np.uint8)).result()
    assert other.ctypes.data not in {x.ctypes.data for x in (a, b, c)}
    del a, b
    assert buffers.take((3, 2), np.dtype(np.uint8)).ctypes.data != place
    assert buffers.take((2, 3), np.dtype(np.uint8)).ctypes.data == place
    assert view.base is not None


@pytest.mark.parametrize("part", [False, True])
def test_rows_are_gathered_from_both_ends(part):
    images = image_set().subset(np.arange(19, -1, -1)) if part else image_set()
    pixels, rows = np.asarray(images.images), np.array([3, -1, 0, 3])
    for buffers in (None, Buffers()):
        np.testing.assert_array_equal(
            images.gather(rows, buffers and buffers.take), pixels[rows]
        )
        with pytest.raises(IndexError):
            images.gather(np.arange(21), buffers and buffers.take)


def test_images_and_labels_belong_to_their_index():
    (batch,) = take(Batches(image_set(), batch_size=6, seed=1), 1)
    assert batch["index"].dtype == batch["label"].dtype == np.int32
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["index"])
    np.testing.assert_array_equal(batch["label"], batch["index"] % 3)


def test_resident_and_unlabelled_leave_out_what_is_not_needed():
    (batch,) = take(Batches(image_set(labels=False), batch_size=6, seed=1), 1)
    assert batch.keys() == {"step", "index", "image"}
    (batch,) = take(Batches(image_set(), batch_size=6, seed=1, resident=True), 1)
    assert batch.keys() == {"step", "index", "label"}


def test_a_failing_reader_is_raised_and_its_thread_ends():
    class Broken:
        shape = (20, 8, 8, 1)

        def __len__(self):
            return 20

        def __getitem__(self, index):
            raise DataError("disk gone")

    good = image_set()
    images = type(good)(Broken(), good.labels, good.ids, good.class_names, "x", "f")
    with pytest.raises(DataError, match="disk gone"):
        take(Batches(images, batch_size=4, seed=0), 1)


def test_threads_end_with_the_iterator():
    def grain_threads():
        return [t for t in threading.enumerate() if t.name.startswith("grain-prefetch")]

    before = set(grain_threads())
    iterator = iter(Batches(image_set(), batch_size=4, seed=0))
    next(iterator)
    started = [t for t in grain_threads() if t not in before]
    assert started
    iterator.close()
    for thread in started:
        thread.join(5)
        assert not thread.is_alive()


def test_eval_batches_pad_and_mask():
    batches = list(eval_batches(image_set(), 8))
    assert [b["image"].shape for b in batches] == [(8, 8, 8, 1)] * 3
    kept = np.concatenate([b["index"][b["mask"]] for b in batches])
    np.testing.assert_array_equal(kept, np.arange(20))
    assert batches[-1]["mask"].tolist() == [True] * 4 + [False] * 4


TOKENS = Columns(
    "reviews",
    {
        "tokens": np.arange(40, dtype=np.int32).reshape(20, 2),
        "label": np.arange(20, dtype=np.int32),
    },
    [f"row {row}" for row in range(20)],
)


@pytest.mark.parametrize("resident", [False, True])
def test_rows_of_any_kind_make_batches(resident):
    options = TrainingOptions(batch_size=6, resident=resident)
    loader = BatchLoader(TOKENS, options=options, mesh=make_mesh(1))
    feed = loader.blocks(2, itertools.repeat(1))
    _, index, batch = next(feed)
    feed.close()
    rows = batch | {n: a[index[0]] for n, a in loader.data.items()}
    np.testing.assert_array_equal(index[0], batch_indices(20, 6, 0, 2))
    np.testing.assert_array_equal(rows["label"], index[0])
    np.testing.assert_array_equal(rows["tokens"][:, 0], 2 * index[0])
    assert ("tokens" in batch) != resident


def test_evaluation_of_rows_of_any_kind():
    runner = EvaluationRunner(make_mesh(1), 8)
    batches = [(batch, mask) for _, batch, mask in runner.batches(TOKENS)]
    assert all(set(batch) == {"tokens", "mask"} for batch, _ in batches)
    kept = np.concatenate([np.asarray(b["tokens"])[mask] for b, mask in batches])
    np.testing.assert_array_equal(kept, TOKENS.arrays["tokens"])


def test_names_that_a_batch_has_are_refused():
    with pytest.raises(DataError, match="its own mask"):
        Columns("cells", {"mask": np.zeros((3, 2))}, ["a", "b", "c"])


def test_columns_of_different_lengths():
    with pytest.raises(DataError, match="'ids': 3"):
        Columns("reviews", {"tokens": np.zeros((4, 2))}, ["a", "b", "c"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 7, "hosts": 2}, "try 6"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 4, "host": 2, "hosts": 2}, "host=2"),
        ({"batch_size": 4, "seed": -1}, "seed=-1"),
    ],
)
def test_settings_that_cannot_work(options, message):
    with pytest.raises(UserError, match=message):
        Batches(image_set(), **({"seed": 0} | options))
