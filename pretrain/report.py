"""The output of a run: a result in Python, a report on disk, a summary on screen."""

import collections
import contextlib
import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from afterimage.checkpoints.errors import CheckpointError
from afterimage.checkpoints.manifest import read as read_manifest
from afterimage.evaluation.text import probe_lines, probe_names
from afterimage.plugins import OBJECTIVES
from afterimage.pretrain.config import PretrainConfig
from afterimage.pretrain.evaluation import (
    HOG,
    PROBES,
    RAW,
    TRAINED,
    UNTRAINED,
    Report,
)
from afterimage.pretrain.figures import figures, standard_error
from afterimage.pretrain.gallery import FOLDER, reconstructions
from afterimage.pretrain.origin import Origin
from afterimage.pretrain.views import PICTURE
from afterimage.pretrain.views import caption as views_caption
from afterimage.report import logged, run_html, write_report
from afterimage.report.parts import Part
from afterimage.runs import Run

_COLUMNS = {
    "ridge_10": "linear probe, ten labels a class",
    "ridge": "linear probe, all labels",
    "knn": "kNN",
}


@dataclasses.dataclass(frozen=True)
class PretrainResult:
    """The files of a pretraining run, and its last metrics."""

    run: pathlib.Path
    """The run folder; of a run in a bucket, its copy on this machine."""
    where: str
    """The run folder as it was given: a path or a URL."""
    encoder: pathlib.Path
    """The encoder alone; `afterimage.load_encoder` accepts this or the run folder."""
    report: pathlib.Path
    picture: pathlib.Path | None
    """The last reconstruction picture."""
    steps: int
    metrics: Mapping[str, float]
    """The last evaluation: loss, relative_loss, effective_rank; with labels also knn,
    ridge_10, ridge and their baselines. They are of the objective's own vector."""
    probes: Mapping[str, Any]
    """The `probes` of the encoder's manifest: what its feature vector is good for,
    beside raw pixels, HOG and the untrained encoder. Empty until the run is over."""
    advice: tuple[str, ...]
    """What to try if the features lose to raw pixels, HOG or the untrained encoder."""
    complete: bool
    """True if the run was already complete, so that nothing was trained."""

    @classmethod
    def of(
        cls, run: Run, config: PretrainConfig, *, complete: bool, steps: int
    ) -> "PretrainResult":
        """The result of a run folder: metrics from its logged lines, probes from the
        manifest of its encoder."""
        probes: Mapping[str, Any] = {}
        with contextlib.suppress(CheckpointError):  # there is none yet
            manifest = read_manifest(run.path / "encoder", ("encoder",))
            probes = manifest.get("probes") or {}
        last: Mapping[str, float] = {}
        for row in run.metrics.rows:
            found = {
                k[5:]: v
                for k, v in row.items()
                if k.startswith("eval/") and isinstance(v, int | float)
            }
            last = found or last
        pictures = sorted((run.path / "pictures").glob("step-*.png"))
        return cls(
            run=run.path,
            where=run.where.rstrip("/"),
            encoder=run.path / "encoder",
            report=run.path / "report.html",
            picture=pictures[-1] if pictures else None,
            steps=steps,
            metrics=last,
            probes=probes,
            advice=tuple(advice(probes, config)),
            complete=complete,
        )

    def _repr_html_(self) -> str:
        """Curves, the last picture and the figures, for a notebook."""
        return run_html(self.run)

    def summary(self) -> str:
        """A few lines for a terminal."""
        # A metric is missing if it was not finite or its line was damaged.
        m = collections.defaultdict(lambda: math.nan, self.metrics)
        relative = ""
        if "relative_loss" in m:
            relative = f" ({m['relative_loss']:.3f} × the mean-image baseline)"
        lines = [f"validation loss {m['loss']:.4g}{relative}"]
        # Without probes in its manifest, e.g. of an older run, the log has the rank.
        rank = {"effective_rank": m["effective_rank"]}
        lines += probe_lines(self.probes or rank)
        lines += [
            f"encoder  {self.where}/encoder",
            f"report   {self.where}/report.html",
        ]
        return "\n".join([*lines, *self.advice])


def advice(probes: Mapping[str, Any], config: PretrainConfig) -> list[str]:
    """Two sentences if the features lose to raw pixels, to HOG or to the untrained
    encoder: where, what to try.

    They lose where they are behind by more than one standard error.
    """
    accuracy = probes.get("accuracy") or {}
    names = probe_names(probes.get("per_class", 10))
    rivals = {
        RAW: RAW,
        HOG: "HOG, which needs no training",
        UNTRAINED: f"the {UNTRAINED}",
    }
    for rival, said in rivals.items():
        lost = [
            f"{name} {100 * ours:.1f} against {100 * theirs:.1f} %"
            for key, name in names.items()
            if TRAINED in accuracy and rival in accuracy
            for ours, theirs in [(accuracy[TRAINED][key], accuracy[rival][key])]
            if theirs - ours > standard_error(ours, theirs, probes["images"])
        ]
        if lost:
            cures = "; ".join(_cures(config))
            where = "; ".join(lost)
            return [f"The features lose to {said}: {where}.", f"Try: {cures}."]
    return []


