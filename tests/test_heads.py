"""Heads of several labels and of numbers: from data to predictions."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn import metrics

from afterimage.classifier import load_classifier
from afterimage.commands import main
from afterimage.data import open_data
from afterimage.errors import DataError, UserError
from afterimage.evaluation.configs import EvaluateConfig, PredictConfig
from afterimage.finetune.config import FinetuneConfig
from afterimage.finetune.evaluate import evaluate, text
from afterimage.finetune.modes import Gradual
from afterimage.finetune.run import finetune
from afterimage.finetune.tasks.multi_label import MultiLabel, binary_cross_entropy
from afterimage.finetune.tasks.regression import Regression, regression_loss
from afterimage.outputs.multi_label import MultiLabel as Labels
from afterimage.outputs.regression import Regression as Numbers
from afterimage.predict import predict
from afterimage.reading import NumberReading
from afterimage.training.loop import Callbacks
from afterimage.training.stage import Context
from tests import encoder_artefact

SIZE = (8, 8)


def draw(seed, count):
    """Images with a bright top, a red left half, both or neither; and how bright."""
    rng = np.random.default_rng(seed)
    top, red = rng.integers(0, 2, (2, count)).astype(bool)
    level = rng.uniform(20, 120, count)
    images = np.zeros((count, *SIZE, 3)) + level[:, None, None, None]
    images[top, :4] += 80
    images[red, :, :4, 0] += 80
    noise = rng.uniform(0, 10, images.shape)
    return (images + noise).astype(np.uint8), np.stack([red, top], 1), level


@pytest.fixture(scope="module")
def encoder(tmp_path_factory, tiny_module):
    folder = tmp_path_factory.mktemp("heads") / "encoder"
    encoder_artefact.write(folder, image_size=SIZE)
    return str(folder)


def config(encoder, out, **settings):
    usual = {
        "from_": encoder,
        "steps": 80,
        "batch_size": 32,
        "lr": 3e-3,
        "augment": "none",
        "tensorboard": False,
        "eval_every": 40,
        "validation": 0.25,
    }
    return FinetuneConfig(out=str(out), **{**usual, **settings})


@pytest.fixture(scope="module")
def labelled(encoder, tmp_path_factory):
    """A run that learnt two labels; some of its images lack one or both."""
    x, y, _ = draw(0, 420)
    x_test, y_test, _ = draw(1, 120)
    y = y.astype(np.float32)
    y[:20, 0] = np.nan
    y[20:25] = -1
    names = np.array(["red", "top"])
    data = {"x_train": x, "y_train": y, "x_test": x_test, "y_test": y_test}
    run = tmp_path_factory.mktemp("heads") / "labels"
    how = config(encoder, run, task=MultiLabel(threshold=0.4))
    return finetune(how, data={**data, "label_names": names})


def test_two_independent_labels_are_learned(labelled):
    test = labelled.results["test"]
    assert test["mean_average_precision"]["value"] > 0.97
    assert test["micro_f1"]["value"] > 0.93
    assert [one["name"] for one in test["labels"]] == ["red", "top"]
    assert "best mean_average_precision" in labelled.results["selection"]["rule"]
    # All but the five images of which neither label is known are used.
    used = json.loads((labelled.run / "labels.json").read_text())
    assert sum(len(used[part]["labelled"]) for part in ("train", "validation")) == 415
    page = labelled.report.read_text()
    assert "micro-F1 at 0.4" in page
    assert "Binary cross-entropy" in page


def test_each_label_has_its_own_probability(labelled):
    classifier = load_classifier(labelled.run)
    x, y, _ = draw(1, 120)
    p = classifier.predict_proba(x)
    assert np.ptp(p.sum(1)) > 0.5  # they are not shares
    np.testing.assert_array_equal(classifier.predict(x), p >= 0.4)
    assert (classifier.predict(x) == y).mean() > 0.93
    np.testing.assert_array_equal(classifier.classes_, ["red", "top"])
    viewed = classifier.predict_proba(x[:4], views="flip")
    both = [classifier.predict_proba(x[:4, :, ::step]) for step in (1, -1)]
    np.testing.assert_allclose(viewed, np.mean(both, axis=0), atol=1e-5)
    assert classifier.explain(x[:2], classes="top").heat.shape == (2, *SIZE)
    with pytest.raises(UserError, match="predict_log_proba"):
        classifier.predict_log_proba(x)


def test_labels_round_trip_through_tables(labelled, tmp_path):
    """A table of predictions is a table of labels, on which the run has no error."""
    x, _, _ = draw(2, 40)
    for row, image in enumerate(x):
        Image.fromarray(image).save(tmp_path / f"{row:02}.png")
    out, run = tmp_path / "found.csv", str(labelled.run)
    found = predict(PredictConfig(data=(str(tmp_path),), from_=run, out=str(out)))
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert list(rows[0])[:4] == ["file", "labels", "probability_red", "probability_top"]
    assert {row["labels"] for row in rows} == {"|", "red", "top", "red|top"}
    assert found.counts["red"] == sum("red" in row["labels"] for row in rows)
    report = evaluate(EvaluateConfig(from_=run, data=f"csv:{out}", split="train"))
    assert report["micro_f1"]["value"] == report["mean_average_precision"]["value"] == 1
    assert "micro-F1 at 0.4" in text(report)
    lines = out.read_text().splitlines()
    out.write_text("\n".join([*lines[:3], lines[3].replace(",", ",blue|", 1)]) + "\n")
    with pytest.raises(DataError, match=r"line 4: blue is not a label.*red, top"):
        evaluate(EvaluateConfig(from_=run, data=f"csv:{out}", split="train"))
    with pytest.raises(UserError, match=r"threshold=0\.5.*multi-label"):
        how = {"from_": run, "out": str(out), "threshold": 0.5}
        predict(PredictConfig(data=(str(tmp_path),), **how))


@pytest.fixture(scope="module")
def measured(encoder, tmp_path_factory):
    """(run, folder): brightness, learned by the command from a table of images."""
    folder = tmp_path_factory.mktemp("measured")
    x, _, level = draw(3, 300)
    lines = ["image;brightness;note"]
    for row, image in enumerate(x):
        Image.fromarray(image).save(folder / f"{row:03}.png")
        known = "" if row < 10 else f"{1000 + 50 * level[row]:.3f}"
        lines.append(f"{row:03}.png;{known};n{row}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    run = folder / "run"
    command = ["finetune", f"csv:{folder}/table.csv", "--from", encoder]
    command += ["--out", str(run), "--task", "regression", "--steps", "80"]
    command += ["--regression.columns", "brightness", "--augment", "none"]
    command += ["--lr", "3e-3", "--batch-size", "32", "--no-tensorboard"]
    main(command)
    return run, folder


@pytest.mark.slow
def test_brightness_is_learned_in_its_unit(measured):
    run, _ = measured
    results = json.loads((run / "results.json").read_text())
    assert results["held_out"].startswith("58 of 290 labelled images")
    (one,) = results["test"]["outputs"]
    assert one["r2"]["value"] > 0.9
    assert len(one["points"]) == one["examples"] == 58
    error = np.abs(np.diff(one["points"])).mean()
    assert error == pytest.approx(one["mae"]["value"], rel=1e-6)
    assert (run / "report.html").read_text().count(": predicted ") == 58
    x, _, level = draw(4, 60)
    found = load_classifier(run).predict(x)
    assert found.shape == (60,)
    assert np.abs(found - (1000 + 50 * level)).mean() < 500
    with pytest.raises(UserError, match="predicts numbers"):
        load_classifier(run).predict_proba(x)


def test_figures_are_those_of_the_written_predictions(measured, capsys):
    run, folder = measured
    out = folder / "out" / "found.parquet"
    main(["predict", str(folder), "--from", str(run), "--out", str(out)])
    assert "predicted_brightness: " in capsys.readouterr().out
    import pyarrow.parquet as pq

    rows = {row["file"]: row for row in pq.read_table(out).to_pylist()}
    held = json.loads((run / "labels.json").read_text())["held_out"]["labelled"]
    table = csv.DictReader((folder / "table.csv").read_text().split(), delimiter=";")
    truth = {row["image"]: row["brightness"] for row in table}
    true = [float(truth[name]) for name in held]
    guess = [rows[name]["predicted_brightness"] for name in held]
    main(
        [
            "evaluate",
            f"csv:{folder}/table.csv",
            "--from",
            str(run),
            "--out",
            str(out.with_suffix(".json")),
        ]
    )
    report = json.loads(out.with_suffix(".json").read_text())
    assert report["split"] == "held out"
    (one,) = report["outputs"]
    want = metrics.mean_absolute_error(true, guess)
    assert one["mae"]["value"] == pytest.approx(want, rel=1e-4)
    want = metrics.root_mean_squared_error(true, guess)
    assert one["rmse"]["value"] == pytest.approx(want, rel=1e-4)
    assert one["r2"]["value"] == pytest.approx(metrics.r2_score(true, guess), rel=1e-4)
    for share in (one["mae"], one["rmse"], one["r2"]):
        assert share["low"] < share["value"] < share["high"]


@pytest.mark.filterwarnings("ignore:No positive")
def test_figures_of_labels_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    truth = (rng.uniform(size=(200, 4)) < [0.5, 0.1, 0.9, 0]).astype(np.float32)
    logits = np.round(rng.normal(size=truth.shape) + truth - 0.3, 1)  # with ties
    kind = Labels(names=("a", "b", "c", "d"))
    found, p = kind.measures(logits, truth), kind.values(logits)
    here = slice(0, 3)  # the last label never occurs
    want = metrics.average_precision_score(truth[:, here], p[:, here])
    assert found["mean_average_precision"] == pytest.approx(want)
    guess = kind.predicted(logits)
    assert found["micro_f1"] == pytest.approx(
        metrics.f1_score(truth, guess, average="micro")
    )
    want = metrics.f1_score(truth[:, here], guess[:, here], average="macro")
    assert found["macro_f1"] == pytest.approx(want)
    assert found["loss"] == pytest.approx(metrics.log_loss(truth.ravel(), p.ravel()))
    report = kind.report(logits, truth)
    assert report["absent"] == ["d"]
    for key in ("mean_average_precision", "micro_f1", "macro_f1"):
        share = report[key]
        assert share["value"] == pytest.approx(found[key])
        assert share["low"] < share["value"] < share["high"]
    # Unknown labels do not count.
    blank = truth.copy()
    blank[50:, 0] = np.nan
    found = kind.measures(logits, blank)
    parts = [(truth[:50, 0], p[:50, 0]), *zip(truth.T[1:3], p.T[1:3])]
    want = np.mean([metrics.average_precision_score(*part) for part in parts])
    assert found["mean_average_precision"] == pytest.approx(want)


def test_figures_of_several_numbers():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(50, 2)) * [3, 100] + [7, -20]
    truth[:5, 1] = np.nan
    kind = Numbers(names=("a", "b"), mean=(7.0, -20.0), std=(3.0, 100.0))
    logits = (np.nan_to_num(truth) - [7, -20]) / [3, 100]
    logits += rng.normal(size=(50, 2)) / 3
    pairs = zip(truth.T, kind.values(logits).T, (0, 5))
    scores = [metrics.r2_score(true[n:], guess[n:]) for true, guess, n in pairs]
    assert kind.measures(logits, truth)["r2"] == pytest.approx(np.mean(scores))
    report = kind.report(logits, truth)
    assert report["mean_r2"] == pytest.approx(np.mean(scores))
    assert [one["examples"] for one in report["outputs"]] == [50, 45]
    assert "R² of b" in kind.figures(report)
    assert "mean R²" in kind.text(report)


def cost(term, logits, labels):
    """The term's mean over a batch."""
    values = {"train/logits/classes": logits, "train/label": labels}
    context = Context({name: lambda _, v=v: v for name, v in values.items()})
    return float(term.fn(context.only(term.reads, term.name))[0].mean())


