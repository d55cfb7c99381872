"""Several streams in one feed: names, orders, residency, resume."""

import numpy as np
import pytest

from afterimage.data.arrays import array_set
from afterimage.training.batches import BatchLoader, make_mesh
from afterimage.training.options import TrainingOptions
from afterimage.training.step import _resident_rows


def images(seed, count, labels=False):
    pixels = np.random.default_rng(seed).integers(0, 255, (count, 4, 4, 1), np.uint8)
    known = np.arange(count, dtype=np.int32) if labels else None
    names = tuple(map(str, range(count))) if labels else None
    return array_set(pixels, known, names, f"set {seed}")


def batches(resident, lengths=(1, 1, 1), start=0, **sets):
    options = TrainingOptions(batch_size=4, resident=resident, seed=3)
    feed = BatchLoader(
        images(0, 9, labels=True), options=options, mesh=make_mesh(1), **sets
    )
    found = []
    for _, _, batch in feed.blocks(start, iter(lengths)):
        found.append({**batch, **_resident_rows(batch, feed.data)})
    return found


def test_streams_come_by_name_in_orders_of_their_own():
    target = images(1, 9)
    found = batches(False, streams={"target": target})
    names = {"index", "image", "label", "target/index", "target/image"}
    assert all(set(batch) == names for batch in found)
    for batch in found:
        index = np.asarray(batch["target/index"])
        np.testing.assert_array_equal(batch["target/image"], target.gather(index))
        np.testing.assert_array_equal(batch["label"], batch["index"])
    own, other = (
        np.concatenate([b[k] for b in found]) for k in ("index", "target/index")
    )
    assert own.tolist() != other.tolist()
    # Beside another stream, the labelled one comes as it would alone.
    alone = np.concatenate([b["index"] for b in batches(False)])
    assert own.tolist() == alone.tolist()


@pytest.mark.parametrize("start", [0, 2])
def test_resident_and_streamed_are_the_same_from_any_step(start):
    sets = {"streams": {"target": images(1, 5)}}
    whole = batches(False, (1,) * 4, **sets)[start:]
    for other in (True, False):
        found = batches(other, (1,) * (4 - start), start=start, **sets)
        for one, two in zip(found, whole, strict=True):
            for name in two:
                np.testing.assert_array_equal(one[name], two[name])


@pytest.mark.parametrize("resident", [False, True])
def test_a_stream_may_give_more_images_a_step(resident):
    found = batches(
        resident,
        streams={"target": images(1, 12), "other": images(2, 9)},
        times={"target": 3},
    )
    for batch in found:
        assert batch["image"].shape[0] == batch["other/image"].shape[0] == 4
        assert batch["target/image"].shape[0] == 12
        # An epoch of twelve images is one such step.
        assert sorted(np.asarray(batch["target/index"])) == list(range(12))


def test_stretches_stack_every_stream():
    sets = {"streams": {"target": images(1, 5)}}
    (stacked,) = batches(False, (3,), **sets)
    single = batches(False, **sets)
    for name, value in stacked.items():
        np.testing.assert_array_equal(value, np.stack([b[name] for b in single]))
