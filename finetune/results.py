"""What a run measures on the way, and what it leaves behind at its end."""

import time
from collections.abc import Callable
from typing import Any

from afterimage import runtime
from afterimage.data import ImageSet
from afterimage.runs import Run, write_json
from afterimage.training.state import State
from afterimage.training.sweep import spaced
from checkpoints.inspect import list_steps
from checkpoints.store import Store
from checkpoints.trees import flatten, unflatten
from finetune import shift
from finetune.artefact import head_entry, write_artefacts
from finetune.methods import HEAD
from finetune.parts import Parts
from finetune.scoring import measures, reports
from finetune.selection import ORACLE, label_free
from finetune.stage import describe
from finetune.summary import FinetuneResult, write_run_report
from finetune.teacher import compare

_MOST_SCORED = 2_000


def evaluate(
    parts: Parts, state: State, poll: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """Validation measures; without validation, those of the training images. With a
    target domain, what its predictions say without labels."""
    params, stats, _ = parts.weights(state)

    def logits(images: ImageSet) -> Any:
        return parts.scorer.logits(params, stats, images, poll)

    images, prefix = parts.chosen.validation, ""
    if images is None:
        images, prefix = spaced(parts.chosen.train, _MOST_SCORED), "train_"
    assert images.labels is not None
    measured = measures(logits(images), images.labels)
    found = {prefix + name: value for name, value in measured.items()}
    if parts.target is not None:
        found |= label_free(logits(spaced(parts.target.images, _MOST_SCORED)))
    if parts.rule.metric == ORACLE:
        assert parts.target is not None
        assert parts.target.oracle is not None
        some = spaced(parts.target.oracle, _MOST_SCORED)
        assert some.labels is not None
        found[ORACLE] = measures(logits(some), some.labels)["accuracy"]
    return found


def finish(parts: Parts, run: Run, state: State, store: Store) -> FinetuneResult:
    """Scores the selected step and writes artefacts, report and results.json."""
    params, stats, step = _selected(parts, run, state, store)
    results = outline(parts, step)
    if parts.config.label_shift != "none":
        assert parts.target is not None
        params, results["label_shift"] = shift.correct_labels(
            parts.config, parts.scorer, (params, stats), parts.chosen, parts.target
        )
    names = parts.chosen.class_names
    results |= reports(
        parts.scorer, (params, stats), _scored(parts), names, seed=parts.config.seed
    )
    scored_on = parts.chosen.test or parts.chosen.validation
    if parts.teacher is not None and scored_on is not None:
        results["distillation"] = compare(
            parts.teacher, parts.scorer, parts.sweep, (params, stats), scored_on
        )
    if run.first:
        entry = {HEAD: head_entry(parts.head, names)}
        write_artefacts(run.path, params, stats, parts.manifest(step), entry)
        run.metrics.flush()
        description = describe(parts.stage, parts.params)
        write_run_report(run, parts.config, results, description=description)
        # Last: its presence says that the run is complete.
        write_json(run.path / "results.json", results)
    return FinetuneResult.of(run, complete=False, results=results)


def _selected(
    parts: Parts, run: Run, state: State, store: Store
) -> tuple[Any, Any, int]:
    """(params, stats, step) of the step that the rule chooses."""
    if parts.rule.metric is None:
        return parts.weights(state)
    best = next((row for row in list_steps(run.path) if row.best), None)
    if best is None or best.step == int(state["step"]):
        return parts.weights(state)
    step, tree, _ = store.restore(step=best.step)
    averaged = flatten(tree["params"]) | flatten(tree.get("ema", {}))
    stats = {"encoder": {}, "heads": {}, **tree["stats"]}
    return unflatten(averaged), stats, step


def _scored(parts: Parts) -> dict[str, ImageSet | None]:
    """The image sets of results.json; with a target domain, `test` is of the target."""
    chosen = parts.chosen
    if parts.target is None:
        return {"validation": chosen.validation, "test": chosen.test}
    return {
        "validation": chosen.validation,
        "test": parts.target.test,
        "source": chosen.test,
    }


def outline(parts: Parts, step: int) -> dict[str, Any]:
    """results.json without the scores."""
    found: dict[str, Any] = {
        "mode": parts.config.mode,
        "from": parts.opened.source.describe(),
        "seed": parts.config.seed,
        "training_images": len(parts.chosen.train),
        "classes": list(parts.chosen.class_names),
        "steps": parts.total,
        "selection": {"rule": parts.rule.text, "step": step},
        "runtime": runtime.fingerprint(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S"),
    }
    if parts.target is not None:
        found["target"] = parts.target.name
    return found
