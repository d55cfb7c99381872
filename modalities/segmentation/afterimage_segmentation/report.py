"""What a run leaves: results.json, report.html, a result in Python."""

import dataclasses
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from afterimage import runtime
from afterimage.checkpoints import files, schemas
from afterimage.report import Figure, Gallery, Matrix, Table, Tile, logged, write_report
from afterimage.runs import Run, write_json
from afterimage.training.batches import spaced
from afterimage_segmentation.data import Data
from afterimage_segmentation.schema import SEGMENTER
from afterimage_segmentation.segmenter import load_segmenter, painted

_RESULTS, _PAGE = "results.json", "report.html"
_SHOWN = 8
"""Images on the page."""


@dataclasses.dataclass(frozen=True)
class SegmentResult:
    """The files and scores of a run."""

    run: pathlib.Path
    """The run folder; of a run in a bucket, its copy on this machine."""
    where: str
    """The run folder as it was given."""
    results: Mapping[str, Any]
    """results.json: the step, and the scores of `validation` and `test`."""
    complete: bool
    """True if the run was already complete, so that nothing was trained."""

    @classmethod
    def of(cls, run: Run, *, complete: bool) -> "SegmentResult":
        """The result of a finished run folder."""
        path = run.path / _RESULTS
        results = schemas.parse(files.read_bytes(path, schemas.MOST))
        return cls(run.path, run.where.rstrip("/"), results, complete)

    def summary(self) -> str:
        """A few lines for a terminal."""
        name = "test" if self.results["test"] else "validation"
        found, lines = self.results[name], []
        if found:
            lines.append(
                f"{name} ({found['images']:,} images): mean IoU {found['miou']:.3f}, "
                f"{100 * found['accuracy']:.1f} % of pixels right"
            )
            lines += [
                f"  {name}: IoU {'-' if value is None else f'{value:.3f}'}"
                for name, value in found["iou"].items()
            ]
        return "\n".join(
            [
                *lines,
                f"step {self.results['step']:,} of {self.results['steps']:,}",
                f"segmenter  {self.where}/{SEGMENTER}",
                f"encoder    {self.where}/encoder",
                f"report     {self.where}/{_PAGE}",
            ]
        )


def missing(run: Run) -> tuple[str, ...] | None:
    """Files still missing or damaged after the last step; None if complete."""
    lost = run.missing([SEGMENTER, "encoder"], [_PAGE, _RESULTS])
    if lost is None:
        try:
            schemas.parse(files.read_bytes(run.path / _RESULTS, schemas.MOST))
        except (OSError, ValueError):
            return (_RESULTS,)
    return lost


def write_page(
    run: Run, data: Data, results: Mapping[str, Any], step: int, steps: int
) -> None:
    """Writes report.html, then results.json: its presence means that all is there."""
    run.keep_time()
    run.metrics.flush()
    name = "test" if results["test"] else "validation"
    scored = results[name] or {}
    rows = run.metrics.rows
    kind = "" if data.validation is not None else "train_"
    headline = {}
    if scored:
        headline = {
            f"{name} mean IoU": Figure(
                f"{scored['miou']:.3f}",
                "Overlap of prediction and truth, the mean over the classes.",
            ),
            f"{name} pixels right": Figure(f"{100 * scored['accuracy']:.1f} %"),
        }
    write_report(
        run.path / _PAGE,
        title=f"Segmenter of {data.train.name} (mode {run.config['mode']})",
        lead="A class for every pixel, learned from images and masks.",
        facts={
            "Run": run.where,
            "Encoder": run.config["from_"],
            "Masks": f"{len(data.train):,} training images, "
            f"{len(data.classes.names)} classes",
            "Step": f"{step:,} of {steps:,}"
            + (", chosen by validation mean IoU" if data.validation else ""),
            **run.sessions.facts(),
        },
        command=next(iter(run.sessions.commands), ""),
        headline=headline,
        parts=_parts(run, data, scored, name),
        curves={
            "Loss": {
                term: logged(rows, f"train/{term}")
                for term in ("loss", "cross_entropy", "dice")
            },
            "Mean IoU": {"validation": logged(rows, f"eval/{kind}miou")},
            "Learning rate": {"learning rate": logged(rows, "train/lr")},
        },
        settings=run.settings,
        tables={"Machine": runtime.fingerprint()},
    )
    finished = time.strftime("%Y-%m-%dT%H:%M:%S")
    found = {"step": step, "steps": steps, **results, "finished": finished}
    write_json(run.path / _RESULTS, found)


def _parts(
    run: Run, data: Data, scored: Mapping[str, Any], name: str
) -> dict[str, Any]:
    """Images with truth and prediction, IoU by class, the confusion matrix."""
    pairs = getattr(data, name) or data.train
    some = spaced(len(pairs), _SHOWN)
    pixels, truth = pairs.images.gather(some), pairs.truth[some]
    colours = data.classes.colours
    predicted = load_segmenter(run.path).predict(pixels)
    key = [
        Tile.of(np.full((8, 8, 3), colour, np.uint8), name)
        for name, colour in zip(data.classes.names, colours)
    ]
    rows = [("classes", key)]
    for n, row in enumerate(some):
        tiles = [
            Tile.of(pixels[n], "image"),
            Tile.of(painted(truth[n], colours), "truth"),
            Tile.of(painted(predicted[n], colours), "prediction"),
        ]
        rows.append((str(pairs.ids[int(row)]), tiles))
    note = "Pixels of unknown class are white in the truth."
    parts: dict[str, Any] = {f"Images of {name}": Gallery(note, rows, aligned=True)}
    if scored:
        each = [
            [name, "-" if value is None else f"{value:.3f}"]
            for name, value in scored["iou"].items()
        ]
        parts["IoU by class"] = Table(["class", "IoU"], each)
        if len(each) <= 20:
            note = "Pixels; rows are true classes, columns predicted ones."
            counts = scored["confusion"]
            parts["Confusion"] = Matrix(note, data.classes.names, counts)
    return parts
