"""Volumes: memory and time on MRI templates, and lesions found with few labels.

    python -m benchmarks.volumes --packages FOLDER --record

FOLDER has Debian's package mricron-data unpacked (`apt-get download mricron-data &&
dpkg-deb -x mricron-data_*.deb FOLDER`), unless it is installed. Its copyright file
gives the BSD 3-clause licence. Needs `pip install ./modalities/volumes`.

The first table runs a few steps of `afterimage volume-pretrain` on four templates. The
second classifies crops of one of them, `ch2` (a T1-weighted head, 1 mm), by whether a
blob of another intensity and texture was painted into them; the crops of training and
test come from the two halves of the head. A stopped command continues.
"""

import argparse
import csv
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.programs import quietly
from benchmarks.results import markdown, row, write_results

SIDE, RADIUS = 32, (5.0, 7.0)
"""Of a crop, and of a lesion: voxels, which are about 1 mm."""
PLACES = {"train": (40, 70), "test": (110, 140)}
"""Middles of crops, from one side of the head (0) to the other (181 mm)."""
PARTS = {
    "unlabelled": ("train", 400),
    "labelled": ("train", 100),
    "test": ("test", 200),
}
SIZES = (20, 100)
MODES = ("full", "scratch")
TEMPLATES = ("ch2", "ch2bet", "ch2better", "inia19-t1-brain")
TITLE, LESIONS, METRIC = "Volumes", "Lesions in crops of a template", "accuracy, %"
SLICES = "2-D encoder of slices, logistic regression"
MAPS = "3-D, pretrained, logistic regression"
NAMES = {"full": "3-D, pretrained, full", "scratch": "3-D, from scratch"}


def folder(packages: pathlib.Path) -> pathlib.Path:
    """Where the templates are."""
    place = pathlib.Path("usr/share/mricron/templates")
    for root in (packages, pathlib.Path("/")):
        if (root / place).is_dir():
            return root / place
    raise SystemExit(
        "no templates: apt-get download mricron-data && dpkg-deb -x mricron-data_*.deb "
        f"{packages}"
    )


class Crops:
    """Crops of one split: `crop(rng, lesion)`, float32 [s, s, s]."""

    def __init__(self, templates: pathlib.Path, split: str):
        import nibabel

        head, brain = (
            np.asarray(nibabel.load(templates / f"{name}.nii.gz").dataobj, np.float32)  # pyright: ignore
            for name in ("ch2", "ch2bet")
        )
        self.head = head / head.max()
        self.middles = np.argwhere(brain > 0)
        low, high = PLACES[split]
        inside = (self.middles[:, 0] >= low) & (self.middles[:, 0] < high)
        self.middles = self.middles[inside]

    def __call__(self, rng: np.random.Generator, lesion: bool) -> np.ndarray:
        """Turned, stretched and bent; perhaps with a lesion; with another contrast, a
        bias field and noise."""
        from scipy.ndimage import gaussian_filter, map_coordinates, zoom
        from scipy.spatial.transform import Rotation

        offset = np.stack(
            np.meshgrid(*[np.arange(SIDE) - (SIDE - 1) / 2] * 3, indexing="ij")
        )
        turn = Rotation.from_rotvec(rng.normal(0, 0.15, 3)).as_matrix()
        turn = turn * rng.uniform(0.85, 1.15, 3)
        bend: Any = zoom(rng.normal(0, 1, (3, 5, 5, 5)), (1, *[SIDE / 5] * 3), order=1)
        bend *= 1.5 / bend.std()
        middle = self.middles[rng.integers(len(self.middles))]
        places = np.tensordot(turn, offset + bend, 1) + middle[:, None, None, None]
        x = map_coordinates(self.head, places, order=1, mode="constant")
        centre, size = (
            rng.uniform(-8, 8, 3),
            rng.uniform(*RADIUS) * rng.uniform(0.75, 1.3, 3),
        )
        sign, strength = rng.choice((-1, 1)), rng.uniform(0.35, 0.5)
        grain = gaussian_filter(rng.normal(0, 1, x.shape), 1)
        if lesion:
            away = (offset - centre[:, None, None, None]) / size[:, None, None, None]
            mask = 1 / (1 + np.exp((np.linalg.norm(away, axis=0) - 1) / 0.12))
            x = x + mask * (sign * strength + 0.06 * grain / grain.std())
        x = np.clip(x, 0, 1.5) ** rng.uniform(0.7, 1.4)
        slope = rng.normal(0, 0.12, 3)[:, None, None, None]
        x = x * (1 + (slope * offset / SIDE).sum(0))
        x = x + rng.normal(0, rng.uniform(0.01, 0.03), x.shape)
        return (1000 * x).astype(np.float32)


