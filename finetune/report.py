"""The output of a fine-tuning run: a result in Python, a report, a short summary."""

import dataclasses
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from afterimage import runtime
from afterimage.checkpoints import schemas
from afterimage.checkpoints.files import read_bytes, replace_file
from afterimage.evaluation.text import percent
from afterimage.finetune.control import control
from afterimage.finetune.figures import diagrams, figures
from afterimage.finetune.method import Model, Sections
from afterimage.finetune.selection import Rule
from afterimage.finetune.setup import RunSetup
from afterimage.outputs import Outputs, outputs_of_report
from afterimage.report import logged, run_html, write_report
from afterimage.report.parts import Figure, Part
from afterimage.runs import Run, write_json, write_png
from afterimage.training.batches import subsample

_RESULTS = "results.json"
CONFUSION, FIGURES = "confusion.md", "figures.md"
"""All figures as text: of classes, and of labels or numbers."""
_EMBEDDED = 400
"""Images of each domain in the picture of both domains."""


@dataclasses.dataclass(frozen=True)
class FinetuneResult:
    """The files and figures of a fine-tuning run."""

    run: pathlib.Path
    """The run folder; of a run in a bucket, its copy on this machine."""
    where: str
    """The run folder as it was given: a path or a URL."""
    classifier: pathlib.Path
    """Encoder and head, for `afterimage evaluate --from` (which also takes the run)."""
    encoder: pathlib.Path
    """The fine-tuned encoder alone, for `afterimage.load_encoder`."""
    report: pathlib.Path
    results: Mapping[str, Any]
    """results.json: mode, selection (rule, step), validation and test reports."""
    complete: bool
    """True if the run was already complete, so that nothing was trained."""

    @classmethod
    def of(
        cls, run: Run, *, complete: bool, results: Mapping[str, Any] | None = None
    ) -> "FinetuneResult":
        """The result of a run folder; `results` default to its results.json."""
        if results is None:
            path = run.path / _RESULTS
            cure = "delete it, and the same command scores the run again"
            stored: Mapping[str, Any] = run.in_main(
                lambda: schemas.read(path, schemas.ResultsFile, cure)
            )
        else:
            stored = results
        return cls(
            run=run.path,
            where=run.where.rstrip("/"),
            classifier=run.path / "classifier",
            encoder=run.path / "encoder",
            report=run.path / "report.html",
            results=stored,
            complete=complete,
        )

    @property
    def scored(self) -> tuple[str, Mapping[str, Any]] | None:
        """("test", its report), else the same for validation, else None."""
        for name in ("test", "validation"):
            if self.results[name] is not None:
                return name, self.results[name]
        return None

    def _of_tasks(self) -> list[tuple[str, str]]:
        """(task, its figures) for each further task that could be scored."""
        found = []
        for task, reports in self.results.get("tasks", {}).items():
            name = "test" if reports["test"] is not None else "validation"
            report = reports[name]
            if report is not None:
                figures = _first(report)
                found.append((task, f"{name} ({report['examples']} images): {figures}"))
        return found

    def _repr_html_(self) -> str:
        """Curves, the last picture and the figures, for a notebook."""
        return run_html(self.run)

    def summary(self) -> str:
        """A few lines for a terminal."""
        selection = self.results["selection"]
        lines = []
        if self.scored is not None:
            name, report = self.scored
            each = outputs_of_report(report).figures(report)
            figures = ", ".join(f"{label} {value}" for label, value in each.items())
            lines.append(f"{name} ({report['examples']} images): {figures}")
        if "held_out" in self.results:
            lines.append(f"tested on {self.results['held_out']}")
        for task, report in self._of_tasks():
            lines.append(f"{task}, {report}")
        highlights = self.results.get("highlights", {})
        lines += [f"{value} {label}" for label, value in highlights.items()]
        if self.results["test"] is None and "task" not in self.results:
            lines.append(
                "There is no test split. Add test/ beside train/, or score other "
                "images with afterimage evaluate"
            )
        lines += [
            f"step {selection['step']} of {self.results['steps']}, chosen by: "
            f"{selection['rule']}",
            f"classifier  {self.where}/classifier",
            f"encoder     {self.where}/encoder",
            f"report      {self.where}/report.html",
        ]
        return "\n".join(lines)


