import json
import shutil

import numpy as np
import pytest

from afterimage.commands import main
from afterimage.finetune import select as select_module
from afterimage.finetune.selection import (
    ensemble_agreement,
    neighbour_information,
)
from tests import classifier_artefact, encoder_artefact
from tests.encoder_artefact import pictures


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Runs one, twin (the same) and other, and images without labels."""
    home = tmp_path_factory.mktemp("runs")
    classifier_artefact.write(home / "one", 0)
    shutil.copytree(home / "one", home / "twin")
    classifier_artefact.write(home / "other", 1)
    np.savez(home / "others.npz", images=pictures(30))
    return home


def select(home, runs, *more):
    data = f"npz:{home / 'others.npz'}"
    return main(["select", "--from", *map(str, runs), "--data", data, *more])


def test_who_says_most_often_what_all_say():
    """The mean is (.6, .4) and (.4, .6): the third errs on the second image."""
    p = [[[0.9, 0.1], [0.1, 0.9]], [[0.6, 0.4], [0.3, 0.7]], [[0.3, 0.7], [0.8, 0.2]]]
    assert ensemble_agreement([np.log(one) for one in p]) == [1.0, 1.0, 0.0]
    sure = np.log([[0.999, 0.001]])  # outvotes two unsure ones
    assert ensemble_agreement([sure, *[np.log([[0.4, 0.6]])] * 2]) == [1.0, 0.0, 0.0]


def test_what_neighbours_tell_of_each_other_in_closed_form():
    """Pairs (0, 1) and (2, 3). Alike in both: log 2; all one class: 0; of three of a
    class and one of another, P = [[1/2, 1/4], [1/4, 0]]."""
    pairs, one_hot = np.array([[1], [0], [3], [2]]), 99.0 * np.eye(2)
    assert neighbour_information(one_hot[[0, 0, 1, 1]], pairs) == pytest.approx(
        np.log(2)
    )
    assert neighbour_information(one_hot[[0, 0, 0, 0]], pairs) == pytest.approx(0)
    assert neighbour_information(np.zeros((4, 2)), pairs) == pytest.approx(0)  # unsure
    expected = np.log(0.5 / 0.75**2) / 2 + np.log(0.25 / (0.75 * 0.25)) / 2
    found = neighbour_information(one_hot[[0, 0, 0, 1]], pairs)
    assert found == pytest.approx(expected)
    every = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])  # half of each kind
    assert neighbour_information(one_hot[[0, 0, 1, 1]], every) < 0.1


def test_of_two_runs_the_one_whose_neighbours_are_alike_is_taken(
    home, tmp_path, monkeypatch, capsys
):
    """Dark and bright images: `other` tells them apart, `one` guesses."""
    tell = np.arange(40) % 2
    images = pictures(40) // 4 + (190 * tell)[:, None, None, None].astype(np.uint8)
    np.savez(tmp_path / "bright.npz", images=images)
    encoder_artefact.write(tmp_path / "encoder")
    said = {"one": np.random.default_rng(0).integers(0, 2, 40), "other": tell}
    read = select_module._read

    def told(config, run):
        logits = 99 * np.eye(3)[said[run.split("/")[-1]]]
        return read(config, run)._replace(logits=logits)

    monkeypatch.setattr(select_module, "_read", told)
    runs = ["--from", str(home / "one"), str(home / "other")]
    given = ["select", *runs, "--data", f"npz:{tmp_path / 'bright.npz'}"]
    assert main([*given, "--encoder", str(tmp_path / "encoder")]) == 0
    printed = capsys.readouterr().out
    assert f"best: {home / 'other'}, by predictions most alike" in printed
    row = printed[printed.index(f"{home / 'other'} ") :]
    assert float(row.split()[1]) == pytest.approx(np.log(2), abs=1e-3)


def test_an_encoder_of_other_images_is_refused(home, tmp_path, capsys):
    encoder_artefact.write(tmp_path / "encoder", image_size=(8, 8))
    runs = [home / "one", home / "other"]
    assert select(home, runs, "--encoder", str(tmp_path / "encoder")) == 2
    said = capsys.readouterr().err
    assert "needs images (8, 8, 3), but the runs need (16, 16, 3)" in said


def test_of_three_runs_one_of_the_two_that_agree_is_taken(home, tmp_path, capsys):
    runs = [home / "other", home / "one", home / "twin"]
    out = tmp_path / "figures" / "select.json"
    assert select(home, runs, "--out", str(out)) == 0
    found = json.loads(out.read_text())
    assert found["chosen"] == str(home / "one")
    assert found["examples"] == 30
    best, twin, other = found["runs"]
    assert (twin["run"], other["run"]) == (str(home / "twin"), str(home / "other"))
    assert best["agreement"] == twin["agreement"] > other["agreement"]
    assert best["infomax"] == twin["infomax"] > 0
    printed = capsys.readouterr()
    assert f"best: {home / 'one'}" in printed.out
    assert f"3/3  {home / 'twin'}" in printed.err


def test_two_runs_are_too_few(home, capsys):
    assert select(home, [home / "one", home / "other"]) == 2
    assert "at least 3" in capsys.readouterr().err


def test_a_run_named_twice_is_refused(home, capsys):
    assert select(home, [home / "one", home / "other", home / "one"]) == 2
    assert "more than once" in capsys.readouterr().err


def test_runs_of_other_classes_are_not_compared(home, tmp_path, capsys):
    strange = classifier_artefact.write(
        tmp_path / "strange", 2, {"classes": ("a", "b", "d")}
    )
    assert select(home, [home / "one", home / "other", strange]) == 2
    assert "has the classes a, b, d" in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_named(home, tmp_path, capsys):
    assert select(home, [home / "one", home / "other", tmp_path / "none"]) == 2
    said = capsys.readouterr().err
    assert str(tmp_path / "none") in said
    assert "1/3" not in said  # before any work