def write_crops(out: pathlib.Path, templates: pathlib.Path) -> None:
    """Every part as NIfTI files, half of them with a lesion, unless they are there."""
    import nibabel

    for seed, (part, (split, count)) in enumerate(PARTS.items()):
        if (out / part / f"{count - 1:04}.nii").exists():
            continue
        crops, rng = Crops(templates, split), np.random.default_rng(seed)
        (out / part).mkdir(parents=True, exist_ok=True)
        for n in range(count):
            image = nibabel.Nifti1Image(
                crops(rng, n % 2 == 1).astype(np.int16), np.eye(4)
            )  # pyright: ignore
            nibabel.save(image, out / part / f"{n:04}.nii")  # pyright: ignore


def chosen(labels: int, seed: int) -> list[int]:
    """The labelled crops of a seed, half with a lesion (odd numbers)."""
    half = np.random.default_rng(seed).permutation(PARTS["labelled"][1] // 2)[
        : labels // 2
    ]
    return sorted([*(2 * half).tolist(), *(2 * half + 1).tolist()])


def table(out: pathlib.Path, labels: int, seed: int) -> pathlib.Path:
    """A table of the labelled crops of a seed and of all test crops."""
    rows = [("labelled", n, "train") for n in chosen(labels, seed)]
    rows += [("test", n, "test") for n in range(PARTS["test"][1])]
    path = out / f"{labels}-{seed}.csv"
    with path.open("w", newline="") as file:
        write = csv.writer(file)
        write.writerow(("volume", "label", "split"))
        for part, n, split in rows:
            label = "lesion" if n % 2 else "none"
            write.writerow((f"{part}/{n:04}.nii", label, split))
    return path


def _run(words: str) -> None:
    from afterimage.commands import main

    if code := quietly(main, words.split()):
        raise SystemExit(f"afterimage {words}: exit code {code}")


def pretrained(given: argparse.Namespace) -> None:
    """The 3-D encoder, and the 2-D encoder of slices of the same crops."""
    out = given.out
    common = "--no-tensorboard --no-resident"
    began = time.process_time()
    _run(
        f"volume-pretrain {out}/unlabelled --out {out}/encoder --size {SIDE} "
        f"--spacing 1 --width 8 --batch-size 16 --steps {given.pretrain_steps} {common}"
    )
    print(f"3-D pretraining: {time.process_time() - began:.0f} CPU s", flush=True)
    began = time.process_time()
    write_slices(out)
    _run(
        f"pretrain {out}/slices --out {out}/encoder-2d --steps {given.slice_steps} "
        f"--width 0.5 --probe-images 0 {common}"
    )
    print(f"2-D pretraining: {time.process_time() - began:.0f} CPU s", flush=True)


def crop_volumes(out: pathlib.Path, part: str) -> np.ndarray:
    """The crops of a part as the 3-D encoder reads them, uint8 [n, s, s, s]."""
    from afterimage_volumes.files import Geometry
    from afterimage_volumes.volumes import find

    return find(str(out / part)).pixels(Geometry(SIDE, 1.0))