def write_results(run: Run, results: dict[str, Any]) -> None:
    """Write results.json, last of all: its presence means that the run is complete.

    Its `files` entry lists the files that belong with it.
    """
    names = ["report.html", CONFUSION, FIGURES]
    names = [name for name in names if (run.path / name).is_file()]
    pictures = sorted((run.path / "pictures").glob("*.png"))
    results["files"] = [*names, *(f"pictures/{path.name}" for path in pictures)]
    write_json(run.path / _RESULTS, results)


def missing(run: Run) -> tuple[str, ...] | None:
    """Files still missing after the last step; None if the run is complete."""

    def listed() -> list[str] | None:
        try:
            stored = schemas.parse(read_bytes(run.path / _RESULTS, schemas.MOST))
            return [str(name) for name in stored["files"]]
        except (OSError, ValueError, KeyError, TypeError):  # missing or damaged
            return None

    artefacts, files = ["encoder", "classifier"], run.in_main(listed)
    if files is None:
        return (_RESULTS, *(run.missing(artefacts, ["report.html"]) or ()))
    return run.missing(artefacts, files)


def outline(setup: RunSetup, rule: Rule, step: int) -> dict[str, Any]:
    """results.json without the scores."""
    config, data = setup.config, setup.data
    found: dict[str, Any] = {
        "mode": config.mode.name,
        "from": data.source.describe(),
        "seed": config.seed,
        "training_images": len(data.labels.train),
        "classes": list(data.labels.class_names),
        "steps": setup.steps,
        "selection": {"rule": rule.text, "step": step},
        "runtime": runtime.fingerprint(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S"),
    }
    if data.labels.held_out is not None:
        found["held_out"] = data.labels.held_out
    if data.target is not None:
        found["target"] = data.target.name
    if config.task.kept_step is not None:
        found["task"] = config.task.name
    return found


def write_page(
    run: Run,
    setup: RunSetup,
    results: dict[str, Any],
    description: str,
    *,
    pictures: Mapping[str, tuple[str, pathlib.Path]] = {},
    parts: Mapping[str, Part] = {},
    task: Sections | None = None,
    done: int | None = None,
) -> None:
    """Writes report.html and the figures as text after `done` steps (None: all).

    Puts "highlights" into `results`. The sections that the `task` adds come first;
    `parts` are examples by heading.
    """
    run.keep_time()
    name = "test" if results["test"] is not None else "validation"
    scored = results[name]
    sections = [task or Sections()]
    if done is None:
        sections += [method.report(results) for method in setup.config.methods]
    headline: dict[str, Any] = {k: v for p in sections for k, v in p.headline.items()}
    if headline:
        results["highlights"] = dict(headline)
    grids, shown = dict(sections[0].grids), {}
    if (beside := control(run.path, results)) is not None:
        shown["Pretrained, or from scratch"] = beside
    shown |= parts
    if scored is not None:
        reports = {k: found[name] for k, found in results.get("tasks", {}).items()}
        for column, report in {"": scored, **reports}.items():
            if report is None:
                continue
            before, kind = f"{column}: " if column else "", outputs_of_report(report)
            shown |= {before + k: v for k, v in diagrams(report).items()}
            grids |= {before + k: v for k, v in kind.grids(report).items()}
            headline |= _headline(name, column, report)
        kind = outputs_of_report(scored)
        file = CONFUSION if kind.kind == "classes" else FIGURES
        replace_file(run.path / file, kind.text(scored).encode())
    grids |= {k: v for part in sections[1:] for k, v in part.grids.items()}
    curves = {k: v for part in sections for k, v in part.curves.items()}
    tables = {k: v for part in sections for k, v in part.tables.items()}
    first, *others = [*run.sessions.commands, ""]
    later = {f"{n}": line for n, line in enumerate(filter(None, others), 2)}
    phases = enumerate(description.splitlines(), 1)
    config = setup.config
    data = config.data or setup.data.splits.train.name
    write_report(
        run.path / "report.html",
        title=f"Classifier of {data} (mode {config.mode.name})",
        lead="What a classifier has learned from labelled images.",
        facts=_facts(run, setup, results, done),
        command=first,
        headline=headline,
        parts=shown,
        curves={
            name: {kind: points for kind, points in series.items() if points}
            for name, series in {
                **curves,
                **_curves(run.metrics.rows, setup.outputs),
            }.items()
        },
        logarithmic=[setup.outputs.loss[0]],
        pictures=pictures,
        grids=grids,
        settings=run.settings,
        tables={
            "Phases": {f"{number}": line for number, line in phases},
            **tables,
            "Machine": results["runtime"],
            **({"Commands that continued the run": later} if later else {}),
        },
        unfinished=None if done is None else (done, results["steps"]),
    )


def _headline(
    split: str, column: str, report: Mapping[str, Any]
) -> dict[str, str | Figure]:
    """The figures to show large: all of the main task, the accuracy of another."""
    if not column:
        found = figures(report).items()
        return {f"{split} {k} (95 % interval)": value for k, value in found}
    value = percent(report["accuracy"])
    return {f"{split} {column} accuracy (95 % interval)": value}


def domain_picture(
    setup: RunSetup, model: Model, folder: pathlib.Path | None
) -> dict[str, tuple[str, pathlib.Path]]:
    """{heading: (caption, PNG)}: features of both domains on two principal axes.

    If the domains are alike, the two colours overlap. Without a `folder` (in a process
    that does not write) it computes its share of the features and draws nothing;
    without a target it draws nothing either.
    """
    target = setup.data.target
    if target is None:
        return {}
    # Imported here: runs without a target do not need scikit-learn.
    from afterimage.evaluation.embedding import draw_embedding, embed

    every = setup.data.labels.train, target.images
    some = [subsample(images, _EMBEDDED) for images in every]
    features = np.concatenate([setup.scorer.features(*model, part) for part in some])
    if folder is None:
        return {}
    pixels = np.concatenate([part.gather(np.arange(len(part))) for part in some])
    domain = np.repeat([0, 1], [len(images) for images in some])
    # In random order, so that neither domain covers the other.
    order = np.random.default_rng(0).permutation(len(domain))
    places, how = embed(features[order])
    names = ("source", "target")
    picture = draw_embedding(places, pixels[order], domain[order], names, caption=how)
    counts = [f"{len(part)} of {images.name}" for part, images in zip(some, every)]
    caption = f"Images: {', '.join(counts)}: {how}"
    path = write_png(picture, folder / "domains.png")
    return {"Source and target, as features of the head": (caption, path)}


def _first(report: Mapping[str, Any]) -> str:
    """The most important figure of a report: `accuracy 97.2 % (96.1-98.0)`."""
    label, value = next(iter(outputs_of_report(report).figures(report).items()))
    return f"{label} {value}"


def _curves(
    rows: Sequence[Mapping[str, Any]], outputs: Outputs
) -> dict[str, Mapping[str, Any]]:
    """Loss, figures and learning rate by step, from the lines of metrics.jsonl."""
    heading, loss = outputs.loss
    figures = [f"eval/{metric}" for metric in outputs.curves.values()]
    validated = any(name in row for row in rows for name in figures)
    kind, prefix = (
        ("validation", "") if validated else ("training, evaluated", "train_")
    )
    pairs = {heading: (loss, "loss")}
    pairs |= {title: (metric, metric) for title, metric in outputs.curves.items()}
    curves = {
        title: {
            "training": logged(rows, f"train/{trained}"),
            kind: logged(rows, f"eval/{prefix}{metric}"),
        }
        for title, (trained, metric) in pairs.items()
    }
    return {**curves, "Learning rate": {"learning rate": logged(rows, "train/lr")}}


def _facts(
    run: Run, setup: RunSetup, results: Mapping[str, Any], done: int | None
) -> dict[str, Any]:
    """Where it is, what it was trained and tested on, and when."""
    selection, steps = results["selection"], results["steps"]
    chosen = f"chosen by: {selection['rule']}"
    if done is None:
        chosen = f"{selection['step']:,} of {steps:,}, {chosen}"
    facts = {
        "Run": run.where,
        "Encoder": setup.config.from_,
        "Labels": f"{results['training_images']:,} images of "
        + setup.config.task.describe(setup.data.labels.train)[0],
        "Step": chosen,
    }
    if "held_out" in results:
        facts["Tested on"] = results["held_out"]
    if "target" in results:
        facts["Tested on"] = f"the target {results['target']}"
    return facts | run.sessions.facts()