def test_losses_are_means_over_what_is_known():
    z = jnp.array([[0.3, -2.0], [4.0, 1.0]])
    p, nan = np.asarray(jax.nn.sigmoid(z)), jnp.nan
    costs = [-3 * np.log(p[0, 0]), -np.log(1 - p[1, 0]), -np.log(p[1, 1])]
    found = cost(binary_cross_entropy([3.0, 1.0]), z, jnp.array([[1, nan], [0, 1]]))
    assert found == pytest.approx(np.mean(costs), rel=1e-5)
    y, mean, std = jnp.array([[1, nan], [20, 1]]), (2.0, 1.0), (4.0, 1.0)
    e = np.array([0.3 - (1 - 2) / 4, 4 - (20 - 2) / 4, 1 - (1 - 1) / 1])
    found = cost(regression_loss(mean, std), z, y)
    assert found == pytest.approx(np.mean(e**2), rel=1e-5)
    inside = np.abs(e) <= 0.52
    assert inside.tolist() == [False, True, False]
    want = np.where(inside, e**2 / 2, 0.52 * (np.abs(e) - 0.26)).mean()
    assert cost(regression_loss(mean, std, 0.52), z, y) == pytest.approx(want, rel=1e-5)


@pytest.mark.slow
def test_a_stopped_run_continues_exactly(encoder, tmp_path):
    """Two numbers, one partly unknown; Huber; L2-SP; one more stage in each phase."""
    x, _, level = draw(0, 60)
    y = np.stack([level, -3 * level], 1).astype(np.float32)
    y[::7, 1] = np.nan
    records = [{"image": i, "a": a, "b": b} for i, (a, b) in zip(x, y.tolist())]

    def run(out, **settings):
        task = Regression(columns=("a", "b"), error="huber")
        more = {"steps": 9, "eval_every": 3, "save_every": 2, "labels": 30}
        more |= {"mode": Gradual(), "methods": "l2-sp", "weight_decay": 0.0}
        how = config(encoder, out, task=task, **more)
        return finetune(how, data=records, **settings)

    def stop(step, _):
        if step == 6:
            raise RuntimeError("stopped")

    whole = run(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="stopped"):
        run(tmp_path / "parts", callbacks=Callbacks(on_evaluation=stop))
    again = run(tmp_path / "parts")
    for name in ("validation", "test", "selection"):
        assert whole.results[name] == again.results[name]
    one, two = (load_classifier(r.run) for r in (whole, again))
    jax.tree.map(np.testing.assert_array_equal, one.params, two.params)
    assert two.predict(x[:3]).shape == (3, 2)
    used = json.loads((again.run / "labels.json").read_text())
    assert len(used["train"]["labelled"]) == 30


