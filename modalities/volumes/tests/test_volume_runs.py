"""Runs from the command line and from Python: results, resuming, bad input."""

import csv
import json

import jax
import nibabel
import numpy as np
import pytest
from afterimage_volumes import (
    FinetuneConfig,
    PretrainConfig,
    finetune,
    load_volume_classifier,
    load_volume_encoder,
    pretrain,
)
from scans import blobs, save

from afterimage.checkpoints.weights import read_folder
from afterimage.commands import main
from afterimage.errors import DataError, UserError
from afterimage.training.loop import Callbacks

SMALL = {"batch_size": 4, "tensorboard": False, "log_every": 1}
TINY = {"size": 16, "spacing": 1.0, "width": 2, "validation": 0.25, **SMALL}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """16 volumes, half of them with a cube."""
    return blobs(tmp_path_factory.mktemp("data"))


class Killed(Exception):
    """Stops a run."""


def killed_at(step):
    def stop(now, _):
        if now == step:
            raise Killed

    return Callbacks(on_checkpoint=stop)


def leaves(run, kind):
    return jax.tree.leaves(read_folder(run / kind, kind)[:2])


def same(one, other, kind):
    for a, b in zip(leaves(one, kind), leaves(other, kind), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def pretrained(table, tmp_path_factory):
    """A run of four steps, and the same stopped after two and continued."""
    place = tmp_path_factory.mktemp("runs")
    settings = {
        "data": str(table.parent / "scans"),
        "steps": 4,
        "save_every": 2,
        **TINY,
    }
    whole = pretrain(PretrainConfig(out=str(place / "whole"), **settings))
    parts = PretrainConfig(out=str(place / "parts"), **settings)
    with pytest.raises(Killed):
        pretrain(parts, callbacks=killed_at(2))
    assert pretrain(parts).results == whole.results
    assert pretrain(parts).results == whole.results  # complete: left unchanged
    same(place / "whole", place / "parts", "volume-encoder")
    return place / "whole"


def test_pretraining_says_what_it_takes_and_shows_what_it_rebuilds(pretrained):
    lines = (pretrained / "metrics.jsonl").read_text().splitlines()
    losses = [
        row["train/loss"] for line in lines if "train/loss" in (row := json.loads(line))
    ]
    assert len(losses) == 4
    assert (pretrained / "pictures" / "rebuilt.png").stat().st_size > 1000
    assert "volumes held out" in (pretrained / "report.html").read_text().lower()


def test_the_encoder_loads_alone_and_reads_files_and_images(pretrained, table):
    encoder = load_volume_encoder(str(pretrained))
    paths = sorted((table.parent / "scans").iterdir())[:5]
    found = encoder(paths, batch_size=2)
    assert found.shape == (5, 28)
    assert np.isfinite(found).all()
    images = [nibabel.load(path) for path in paths]
    np.testing.assert_allclose(encoder(images), found, rtol=1e-4, atol=1e-5)
    with pytest.raises(DataError, match=r"volume 0 is a ndarray; expected a path"):
        encoder(np.zeros((1, 16, 16, 16)))
    with pytest.raises(DataError, match="at least one"):
        encoder([])


def test_from_a_table_to_predictions(pretrained, table, tmp_path, capsys):
    out, predictions = tmp_path / "run", tmp_path / "new.csv"
    words = f"{table} --from {pretrained} --out {out} --mode probe --steps 60 --lr 0.01"
    words += " --batch-size 4 --test 0.25 --no-tensorboard"
    assert main(["volume-finetune", *words.split()]) == 0
    assert "test (4 volumes): accuracy 100" in capsys.readouterr().out
    words = f"{table.parent / 'scans'} --from {out} --out {predictions}"
    assert main(["volume-predict", *words.split()]) == 0
    with predictions.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["volume"] for row in rows] == [f"{n:02}.nii.gz" for n in range(16)]
    assert [row["class"] for row in rows] == ["none", "cube"] * 8
    one = table.parent / "scans" / "01.nii.gz"
    assert main(["volume-predict", str(one), *words.split()[1:]]) == 0
    assert predictions.read_text().splitlines()[1].startswith("01.nii.gz,cube,")
    model = load_volume_classifier(str(out))
    paths = sorted((table.parent / "scans").iterdir())
    p = model.predict_proba(paths)
    np.testing.assert_allclose(p.sum(1), 1)
    assert [f"{v:.6f}" for v in p.max(1)] == [
        f"{float(row['probability']):.6f}" for row in rows
    ]
    # The probe leaves the encoder as it was.
    first = read_folder(pretrained / "volume-encoder", "volume-encoder")[0]
    after = read_folder(out / "volume-classifier", "volume-classifier")[0]
    jax.tree.map(np.testing.assert_array_equal, first, after["encoder"])
    assert main(["checkpoints", "verify", str(out)]) == 0


