"""Scores of whole data sets, streamed to a file, with pictures of what is anomalous."""

import dataclasses
import heapq
import pathlib

import numpy as np
from jaxtyping import Float, Int

from afterimage.anomalies.config import FALSE_ALARMS, AnomaliesConfig
from afterimage.anomalies.detector import AnomalyDetector
from afterimage.anomalies.drawing import Scored, write_highest
from afterimage.checkpoints.names import spelling
from afterimage.console import say, say_reading
from afterimage.data import ImageSet
from afterimage.encoder import Encoder, load_encoder
from afterimage.errors import disk_errors, require_writable
from afterimage.evaluation.classification import auroc
from afterimage.fields import output_file
from afterimage.reading import ReadingOptions
from afterimage.rows import (
    WRITERS,
    Row,
    every_image,
    one_spec,
    skipped_lines,
    write_rows,
)
from afterimage.storage.outputs import uploads

_SHEETS = (".png", ".html")
_SHOWN = 20  # images of a contact sheet


@dataclasses.dataclass(frozen=True)
class Anomalies:
    """The file of scores, and what is in it."""

    out: pathlib.Path | str
    """The file; the URL of one in a bucket."""
    images: int
    """Rows in the file."""
    anomalous: int
    """Images above the threshold."""
    detector: AnomalyDetector
    highest: tuple[tuple[float, int, str], ...]
    """(score, number, file) of the images with the highest scores, highest first."""
    auroc: float | None
    """Of the scores, by the classes of the data; None without such classes."""
    skipped: pathlib.Path | str | None
    """The list of broken images."""
    bad: int

    def summary(self) -> str:
        """A few lines for a terminal."""
        found = self.detector
        rate, held = found.false_alarms, found.held_out
        lines = [
            f"{self.images:,} scores in {spelling(str(self.out))}",
            f"  {self.anomalous:,} anomalous: above {found.threshold:.4g}, set for "
            f"{100 * rate:.3g} % false alarms on {held:,} held-out normal images",
        ]
        if (least := round(1 / rate) - 1) > held:
            lines.append(
                "  too few were held out for that: expect up to "
                f"{100 / (held + 1):.2g} % false alarms, or give enough normal images "
                f"to hold out {least:,}"
            )
        if self.auroc is not None:
            lines.append(f"  AUROC {self.auroc:.4f} by the classes of the images")
        for score, _, name in self.highest[:5]:
            lines.append(f"  {score:.4g}  {name}")
        return "\n".join([*lines, *skipped_lines(self.bad, self.skipped)])


@uploads
def anomalies(config: AnomaliesConfig) -> Anomalies:
    """Score each image of `config.data`; a command that was stopped continues.

    With `normal`, a detector is fitted first and kept. Memory does not grow with the
    number of images.

    Raises UserError for settings that cannot work or without a detector, DataError for
    data without images, CheckpointError for a damaged detector; Interrupted on Ctrl-C.
    """
    out = output_file(config.out, WRITERS)
    sheet = None if config.sheet is None else output_file(config.sheet, _SHEETS)
    if config.maps is not None:
        require_writable(f"maps={config.maps}", pathlib.Path(config.maps))
    detector = _detector(config)
    images = _open(config, detector.encoder, one_spec(config.data))
    normal = _is_normal(images, config.normal_class)
    pictures = Scored(config, detector, images.ids)
    highest: list[tuple[float, int, str]] = []
    scores = np.full(len(images), np.nan)
    anomalous = 0

    def count(number: int, row: Row) -> None:
        nonlocal anomalous
        anomalous += row["anomalous"]
        scores[number] = row["score"]
        heapq.heappush(highest, (row["score"], -number, row["file"]))
        if len(highest) > _SHOWN:
            heapq.heappop(highest)

    written = write_rows(
        out,
        images,
        pictures.rows,
        mark=[detector.facts, config.maps],
        batch_size=config.batch_size,
        on_bad_image=config.on_bad_image,
        doing="scoring",
        count=count,
        place=pictures.place,
    )
    top = tuple((s, -n, name) for s, n, name in sorted(highest, reverse=True))
    found = Anomalies(
        out=out,
        images=written.images,
        anomalous=anomalous,
        detector=detector,
        highest=top,
        auroc=_auroc(scores, normal),
        skipped=written.skipped,
        bad=written.bad,
    )

    if sheet is not None:
        said = f"highest of {found.images:,} scores; {found.anomalous:,} anomalous"
        with disk_errors(f"sheet={sheet} was not written"):
            write_highest(sheet, detector, images, top, said)
    return found


def _detector(config: AnomaliesConfig) -> AnomalyDetector:
    """Fitted to the normal images and kept, or the one that was kept."""
    if config.normal is None:
        name = config.by.name
        kept = AnomalyDetector.load(config.from_, by=name, folder=config.detector)
        rate = config.false_alarms
        return kept if rate is None else kept.with_false_alarms(rate)
    encoder = load_encoder(config.from_)
    say_reading(config.normal)
    detector = AnomalyDetector.fit(
        config.from_,
        _open(config, encoder, config.normal),
        by=config.by,
        false_alarms=config.false_alarms or FALSE_ALARMS,
        held_out=config.held_out,
        most=config.most,
        seed=config.seed,
        batch_size=config.batch_size,
    )
    say(f"detector {spelling(str(detector.save(config.detector)))}")
    return detector


def _open(config: AnomaliesConfig, encoder: Encoder, data: str) -> ImageSet:
    """All images, as one set, at the encoder's size."""
    return every_image(
        data,
        encoder.preprocessing,
        on_bad_image=config.on_bad_image,
        reading=ReadingOptions(outside_images=config.outside_images),
    )


def _is_normal(images: ImageSet, classes: str) -> Int[np.ndarray, " n"] | None:
    """1 normal, 0 anomalous, -1 unknown, by class or folder; None without both."""
    wanted = {name.strip() for name in classes.split(",")} - {""}
    if images.labels is not None and images.class_names is not None:
        names = [images.class_names[n] if n >= 0 else "" for n in images.labels]
    else:
        names = [pathlib.PurePath(name).parent.name for name in images.ids]
    found = np.array([-1 if not name else name in wanted for name in names], int)
    return found if {0, 1} <= set(found.tolist()) else None


def _auroc(
    scores: Float[np.ndarray, " n"], normal: Int[np.ndarray, " n"] | None
) -> float | None:
    """Of the images with a score and a known class."""
    if normal is None:
        return None
    good = np.isfinite(scores) & (normal >= 0)
    truth = normal[good] == 0
    return auroc(scores[good], truth) if 0 < truth.sum() < len(truth) else None
