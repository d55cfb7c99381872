"""What a fine-tuning run ends with: a result in Python, a report, a few lines."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from afterimage.checkpoints import schemas
from afterimage.checkpoints.files import read_bytes, replace_file
from afterimage.evaluation.text import MACRO_F1, MAX_MATRIX, percent, report_text
from afterimage.finetune.config import FinetuneConfig
from afterimage.report import logged, run_html, write_report
from afterimage.runs import Run, write_json

_MEASURES = {
    "accuracy": "accuracy",
    "macro_f1": MACRO_F1,
    "calibration_error": "calibration error",
}


_RESULTS = "results.json"


@dataclasses.dataclass(frozen=True)
class FinetuneResult:
    """Where a fine-tuning run left what, and its figures."""

    run: pathlib.Path
    classifier: pathlib.Path
    """Encoder and head: `afterimage evaluate --from` takes it, or the run folder."""
    encoder: pathlib.Path
    """The fine-tuned encoder alone: `afterimage.load_encoder` takes it."""
    report: pathlib.Path
    results: Mapping[str, Any]
    """results.json: mode, selection (rule, step), validation and test reports."""
    complete: bool
    """True where the run was complete before, and nothing was done."""

    @classmethod
    def of(
        cls, run: Run, *, complete: bool, results: Mapping[str, Any] | None = None
    ) -> "FinetuneResult":
        """The result of a run folder, from its results.json where not given."""
        if results is None:
            path = run.path / _RESULTS
            cure = "delete it, and the same command scores the run again"
            stored: Mapping[str, Any] = schemas.read(path, schemas.Results, cure)
        else:
            stored = results
        return cls(
            run=run.path,
            classifier=run.path / "classifier",
            encoder=run.path / "encoder",
            report=run.path / "report.html",
            results=stored,
            complete=complete,
        )

    @property
    def scored(self) -> tuple[str, Mapping[str, Any]] | None:
        """("test", its report), else validation's, else None."""
        for name in ("test", "validation"):
            if self.results[name] is not None:
                return name, self.results[name]
        return None

    def _of_tasks(self) -> list[tuple[str, str]]:
        """(task, its figures) of the further tasks that could be scored."""
        found = []
        for task, reports in self.results.get("tasks", {}).items():
            name = "test" if reports["test"] is not None else "validation"
            report = reports[name]
            if report is not None:
                figures = f"accuracy {percent(report['accuracy'])}"
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
            figures = ", ".join(
                f"{label} {percent(report[key])}" for key, label in _MEASURES.items()
            )
            lines.append(f"{name} ({report['examples']} images): {figures}")
        for task, report in self._of_tasks():
            lines.append(f"{task}, {report}")
        lines += [f"{text} {name}" for name, text in highlights(self.results).items()]
        if self.results["test"] is None and {"continual", "episodes"}.isdisjoint(
            self.results
        ):
            lines.append(
                "There is no test split: give one as test/ beside train/, or score "
                "other images with afterimage evaluate"
            )
        lines += [
            f"step {selection['step']} of {self.results['steps']}, chosen by: "
            f"{selection['rule']}",
            f"classifier  {self.classifier}",
            f"encoder     {self.encoder}",
            f"report      {self.report}",
        ]
        return "\n".join(lines)


def write_results(run: Run, results: dict[str, Any]) -> None:
    """Write results.json, last of all: its presence means that the run is complete.

    Its `files` lists the files that belong beside it.
    """
    names = [n for n in ("report.html", "confusion.md") if (run.path / n).is_file()]
    pictures = sorted((run.path / "pictures").glob("*.png"))
    results["files"] = [*names, *(f"pictures/{path.name}" for path in pictures)]
    write_json(run.path / _RESULTS, results)


def missing(run: Run) -> tuple[str, ...] | None:
    """What a run that has all its steps still lacks; None if it is complete."""
    artefacts = ["encoder", "classifier"]
    try:
        stored = schemas.parse(read_bytes(run.path / _RESULTS, schemas.MOST))
        files = [str(name) for name in stored["files"]]
    except (OSError, ValueError, KeyError, TypeError):  # missing or damaged
        return (_RESULTS, *(run.missing(artefacts, ["report.html"]) or ()))
    return run.missing(artefacts, files)


def highlights(results: Mapping[str, Any]) -> dict[str, str]:
    """What a method beyond plain training reached, by what it is: {name: figure}."""
    found = {}
    if "importance_weighted_accuracy" in results:
        value = results["importance_weighted_accuracy"]
        found["validation accuracy, importance-weighted by the density ratio"] = (
            f"{100 * value:.1f} %"
        )
    if "distillation" in results:
        gain = results["distillation"]
        found["times fewer parameters than the teacher"] = f"{gain['smaller']:.2f}"
        found["times as many images a second"] = f"{gain['faster']:.2f}"
    for name in ("average_accuracy", "forgetting", "forward_transfer"):
        value = results.get("continual", {}).get(name)
        if value is not None:
            found[name.replace("_", " ")] = f"{100 * value:.1f} %"
    episodes = results.get("episodes")
    if episodes is not None:
        row = episodes["accuracy"][episodes["method"]]
        found[f"on {episodes['test_episodes']} held-out episodes (95 % interval)"] = (
            percent(row)
        )
    return found


