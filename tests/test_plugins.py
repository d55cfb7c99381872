"""A package beside ours adds an encoder, an objective, an augmentation, a source."""

import json
import re
import shutil
import subprocess
import sys
import textwrap

import pytest

from afterimage.models.hog import joined_hog_size
from tests.helpers import ROOT, environment

PLUGIN = ROOT / "tests" / "plugin"
MODULE = (PLUGIN / "shapes_for_afterimage.py").read_text()
GUIDE = (ROOT / "docs" / "guide" / "extending.md").read_text()
SECTIONS = re.findall(r"^# \[(\w+)\]\n(.*?)(?=^# \[)", MODULE, re.M | re.S)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder in which the package is installed, as pip leaves it."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copy(PLUGIN / "shapes_for_afterimage.py", folder)
    project = (PLUGIN / "pyproject.toml").read_text()
    name, version = re.findall(r'^(?:name|version) = "(.+)"', project, re.M)
    entry = re.search(r'^(\w+ = )"(.+)"', project.partition("plugins")[2], re.M)
    assert entry is not None
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    (info / "METADATA").write_text(metadata)
    entries = f"[afterimage.plugins]\n{entry[1]}{entry[2]}\n"
    (info / "entry_points.txt").write_text(entries)
    return folder


def python(code, *folders, arguments=()):
    """A fresh process; the last line that it prints is JSON."""
    path = ":".join(map(str, (ROOT, *folders)))
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        env=environment(PYTHONPATH=path),
        capture_output=True,
        text=True,
        timeout=300,
    )


TRAIN = """
import json, sys
import numpy as np
from afterimage.plugins import AUGMENTATIONS, ENCODERS, OBJECTIVES
from afterimage.pretrain import PretrainConfig, pretrain

names = [list(r.names()) for r in (ENCODERS, OBJECTIVES, AUGMENTATIONS)]
images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 1), np.uint8)
config = PretrainConfig(
    out=sys.argv[1], model="two-patches", augment="upside-down",
    objective={"name": "same-place", "weight": 0.5}, steps=2, batch_size=16,
    log_every=1, eval_every=1, probe_images=0, tensorboard=False,
)
result = pretrain(config, data=images)
print(json.dumps({"names": names, "metrics": dict(result.metrics)}))
"""
LOAD = """
import json, sys
import numpy as np
from afterimage import load_encoder

encoder = load_encoder(sys.argv[1])
found = encoder.features(np.zeros((3, 8, 8, 1), np.uint8))
print(json.dumps(found.shape))
"""
OPEN = """
import json, sys
from afterimage.commands import exit_code
from afterimage.data import open_data
from afterimage.data.sources import forms

def opened():
    data = open_data("bars:40")
    found = [len(data.train), data.train.name, data.train.class_names, len(data.test)]
    print(json.dumps([*found, forms()[-1]]))
    return 0

sys.exit(exit_code(opened))
"""
LOAD_COMMAND = """
import sys
from afterimage.commands import exit_code
from afterimage.encoder import load_encoder

sys.exit(exit_code(lambda: load_encoder(sys.argv[1])))
"""


@pytest.fixture(scope="module")
def trained(site, tmp_path_factory):
    """(run folder, what the process that trained it printed)."""
    run = tmp_path_factory.mktemp("plugin") / "run"
    done = python(TRAIN, site, arguments=[run])
    assert done.returncode == 0, done.stderr
    return run, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_what_it_adds_is_listed_and_trains(trained):
    run, said = trained
    encoders, objectives, augmentations = said["names"]
    assert encoders[-1] == "two-patches"
    assert objectives[-1] == "same-place"
    assert augmentations[-1] == "upside-down"
    # Nothing is reconstructed, so there is no baseline to be relative to.
    assert set(said["metrics"]) == {"loss", "effective_rank"}
    lines = (run / "metrics.jsonl").read_text().splitlines()
    trained = [row for row in map(json.loads, lines) if "train/loss" in row]
    assert {"train/alike", "train/spread"} <= trained[0].keys()
    settings = json.loads((run / "config.json").read_text())["config"]["objective"]
    package = "shapes-for-afterimage 0.3"
    assert settings == {"name": "same-place", "package": package, "weight": 0.5}
    assert (run / "report.html").is_file()


