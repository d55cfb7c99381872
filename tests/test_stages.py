"""A stage of another package: trained, resumed, used, repaired and refused."""

import json
import pathlib
import re
import shutil
import sys
import tomllib

import numpy as np
import pytest

from afterimage import plugins
from afterimage.checkpoints import schemas
from afterimage.commands import main
from afterimage.commands.flags import parse
from tests.helpers import ROOT, cut_back

PACKAGE = ROOT / "tests" / "line"
SLOPES = np.array([2.0, -1.0, 0.5], np.float32)


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    """The package, installed; its module."""
    site = tmp_path_factory.mktemp("site")
    shutil.copy(PACKAGE / "line_for_afterimage.py", site)
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    info = site / f"line_for_afterimage-{project['version']}.dist-info"
    info.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0.1\n"
    (info / "METADATA").write_text(metadata)
    lines = [
        text
        for group, entries in project["entry-points"].items()
        for text in (f"[{group}]", *(f"{name} = {at}" for name, at in entries.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        for cached in (plugins.plugin_commands, schemas._added):
            cached.cache_clear()
        import line_for_afterimage

        yield line_for_afterimage
    for cached in (plugins.plugin_commands, schemas._added):
        cached.cache_clear()
    sys.modules.pop("line_for_afterimage", None)


@pytest.fixture(scope="module")
def place(line, tmp_path_factory):
    """A folder with rows on a line, and a finished run of the command."""
    folder = tmp_path_factory.mktemp("line")
    x = np.random.default_rng(0).normal(size=(80, 3)).astype(np.float32)
    np.save(folder / "rows.npy", np.concatenate([x, x @ SLOPES[:, None]], 1))
    assert main(words(folder, folder / "run")) == 0
    return folder


def words(folder, out):
    settings = "--steps 60 --batch-size 16 --lr 0.1 --weight-decay 0 --eval-every 20"
    return ["fit-line", f"{folder}/rows.npy", "--out", str(out), *settings.split()]


def test_the_command_trains_it_and_writes_everything(line, place, capsys):
    np.testing.assert_allclose(line.load_line(place / "run"), SLOPES, atol=0.1)
    results = json.loads((place / "run" / "results.json").read_text())
    assert results.keys() == {"step", "steps", "validation", "test"}
    assert results["test"] is None
    assert results["validation"]["error"] < 0.06
    page = (place / "run" / "report.html").read_text()
    assert "64 train + 16 validation" in page
    assert "chosen by the smallest validation error" in page
    assert main(["checkpoints", "verify", str(place / "run")]) == 0
    capsys.readouterr()
    assert main(words(place, place / "run")) == 0  # complete: it only says so
    said = capsys.readouterr().out
    assert "is complete: 60 of 60 steps" in said
    assert re.search(r"validation: 0\.0\d\d off on average\nstep \d+ of 60\n", said)
    assert f"line    {place}/run/line\nreport  {place}/run/report.html" in said


def test_the_best_step_is_kept(line, place):
    run = place / "run"
    rows = [json.loads(s) for s in (run / "metrics.jsonl").read_text().splitlines()]
    found = {row["step"]: row["eval/error"] for row in rows if "eval/error" in row}
    results = json.loads((run / "results.json").read_text())
    assert found[results["step"]] == min(found.values())
    assert results["validation"]["error"] == pytest.approx(min(found.values()))


def test_a_resumed_run_is_the_same_bit_for_bit(line, place, tmp_path):
    copy = cut_back(place / "run", tmp_path / "copy", 40)
    shutil.rmtree(copy / "line")
    assert main(words(place, copy)) == 0
    one, two = map(line.load_line, (place / "run", copy))
    np.testing.assert_array_equal(one, two)


def test_a_damaged_run_is_repaired(line, place, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(place / "run", copy)
    for damage in (
        lambda: (copy / "results.json").write_text("{"),
        lambda: (copy / "results.json").write_text("{}"),
        lambda: (copy / "report.html").unlink(),
        lambda: shutil.rmtree(copy / "line"),
    ):
        damage()
        assert main(words(place, copy)) == 0
        assert "Recreated from the checkpoint" in capsys.readouterr().out
    assert json.loads((copy / "results.json").read_text())["steps"] == 60


def test_other_data_and_settings_are_refused(line, place, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(place / "run", copy)
    assert main([*words(place, copy), "--lr", "0.2"]) == 2
    assert "lr: 0.1 in the folder, 0.2 now" in capsys.readouterr().err
    rows = np.load(place / "rows.npy")
    np.save(tmp_path / "rows.npy", rows + 1)
    shutil.copy(place / "run" / "config.json", copy / "config.json")
    stored = (copy / "config.json").read_text()
    (copy / "config.json").write_text(stored.replace(f"{place}/", f"{tmp_path}/"))
    assert main(words(tmp_path, copy)) == 2
    assert "have changed since this run began" in capsys.readouterr().err
    assert main([*words(place, tmp_path / "new"), "--accumulate", "3"]) == 2
    assert "batch_size=16 cannot be divided" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_without_validation_the_last_step_is_kept(line, place, tmp_path):
    """As a subclass that holds nothing out."""
    import jax.numpy as jnp

    from afterimage.data.sets import Columns
    from afterimage.stages import OwnStage, open_run
    from afterimage.training.job import execute
    from afterimage.training.optimiser import EVERYTHING
    from afterimage.training.stage import Phase, Term

    class Mean(OwnStage):
        artefact, best = "line", "error"
        title, lead = "A mean", "A mean."

        def __init__(self, config, run):
            super().__init__(config, run, "numbers", "0" * 64)
            values = np.arange(8, dtype=np.float32)
            self.sets = {"train": Columns("numbers", {"x": values}, [*"abcdefgh"])}
            self.params = {"slopes": np.zeros(1, np.float32)}
            term = Term(
                name="loss_of",
                fn=lambda view: (jnp.square(view["train/error"]), {}),
                reads=("train/error",),
            )
            self.ready(
                Phase(
                    name="fit",
                    terms=(term,),
                    groups=EVERYTHING,
                    steps=4,
                    options=config,
                )
            )

        def rules(self, params, stats, batch, key, step, trainable):
            return {
                "train/error": lambda _: batch["x"] - params["slopes"],
                "stats/next": lambda _: stats,
            }

        def evaluate(self, state, step, stop):
            return {f"{self.prefix}error": 4.0 - step}

        def facts(self):
            return {"Numbers": self.counts()}

        def lines(self, results):
            return [f"{results['validation']} {results['test']}"]

        def content(self):
            return {"width": 1}

    config = line.LineConfig(
        data="numbers",
        out=str(tmp_path / "run"),
        steps=4,
        batch_size=8,
        eval_every=1,
        tensorboard=False,
    )
    run = open_run(config, "fit-line")
    with run:
        job = Mean(config, run)
        assert job.best is None
        assert job.prefix == "train_"
        assert job.scored_set()[0] == "train"
        result = execute(job, run)
    assert (result.results["step"], result.complete) == (4, False)
    assert result.text.startswith("None None\nstep 4 of 4\n")
    assert "chosen by" not in (tmp_path / "run" / "report.html").read_text()


def test_the_guide_shows_this_package(line):
    page = (ROOT / "docs" / "guide" / "own-stage.md").read_text()
    module = (PACKAGE / "line_for_afterimage.py").read_text()
    sections = re.findall(r"^# \[\w+\]\n(.*?)(?=^# \[)", module, re.M | re.S)
    assert len(sections) == 4
    for section in sections:
        assert section.strip() in page
    entries = pathlib.Path(PACKAGE / "pyproject.toml").read_text()
    assert entries.partition("\n\n")[2].strip() in page
    (command,) = re.findall(r"^afterimage fit-line (.+)$", page, re.M)
    assert parse(line.FIT.COMMAND, command.split()).data == "rows.npy"
