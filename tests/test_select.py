import json
import shutil

import jax
import numpy as np
import pytest

from afterimage.__main__ import main
from afterimage.data import Preprocessing
from afterimage.models import ModelConfig
from checkpoints.classifier import write_classifier
from finetune.artefact import head_entry
from finetune.classifier import Classifier, HeadConfig
from finetune.domains.selection import ensemble_agreement
from tests import encoder_artefact
from tests.encoder_artefact import pictures


def classifier(folder, seed, names=("a", "b", "c")):
    """A classifier with a random head, as fine-tuning would leave it."""
    config = ModelConfig("conv", image_size=(16, 16), channels=3, width=0.25)
    manifest, head = encoder_artefact.manifest_of(config), HeadConfig(len(names))
    preprocessing = Preprocessing.from_dict(manifest["preprocessing"])
    _, params, stats = Classifier.create(config, {"classes": head}, preprocessing)
    rng = np.random.default_rng(seed)
    params["heads"] = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), params["heads"]
    )
    heads = {"classes": head_entry(head, names)}
    write_classifier(folder / "classifier", params, stats, {**manifest, "heads": heads})
    return str(folder)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Runs one, twin (the same) and other, and images without labels."""
    home = tmp_path_factory.mktemp("runs")
    classifier(home / "one", 0)
    shutil.copytree(home / "one", home / "twin")
    classifier(home / "other", 1)
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
    assert f"take {home / 'one'}" in printed.out
    assert f"3/3  {home / 'twin'}" in printed.err


def test_two_runs_are_too_few(home, capsys):
    assert select(home, [home / "one", home / "other"]) == 2
    assert "name 3 or more" in capsys.readouterr().err


def test_a_run_named_twice_is_refused(home, capsys):
    assert select(home, [home / "one", home / "other", home / "one"]) == 2
    assert "each run once" in capsys.readouterr().err


def test_runs_of_other_classes_are_not_compared(home, tmp_path, capsys):
    strange = classifier(tmp_path / "strange", 2, ("a", "b", "d"))
    assert select(home, [home / "one", home / "other", strange]) == 2
    assert "tells a, b, d apart" in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_named(home, tmp_path, capsys):
    assert select(home, [home / "one", home / "other", tmp_path / "none"]) == 2
    said = capsys.readouterr().err
    assert str(tmp_path / "none") in said
    assert "1/3" not in said  # before any work
