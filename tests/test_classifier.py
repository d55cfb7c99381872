"""`load_classifier`: predictions, explanations, distances, scikit-learn's contract."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import afterimage
from afterimage.checkpoints.errors import CheckpointError, UsageError
from afterimage.checkpoints.store import Store
from afterimage.checkpoints.weights import read_classifier, write_classifier
from afterimage.errors import UserError
from afterimage.evaluation.nearest import Reference, nearest
from afterimage.evaluation.probes import unit_rows
from tests import classifier_artefact, encoder_artefact
from tests.encoder_artefact import pictures

TWO = {"classes": ("a", "b", "c"), "ink": ("blue", "red")}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return classifier_artefact.write(tmp_path_factory.mktemp("run"), features="grid")


@pytest.fixture(scope="module")
def classifier(run):
    return afterimage.load_classifier(run)


def test_classes_are_those_of_the_largest_logits(classifier):
    x = pictures(9)
    logits = classifier.network.predict(
        classifier.params, classifier.stats, jnp.asarray(x), "classes"
    )
    wanted = np.asarray(jax.nn.softmax(logits))
    found = classifier.predict_proba(x)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-12)
    np.testing.assert_allclose(np.exp(classifier.predict_log_proba(x)), found)
    assert classifier.classes_.tolist() == ["a", "b", "c"]
    names = classifier.classes_[wanted.argmax(1)]
    assert classifier.predict(x).tolist() == names.tolist()
    assert len(set(names)) > 1


def test_images_as_an_encoder_takes_them_however_batched(classifier):
    x = pictures(7)
    whole = classifier.predict_proba(x)
    for given in (x / np.float32(255), list(x), x):
        found = classifier.predict_proba(given, batch_size=3)
        np.testing.assert_allclose(found, whole, atol=1e-5)
    np.testing.assert_allclose(classifier.predict_proba(x[0]), whole[:1], atol=1e-5)
    sizes = [x[0], pictures(1, (30, 20))[0]]
    assert classifier.predict(sizes).shape == (2,)
    assert classifier.predict_proba(x[:0]).shape == (0, 3)
    with pytest.raises(UserError, match=r"int64"):
        classifier.predict(x.astype(np.int64))


def test_views_average_probabilities(classifier):
    x = pictures(4)
    both = np.stack([classifier.predict_proba(v) for v in (x, x[:, :, ::-1])])
    found = classifier.predict_proba(x, views="flip")
    np.testing.assert_allclose(found, both.mean(0), atol=1e-5)


def test_a_run_or_its_folder_and_nothing_else(run, tmp_path):
    shutil.copytree(f"{run}/classifier", tmp_path / "alone")
    x = pictures(3)
    ours = [afterimage.load_classifier(p) for p in (run, tmp_path / "alone")]
    assert np.array_equal(*(one.predict_proba(x) for one in ours))
    assert "classes (a, b, c)" in repr(ours[0])
    assert repr(ours[0]).startswith("Classifier conv: ")


def test_a_step_of_an_unfinished_run(run, tmp_path):
    """The running means where they are kept, as at the end of a run."""
    params, stats, manifest = read_classifier(run)
    late = jax.tree.map(lambda leaf: leaf + 1, params["heads"])
    state = {"params": params, "stats": stats, "step": np.int32(2)}
    state |= {"ema": {"heads": late}, "ema_stats": {}}
    encoder = (params["encoder"], {}, manifest)
    with Store(tmp_path) as store:
        store.save(2, state, manifest={}, encoder=encoder)
    x = pictures(3)
    shifted = afterimage.load_classifier(tmp_path)
    again = afterimage.load_classifier(tmp_path / "checkpoints" / "2")
    assert np.array_equal(shifted.logits(x), again.logits(x))
    for path, leaf in jax.tree_util.tree_leaves_with_path(late):
        found = shifted.params["heads"]
        for key in path:
            found = found[key.key]
        np.testing.assert_array_equal(found, leaf)


def test_what_is_no_classifier_is_named(tmp_path, run):
    with pytest.raises(UserError, match="no folder"):
        afterimage.load_classifier(tmp_path / "gone")
    encoder_artefact.write(tmp_path / "encoder")
    with pytest.raises(UsageError, match="no classifier"):
        afterimage.load_classifier(tmp_path)
    params, stats, manifest = read_classifier(run)
    stats["neighbours"]["classes"]["features"] = np.ones((3, 5), np.float16)
    write_classifier(tmp_path / "odd", params, stats, manifest)
    with pytest.raises(CheckpointError, match="features of training images"):
        afterimage.load_classifier(tmp_path / "odd")


def test_a_head_by_the_name_of_its_task(tmp_path):
    two = afterimage.load_classifier(classifier_artefact.write(tmp_path, 0, TWO))
    assert two.tasks == ("classes", "ink")
    x = pictures(5)
    assert set(two.predict(x, task="ink")) <= {"blue", "red"}
    assert two.predict_proba(x).shape == (5, 3)
    with pytest.raises(
        UserError, match=r"task='inc': must be one of .*; did you mean 'ink'"
    ):
        two.predict(x, task="inc")
    heads = {"task-1": ("a", "b"), "task-2": ("c", "d")}
    split = classifier_artefact.write(tmp_path / "split", 0, heads)
    split = afterimage.load_classifier(split)
    with pytest.raises(UserError, match="task=None: must be one of task-1, task-2"):
        split.predict(x)
    assert split.predict(x, task="task-2").shape == (5,)


def test_a_linear_head_on_means_gives_the_class_activation_map(tmp_path):
    path = classifier_artefact.write(tmp_path, features="last")
    classifier, x = afterimage.load_classifier(path), pictures(5)
    found = classifier.explain(x, batch_size=2)
    assert found.heat.shape == (5, 16, 16)
    assert found.classes.tolist() == classifier.predict(x).tolist()
    head, moments = (
        tree["heads"]["classes"] for tree in (classifier.params, classifier.stats)
    )
    kernel = np.asarray(head["linear"]["kernel"])
    weights = (kernel - kernel.mean(1, keepdims=True)) / np.asarray(moments["std"])[
        :, None
    ]
    maps, _ = classifier.network.maps(
        classifier.params,
        classifier.stats,
        classifier.preprocessing.normalise(x),
    )
    numbers = [classifier.classes_.tolist().index(name) for name in found.classes]
    cam = np.einsum("nhwc,cn->nhw", np.asarray(maps[-1]), weights[:, numbers])
    wanted = jax.image.resize(cam, found.heat.shape, "linear")
    np.testing.assert_allclose(found.heat, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("options", [{"features": "grid"}, {"kind": "mlp"}])
def test_evidence_adds_up_to_the_logit_of_a_linear_head(tmp_path, options):
    """Of a grid too: the mean of the heat and the logit differ by one constant."""
    path = classifier_artefact.write(tmp_path, **options)
    classifier, x = afterimage.load_classifier(path), pictures(6)
    heat = classifier.explain(x, classes="b").heat
    logits = classifier.logits(x)
    rest = logits[:, 1] - logits.mean(1) - heat.mean((1, 2))
    if options.get("kind") != "mlp":
        np.testing.assert_allclose(rest, rest[0], atol=2e-3 * np.abs(logits).max())
    assert np.isfinite(heat).all()
    assert heat.std() > 0


def test_classes_to_explain_and_the_picture(classifier):
    x = pictures(3)
    one, each = (
        classifier.explain(x, classes=classes) for classes in ("b", ["b", "c", "b"])
    )
    assert each.classes.tolist() == ["b", "c", "b"]
    np.testing.assert_allclose(one.heat[::2], each.heat[::2], rtol=1e-4, atol=1e-5)
    assert not np.allclose(one.heat[1], each.heat[1])
    assert one.overlay.shape == (3, 16, 16, 3)
    row, column = np.unravel_index(one.heat[0].argmax(), (16, 16))
    assert one.overlay[0, row, column, 0] > one.overlay[0, row, column, 2]  # warm
    with pytest.raises(UserError, match=r"'B' is not a class.* Its classes: a, b, c"):
        classifier.explain(x, classes="B")
    with pytest.raises(UserError, match="2 classes for 3 images"):
        classifier.explain(x, classes=["a", "b"])


def test_nearest_in_blocks_as_in_one_sort(monkeypatch):
    rng = np.random.default_rng(0)
    vectors, queries = (unit_rows(rng.normal(size=(n, 8))) for n in (50, 4))
    queries[0] = vectors[10]
    wanted = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :7]
    for block, group in ((2**26, 512), (80, 512), (2**26, 3), (80, 2)):
        monkeypatch.setattr("afterimage.evaluation.nearest._BLOCK", block)
        monkeypatch.setattr("afterimage.evaluation.nearest._GROUP", group)
        rows, cosines = nearest(queries, vectors, 7)
        np.testing.assert_array_equal(rows, wanted)
        assert (np.diff(cosines) <= 0).all()
    assert nearest(queries, vectors[:3], 7)[0].shape == (4, 3)


def test_distance_to_the_training_images():
    """Images like them are usual; a direction that none of them has is not."""
    rng = np.random.default_rng(0)
    towards = rng.normal(size=(3, 16))

    def like_them(n):
        return towards[rng.integers(3, size=n)] + 0.2 * rng.normal(size=(n, 16))

    reference = Reference.measure(like_them(300), like_them(200))
    near, far = reference.distance(like_them(100)), reference.distance(-towards)
    assert near.max() < far.min()
    assert (reference.rank(far) == 1).all()
    assert abs(reference.rank(near).mean() - 0.5) < 0.1
    own = Reference.measure(like_them(300))
    assert abs(own.rank(own.distance(like_them(200))).mean() - 0.5) < 0.1
