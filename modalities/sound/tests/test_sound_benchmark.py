"""benchmarks.sound: test speakers stay unheard; MFCC by their definition."""

import csv

import numpy as np
import pytest

from benchmarks.sound import LANGUAGES, LETTERS, Sound, mfcc, prepared


@pytest.fixture
def spoken(tmp_path):
    """Files as klettres-data has them; nothing reads their sound."""
    root = tmp_path / "packages" / "usr" / "share" / "klettres"
    for language in (*LANGUAGES, "ru"):
        names = [f"{language}/alpha/{number}.ogg" for number in range(len(LETTERS))]
        for name in (*names, f"{language}/syllab/ba.ogg"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
        sounds = [f'<sound name="{a}" file="{b}"/>' for a, b in zip(LETTERS, names)]
        menu = f"<klettres><alphabet>{''.join(sounds)}</alphabet></klettres>"
        (root / language / "sounds.xml").write_text(menu)
    return Sound(packages=str(tmp_path / "packages"), out=str(tmp_path / "out"))


def test_test_speakers_are_never_heard(spoken):
    held = []
    for seed in range(2):
        letters, heard = (
            list(csv.DictReader(open_table(spec))) for spec in prepared(spoken, seed)
        )
        test = {one["speaker"] for one in letters if one["split"] == "test"}
        train = {one["speaker"] for one in letters if one["split"] == "train"}
        assert (len(test), len(train)) == (4, 8)
        assert {one["file"].split("/")[0] for one in heard} == train | {"ru"}
        assert {one["label"] for one in letters} == set(LETTERS)
        held.append(test)
    assert held[0] != held[1]


def open_table(spec):
    """The lines of the table that a spec names."""
    path = spec.removeprefix("sound:").partition(",")[0]
    with open(path) as file:
        return file.read().splitlines()


def test_mfcc_are_cosine_coefficients_of_each_frame():
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 5, 1), np.uint8)
    found = mfcc(images).reshape(2, 20, 5)
    band = np.arange(32)
    for number in (0, 1, 7):
        wave = np.cos(np.pi * number * (band + 0.5) / 32)
        wave *= np.sqrt((2 if number else 1) / 32)
        low_first = images[:, ::-1, :, 0] / 255
        wanted = np.einsum("b,nbf->nf", wave, low_first)
        np.testing.assert_allclose(found[:, number], wanted, atol=1e-5)
