"""The packages beside this file, found as if they were installed, also by children."""

import os
import pathlib
import sys
import tempfile
import tomllib

from tests.conftest import *  # noqa: F403  the same strictness

HERE = pathlib.Path(__file__).parent


def _installed(site: pathlib.Path) -> list[str]:
    """Writes what pip would record of each package; returns the folders to import."""
    folders = [str(site)]
    for file in sorted(HERE.glob("*/pyproject.toml")):
        project = tomllib.loads(file.read_text())["project"]
        name, version = project["name"], project["version"]
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        (info / "METADATA").write_text(metadata)
        lines = []
        for group, entries in project.get("entry-points", {}).items():
            lines += [f"[{group}]", *(f"{key} = {at}" for key, at in entries.items())]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
        folders.append(str(file.parent))
    return folders


_site = tempfile.TemporaryDirectory(prefix="afterimage-modalities-")
_folders = _installed(pathlib.Path(_site.name))
sys.path[:0] = _folders
_others = filter(None, [os.environ.get("PYTHONPATH")])
os.environ["PYTHONPATH"] = os.pathsep.join([*_folders, str(HERE.parent), *_others])
