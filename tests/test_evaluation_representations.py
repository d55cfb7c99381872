import dataclasses
import json

import numpy as np
import pytest

from afterimage.data.sets import array_set
from afterimage.encoder import load_encoder
from afterimage.errors import DataError, UserError
from afterimage.evaluation import vectors as layers_module
from afterimage.evaluation.representations import (
    PROBES,
    Protocol,
    representation_report,
)
from afterimage.evaluation.text import representation_text
from afterimage.evaluation.vectors import (
    Representation,
    encoder_representation,
    pixel_representation,
)
from tests import encoder_artefact
from tests.encoder_artefact import pictures

NAMES = ("a", "b", "c")
QUICK = Protocol(per_class=(1, 5), seeds=3, batch_size=32)


def image_set(n, seed, name):
    """Images whose brightness hints at the class, whose pixels are noise."""
    labels = (np.arange(n) % 3).astype(np.int32)
    noise = pictures(n, size=(8, 8), channels=1, seed=seed)
    images = (noise // 4 + 60 * labels[:, None, None, None]).astype(np.uint8)
    return array_set(images, labels, NAMES, name)


TRAIN, TEST = image_set(90, 0, "train"), image_set(45, 1, "test")


def planted(images):
    """Layers of noise, of brightness beside a constant, of brightness alone."""
    for batch in images:
        x = batch.reshape(len(batch), -1).astype(np.float32)
        mid = x.mean(1) - 90
        yield {
            "noise": x[:, :3] - x.mean(1, keepdims=True),
            # As an angle, since cosines do not see length; its size, since no line
            # through three classes in a row is highest in the middle.
            "bright": np.stack([mid, np.abs(mid), 0 * mid + 40], axis=1),
            "bright too": np.stack([mid, np.abs(mid)], axis=1),
        }


PLANTED = Representation("planted", planted, "noise", ("noise", "bright"))


def test_the_planted_layer_is_best_and_has_its_own_row():
    report = representation_report([PLANTED], TRAIN, TEST, QUICK)
    assert report["best"] == {"planted": "bright"}  # the first of equal ones
    assert list(report["accuracy"]) == ["planted", "planted, bright"]
    for probe in PROBES:
        worse, better = (report["accuracy"][row][probe] for row in report["accuracy"])
        assert list(better) == ["1", "5", "all"]
        assert better["all"]["mean"] > 0.95 > 0.6 > worse["all"]["mean"]
        assert better["5"]["n"] == 3
        assert better["5"]["mean"] == pytest.approx(np.mean(better["5"]["values"]))
        assert better["5"]["std"] == pytest.approx(
            np.std(better["5"]["values"], ddof=1)
        )
        assert better["all"]["std"] is None
    bright = report["layers"]["planted"][1]
    assert bright["layer"] == "bright"
    assert bright["dimensions"] == 3
    assert bright["collapsed"] == 1
    cka = np.array(report["alignment"]["planted"]["cka"])
    np.testing.assert_allclose(np.diag(cka), 1)
    assert cka[0, 1] < 0.5
    assert json.loads(json.dumps(report)) == report


def test_only_the_probes_that_are_asked_for_are_fitted_and_score_the_same():
    whole = representation_report([PLANTED], TRAIN, TEST, QUICK)
    one = dataclasses.replace(QUICK, probes=("linear probe",))
    report = representation_report([PLANTED], TRAIN, TEST, one)
    assert list(report["accuracy"]) == list(whole["accuracy"])
    for row, found in report["accuracy"].items():
        kind = "linear probe"
        assert found == {kind: whole["accuracy"][row][kind]}


def test_the_text_has_every_row_and_marks_the_best_layer():
    report = representation_report([PLANTED], TRAIN, TEST, QUICK)
    text = representation_text(report)
    rows = [line for line in text.splitlines() if "| planted, bright " in line]
    assert [row.split("|")[1].strip() for row in rows] == list(PROBES)
    found = report["accuracy"]["planted, bright"]["kNN"]["5"]
    assert f"{100 * found['mean']:.1f} ± {100 * found['std']:.1f}" in rows[1]
    assert "bright * " in text
    assert "1 a class" in text


def choices(report):
    rows = report["accuracy"]
    return report["best"], [
        found["chosen"]
        for row in rows.values()
        for p in row.values()
        for found in p.values()
    ]


def test_test_labels_never_influence_a_choice():
    other = array_set(
        TEST.images, np.roll(TEST.labels, 1), NAMES, "test with other labels"
    )
    ours, theirs = (
        representation_report([PLANTED], TRAIN, test, QUICK) for test in (TEST, other)
    )
    assert choices(ours) == choices(theirs)
    accuracy = [
        r["accuracy"]["planted, bright"]["ridge"]["all"] for r in (ours, theirs)
    ]
    assert accuracy[0]["mean"] > accuracy[1]["mean"]  # they do decide the score


class Watched:
    """Images that say how many were asked for at once."""

    def __init__(self, images):
        self.images, self.most = images, 0
        self.shape = images.shape

    def __len__(self):
        return len(self.images)

    def __getitem__(self, rows):
        self.most = max(self.most, len(rows))
        return self.images[rows]


def test_it_streams_and_says_what_it_samples(monkeypatch):
    sets = [image_set(400, 0, "train"), image_set(120, 1, "test")]
    watched = [Watched(s.images) for s in sets]
    streamed = [array_set(s.images, s.labels, NAMES, s.name) for s in sets]
    for one, images in zip(streamed, watched):
        object.__setattr__(one, "images", images)
    kept = []
    score = layers_module.Layer

    def spy(*args):
        kept.append((len(args[-2]), len(args[-1])))
        return score(*args)

    monkeypatch.setattr(layers_module, "Layer", spy)
    small = Protocol(per_class=(5, 100), seeds=2, batch_size=32, most=60)
    report = representation_report([PLANTED], *streamed, small)
    assert max(w.most for w in watched) <= 32
    assert set(kept) == {(60, 60)}
    notes = " ".join(report["notes"])
    for part in ("60 of 400", "60 of 120", "most=60", "100 per class"):
        assert part in notes
    assert notes in " ".join(representation_text(report).replace(".\n- ", " ").split())
    # Ridge with all labels and the ranks are of all images, sampled or not.
    whole = representation_report(
        [PLANTED], *sets, Protocol(per_class=(5,), seeds=2, batch_size=400)
    )
    for ours, theirs in zip(report["layers"]["planted"], whole["layers"]["planted"]):
        assert ours["effective_rank"] == pytest.approx(theirs["effective_rank"])
    first, second = (
        r["accuracy"]["planted"]["ridge"]["all"]["chosen"] for r in (report, whole)
    )
    assert first == second


def test_every_level_of_an_encoder_pooled(tmp_path):
    encoder_artefact.write(tmp_path / "e", image_size=(8, 8), channels=1)
    encoder = load_encoder(tmp_path / "e")
    representation = encoder_representation("it", encoder, batch_size=16)
    assert representation.vector == "stages/2"
    images = pictures(20, size=(8, 8), channels=1)
    parts = list(representation.stream([images[:16], images[16:]]))
    found = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
    maps = encoder.feature_maps(images)
    sizes = [m.shape[1] for m in maps]
    assert sizes[-1] == 1  # a single site has no grid
    assert sorted(found) == sorted(
        [f"stages/{i}" for i in range(3)]
        + ["stages/0 grid", "stages/1 grid", "pyramid-grid"]
    )
    np.testing.assert_allclose(found["stages/0"], maps[0].mean((1, 2)), atol=1e-5)
    np.testing.assert_allclose(found["stages/2"], encoder.features(images), atol=1e-5)
    corner = maps[0][:, : sizes[0] // 2, : sizes[0] // 2].mean((1, 2))
    width = corner.shape[1]
    np.testing.assert_allclose(found["stages/0 grid"][:, :width], corner, atol=1e-5)
    parts = [found[name] for name in ("stages/0 grid", "stages/1 grid", "stages/2")]
    np.testing.assert_array_equal(found["pyramid-grid"], np.concatenate(parts, 1))


@pytest.fixture
def encoder(tmp_path):
    """Maps of 16, 8 and 4 pixels a side."""
    encoder_artefact.write(tmp_path / "e", image_size=(32, 32), channels=1)
    return load_encoder(tmp_path / "e")


def test_a_finer_grid_of_the_last_level(encoder):
    representation = encoder_representation("it", encoder, grid_3=True)
    images = pictures(6, size=(32, 32), channels=1)
    (found,) = representation.stream([images])
    last = encoder.feature_maps(images)[-1]
    assert last.shape[1:3] == (4, 4)
    # Thirds of four sites overlap: of two sites each.
    cells = [last[:, i : i + 2, j : j + 2].mean((1, 2)) for i, j in np.ndindex(3, 3)]
    expected = np.concatenate(cells, -1)
    np.testing.assert_allclose(found["stages/2 grid-3"], expected, atol=1e-5)
    assert "stages/1 grid-3" not in found
    (without,) = encoder_representation("it", encoder).stream([images])
    assert set(found) - set(without) == {"stages/2 grid-3"}


def test_vectors_are_the_mean_over_views(encoder):
    images = pictures(6, size=(32, 32), channels=1)
    one = encoder_representation("it", encoder)
    (plain,), (mirrored,) = one.stream([images]), one.stream([images[:, :, ::-1]])
    several = encoder_representation("it", encoder, views="flip")
    (found,) = several.stream([images])
    assert found.keys() == plain.keys()
    for name, vectors in found.items():
        expected = (plain[name] + mirrored[name]) / 2
        np.testing.assert_allclose(vectors, expected, atol=1e-5)
    # Told apart left and right as they are, an image and its mirror image are one.
    (turned,) = several.stream([images[:, :, ::-1]])
    np.testing.assert_allclose(
        turned["stages/0 grid"], found["stages/0 grid"], atol=1e-5
    )
    assert not np.allclose(plain["stages/0 grid"], mirrored["stages/0 grid"], atol=1e-3)


def test_a_bottleneck_is_a_layer_of_its_own(tmp_path):
    encoder_artefact.write(tmp_path / "e", image_size=(8, 8), channels=1, bottleneck=5)
    encoder = load_encoder(tmp_path / "e")
    representation = encoder_representation("it", encoder)
    assert representation.vector == representation.levels[-1] == "features"
    images = pictures(4, size=(8, 8), channels=1)
    (found,) = representation.stream([images])
    np.testing.assert_allclose(found["features"], encoder.features(images), atol=1e-5)
    assert found["features"].shape == (4, 5)


def test_pixels_are_reduced_to_32():
    big = pictures(2, size=(64, 64), channels=3)
    (found,) = pixel_representation().stream([big])
    assert found["pixels"].shape == (2, 32 * 32 * 3)
    (small,) = pixel_representation().stream([big[:, :8, :8]])
    np.testing.assert_allclose(small["pixels"][0], big[0, :8, :8].reshape(-1) / 255)


def test_vectors_that_are_not_finite_are_named():
    def stream(images):
        return ({"v": np.full((len(batch), 2), np.nan)} for batch in images)

    with pytest.raises(UserError, match=r"broken: vectors of v are not finite"):
        representation_report(
            [Representation("broken", stream, "v")], TRAIN, TEST, QUICK
        )


def test_nothing_to_hold_out_is_named():
    with pytest.raises(DataError, match="two labelled training images"):
        representation_report([PLANTED], TRAIN.subset([0, 1, 2]), TEST, QUICK)
