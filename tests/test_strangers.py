"""benchmarks.strangers: its image sets, commands and rows, without training."""

import numpy as np
import pytest

from afterimage.commands.flags import parse
from afterimage.commands.pretrain import COMMAND
from afterimage.data import open_data
from afterimage.errors import UserError
from afterimage.pretrain import PretrainConfig, recipe
from benchmarks import image_sets, label_free, strangers
from benchmarks.image_sets import DEVELOPMENT, STRANGERS, Labelled, Places, prepared
from benchmarks.strangers import ROWS, Cell, Strangers

RNG = np.random.default_rng(0)
CLASSES = [*"ab" * 20]


def arrays(test=None):
    return Labelled(RNG.integers(0, 256, (40, 8, 8), np.uint8), CLASSES, test)


def files(folder, count=40):
    from PIL import Image

    paths = []
    for row in range(count):
        path = folder / f"{row}.png"
        Image.fromarray(RNG.integers(0, 256, (8 + row % 3, 9), np.uint8)).save(path)
        paths.append(path)
    return Labelled(paths, CLASSES)


def written(tmp_path, monkeypatch, found):
    monkeypatch.setitem(image_sets.STRANGERS, "own", lambda places: found)
    places = Places(tmp_path, tmp_path)
    first = prepared("own", places, tmp_path / "data")
    monkeypatch.setitem(image_sets.STRANGERS, "own", None)  # not read again
    assert prepared("own", places, tmp_path / "data") == first
    labelled = open_data(first.labelled, image_size=8)
    unlabelled = open_data(first.unlabelled, image_size=8)
    return labelled, unlabelled


@pytest.mark.parametrize("kind", ["arrays", "files"])
def test_a_set_is_split_once_and_pretraining_sees_no_label(tmp_path, monkeypatch, kind):
    found = arrays() if kind == "arrays" else files(tmp_path)
    labelled, unlabelled = written(tmp_path, monkeypatch, found)
    assert (len(labelled.train), len(labelled.test)) == (30, 10)
    assert np.bincount(labelled.test.labels).tolist() == [5, 5]
    assert unlabelled.train.labels is None
    assert unlabelled.test is None

    def each(images):
        return sorted(image.tobytes() for image in images.gather(range(len(images))))

    assert each(unlabelled.train) == each(labelled.train)
    assert not set(each(labelled.test)) & set(each(labelled.train))


def test_a_given_test_part_is_kept(tmp_path, monkeypatch):
    test = np.arange(40) >= 36
    labelled, _ = written(tmp_path, monkeypatch, arrays(test))
    assert len(labelled.test) == 4


def test_no_image_set_is_both_developed_on_and_a_stranger():
    assert not set(DEVELOPMENT) & set(STRANGERS)
    assert (len(DEVELOPMENT), len(STRANGERS)) == (6, 6)
    assert set(Strangers(table="recipes").chosen_sets()) == set(DEVELOPMENT)
    assert set(Strangers().chosen_sets()) == set(STRANGERS)


def test_sets_that_are_missing_say_how_to_get_them(tmp_path, capsys):
    config = Strangers(
        sets=("usps", "clipart"), folder=str(tmp_path), packages=str(tmp_path / "p")
    )
    assert list(strangers.available(config)) == []
    said = capsys.readouterr().out
    assert "usps is left out" in said
    assert "apt-get download openclipart-png" in said


@pytest.mark.parametrize("table", ["strangers", "objectives", "recipes"])
def test_every_row_is_a_command_that_the_recipe_takes(table, monkeypatch, tmp_path):
    """All settings are checked by what reads them."""
    given = []

    def recommended(data, *, out, minutes, **flags):
        given.append(minutes)
        chosen = {**recipe.RECIPE, "augment": "photos"}
        return recipe._merged(chosen, {**flags, "data": data, "out": out})

    monkeypatch.setattr(recipe, "recommend", recommended)
    data = image_sets.Prepared("digits", "digits")
    config = Strangers(table=table, minutes=3.0, out=str(tmp_path))
    for name in ROWS[table]:
        _, _, *words = Cell(config, data, "own", name, 1).command
        made = parse(COMMAND, words)
        assert isinstance(made, PretrainConfig)
        assert made.seed == 1
    assert given == [3.0] * len(ROWS[table])


