"""What is installed is one package, `afterimage`; a user's own files change nothing."""

import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest

import afterimage

ROOT = pathlib.Path(__file__).parent.parent
BUILD = """\
import pathlib, sys
from hatchling.builders.{kind} import {builder}
print(next({builder}(sys.argv[1]).build(directory=sys.argv[2])))
"""
# Names that a user's own files may have, and that end the program when they are used.
STRANGERS = ("pretrain.py", "checkpoints.py", "finetune/__init__.py")
TRAIN = """\
import numpy as np
import afterimage
from afterimage.finetune import FinetuneConfig
from afterimage.pretrain import PretrainConfig, pretrain
pretrain(PretrainConfig(data="digits", out="run", steps=2, batch_size=8, width=0.1))
images = np.zeros((2, 8, 8, 3), np.uint8)
print(afterimage.load_encoder("run").features(images).shape[0], afterimage.__file__)
"""


def build(kind, builder, source, folder):
    code = BUILD.format(kind=kind, builder=builder)
    command = [sys.executable, "-c", code, str(source), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return pathlib.Path(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """The project's tracked files, links kept: what a fresh clone has."""
    place = tmp_path_factory.mktemp("clone") / "afterimage-project"
    skipped = shutil.ignore_patterns(
        ".*", "__pycache__", "tests", "benchmarks", "runs", "dist", "build"
    )
    shutil.copytree(ROOT, place, symlinks=True, ignore=skipped)
    shutil.copy(ROOT / ".gitignore", place)
    return place


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory):
    return build("wheel", "WheelBuilder", checkout, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The wheel in a folder of its own, as pip unpacks it."""
    place = tmp_path_factory.mktemp("site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place)
    return place


@pytest.fixture
def at_work(tmp_path):
    """A working directory with a user's own files."""
    for name in STRANGERS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"raise SystemExit('{name} was imported')\n")
    return tmp_path


def run(code, folder, package):
    """What a script in a folder prints; `package` is where afterimage is found."""
    # As `python script.py` does: the script's folder comes first.
    script = f"import sys; sys.path.insert(0, {str(folder)!r})\n{code}"
    env = {**os.environ, "PYTHONPATH": str(package), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", script],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_site_packages_get_one_name(installed):
    version = afterimage.__version__
    names = {path.name for path in installed.iterdir()}
    assert names == {"afterimage", f"afterimage-{version}.dist-info"}
    for stage in ("pretrain", "finetune", "checkpoints"):
        assert (installed / "afterimage" / stage / "__init__.py").is_file()
    assert (installed / "afterimage" / "py.typed").is_file()
    assert (installed / "afterimage" / "report" / "page.html").is_file()


def test_the_images_are_shipped_with_their_licence(installed):
    folder = installed / "afterimage" / "data" / "sources"
    assert 100_000 < (folder / "characters.npz").stat().st_size < 3_000_000
    notice = (folder / "characters-LICENSE.txt").read_text(encoding="utf-8")
    assert "SIL OPEN FONT LICENSE Version 1.1" in notice
    with np.load(folder / "characters.npz") as stored:
        for name in [*stored["fonts_train"], *stored["fonts_test"]]:
            assert f"@fontsource/{name} " in notice
    licences = next(installed.glob("*.dist-info")) / "licenses"
    assert [*licences.rglob("characters-LICENSE.txt")]


def test_the_wheel_holds_every_source_file_once(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if n.endswith(".py")]
    assert len(names) == len(set(names))
    here = (ROOT / "afterimage").rglob("*.py")
    expected = {p.relative_to(ROOT).as_posix() for p in here}
    for stage in ("pretrain", "finetune", "checkpoints"):
        found = (ROOT / stage).rglob("*.py")
        expected |= {f"afterimage/{p.relative_to(ROOT).as_posix()}" for p in found}
    assert set(names) == expected


def test_the_source_archive_builds_the_same_wheel(checkout, wheel, tmp_path):
    archive = build("sdist", "SdistBuilder", checkout, tmp_path / "sdist")
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path, filter="data")
    source = tmp_path / archive.name.removesuffix(".tar.gz")
    again = build("wheel", "WheelBuilder", source, tmp_path / "wheel")

    def content(path):
        with zipfile.ZipFile(path) as opened:
            return {name: opened.read(name) for name in opened.namelist()}

    assert content(again) == content(wheel)


@pytest.mark.parametrize("origin", ["wheel", "checkout"])
def test_a_users_own_files_do_not_stand_in_the_way(origin, at_work, request):
    package = request.getfixturevalue("installed" if origin == "wheel" else "checkout")
    code = "from afterimage.__main__ import main\nsys.exit(main(['--help']))"
    assert "pretrain" in run(code, at_work, package)


@pytest.mark.slow
@pytest.mark.parametrize("origin", ["wheel", "checkout"])
def test_a_run_beside_a_users_own_files(origin, at_work, request):
    package = request.getfixturevalue("installed" if origin == "wheel" else "checkout")
    last = run(TRAIN, at_work, package).splitlines()[-1]
    assert last == f"2 {package / 'afterimage' / '__init__.py'}"


@pytest.mark.slow
def test_a_type_checker_outside_resolves_the_names(installed, tmp_path):
    script = tmp_path / "mine.py"
    script.write_text(
        "from afterimage import load_encoder\n"
        "from afterimage.pretrain import PretrainConfig, pretrain\n"
        "reveal_type(load_encoder)\n"
        "reveal_type(pretrain)\n"
        "PretrainConfig(stepz=1)\n"
    )
    settings = f'{{"extraPaths": ["{installed}"], "include": ["mine.py"]}}'
    (tmp_path / "pyrightconfig.json").write_text(settings)
    command = [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "could not be resolved" not in done.stdout
    assert 'No parameter named "stepz"' in done.stdout
    assert "Unknown" not in done.stdout.partition("load_encoder")[0]
