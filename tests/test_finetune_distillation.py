"""Distillation: its terms by hand, and whole runs on tiny images."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afterimage.checkpoints import schemas
from afterimage.checkpoints.store import Store
from afterimage.classifier import load_classifier
from afterimage.errors import UserError
from afterimage.finetune.methods import distil as terms
from afterimage.finetune.methods.distil import Distil
from afterimage.finetune.modes import Scratch
from afterimage.finetune.run import finetune
from afterimage.models import ModelConfig
from afterimage.training.stage import Context
from tests.helpers import cut_back
from tests.test_finetune_program import config, draw, make_encoder, write_npz


def value(term, **values):
    rules = {k.replace("__", "/"): (lambda _, v=v: v) for k, v in values.items()}
    return term.value(Context(rules), jnp.int32(0))


def test_logits_by_hand_and_their_gradient():
    """T² Σ p (log p − log q) at T = 2; d/dz = T (q − p) an example, whatever T."""
    teacher, student = jnp.log(jnp.array([[0.81, 0.09]])), jnp.zeros((1, 2))
    term = terms.distil_logits(0.5, 2.0)
    names = {"teacher__logits": teacher, "train__logits__classes": student}
    found, metrics = value(term, **names)
    p = np.array([0.75, 0.25])  # √0.81 : √0.09
    expected = 4 * (p * np.log(p / 0.5)).sum()
    assert float(found) == pytest.approx(0.5 * expected, rel=1e-5)
    assert float(metrics["agreement"]) == 1.0

    def loss(z):
        return value(term, **{**names, "train__logits__classes": z})[0]

    np.testing.assert_allclose(
        jax.grad(loss)(student), 0.5 * 2 * (0.5 - p)[None], rtol=1e-5
    )

    def of_teacher(t):
        return value(term, **{**names, "teacher__logits": t})[0]

    np.testing.assert_array_equal(jax.grad(of_teacher)(teacher), 0.0)


def test_features_by_hand():
    term = terms.distil_features(2, 3, 2.0, seed=0)
    assert term.params["kernel"].shape == (2, 3)
    lift = {"kernel": jnp.ones((2, 3)), "bias": jnp.array([0.0, 1.0, 0.0])}
    found, _ = value(
        term,
        params={"terms": {"distil_features": lift}},
        teacher__features=jnp.zeros((1, 3)),
        train__features__classes=jnp.array([[1.0, 2.0]]),
    )
    # lifted (3, 4, 3): ½ (9 + 16 + 9) / 3
    assert float(found) == pytest.approx(2.0 * 0.5 * 34 / 3)


def test_relations_by_hand():
    """A 3-4-5 triangle against an equilateral one."""
    teacher = jnp.array([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    student = jnp.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(3) / 2]])
    distance, angle = terms.relations(teacher, student)
    sides = np.array([3.0, 4.0, 5.0]) / 4.0
    assert float(distance) == pytest.approx(0.5 * ((sides - 1) ** 2).mean(), rel=1e-5)
    cosines = np.array([0.0, 0.6, 0.8])
    assert float(angle) == pytest.approx(0.5 * ((cosines - 0.5) ** 2).mean(), rel=1e-4)


def test_relations_know_no_rotation_and_no_scale():
    x = jax.random.normal(jax.random.key(0), (6, 3))
    turn = jnp.linalg.qr(jax.random.normal(jax.random.key(1), (3, 3)))[0]
    relations = jax.jit(terms.relations)
    for found in relations(x, 7.0 * x @ turn + 2.0):
        assert float(found) == pytest.approx(0.0, abs=1e-6)
    # Two images in one place: the gradient stays finite.
    same = x.at[1].set(x[0])
    slope = jax.grad(lambda s: sum(relations(x, s)))(same)
    assert bool(jnp.isfinite(slope).all())


@pytest.fixture(scope="module")
def home(tmp_path_factory, tiny_module):
    """An encoder, data, and a teacher that has learned."""
    folder = tmp_path_factory.mktemp("distil")
    make_encoder(folder / "encoder")
    write_npz(folder / "data.npz")
    learned = {"steps": 60, "lr": 3e-3, "mode": "full"}
    finetune(config(folder, folder / "teacher", **learned))
    return folder


def distilled(home, out, *, width=None, own=None, **settings):
    teacher = str(home / "teacher")
    usual = {
        "from_": teacher,
        "methods": Distil(**{"teacher": teacher, **(own or {})}),
        "mode": Scratch(width=width),
        "augment": "shift",
    }
    return config(home, out, **{**usual, **settings})


def divergence(run, teacher):
    """Mean KL from the teacher's predictions to the run's, on fresh images."""
    images = jnp.asarray(draw(5, 60)[0])

    def scores(path):
        loaded = load_classifier(str(path))
        found = loaded.network.predict(loaded.params, loaded.stats, images, "classes")
        return jax.nn.log_softmax(found)

    p, q = scores(teacher), scores(run)
    return float((jnp.exp(p) * (p - q)).sum(1).mean())


@pytest.mark.slow
def test_a_distilled_student_is_nearer_to_the_teacher(home, tmp_path):
    """By its predictions, from the same weights, on the same labels."""
    settings = {"steps": 60, "lr": 3e-3, "width": 0.25, "labels": 12}
    one = finetune(
        distilled(home, tmp_path / "a", own={"temperature": 2.0}, **settings)
    ).run
    two = finetune(distilled(home, tmp_path / "b", methods=(), **settings)).run
    teacher = home / "teacher"
    assert divergence(one, teacher) < 0.8 * divergence(two, teacher)


EVERYTHING = {
    "own": {"kinds": ("logits", "features", "relational"), "label_weight": 0.5},
    "width": 0.125,
    "steps": 4,
    "save_every": 1,
    "keep_last": 9,
}


@pytest.fixture(scope="module")
def whole(home):
    """A run with every kind of distillation."""
    return finetune(distilled(home, home / "whole", **EVERYTHING))


@pytest.mark.slow
def test_the_gain_is_reported_and_the_teacher_never_moves(home, whole):
    found = whole.results["distillation"]
    teacher = load_classifier(str(home / "teacher"))
    size = sum(leaf.size for leaf in jax.tree.leaves(teacher.params))
    assert found["teacher"]["parameters"] == size
    student = load_classifier(str(whole.run))
    small = sum(leaf.size for leaf in jax.tree.leaves(student.params))
    assert found["smaller"] == pytest.approx(size / small)
    assert found["smaller"] > 1
    assert found["faster"] > 0
    stored = schemas.read(home / "teacher" / "results.json", schemas.ResultsFile, "")
    expected = stored["test"]["accuracy"]["value"]
    assert found["teacher"]["accuracy"] == pytest.approx(expected)
    assert "Teacher and student" in whole.report.read_text()
    assert "fewer parameters than the teacher" in whole.summary()
    _, state, _ = Store(whole.run).restore(step=4)
    kept = state["stats"]["distil"]["params"]
    jax.tree.map(np.testing.assert_array_equal, kept, teacher.params)


@pytest.mark.slow
def test_the_gain_is_reported_where_an_earlier_step_is_kept(
    home, tmp_path, monkeypatch
):
    first = types.SimpleNamespace(step=1, best=True)
    monkeypatch.setattr("afterimage.training.job.list_steps", lambda _: [first])
    settings = {"steps": 2, "save_every": 1, "keep_last": 9, "select": "validation"}
    found = finetune(distilled(home, tmp_path / "run", **settings)).results
    assert found["selection"]["step"] == 1
    assert found["distillation"]["smaller"] == 1.0


@pytest.mark.slow
def test_it_resumes_exactly(home, whole, tmp_path):
    run = cut_back(whole.run, tmp_path / "cut", 2)
    finetune(distilled(home, run, **EVERYTHING))
    states = [Store(r).restore(step=4)[1] for r in (whole.run, run)]
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_a_teacher_of_other_classes_is_refused(home, tmp_path):
    other = write_npz(tmp_path / "other.npz", names=("bars", "dots", "stars"))
    with pytest.raises(UserError, match="not trained on the classes stars"):
        finetune(distilled(home, tmp_path / "a", data=other))


@pytest.mark.slow
def test_a_teacher_of_other_classes_teaches_features(home, tmp_path):
    other = write_npz(tmp_path / "other.npz", names=("bars", "dots", "stars"))
    result = finetune(
        distilled(
            home, tmp_path / "b", data=other, own={"kinds": ("features",)}, steps=2
        )
    )
    assert "agreement" not in result.results["distillation"]
    assert result.results["distillation"]["teacher"]["parameters"] > 0


def test_a_teacher_of_other_images_is_refused(home, tmp_path):
    images, names = draw(0, 12)
    grown = np.kron(images, np.ones((1, 2, 2, 1), np.uint8))
    np.savez(tmp_path / "large.npz", images=grown, labels=names)
    settings = {"data": f"npz:{tmp_path / 'large.npz'}", "image_size": 16}
    with pytest.raises(UserError, match="--image-size 8 --channels 1"):
        finetune(distilled(home, tmp_path / "run", **settings))


def test_another_architecture_from_scratch():
    stored = ModelConfig(width=0.25, bottleneck=8)
    assert Scratch().architecture(stored) == stored
    found = Scratch(width=0.5).architecture(stored)
    assert (found.width, found.bottleneck) == (0.5, 8)
    found = Scratch(model="conv-classic").architecture(stored)
    assert found == ModelConfig("conv-classic")
    with pytest.raises(UserError, match="'cnv' is unknown"):
        Scratch(model="cnv").architecture(stored)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"own": {"teacher": None}}, "distil: teacher: give"),
        ({"own": {"kinds": ("logits", "logits")}}, "only once"),
        ({"own": {"weights": (1.0, 2.0)}}, "each of 1 kinds"),
        ({"own": {"weights": (0.0,)}}, "greater than 0"),
        ({"own": {"temperature": 0.0}}, "distil.temperature=0.0"),
        (
            {"own": {"kinds": ("features",), "label_weight": 0.0}},
            "label_weight=0",
        ),
        (
            {"mode": "probe", "own": {"kinds": ("features",)}},
            "distil: features: .*in mode",
        ),
        ({"width": 0.0}, r"scratch.width=0.0: must be in \(0, 16\]"),
    ],
)
def test_settings_that_cannot_work(home, tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        distilled(home, tmp_path / "run", **settings)
