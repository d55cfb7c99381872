"""What a run leaves: results.json, report.html, a result in Python."""

import dataclasses
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from afterimage import runtime
from afterimage.checkpoints import files, schemas
from afterimage.report import Gallery, Table, Tile, logged, write_report
from afterimage.runs import Run, write_json
from afterimage.training.batches import spaced
from afterimage_captions.aligner import ALIGNER
from afterimage_captions.data import Pairs

_RESULTS, _PAGE = "results.json", "report.html"
_SHOWN = 12
"""Images on the page."""
WAYS = {"image_to_text": "image to text", "text_to_image": "text to image"}


@dataclasses.dataclass(frozen=True)
class AlignResult:
    """A finished run."""

    run: pathlib.Path
    """The run folder; of a run in a bucket, its copy on this machine."""
    results: Mapping[str, Any]
    """results.json: the step, and the scores of `validation` and `test`."""
    complete: bool
    """True if the run was already complete, so that nothing was trained."""
    text: str
    """A few lines for a terminal."""


def read_result(run: Run, *, complete: bool) -> AlignResult:
    """The result of a finished run folder."""
    found = schemas.parse(files.read_bytes(run.path / _RESULTS, schemas.MOST))
    where = run.where.rstrip("/")
    kept = {"aligner": ALIGNER, "encoder": "encoder", "report": _PAGE}
    lines = [": ".join(map(str, row)) for row in _table(found)]
    lines += [f"step {found['step']:,} of {found['steps']:,}"]
    lines += [f"{name}  {where}/{file}" for name, file in kept.items()]
    return AlignResult(run.path, found, complete, "\n".join(lines))


def _table(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(set and direction, recall and rank), of the test or else of the validation."""
    name = "test" if results["test"] else "validation"
    found = results[name]
    rows = [(name, f"{found['images']:,} images, {found['texts']:,} different texts")]
    for key, way in WAYS.items():
        own, chance = found[key], found["chance"][key]
        recalls = ", ".join(
            f"{k} {100 * own[k]:.1f} % (chance {100 * chance[k]:.1f})"
            for k in ("recall@1", "recall@5", "recall@10")
        )
        rows.append((way, f"{recalls}, median rank {own['median_rank']:g}"))
    return rows


def missing(run: Run) -> tuple[str, ...] | None:
    """Files still missing or damaged after the last step; None if complete."""
    lost = run.missing([ALIGNER, "encoder"], [_PAGE, _RESULTS])
    if lost is None:
        try:
            schemas.parse(files.read_bytes(run.path / _RESULTS, schemas.MOST))
        except (OSError, ValueError):
            return (_RESULTS,)
    return lost


def write_page(
    run: Run, pairs: Pairs, vectors: np.ndarray, results: Mapping[str, Any]
) -> None:
    """Writes report.html, then results.json: its presence means that all is there.

    Shows some of the pairs, whose images have these vectors.
    """
    run.keep_time()
    run.metrics.flush()
    rows = run.metrics.rows
    write_report(
        run.path / _PAGE,
        title=f"Images and texts of {pairs.name} (mode {run.config['mode']})",
        lead="An image encoder aligned with the vectors of texts.",
        facts={
            "Run": run.where,
            "Encoder": run.config["from_"],
            "Texts": run.config["text"],
            "Step": f"{results['step']:,} of {results['steps']:,}, chosen by the mean "
            "reciprocal rank of the validation pairs",
            **run.sessions.facts(),
        },
        command=next(iter(run.sessions.commands), ""),
        parts={
            "Retrieval": Table(["", ""], [list(row) for row in _table(results)]),
            "Images": _gallery(pairs, vectors),
        },
        curves={
            "Loss": {"training": logged(rows, "train/contrastive")},
            "Mean reciprocal rank": {"validation": logged(rows, "eval/mrr")},
            "Scale of the cosines": {"training": logged(rows, "train/scale")},
        },
        settings=run.settings,
        tables={"Machine": runtime.fingerprint()},
    )
    finished = time.strftime("%Y-%m-%dT%H:%M:%S")
    write_json(run.path / _RESULTS, {**results, "finished": finished})


def _gallery(pairs: Pairs, vectors: np.ndarray) -> Gallery:
    """Some images with the nearest text of their set."""
    own, some = np.unique(pairs.text), spaced(len(pairs), _SHOWN)
    nearest = own[(vectors[some] @ pairs.vectors[own].T).argmax(1)]
    pixels = pairs.gather(some)
    rows = []
    for n, row in enumerate(some.tolist()):
        text = f"{pairs.texts[pairs.text[row]]} → {pairs.texts[nearest[n]]}"
        rows.append((text, [Tile.of(pixels[n], str(pairs.ids[row]))]))
    return Gallery("The text of an image → the nearest text of its set.", rows)
