"""The output of a run: a result in Python, a report on disk, a summary on screen."""

import collections
import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from afterimage.pretrain.config import PretrainConfig
from afterimage.pretrain.evaluation import PROBES, Report
from afterimage.pretrain.views import PICTURE
from afterimage.pretrain.views import caption as views_caption
from afterimage.report import logged, run_html, write_report
from afterimage.runs import Run
from afterimage.settings import dotted, to_dict

Row = Mapping[str, Any]
_HEADLINE = {
    "loss": ("validation loss", ".4g"),
    "relative_loss": ("of the mean image's loss", ".3f"),
    "effective_rank": ("effective rank of the features (centred)", ".1f"),
}
_COLUMNS = {"knn": "kNN", "ridge": "ridge probe"}


@dataclasses.dataclass(frozen=True)
class PretrainResult:
    """The files of a pretraining run, and its last metrics."""

    run: pathlib.Path
    encoder: pathlib.Path
    """The encoder alone; `afterimage.load_encoder` takes this or the run folder."""
    report: pathlib.Path
    picture: pathlib.Path | None
    """The last reconstruction picture."""
    steps: int
    metrics: Mapping[str, float]
    """The last evaluation: loss, relative_loss, effective_rank; with labels also knn,
    ridge and their baselines."""
    complete: bool
    """True if the run was already complete and nothing was done."""

    @classmethod
    def of(cls, run: Run, *, complete: bool, steps: int) -> "PretrainResult":
        """The result of a run folder, with metrics read from its logged lines."""
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
            encoder=run.path / "encoder",
            report=run.path / "report.html",
            picture=pictures[-1] if pictures else None,
            steps=steps,
            metrics=last,
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
        lines = [
            f"validation loss {m['loss']:.4g}{relative}; effective rank "
            f"{m['effective_rank']:.1f} (centred)"
        ]
        for probe in PROBES:
            if probe in m:
                lines.append(
                    f"{_COLUMNS[probe]} {m[probe]:.1%} (raw pixels "
                    f"{m[probe + '_raw_pixels']:.1%}, untrained "
                    f"{m[probe + '_untrained']:.1%})"
                )
        lines += [f"encoder  {self.encoder}", f"report   {self.report}"]
        return "\n".join(lines)


def write_run_report(
    result: PretrainResult,
    *,
    config: PretrainConfig,
    rows: Sequence[Row],
    probes: Report,
    held_out: int,
    data: str,
    model: Mapping[str, Any],
    reached: int | None,
) -> None:
    """Write report.html of a run after `reached` steps; None if it is finished."""
    m = result.metrics
    headline = {
        label: f"{m[name]:{spec}}"
        for name, (label, spec) in _HEADLINE.items()
        if name in m
    }
    for probe in PROBES:
        if probe in m:
            headline[_COLUMNS[probe]] = f"{m[probe]:.1%}"
    table = {
        name: {_COLUMNS[probe]: row[probe]["value"] for probe in PROBES}
        for name, row in probes.items()
    }
    rates = [r["time/images_per_second"] for r in rows if "time/images_per_second" in r]
    speed = {"images per second": rates[-1]} if rates else {}
    loss = config.objective.loss_label
    curves = {
        loss: {
            "training": logged(rows, "train/loss"),
            "validation": logged(rows, "eval/loss"),
        },
        "Probe accuracy": {
            _COLUMNS[probe]: logged(rows, f"eval/{probe}") for probe in PROBES
        },
        "Learning rate": {"learning rate": logged(rows, "train/lr")},
    }
    steps = f"{result.steps:,} steps of {config.batch_size} images"
    state = "" if reached is None else f"not finished, step {reached:,} of "
    pictures = {}
    if result.picture is not None:
        step = int(result.picture.stem.removeprefix("step-"))
        caption = f"Held-out images after step {step:,}"
        pictures["Reconstructions"] = (caption, result.picture)
    if (views := result.run / "pictures" / PICTURE).is_file():
        pictures["Augmented views"] = (views_caption(config), views)
    write_report(
        result.report,
        title=f"{config.model} pretrained on {data}",
        lead=f"{result.run} · {state}{steps}",
        headline=headline,
        curves=curves,
        logarithmic=[loss],
        pictures=pictures,
        probes=table,
        probe_note=(
            f"Accuracy on {held_out} held-out images. The encoder saw no label; the "
            "probes learn from those of the training images, and nothing is fine-tuned."
        ),
        tables={
            "Model and machine": {**model, **speed},
            "Settings": dotted(json.loads(json.dumps(to_dict(config)))),
        },
    )