def write_run_report(
    run: Run,
    config: FinetuneConfig,
    results: Mapping[str, Any],
    *,
    description: str,
    pictures: Mapping[str, tuple[str, pathlib.Path]] = {},
    more_curves: Mapping[str, Mapping[str, Any]] = {},
    more_grids: Mapping[str, tuple[Sequence[str], Sequence[Sequence[Any]]]] = {},
) -> None:
    """report.html and confusion.md of a finished run; `more_…` stand first."""
    name = "test" if results["test"] is not None else "validation"
    scored = results[name]
    headline, grids = highlights(results), dict(more_grids)
    if scored is not None:
        for key, label in _MEASURES.items():
            headline[f"{name} {label} (95 % interval)"] = percent(scored[key])
        grids |= _grids(scored)
        for task, reports in results.get("tasks", {}).items():
            if reports[name] is not None:
                value = percent(reports[name]["accuracy"])
                headline[f"{name} {task} accuracy (95 % interval)"] = value
                more = _grids(reports[name])
                grids |= {f"{task}: {title}": grid for title, grid in more.items()}
        replace_file(run.path / "confusion.md", report_text(scored).encode())
    if "distillation" in results:
        grids["Teacher and student"] = distillation_grid(results["distillation"])
    curves = {**more_curves, **_curves(run.metrics.rows)}
    write_report(
        run.path / "report.html",
        title=f"{config.mode} on {config.data}",
        lead=_lead(run, config, results),
        headline=headline,
        curves={
            name: {kind: points for kind, points in series.items() if points}
            for name, series in curves.items()
        },
        logarithmic=["Cross-entropy"],
        pictures=pictures,
        grids=grids,
        tables={
            "Phases": {
                f"{number}": line
                for number, line in enumerate(description.splitlines(), 1)
            },
            **_feature_rows(results),
            "Settings": json.loads(json.dumps(dataclasses.asdict(config))),
            "Machine": results["runtime"],
        },
    )


def _curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Loss, accuracy and learning rate by step, from the lines of metrics.jsonl."""
    validated = any("eval/accuracy" in row for row in rows)
    kind, prefix = (
        ("validation", "") if validated else ("training, evaluated", "train_")
    )
    return {
        "Cross-entropy": {
            "training": logged(rows, "train/cross_entropy"),
            kind: logged(rows, f"eval/{prefix}loss"),
        },
        "Accuracy": {
            "training": logged(rows, "train/accuracy"),
            kind: logged(rows, f"eval/{prefix}accuracy"),
        },
        "Learning rate": {"learning rate": logged(rows, "train/lr")},
    }


def distillation_grid(found: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """(header, rows) of what `afterimage.finetune.teacher.compare` found."""
    names = ("parameters", "images_per_second", "accuracy")
    rows = [
        [who, *(found[who].get(n) for n in names)] for who in ("teacher", "student")
    ]
    return ["", *(name.replace("_", " ") for name in names)], rows


def _feature_rows(results: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    found = results.get("features")
    if found is None:
        return {}
    rows = {"method": found["method"], "of": str(found["of"])}
    for head, kept in found["kept"].items():
        rows[f"kept by {head} ({len(kept)})"] = ", ".join(map(str, kept))
    return {"Feature selection": rows}


def _lead(run: Run, config: FinetuneConfig, results: Mapping[str, Any]) -> str:
    selection = results["selection"]
    facts = [
        str(run.path),
        f"from {config.from_}",
        f"{results['training_images']} labelled images",
    ]
    if "target" in results:
        facts.append(f"target {results['target']}, on which test figures are taken")
    facts.append(
        f"step {selection['step']} of {results['steps']}, chosen by: "
        f"{selection['rule']}"
    )
    return " · ".join(facts)


def _grids(scored: Mapping[str, Any]) -> dict[str, Any]:
    classes = scored["classes"]
    keys = ("precision", "recall", "f1", "support")
    grids: dict[str, Any] = {
        "Classes": (
            ["class", *keys],
            [[c["name"], *(c[key] for key in keys)] for c in classes],
        )
    }
    if len(classes) <= MAX_MATRIX:
        names = [c["name"] for c in classes]
        grids["Confusion: rows are the true class, columns the predicted one"] = (
            ["", *names],
            [[n, *counts] for n, counts in zip(names, scored["confusion"])],
        )
    return grids