def table(folder, lines, wanted):
    for name in {line.split(",")[0] for line in lines[1:]}:
        Image.fromarray(draw(0, 1)[0][0]).save(folder / name)
    (folder / "t.csv").write_text("\n".join(lines) + "\n")
    return open_data(f"csv:{folder}/t.csv", numbers=wanted, cache=False).train


def test_cells_of_labels(tmp_path):
    lines = ["image,label", "a.png,b | a", "b.png,", "c.png,|", "d.png,b"]
    wanted = NumberReading(kind="multi-label")
    found = table(tmp_path, lines, wanted)
    nan = np.nan
    assert found.numbers.names == ("a", "b")
    want = [[1, 1], [nan, nan], [0, 0], [0, 1]]
    np.testing.assert_array_equal(found.numbers.values, want)
    other = table(tmp_path, lines, NumberReading(kind="multi-label", empty="none"))
    np.testing.assert_array_equal(other.numbers.values[1], [0, 0])
    assert other.fingerprint != found.fingerprint
    part = found.subset([3, 0])
    np.testing.assert_array_equal(part.numbers.values, [[0, 1], [1, 1]])
    lines = ["image,tall,wet", "a.png,1,TRUE", "b.png,0,", "c.png,,"]
    columns = NumberReading(kind="multi-label", columns=("wet", "tall"))
    found = table(tmp_path, lines, columns)
    want = [[1, 1], [nan, 0], [nan, nan]]
    np.testing.assert_array_equal(found.numbers.values, want)