def write_slices(out: pathlib.Path) -> None:
    """Every fourth slice of the unlabelled crops, as PNG files."""
    from PIL import Image

    place = out / "slices"
    if (place / "done").exists():
        return
    place.mkdir(exist_ok=True)
    for n, volume in enumerate(crop_volumes(out, "unlabelled")):
        for z in range(n % 4, SIDE, 4):
            Image.fromarray(volume[..., z]).save(place / f"{n:04}-{z:02}.png")
    (place / "done").touch()


def vectors(out: pathlib.Path) -> dict[str, dict[str, np.ndarray]]:
    """{row: {part: features}} of the two encoders; of slices, mean and maximum."""
    from afterimage_volumes import load_volume_encoder

    from afterimage import load_encoder

    known = out / "features.npz"
    if not known.exists():
        flat, found = load_encoder(out / "encoder-2d"), {}
        deep = load_volume_encoder(str(out / "encoder"))
        for part in ("labelled", "test"):
            slices = np.moveaxis(crop_volumes(out, part), -1, 1)
            each = flat.features(slices.reshape(-1, SIDE, SIDE, 1))
            each = np.asarray(each).reshape(-1, SIDE, flat.num_features)
            found[f"{part}/flat"] = np.concatenate([each.mean(1), each.max(1)], 1)
            found[f"{part}/deep"] = deep(sorted((out / part).glob("*.nii")))
        np.savez(known, allow_pickle=False, **found)
    with np.load(known, allow_pickle=False) as stored:
        return {
            name: {part: stored[f"{part}/{kind}"] for part in ("labelled", "test")}
            for name, kind in {SLICES: "flat", MAPS: "deep"}.items()
        }


def logistic(features: dict[str, np.ndarray], labels: int, seed: int) -> float:
    """Test accuracy of logistic regression, its penalty chosen by cross-validation."""
    from afterimage.evaluation import fit_logistic

    rows, folds = np.array(chosen(labels, seed)), np.arange(labels) // 2 % 5
    order = np.argsort(rows % 2, kind="stable").reshape(2, -1).T.ravel()
    known = features["labelled"][rows[order]]
    probe = fit_logistic(known, rows[order] % 2, folds=folds)
    found = probe.predict(features["test"])
    return float(np.mean(found == np.arange(len(found)) % 2))


def tuned(given: argparse.Namespace, mode: str, labels: int, seed: int) -> float:
    """Test accuracy of a run of volume-finetune."""
    out = given.out / f"{mode}-{labels}-{seed}"
    _run(
        f"volume-finetune {table(given.out, labels, seed)} --from {given.out}/encoder "
        f"--out {out} --mode {mode} --seed {seed} --steps {given.steps} "
        "--no-tensorboard --no-resident"
    )
    results = json.loads((out / "results.json").read_text())
    return results["test"]["accuracy"]["value"]


