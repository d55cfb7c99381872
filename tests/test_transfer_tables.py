"""The tables of benchmarks.transfer: their data, rows and record, on tiny images."""

import functools
import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from afterimage.finetune.presets import PRESETS
from benchmarks import domains, results, transfer


@pytest.fixture
def folder(tmp_path):
    """mnist.npz, usps.npz and photos of one grey value each, as ../shared/data has."""
    rng = np.random.default_rng(0)
    for name, side in (("mnist", 28), ("usps", 16)):
        arrays = {}
        for split, count in (("train", 60), ("test", 20)):
            pixels = rng.integers(0, 256, (count, side, side), np.uint8)
            arrays |= {f"x_{split}": pixels, f"y_{split}": np.arange(count) % 10}
        np.savez(tmp_path / f"{name}.npz", **arrays)
    for number, archive in enumerate(domains.PHOTOS.values()):
        path = tmp_path / archive
        path.parent.mkdir(exist_ok=True)
        photo, buffer = np.full((32, 32, 3), 60 + 100 * number, np.uint8), io.BytesIO()
        Image.fromarray(photo).save(buffer, "JPEG", quality=100)
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("train/cat/1.jpg", buffer.getvalue())
    return tmp_path


def test_coloured_digits_are_differences_from_photos(folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with np.load(domains.coloured(folder, out)) as made:
        with np.load(folder / "mnist.npz") as mnist:
            for split, grey in (("train", 60), ("test", 160)):
                digits = mnist[f"x_{split}"].astype(int)[..., None].repeat(3, -1)
                np.testing.assert_allclose(
                    made[f"x_{split}"].astype(int), np.abs(grey - digits), atol=1
                )
                np.testing.assert_array_equal(made[f"y_{split}"], mnist[f"y_{split}"])


def test_both_domains_are_joined_at_one_shape(folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with np.load(domains._joined("usps-mnist", folder, out)) as both:
        assert both["images"].shape == (120, 28, 28, 1)
    with np.load(domains._joined("mnist-coloured", folder, out)) as both:
        assert both["images"].shape == (120, 28, 28, 3)


def test_a_missing_file_skips_its_table(tmp_path, capsys):
    run = transfer.Transfer(folder=str(tmp_path), tables=("mnist-usps",))
    transfer.main(run)
    said = capsys.readouterr().out
    assert "mnist-usps: skipped" in said
    assert "mnist.npz, no usps.npz" in said


def test_a_row_that_no_table_has_is_refused_before_anything_runs():
    run = transfer.Transfer(tables=("few-labels",), only=("prob-10",))
    with pytest.raises(SystemExit, match=r"no row 'prob-10'.*probe-10"):
        transfer.main(run)


@pytest.mark.parametrize(("select", "merit"), [("infomax", 1.5), ("entropy", -0.3)])
def test_best_follows_the_rule_of_the_step(select, merit, tmp_path):
    told = [(1.0, 0.2), (2.0, 0.4)]
    found = [
        {"label_free": {"target_infomax": i, "target_entropy": e}} for i, e in told
    ]
    run = transfer.Transfer(select=select)
    merits = domains._merits(run, "mnist-usps", tmp_path, {"mmd": (found, [], {})})
    assert merits == {"mmd": pytest.approx(merit)}


def test_the_row_of_a_preset_has_its_settings(folder, tmp_path):
    run = transfer.Transfer(folder=str(folder), select="infomax")
    row = domains._settings(run, "mnist-coloured", "ink + pseudo-labels", tmp_path)
    preset = PRESETS["adapt-ink"].settings
    assert {name: row.get(name) for name in preset} == dict(preset)


@pytest.mark.slow
def test_rows_are_recorded_one_by_one_and_replaced(folder, tiny, tmp_path, monkeypatch):
    for name in ("read_results", "write_results"):
        there = functools.partial(getattr(results, name), folder=tmp_path / "results")
        monkeypatch.setattr(transfer, name, there)
    run = transfer.Transfer(
        folder=str(folder),
        tables=("usps-mnist", "distillation-mnist"),
        only=("source-only", "coral", "teacher", "student-distilled"),
        seeds=1,
        steps=2,
        pretrain_steps=1,
        select="validation",
        out=str(tmp_path / "runs"),
        record=True,
    )
    for _ in range(2):  # the second time everything is found complete
        transfer.main(run)
        rows = json.loads((tmp_path / "results" / "transfer.json").read_text())
        assert [(r["table"], r["row"]) for r in rows] == [
            ("distillation-mnist", "teacher"),
            ("distillation-mnist", "student-distilled"),
            ("usps-mnist", "source-only"),
            ("usps-mnist", "coral"),
            ("usps-mnist", "best"),
        ]
        assert all(r["steps"] == 2 for r in rows)
        assert "most alike" in rows[-1]["method"]
        merits = rows[-1]["merits"]
        chosen = max(merits, key=merits.get)
        assert set(merits) == {"source-only", "coral"}
        assert rows[-1]["method"].startswith(f"{chosen}: ")
    assert "seconds" not in rows[0]


@pytest.mark.slow
def test_source_accuracy_is_of_images_that_no_run_learned_from(
    folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(domains._LABELLED, "mnist", 40)
    run = transfer.Transfer(
        folder=str(folder),
        tables=("mnist-usps",),
        only=("source-only",),
        seeds=1,
        steps=2,
        pretrain_steps=1,
        out=str(tmp_path / "runs"),
    )
    transfer.main(run)
    assert "mnist-usps: best" in capsys.readouterr().out
    chosen = json.loads(
        (tmp_path / "runs" / "mnist-usps-source-only-0" / "labels.json").read_text()
    )
    used = [int(i) for ids in chosen["train"].values() for i in ids]
    assert len(used) == 40
    with np.load(folder / "mnist.npz") as mnist:
        rest = np.delete(mnist["x_train"], used, axis=0)
    with np.load(tmp_path / "runs" / "mnist-rest-0.npz") as held_out:
        np.testing.assert_array_equal(held_out["images"], rest)
