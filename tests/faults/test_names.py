"""Names that no one would choose, through every command: files, classes, folders."""

import io
import json
import os
import re
import sys
import zipfile

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from afterimage.commands import exit_code, main
from afterimage.data import open_data
from tests import classifier_artefact, encoder_artefact

# As bytes: not UTF-8, controls, an escape that clears the screen, text turned around.
FILES = [
    b"caf\xe9.png",
    b"line\nbreak.png",
    b"\x1b[2Jclear.png",
    "gpj.\u202egnp.png".encode(),
    b'<b>&"quoted".png',
    b"=1+1.png",
    b"\\xe9.png",
]
CLASSES = [b"caf\xe9", "f\u00fc\u202er".encode()]
SAFE = ("caf\\xe9", "f\u00fc\\u202er")


def noise(seed, level):
    rng = np.random.default_rng(seed)
    return rng.integers(level, level + 100, (16, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes, eight images each, in a folder whose own name is not UTF-8."""
    root = os.fsencode(tmp_path_factory.mktemp("data")) + b"/d\xe9p\xf4t"
    for number, label in enumerate(CLASSES):
        os.makedirs(os.path.join(root, label))
        names = FILES if number == 0 else [f"{i}.png".encode() for i in range(7)]
        for i, name in enumerate(names):
            with open(os.path.join(root, label, name), "wb") as file:
                Image.fromarray(noise(i, 100 * number)).save(file, "PNG")
    with open(os.path.join(root, CLASSES[0], b"br\xf6ken\x1b.png"), "wb") as file:
        file.write(b"no image")
    return os.fsdecode(root)


def unsafe(text, controls="\n\t"):
    """Characters in text that could steer a terminal or turn its direction."""
    return {
        c
        for c in text
        if (ord(c) < 32 and c not in controls)
        or 0x7F <= ord(c) < 0xA0
        or "\u202a" <= c <= "\u202e"
        or "\ud800" <= c <= "\udfff"
    }


def run(capsys, *argv):
    """Runs a command that must succeed and print nothing unsafe; its output."""
    code = main([str(a) for a in argv])
    out, err = capsys.readouterr()
    assert code == 0, err
    assert not unsafe(out)
    assert not unsafe(err, "\n\t\r")
    return out


@pytest.mark.slow
def test_names_of_any_bytes_through_every_command(tmp_path, folder, capsys, tiny):
    pre, cls = tmp_path / "pre", tmp_path / "cls"
    data = ["--data", f"folder:{folder}", "--on-bad-image", "skip"]
    pretrain = [
        "pretrain", *data, "--out", pre, "--model", "conv", "--width", 0.25,
        "--steps", 2, "--batch-size", 4, "--objective", "plain",
    ]  # fmt: skip
    out = run(capsys, *pretrain)
    assert f"{SAFE[0]} " in out
    skipped = (pre / "skipped.txt").read_bytes().decode()
    assert skipped.startswith("caf\\xe9/br\\xf6ken\\x1b.png\t")
    assert len(skipped.splitlines()) == 1
    assert "is complete" in run(capsys, *pretrain)  # the settings are known again

    out = run(
        capsys, "finetune", "--from", pre, *data, "--out", cls, "--steps", 2,
        "--batch-size", 4, "--mode", "probe", "--hold-out", 0,
    )  # fmt: skip
    assert all(re.search(rf"{re.escape(name)} \d", out) for name in SAFE)
    manifest = json.loads((cls / "classifier/manifest.json").read_text())
    assert tuple(manifest["heads"]["classes"]["class_names"]) == SAFE
    used = json.loads((cls / "labels.json").read_text())["train"]
    assert set(used) == set(SAFE)
    listed = {name for names in used.values() for name in names}
    assert "caf\\xe9/caf\\xe9.png" in listed
    assert "caf\\xe9/line\\x0abreak.png" in listed
    assert "caf\\xe9/\\\\xe9.png" in listed  # spelled apart from the byte
    for report in (pre / "report.html", cls / "report.html"):
        assert not unsafe(report.read_text(encoding="utf-8"))

    out = run(capsys, "evaluate", "--from", cls, *data, "--split", "train")
    assert SAFE[0] in out
    assert "14 of them were used" in out
    run(capsys, "select", "--from", cls, tmp_path / "cls/classifier", *data,
        "--encoder", pre)  # fmt: skip

    for name in ("f.parquet", "f.npz"):
        run(capsys, "features", "--from", pre, *data, "--out", tmp_path / name)
    rows = pq.read_table(tmp_path / "f.parquet").to_pydict()
    assert set(rows["class"]) == set(SAFE)
    assert len(set(rows["id"])) == 14
    assert listed <= set(rows["id"])
    with np.load(tmp_path / "f.npz") as arrays:
        assert arrays["id"].tolist() == rows["id"]
    run(capsys, "checkpoints", "show", cls / "classifier")


@pytest.mark.slow
def test_an_encoder_is_scored_on_such_names(tmp_path, folder, capsys):
    encoder_artefact.write(tmp_path / "encoder")
    run(
        capsys, "evaluate", "--from", tmp_path / "encoder", "--data",
        f"folder:{folder}", "--on-bad-image", "skip", "--per-class", 1,
        "--label-seeds", 1, "--validation", 0.4, "--out", tmp_path / "e.json",
    )  # fmt: skip
    assert not unsafe((tmp_path / "e.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("command", ["pretrain", "features"])
def test_a_broken_image_is_named_with_its_name_escaped(
    tmp_path, folder, capsys, command
):
    encoder = tmp_path / "encoder"
    more = ["--from", encoder] if command == "features" else ["--model", "conv"]
    if command == "features":
        encoder_artefact.write(encoder)
    code = main(
        [command, "--data", f"folder:{folder}", "--out", str(tmp_path / "f.npz"),
         *map(str, more)]
    )  # fmt: skip
    err = capsys.readouterr().err
    assert code == 2
    assert "caf\\xe9/br\\xf6ken\\x1b.png: " in err
    assert not unsafe(err, "\n\t\r")


def test_a_table_and_an_archive_name_the_same_files(tmp_path):
    """A table in the bytes of the names, and a zip as Info-ZIP writes such names."""
    root = os.fsencode(tmp_path)
    os.mkdir(os.path.join(root, b"caf\xe9"))
    Image.fromarray(noise(0, 0)).save(tmp_path / "x.png")
    os.rename(tmp_path / "x.png", os.path.join(root, b"caf\xe9/\xe9.png"))
    with open(os.path.join(root, b"t.csv"), "wb") as file:
        file.write(b"file_name,class\ncaf\xe9/\xe9.png,caf\xe9\n")
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        info = zipfile.ZipInfo("????/?.png")
        info.create_system = 3
        with open(os.path.join(root, b"caf\xe9/\xe9.png"), "rb") as file:
            archive.writestr(info, file.read())
    content = (tmp_path / "t.zip").read_bytes()
    content = content.replace(b"????/?.png", b"caf\xe9/\xe9.png")
    (tmp_path / "t.zip").write_bytes(content)
    for spec in (
        f"folder:{tmp_path}",
        f"csv:{tmp_path}/t.csv",
        f"zip:{tmp_path}/t.zip",
    ):
        found = open_data(spec).train
        assert list(found.ids) == ["caf\\xe9/\\xe9.png"]
        assert found.class_names == ("caf\\xe9",)


def ambiguous(root):
    for i, name in enumerate(("train/a/1", "train/b/2", "test/a/3", "odd/4")):
        file = root / f"{name}.png"
        file.parent.mkdir(parents=True)
        Image.fromarray(noise(i, 0)).save(file)
    return f"folder:{root}"


@pytest.mark.parametrize(
    "command", ["pretrain", "finetune", "features", "evaluate", "classifier", "select"]
)
def test_every_command_asks_which_folder_is_what_and_is_told(tmp_path, command, capsys):
    """Before anything is trained or written: two folders that could be anything."""
    data = ambiguous(tmp_path / "data")
    encoder, cls = tmp_path / "encoder", tmp_path / "cls"
    encoder_artefact.write(encoder)
    if command in ("classifier", "select"):
        classifier_artefact.write(cls, heads={"classes": ("a", "b")})
    argv = {
        "pretrain": ["pretrain", "--out", tmp_path / "run"],
        "finetune": ["finetune", "--from", encoder, "--out", tmp_path / "run"],
        "features": ["features", "--from", encoder, "--out", tmp_path / "f.npy"],
        "evaluate": ["evaluate", "--from", encoder],
        "classifier": ["evaluate", "--from", cls],
        "select": ["select", "--encoder", encoder, "--from", cls, cls / "classifier"],
    }[command]
    argv = [*map(str, argv), "--data", data]
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert "odd" in err
    assert "--train train --test test" in err
    assert main([*argv, "--train", "nowhere"]) == 2
    assert "--train nowhere" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    if command == "features":
        out = run(capsys, *argv, "--train", "train", "--test", "test")
        assert "3 feature vectors" in out


def test_a_foreign_artefact_cannot_steer_the_terminal(tmp_path, capsys):
    classifier_artefact.write(tmp_path, heads={"classes": ("a\x1b[2J", "b\u202e")})
    run(capsys, "checkpoints", "show", tmp_path / "classifier")
    images = np.stack([noise(i, 0) for i in range(4)])
    names = np.array(["a\x1b[2J", "b\u202e"] * 2)
    np.savez(tmp_path / "d.npz", images=images, labels=names)
    out = run(
        capsys, "evaluate", "--from", tmp_path, "--data", f"npz:{tmp_path}/d.npz"
    )  # fmt: skip
    assert "a\\x1b[2J" in out


def test_text_beyond_the_terminals_encoding_is_escaped(monkeypatch):
    """A terminal without UTF-8, as in a cron job or a container."""
    screen = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(screen, encoding="ascii"))
    assert exit_code(lambda: print("runs/caf\u00e9 runs/\udce9")) == 0
    assert screen.getvalue() == b"runs/caf\\xe9 runs/\\udce9\n"


@pytest.mark.parametrize("name", ["f.parquet", "f.npz"])
def test_features_from_and_into_folders_of_such_names(tmp_path, folder, capsys, name):
    place = tmp_path / "d\udce9p\udcf4t\x1b"
    place.mkdir()
    encoder_artefact.write(place / "encoder")
    out = place / name
    data = ["--data", f"folder:{folder}", "--on-bad-image", "skip"]
    code = main(["features", "--from", f"{place}/encoder", *data, "--out", str(out)])
    assert code == 0
    assert out.stat().st_size > 0


@pytest.mark.slow
def test_a_run_folder_with_control_characters_is_escaped_when_printed(tmp_path, capsys):
    out = tmp_path / "r\x1bc"
    few = ["--steps", "1", "--width", "0.25", "--pictures", "0", "--probe-images", "0"]
    data = ["--data", "synthetic:8x8x1", "--no-tensorboard", "--objective", "plain"]
    assert main(["pretrain", *data, *few, "--out", str(out)]) == 0
    text = "".join(capsys.readouterr())
    assert "r\\x1bc/report.html" in text
    assert "\x1b" not in text


def test_a_run_folder_that_checkpoints_cannot_have_is_refused(tmp_path, capsys):
    out = tmp_path / "r\udce9"
    assert main(["pretrain", "--data", "digits", "--out", str(out)]) == 2
    assert "r\\xe9" in capsys.readouterr().err
    assert not out.exists()
