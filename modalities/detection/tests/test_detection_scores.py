"""mAP beside pycocotools, and cases that can be counted by hand."""

import numpy as np
import pytest
from afterimage_detection import average_precision

NAMES = ("a", "b", "c")


def by_pycocotools(truth, found, crowd_area=1.0):
    """(mAP, at 0.5, at 0.75, by class) of the same boxes."""
    coco = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")

    def box(row):
        x1, y1, x2, y2 = row[:4].tolist()
        return [x1, y1, x2 - x1, y2 - y1]

    rows = [(n, row) for n, own in enumerate(truth, 1) for row in own]
    objects = [
        {
            "id": k,
            "image_id": n,
            "category_id": int(row[4] if row[4] >= 0 else -2 - row[4]),
            "bbox": box(row),
            "area": crowd_area,
            "iscrowd": int(row[4] < 0),
        }
        for k, (n, row) in enumerate(rows, 1)
    ]
    results = [
        {
            "image_id": n,
            "category_id": int(row[4]),
            "bbox": box(row),
            "score": float(row[5]),
        }
        for n, own in enumerate(found, 1)
        for row in own
    ]
    known = coco.COCO()
    known.dataset = {
        "info": {},
        "images": [{"id": n} for n in range(1, len(truth) + 1)],
        "categories": [{"id": k, "name": name} for k, name in enumerate(NAMES)],
        "annotations": objects,
    }
    known.createIndex()
    run = evaluation.COCOeval(known, known.loadRes(results), "bbox")
    run.evaluate()
    run.accumulate()
    run.summarize()
    precision = run.eval["precision"][:, :, :, 0, 2]  # of all areas, 100 boxes
    each = [precision[:, :, k] for k in range(len(NAMES))]
    return run.stats[:3], [p.mean() if (p > -1).all() else None for p in each]


def boxes(rng, count):
    corner, side = rng.integers(0, 40, (count, 2)), rng.integers(3, 20, (count, 2))
    return np.concatenate([corner, corner + side], 1).astype(float)


def data(seed, images=12, most=6, classes=3, extra=130):
    """Objects, some of them crowds, and boxes near them, some equal, and others."""
    rng = np.random.default_rng(seed)
    truth, found = [], []
    for image in range(images):
        own = boxes(rng, rng.integers(0, most + 1))
        kind = rng.integers(0, classes, len(own))
        crowd = rng.random(len(own)) < 0.2
        truth.append(np.column_stack([own, np.where(crowd, -2 - kind, kind)]))
        near = np.repeat(own, 3, 0) + rng.integers(-2, 3, (3 * len(own), 4))
        near = near[(near[:, 2:] > near[:, :2]).all(1)]
        # In one image more than 100, of which the others do not count.
        near = np.concatenate([near, boxes(rng, extra if image == 0 else 4)])
        some = rng.integers(0, classes, len(near))
        some[: 3 * len(own)] = np.repeat(kind, 3)[: min(len(near), 3 * len(own))]
        score = rng.integers(0, 20, len(near)) / 20  # many are equal
        found.append(np.column_stack([near, some, score]))
    return truth, found


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("seed", "more"),
    [(0, {}), (1, {"classes": 1, "extra": 300}), (2, {"classes": 2, "most": 1})],
    ids=["three classes", "one class, more than 100 boxes", "few objects"],
)
def test_it_is_pycocotools_map(seed, more):
    truth, found = data(seed, **more)
    means, each = by_pycocotools(truth, found)
    ours = average_precision(truth, found, NAMES)
    np.testing.assert_allclose(
        [ours["map"], ours["map50"], ours["map75"]], means, rtol=0, atol=1e-12
    )
    assert 0.01 < ours["map"] < 0.99
    for own, other in zip(ours["ap"].values(), each):
        assert own == (None if other is None else pytest.approx(other, abs=1e-12))


def test_by_hand():
    square = np.array([[0, 0, 10, 10, 0.0]])
    truth = [square, np.array([[20, 0, 30, 10, 0.0]])]
    right = np.array([[0, 0, 10, 10, 0, 0.9]])
    wrong = np.array([[50, 0, 60, 10, 0, 0.95]])
    nothing = np.zeros((0, 6))
    # One of two objects: precision 1 up to a recall of 0.5, 51 of 101 places.
    ours = average_precision(truth, [right, nothing], ("a",))
    assert ours["map"] == pytest.approx(51 / 101)
    # A wrong box with a higher score: precision 1/2 there.
    ours = average_precision(truth, [right, wrong], ("a",))
    assert ours["map"] == pytest.approx(51 / 202)
    # IoU 0.8 counts at 7 of 10 thresholds.
    near = np.array([[0, 0, 10, 8, 0, 0.9]])
    ours = average_precision(truth[:1], [near], ("a",))
    assert ours["map"] == pytest.approx(0.7)
    # In a crowd a box is neither right nor wrong.
    crowd = [np.array([[20, 20, 50, 50, -2.0]]), square]
    inside = np.array([[25, 25, 30, 30, 0, 0.99]])
    ours = average_precision(crowd, [inside, right], ("a",))
    assert ours["map"] == pytest.approx(1)
    ours = average_precision([nothing[:, :5]], [right], ("a",))
    assert (ours["map"], ours["ap"]) == (0, {"a": None})