FINETUNE = """
import json, sys
import numpy as np
from afterimage.finetune import FinetuneConfig, finetune

images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 1), np.uint8)
config = FinetuneConfig(
    from_=sys.argv[1], out=sys.argv[2], steps=2, batch_size=16, validation=0.0,
    methods=({"name": "short-features", "weight": 0.5},), log_every=1,
    tensorboard=False,
)
finetune(config, data={"x_train": images, "y_train": np.arange(60) % 2})
"""


@pytest.mark.slow
def test_its_method_trains(trained, site, tmp_path):
    run, _ = trained
    done = python(FINETUNE, site, arguments=[run, tmp_path / "cls"])
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "cls" / "metrics.jsonl").read_text().splitlines()
    logged = [row for row in map(json.loads, lines) if "train/loss" in row]
    assert logged[0]["train/short"] > 0
    settings = json.loads((tmp_path / "cls" / "config.json").read_text())["config"]
    package = "shapes-for-afterimage 0.3"
    assert settings["methods"] == [
        {"name": "short-features", "package": package, "weight": 0.5}
    ]


@pytest.mark.slow
def test_its_encoder_loads_in_a_fresh_process(trained, site):
    run, _ = trained
    manifest = json.loads((run / "encoder" / "manifest.json").read_text())
    assert "shapes-for-afterimage 0.3" in json.dumps(manifest)
    done = python(LOAD, site, arguments=[run])
    assert done.returncode == 0, done.stderr
    # A 2x2 grid of its map and of 256 patch filters, and HOG.
    hog = joined_hog_size((8, 8))
    assert json.loads(done.stdout) == [3, 4 * 32 + 4 * 256 + hog]


@pytest.mark.slow
def test_without_the_package_it_is_named(trained):
    run, _ = trained
    done = python(LOAD_COMMAND, arguments=[run])
    assert done.returncode == 3
    assert "pip install shapes-for-afterimage" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_its_data_are_opened_and_missed_without_it(site):
    done = python(OPEN, site)
    assert done.returncode == 0, done.stderr
    found = [40, "bars:40 [train]", ["high", "low"], 16, "bars:COUNT"]
    assert json.loads(done.stdout) == found
    missing = python(OPEN)
    assert missing.returncode == 2
    assert "'bars:40'" in missing.stderr
    assert "Traceback" not in missing.stderr


@pytest.mark.slow
def test_a_command_trains_on_its_data(site, tmp_path):
    code = "import sys; from afterimage.__main__ import main; sys.exit(main())"
    words = "pretrain --data bars:40 --steps 2 --batch-size 8 --pictures 0 --out"
    done = python(code, site, arguments=[*words.split(), tmp_path / "run"])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("name", "code"), SECTIONS)
def test_the_guide_shows_it_in_at_most_40_lines(name, code):
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) <= 40
    assert code.strip() in GUIDE


def test_the_guide_shows_the_entry_point():
    assert (PLUGIN / "pyproject.toml").read_text().strip() in GUIDE


GREET = """
import dataclasses
from afterimage.commands.flags import Command, parse

@dataclasses.dataclass(frozen=True, kw_only=True)
class Greeting:
    whom: str
    '''Who is greeted.'''

COMMAND = Command(
    name="greet", config=Greeting, positional="whom", about="Say hello.",
    common={"Settings": ("whom",)},
)

def main(argv):
    print(f"Hello {parse(COMMAND, argv).whom}")
"""
AFTERIMAGE = """
import sys
from afterimage.commands import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def greeting(tmp_path):
    """A package with a command, installed."""
    (tmp_path / "greeting.py").write_text(GREET)
    info = tmp_path / "greetings-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: greetings\nVersion: 1.2\n"
    )
    (info / "entry_points.txt").write_text(
        "[afterimage.commands]\ngreet = greeting\nbroken = not_there\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["greet", "you"], 0, "Hello you"),
        (["greet", "--help"], 0, "Who is greeted."),
        (["--help"], 0, "greet        greetings 1.2"),
        (["completion", "words", "gre"], 0, "greet"),
        (["completion", "words", "greet", "--wh"], 0, "--whom"),
        (["broken"], 2, "'broken' of greetings 1.2 cannot be loaded"),
        (["gret"], 2, "'greet'"),
    ],
)
def test_a_package_adds_a_command(greeting, words, code, said):
    done = python(AFTERIMAGE, greeting, arguments=words)
    assert done.returncode == code, done.stderr
    assert said in done.stdout + done.stderr