def _cures(config: PretrainConfig) -> list[str]:
    """What has made features better elsewhere, unless this run has it already."""
    found = []
    if len(config.objective.views) < 2 and "simclr" in OBJECTIVES.names():
        found.append("--objective simclr, which learns what two views have in common")
    if config.from_ is not None:  # its model and preprocessing are given
        return [*found, "a longer run (--steps)"]
    if config.normalise == "data":
        found.append("--normalise image, so that brightness and contrast do not count")
    if config.augment == "none":
        found.append("--augment photos, or writing or any-way-up, whichever fits")
    if config.model_settings()["norm"] != "batch":
        found.append("--norm batch")
    if config.model != "conv-patches":
        found.append("--preset patches, which takes a minute or two")
    return [*found, "a longer run (--steps)"]


def write_run_report(
    result: PretrainResult,
    *,
    run: Run,
    config: PretrainConfig,
    report: Report,
    parts: Mapping[str, Part | None],
    probes: Mapping[str, Any],
    held_out: int,
    data: str,
    vector: str,
    model: Mapping[str, Any],
    origin: Origin | None,
    reached: int | None,
) -> None:
    """Write report.html of a run after `reached` steps; None if it is finished.

    `parts` are pictures by heading, to show after the reconstructions.
    """
    run.keep_time()
    rows = run.metrics.rows
    table = {
        name: {_COLUMNS[probe]: row[probe]["value"] for probe in PROBES}
        for name, row in report.items()
    }
    rates = [r["time/images_per_second"] for r in rows if "time/images_per_second" in r]
    speed = {"images per second": rates[-1]} if rates else {}
    loss = config.objective.loss_label
    first, *others = [*run.sessions.commands, ""]
    later = {f"{n}": line for n, line in enumerate(filter(None, others), 2)}
    write_report(
        result.report,
        title=f"{origin.encoder.config.name if origin else config.model} pretrained on "
        f"{data}",
        lead="What an encoder has learned from images without labels.",
        facts={
            "Run": result.run,
            "Images": f"{model['training images']} pixels, from {data}",
            "Training": f"{result.steps:,} steps of {config.batch_size} images, "
            f"objective {config.objective.name}",
            **({} if origin is None else {"Continued from": origin}),
            **run.sessions.facts(),
        },
        command=first,
        headline=figures(
            result.metrics,
            rows,
            report,
            _COLUMNS,
            held_out,
            beside=len(config.objective.views) > 1,
        ),
        parts=_pictures(result, config, parts, reached),
        curves={
            loss: {
                "training": logged(rows, "train/loss"),
                "validation": logged(rows, "eval/loss"),
            },
            "Probe accuracy": {
                _COLUMNS[probe]: logged(rows, f"eval/{probe}") for probe in PROBES
            },
            "Learning rate": {"learning rate": logged(rows, "train/lr")},
        },
        logarithmic=[loss],
        pictures=_sheets(result, config),
        probes=table,
        probe_note=" ".join(
            [
                f"Accuracy on {held_out} held-out images. This run saw no labels; "
                "the probes are fitted to those of the training images, without "
                f"fine-tuning. The feature vector is the {vector}.",
                *advice(probes, config),
            ]
        ),
        settings=run.settings,
        tables={
            "Model and machine": {**model, **speed},
            **({"Commands that continued the run": later} if later else {}),
        },
        unfinished=None if reached is None else (reached, result.steps),
    )


def _pictures(
    result: PretrainResult,
    config: PretrainConfig,
    parts: Mapping[str, Part | None],
    reached: int | None,
) -> dict[str, Part]:
    found: dict[str, Part | None] = {}
    if config.objective.rows:
        steps = result.steps if reached is None else reached
        output = config.objective.rows[-1]
        beside = len(config.objective.views) > 1
        shown = reconstructions(result.run / FOLDER, output, steps, beside=beside)
        found["Reconstructions over time"] = shown
    return {name: part for name, part in (found | {**parts}).items() if part}


def _sheets(
    result: PretrainResult, config: PretrainConfig
) -> dict[str, tuple[str, pathlib.Path]]:
    """{heading: (caption, PNG)} of pictures in the run folder."""
    views = result.run / "pictures" / PICTURE
    if views.is_file():
        return {"Augmented views": (views_caption(config), views)}
    return {}