def test_unknown_names_are_refused_together():
    with pytest.raises(UserError) as caught:
        Strangers(table="recipies", sets=("mnits",), seeds=0)
    for part in ("'recipes'", "'mnist'", "seeds=0"):
        assert part in str(caught.value)


def test_what_is_stored_is_not_measured_again(tmp_path, monkeypatch):
    config = Strangers(table="recipes", out=str(tmp_path), seeds=2, sets=("mnist",))
    asked = []

    def scores(cell, names):
        asked.append((cell.row, cell.seed, names))
        return {name: {"kNN, all": 50.0 + cell.seed} for name in names}

    cost = {"minutes": 1.0, "CPU minutes": 2.0}
    monkeypatch.setattr(Cell, "pretrain", lambda cell: cost)
    monkeypatch.setattr(strangers, "probe_scores", scores)
    data = image_sets.Prepared("digits", "digits")
    first = Cell(config, data, "mnist", "default", 0)
    found = strangers.measure(first)
    assert found["cost"] == cost
    scored = ("features", strangers.ALONE, *strangers.BASELINES)
    assert asked == [("default", 0, scored)]
    assert strangers.measure(first) == found
    assert len(asked) == 1
    other = strangers.measure(Cell(config, data, "mnist", "default", 1))
    rows = strangers._rows(config, "mnist", "default", [found, other])
    shown = ["default", "default, alone", *strangers.BASELINES]
    assert [row["row"] for row in rows] == shown
    assert (rows[0]["mean"], rows[0]["cpu_minutes"], rows[0]["n"]) == (50.5, 2.0, 2)


def test_correlations_and_gains_of_criteria():
    """A criterion that orders a set's encoders as kNN does, one that reverses it."""
    names = list(label_free.CRITERIA)
    good, bad, *rest = names

    def encoder(quality, knn):
        values = dict.fromkeys(rest) | {good: quality, bad: -quality}
        return values | {"kNN": knn, "ridge": 1.0}

    run = {"10": encoder(1, 50.0), "20": encoder(3, 70.0), "30": encoder(2, 60.0)}
    rows = list(label_free._rows({"own": {"a": run, "b": {"5": encoder(0, 40.0)}}}))
    found = {(row["row"], row["metric"]): row["mean"] for row in rows}
    assert found[good, "Spearman's ρ with kNN, own"] == pytest.approx(1)
    assert found[bad, "Spearman's ρ with kNN, own"] == pytest.approx(-1)
    gain = "kNN at the run's best step minus the last, points"
    assert found[good, gain] == 10
    assert found[bad, gain] == -10
    assert not any(row == rest[0] for row, _ in found)


@pytest.mark.parametrize("name", strangers.OBJECTIVES)
def test_short_runs_differ_in_their_objective_alone(name):
    config = strangers.Strangers(table="label-free", out="runs/some")
    data = image_sets.Prepared("digits", "digits")
    cell = label_free.Short(config, data, "own", name, 0)
    found = parse(COMMAND, cell.command[2:])
    assert found.out == f"runs/some/runs/short/own/{name}-0"
    assert (found.steps, found.batch_size, found.augment) == (120, 48, "photos")
    expected = {"default": "simclr", "masked-hog": "masked"}.get(name, name)
    assert found.objective.name == expected


def test_four_checkpoints_of_a_run_are_measured_once(tmp_path, monkeypatch):
    run, seen = tmp_path / "default-0", []
    for step in range(10, 101, 10):
        (run / "checkpoints" / f"{step:03d}" / "encoder").mkdir(parents=True)

    def measured(folder, data):
        seen.append((folder.parent.name, data))
        return {"kNN": 1.0}

    monkeypatch.setattr(label_free, "measure", measured)
    found = label_free._measured(run, "digits")
    assert list(found) == ["010", "040", "070", "100"]
    assert [step for step, _ in seen] == list(found)
    assert label_free._measured(run, "digits") == found
    assert len(seen) == 4
