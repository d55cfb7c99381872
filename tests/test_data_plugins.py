"""A data source of another package: listed, opened, trained on, and missed."""

import os
import subprocess
import sys

import pytest

from afterimage.errors import UserError
from afterimage.plugins import SOURCES

PLUGIN = '''\
"""Frames of a moving bar, one record a frame."""

import numpy as np

from afterimage.data import Source
from afterimage.plugins import SOURCES


class Frames:
    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, row):
        image = np.zeros((16, 16, 1), np.uint8)
        image[row % 16] = 255
        return {"image": image, "label": "low" if row % 16 < 8 else "high"}


@SOURCES.add("bars")
class Bars(Source):
    """Frames of a moving bar."""

    form = "COUNT"

    def open(self, rest, request):
        return {"train": Frames(int(rest)), "test": Frames(16)}
'''


@pytest.fixture
def python(tmp_path):
    """Runs Python with the plug-in installed, or without it."""
    assert PLUGIN.count("\n") <= 40
    site = tmp_path / "site"
    info = site / "afterimage_bars-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "afterimage_bars.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Name: afterimage-bars\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[afterimage.plugins]\nbars = afterimage_bars\n"
    )

    def run(*arguments, installed=True):
        path = {"PYTHONPATH": str(site)} if installed else {}
        return subprocess.run(
            [sys.executable, *arguments],
            env={**os.environ, **path},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


OPEN = """
from afterimage.data import open_data
from afterimage.data.sources import forms
found = open_data("bars:40")
print(len(found.train), found.train.name, found.train.class_names, len(found.test))
print("bars:COUNT" in forms())
"""


def test_a_source_of_another_package(python):
    done = python("-c", OPEN)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "40 bars:40 [train] ('high', 'low') 16",
        "True",
    ]
    missing = python("-c", OPEN, installed=False)
    assert "'bars:40'" in missing.stderr


@pytest.mark.slow
def test_a_command_trains_on_it(python):
    command = ("-m", "afterimage", "pretrain", "--data", "bars:40", "--out", "run")
    more = ("--steps", "2", "--batch-size", "8", "--pictures", "0")
    done = python(*command, *more)
    assert done.returncode == 0, done.stderr
    missing = python(*command, *more, installed=False)
    assert missing.returncode == 2
    assert "bars:40" in missing.stderr


def test_names_of_our_own_sources_are_found_in_their_files():
    assert {"csv", "digits", "folder", "npz", "synthetic", "tfds", "zip"} <= set(
        SOURCES.names()
    )
    for name in SOURCES.names():
        source = SOURCES.get(name)
        assert source.name == name
        assert source.__doc__
        assert source.spec_form().partition(":")[0] == name
    with pytest.raises(UserError):
        SOURCES.get("folders")
