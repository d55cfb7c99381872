import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from afterimage.errors import UserError
from afterimage.evaluation import classification as c
from afterimage.evaluation.text import report_text


def _case(n=200, classes=5, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, classes)) * 2
    return logits, np.where(
        rng.random(n) < 0.6, logits.argmax(1), rng.integers(classes)
    )


@given(st.integers(1, 80), st.integers(2, 12), st.integers(0, 10**6))
@settings(deadline=None, max_examples=30)
def test_measures_agree_with_scikit_learn(n, classes, seed):
    logits, labels = _case(n, classes, seed)
    predicted, present = logits.argmax(1), np.unique(labels)
    report = c.classification_report(logits, labels, draws=20)
    assert report["accuracy"]["value"] == metrics.accuracy_score(labels, predicted)
    np.testing.assert_array_equal(
        report["confusion"],
        metrics.confusion_matrix(labels, predicted, labels=range(classes)),
    )
    f1 = metrics.f1_score(
        labels, predicted, labels=present, average="macro", zero_division=0
    )
    assert report["macro_f1"]["value"] == pytest.approx(f1)
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        labels, predicted, labels=range(classes), zero_division=0
    )
    for key, want in zip(
        ("precision", "recall", "f1", "support"), (precision, recall, f1, support)
    ):
        np.testing.assert_allclose([k[key] for k in report["classes"]], want)
    for name in ("accuracy", "macro_f1", "calibration_error"):
        share = report[name]
        assert 0 <= share["low"] <= share["value"] <= share["high"] <= 1


def test_wilson_by_hand():
    # 8 of 10, as computed in any table of Wilson score intervals.
    got = c.wilson(8, 10)
    assert got["low"] == pytest.approx(0.4902, abs=1e-4)
    assert got["high"] == pytest.approx(0.9433, abs=1e-4)
    assert c.wilson(10, 10)["high"] == 1.0
    assert c.wilson(0, 10)["low"] == 0.0


@pytest.mark.parametrize(("right", "of"), [(0, 3), (1, 1), (7, 31), (499, 1000)])
def test_wilson_is_that_of_scipy(right, of):
    from scipy.stats import binomtest

    want = binomtest(right, of).proportion_ci(0.95, method="wilson")
    got = c.wilson(right, of)
    assert got["value"] == right / of
    assert (got["low"], got["high"]) == pytest.approx((want.low, want.high), abs=1e-12)


def test_calibration_error_by_hand():
    # Bin of 0.9: two of four right (gap 0.4); bin of 0.6: all right (gap 0.4).
    p = np.array([[0.9, 0.1]] * 4 + [[0.4, 0.6]] * 2)
    labels = np.array([0, 0, 1, 1, 1, 1])
    assert c.calibration_error(p, labels) == pytest.approx(0.4)
    # In one bin together the gaps +0.4·2 and -0.4·4 cancel in part.
    assert c.calibration_error(p, labels, bins=1) == pytest.approx(0.8 / 6)


def test_calibrated_and_overconfident_predictions_are_told_apart():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(3), size=4000)
    labels = (rng.random((4000, 1)) > p.cumsum(1)).sum(1).clip(0, 2)
    honest = c.classification_report(p, labels, kind="probabilities", draws=200)
    sure = c.classification_report(np.log(p) * 5, labels, draws=200)
    assert honest["calibration_error"]["high"] < 0.04
    assert sure["calibration_error"]["low"] > 0.1


def test_bootstrap_covers_what_it_says():
    rng = np.random.default_rng(1)
    logits, labels = _case(20000, 4, seed=3)
    truth = c.classification_report(logits, labels, draws=1)["macro_f1"]["value"]
    inside = 0
    for _ in range(60):
        pick = rng.integers(len(labels), size=150)
        got = c.classification_report(logits[pick], labels[pick], draws=200)
        inside += got["macro_f1"]["low"] <= truth <= got["macro_f1"]["high"]
    assert inside >= 51  # 57 expected; 51 or fewer has a chance below 2 %


def test_intervals_are_seeded():
    logits, labels = _case()
    first, again = (c.classification_report(logits, labels, seed=3) for _ in range(2))
    other = c.classification_report(logits, labels, seed=4)
    assert first == again
    assert first["calibration_error"] != other["calibration_error"]


def test_one_column_is_the_second_of_two_classes():
    rng = np.random.default_rng(0)
    logit, labels = rng.normal(size=50), rng.integers(2, size=50)
    two = np.stack([np.zeros(50), logit], axis=1)
    want = c.classification_report(two, labels)
    assert c.classification_report(logit, labels)["accuracy"] == want["accuracy"]
    p = 1 / (1 + np.exp(-logit))
    got = c.classification_report(p[:, None], labels, kind="probabilities")
    assert got["confusion"] == want["confusion"]
    assert got["calibration_error"]["value"] == pytest.approx(
        want["calibration_error"]["value"]
    )


def test_absent_classes_are_named_and_left_out_of_macro_f1():
    p = np.array([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8], [0.2, 0.7, 0.1]])
    labels = np.array([0, 0, 1])
    report = c.classification_report(
        p, labels, ["ant", "bee", "cow"], kind="probabilities"
    )
    # ant: precision 1, recall 1/2; bee: perfect; cow: predicted once, never true.
    assert report["macro_f1"]["value"] == pytest.approx((2 / 3 + 1) / 2)
    assert report["absent"] == ["cow"]
    assert "cow" in report_text(report).splitlines()[-1]


def test_report_is_json_and_reads_well():
    logits, labels = _case(100, 3)
    names = ["cat", "dog|wolf", "Ärmelkanal"]
    report = c.classification_report(logits, labels, names)
    assert json.loads(json.dumps(report)) == report
    text = report_text(report)
    assert "dog\\|wolf" in text
    assert "100 examples" in text
    assert f"{100 * report['accuracy']['value']:.1f} %" in text
    for block in text.strip().split("\n\n"):
        lines = block.splitlines()
        assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
        assert len({len(line) for line in lines}) == 1


def test_many_classes_show_the_most_frequent_confusions():
    truth = np.arange(30).repeat(4)
    predicted = truth.copy()
    predicted[:3] = 7
    report = c.classification_report(np.eye(30)[predicted] * 9, truth)
    text = report_text(report)
    assert "true \\ predicted" not in text
    assert text.splitlines()[-1].split("|")[1:-1] == [
        " 0    ",
        " 7         ",
        " 3     ",
    ]


@pytest.mark.parametrize(
    ("scores", "labels", "kind", "says"),
    [
        (np.zeros((0, 2)), np.zeros(0, int), "logits", "no examples"),
        (np.zeros((2, 2)), np.array([0, 2]), "logits", "labels up to 2"),
        (np.zeros((2, 2)), np.array([0, -1]), "logits", "unlabelled"),
        (np.full((2, 2), np.nan), np.array([0, 1]), "logits", "4 of 4 scores"),
        (np.full((2, 2), 3.0), np.array([0, 1]), "probabilities", "logits"),
        (np.full((2, 2), 0.2), np.array([0, 1]), "probabilities", "rows sum"),
        (np.zeros((2, 2, 2)), np.array([0, 1]), "logits", "shape"),
    ],
)
def test_bad_input_is_named(scores, labels, kind, says):
    with pytest.raises(UserError, match=says):
        c.classification_report(scores, labels, kind=kind)