def lesions(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the second table."""
    write_crops(given.out, folder(given.packages))
    pretrained(given)
    known, rows = vectors(given.out), []
    seeds = range(given.seeds)
    for labels in SIZES:
        found = {
            name: [logistic(known[name], labels, s) for s in seeds] for name in known
        }
        for mode in MODES:
            found[NAMES[mode]] = [tuned(given, mode, labels, s) for s in seeds]
        for name, values in found.items():
            percent = [100 * value for value in values]
            rows.append(row(LESIONS, f"{labels} labels, {name}", METRIC, percent))
            print(rows[-1]["row"], percent, flush=True)
    return rows


def memory(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the first table: reading each template, then training on all."""
    import nibabel
    from afterimage_volumes.files import Geometry, read_volume

    templates, rows, to = folder(given.packages), [], Geometry(48, 4.0)
    scans = given.out / "templates"
    scans.mkdir(parents=True, exist_ok=True)
    for name in TEMPLATES:
        path = templates / f"{name}.nii.gz"
        if not (scans / path.name).exists():
            os.symlink(path.resolve(), scans / path.name)
        header: Any = nibabel.load(path)  # pyright: ignore
        shape = " x ".join(map(str, header.shape))
        about = f"{name}: {shape} voxels of {header.header.get_zooms()[0]:g} mm"
        times = []
        for _ in range(given.seeds):
            began = time.perf_counter()
            read_volume(path, to)
            times.append(time.perf_counter() - began)
        rows.append(row("Templates", f"read {about}", "seconds", times))
    return rows + training(given, scans)


def training(given: argparse.Namespace, scans: pathlib.Path) -> list[dict[str, Any]]:
    """Peak memory and seconds a step of the preset, in processes of their own."""
    peaks, seconds = [], []
    for seed in range(given.seeds):
        out = given.out / f"templates-{seed}"
        command = (
            f"-m afterimage volume-pretrain {scans} --preset two-cores --out {out} "
            f"--seed {seed} --steps 6 --log-every 1 --eval-every 6 --validation 0.25 "
            "--no-tensorboard"
        )
        if not (out / "peak.txt").exists():
            null = subprocess.DEVNULL
            child = subprocess.Popen(
                [sys.executable, *command.split()], stdout=null, stderr=null
            )
            _, code, used = os.wait4(child.pid, 0)
            if code:
                raise SystemExit(f"python {command}: exit code {code}")
            (out / "peak.txt").write_text(str(used.ru_maxrss / 1000))
        peaks.append(float((out / "peak.txt").read_text()))
        lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
        rates = [r for line in lines if (r := line.get("time/images_per_second"))]
        seconds.append(8 / float(np.median(rates[1:])))
    name = "preset two-cores, steps of 8 volumes"
    return [
        row("Templates", name, "seconds a step", seconds),
        row("Templates", name, "peak memory of the process, MB", peaks),
    ]


def notes(given: argparse.Namespace) -> str:
    """What was measured, for the page."""
    counts = ", ".join(f"{count} {part}" for part, (_, count) in PARTS.items())
    return f"""\
Templates of Debian's mricron-data (BSD 3-clause by its copyright file), brought to 48
voxels of 4 mm along each side.

Lesions: crops of {SIDE} x {SIDE} x {SIDE} voxels of ch2 ({counts}), half with a blob of
{RADIUS[0]:g} to {RADIUS[1]:g} mm radius, of higher or lower intensity and another
texture. All are turned, stretched and bent, with changed contrast, a bias field and
noise; training and test crops come from the two halves of the head. In a first version,
with fainter lesions and crops from the back and the front, every method was near chance
(49 to 58 %); lesions are stronger since then, for all of them. One 3-D
encoder: `volume-pretrain --width 8 --batch-size 16`, {given.pretrain_steps} steps, on
the unlabelled crops; its classifiers: `volume-finetune`, {given.steps} steps of 8; a
fifth of the labels chooses the step. Slices: `afterimage pretrain --width 0.5` with its
defaults on every fourth slice of the same crops, {given.slice_steps} steps; mean and
maximum of its features over the 32 slices. Logistic regression: the penalty chosen by
five-fold cross-validation on the labels. Each seed draws its labelled crops from the
same {PARTS["labelled"][1]}: with {max(SIZES)} labels, all seeds have the same ones, and
logistic regression gives the same for each (± 0.0). The fifth and the order of
`volume-finetune` are a seed's own, and from scratch its weights. All seeds start from
the one encoder of each kind."""


def main(argv: Sequence[str] | None = None) -> None:
    """Measures what is missing, prints the tables and, with `--record`, keeps them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--packages", type=pathlib.Path, default="../packages")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--pretrain-steps", type=int, default=250)
    parser.add_argument("--slice-steps", type=int, default=100)
    parser.add_argument("--out", type=pathlib.Path, default="runs/volumes")
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args(argv)
    rows = [*memory(given), *lesions(given)]
    print(markdown(rows, TITLE, notes(given)))
    if given.record:
        write_results("volumes", rows, title=TITLE, notes=notes(given))


if __name__ == "__main__":
    main()