@pytest.mark.parametrize(
    ("lines", "wanted", "message"),
    [
        (
            [
                "image,size",
                "a.png,1",
                "b.png,",
                'c.png,"1,5"',
                "d.png,big",
                "e.png,inf",
            ],
            {"kind": "regression", "columns": ("size",)},
            r"line 4, column size: 1,5 is not a number; write a decimal point\n"
            r".*line 5, column size: big is not a number\n.*line 6.*not a finite",
        ),
        (
            ["image,tall", "a.png,1", "b.png,-1"],
            {"kind": "multi-label", "columns": ("tall",)},
            "line 3, column tall: -1 is not 0, 1 or empty",
        ),
        (
            ["image,size", "a.png,1"],
            {"kind": "regression", "columns": ("sise",)},
            r"no column 'sise'.*size",
        ),
    ],
)
def test_bad_cells_are_named(tmp_path, lines, wanted, message):
    with pytest.raises(DataError, match=message):
        table(tmp_path, lines, NumberReading(**wanted))


@pytest.mark.parametrize(
    ("task", "y", "message"),
    [
        (MultiLabel(), [[0, 1], [2, 1]], r"train label 1, 0: 2 is not 0 or 1"),
        (MultiLabel(), [["a"], ["a"]], "no training image without a"),
        (Regression(), [3.0, 3.0], "are all 3, so there is nothing to learn"),
        (Regression(), [np.nan, np.nan], "no labels for regression"),
        (Regression(), [1.0, np.inf], "inf is not a finite number"),
    ],
)
def test_labels_that_cannot_be_learned(encoder, tmp_path, task, y, message):
    records = [{"image": x, "label": v} for x, v in zip(draw(0, 2)[0], y)]
    with pytest.raises(DataError, match=message):
        finetune(config(encoder, tmp_path, task=task), data=records)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"methods": "pseudo-labels"}, "needs classes"),
        ({"methods": "lwf"}, "works only with task continual"),
        ({"class_weights": "balanced"}, "does not use class_weights"),
        ({"select_by": "macro_f1"}, "does not use select_by"),
        ({"target": "elsewhere"}, "does not use target"),
        ({"data": "photos"}, None),
    ],
)
def test_what_needs_classes_is_refused(settings, message):
    for task in (MultiLabel(), Regression()):
        how = {"from_": "e", "out": "o", "data": "d", "task": task, **settings}
        if message is None:
            assert FinetuneConfig(**how).task is task
            continue
        with pytest.raises(UserError, match=message):
            FinetuneConfig(**how)


def test_a_folder_of_classes_has_no_numbers(encoder, tmp_path):
    with pytest.raises(UserError, match="one class per image"):
        finetune(config(encoder, tmp_path, data="digits", task=Regression()))