def test_full_fine_tuning_learns_resumes_and_keeps_the_best_step(
    pretrained, table, tmp_path
):
    settings = {"data": str(table), "from_": str(pretrained), "steps": 6, **SMALL}
    settings |= {"save_every": 2, "eval_every": 2, "lr": 0.01}
    whole = finetune(FinetuneConfig(out=str(tmp_path / "whole"), **settings))
    parts = FinetuneConfig(out=str(tmp_path / "parts"), **settings)
    with pytest.raises(Killed):
        finetune(parts, callbacks=killed_at(2))
    assert finetune(parts).results == whole.results
    same(tmp_path / "whole", tmp_path / "parts", "volume-classifier")
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    rows = [row for line in lines if "eval/loss" in (row := json.loads(line))]
    best = min(rows, key=lambda row: row["eval/loss"])
    assert whole.results["step"] == best["step"]
    start = read_folder(pretrained / "volume-encoder", "volume-encoder")[0]
    after = read_folder(tmp_path / "whole" / "volume-classifier", "volume-classifier")[
        0
    ]
    moved = jax.tree.map(
        lambda a, b: float(np.abs(a - b).max()), start, after["encoder"]
    )
    assert min(jax.tree.leaves(moved)) > 0
    with pytest.raises(UserError, match=r"lr: 0\.01 in the folder, 0\.02 now"):
        finetune(FinetuneConfig(out=str(tmp_path / "whole"), **settings | {"lr": 0.02}))
    with pytest.raises(UserError, match="contains a volume-finetune run"):
        pretrain(PretrainConfig(data=str(table), out=str(tmp_path / "whole"), **TINY))


def said(capsys, command, words):
    """What a command that fails says; its exit code is 2."""
    assert main([command, *str(words).split()]) == 2
    return capsys.readouterr().err


def test_wrong_data_are_refused_in_words(pretrained, table, tmp_path, capsys):
    out, scans = tmp_path / "run", table.parent / "scans"
    text = said(capsys, "volume-pretrain", f"{table.parent}/scnas --out {out}")
    assert "did you mean 'scans'?" in text
    (tmp_path / "empty").mkdir()
    text = said(capsys, "volume-pretrain", f"{tmp_path}/empty --out {out}")
    assert "has no volumes" in text
    save(tmp_path / "one" / "a.nii", np.ones((8, 8, 8), np.int16))
    text = said(capsys, "volume-pretrain", f"{tmp_path}/one --out {out}")
    assert "at least 2 are needed" in text
    text = said(capsys, "volume-pretrain", f"{scans} --out {out} --size 20 --mask 1")
    assert "size=20: must be a multiple of 8" in text
    assert "mask=1.0: must be in (0, 1)" in text
    text = said(capsys, "volume-pretrain", f"{scans} --out {out} --window 5 5")
    assert "the lower first" in text
    text = said(capsys, "volume-finetune", f"{scans} --from {pretrained} --out {out}")
    assert "is not a table" in text
    text = said(capsys, "volume-finetune", f"{table} --from {table.parent} --out {out}")
    assert "expected a finished run of volume-pretrain" in text
    text = said(capsys, "volume-predict", f"{scans} --from {pretrained} --out a.csv")
    assert "expected a finished run of volume-finetune" in text
    one = tmp_path / "one.csv"
    one.write_text(
        table.read_text().replace("none", "cube").replace("scans/", f"{scans}/")
    )
    text = said(capsys, "volume-finetune", f"{one} --from {pretrained} --out {out}")
    assert "every volume has the label 'cube'" in text
    assert not (out / "config.json").exists()


def test_more_than_fits_in_memory_is_refused_before_it_is_read(table, monkeypatch):
    from afterimage_volumes import volumes
    from afterimage_volumes.files import Geometry

    monkeypatch.setattr(volumes, "allowance", lambda: 10_000)
    monkeypatch.setattr(volumes, "read_volume", lambda *_: pytest.fail("read"))
    with pytest.raises(DataError, match=r"16 volumes .* need 65\.5 kB.*smaller --size"):
        volumes.find(str(table)).pixels(Geometry(16, 1.0))
