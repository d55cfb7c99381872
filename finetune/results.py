"""What a run measures on the way, and what it leaves behind at its end."""

import pathlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from afterimage import runtime
from afterimage.checkpoints.inspect import list_steps
from afterimage.checkpoints.store import Store
from afterimage.checkpoints.trees import flatten, unflatten
from afterimage.data import ImageSet
from afterimage.finetune.artefact import head_entry, write_artefacts
from afterimage.finetune.domains import shift
from afterimage.finetune.domains.picture import composed_picture, domain_picture
from afterimage.finetune.domains.pooling import SOURCE
from afterimage.finetune.domains.selection import (
    MIXVAL,
    NEIGHBOURS,
    ORACLE,
    WEIGHTED,
    label_free,
    mixed_agreement,
    neighbour_information,
)
from afterimage.finetune.labels import HEAD, of_head, rows_of_head
from afterimage.finetune.parts import MOST_SCORED, Parts
from afterimage.finetune.scoring import measures, reports
from afterimage.finetune.summary import FinetuneResult, write_results, write_run_report
from afterimage.finetune.teacher import compare
from afterimage.runs import Run
from afterimage.training.stage import describe
from afterimage.training.state import State, averaged_stats
from afterimage.training.sweep import spaced


def evaluate(
    parts: Parts, state: State, poll: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """Validation measures; without validation, those of the training images. With a
    target domain, what its predictions say without labels. Of several tasks, each
    one's (NAME_accuracy) and their mean (mean_accuracy)."""
    params, stats, _ = parts.weights(state)

    def logits(images: ImageSet, head: str = HEAD) -> Any:
        return parts.scorers[head].logits(params, stats, images, poll)

    images, prefix = parts.chosen.validation, ""
    if images is None:
        images, prefix = spaced(parts.chosen.train, MOST_SCORED), "train_"
    weights = stats.get("examples", {}).get("validation")
    found, each = {}, []
    for head in parts.heads:
        some = of_head(images, head)
        if some is not None:
            assert some.labels is not None
            told = logits(some, head)
            each.append(measures(told, some.labels))
            if weights is not None:
                each[-1] |= _weighted(told, some, weights[rows_of_head(images, head)])
            named = prefix if head == HEAD else f"{prefix}{head}_"
            found |= {named + name: value for name, value in each[-1].items()}
    if parts.config.tasks:
        for name in each[0]:
            found[f"{prefix}mean_{name}"] = sum(m[name] for m in each) / len(each)
    if parts.target is not None:
        found |= _without_labels(parts, logits, (parts.config.select,))
    if parts.rule.metric == ORACLE:
        assert parts.target is not None
        assert parts.target.oracle is not None
        some = spaced(parts.target.oracle, MOST_SCORED)
        assert some.labels is not None
        found[ORACLE] = measures(logits(some), some.labels)["accuracy"]
    return found


def _weighted(told: Any, images: ImageSet, weights: Any) -> dict[str, float]:
    """The measures under the density ratios: estimates of those of the target."""
    assert images.labels is not None
    found = measures(told, images.labels, np.asarray(weights, np.float64))
    return {WEIGHTED + name: value for name, value in found.items()}


def finish(parts: Parts, run: Run, state: State, store: Store) -> FinetuneResult:
    """Scores the selected step and writes artefacts, report and results.json."""
    params, stats, step = _selected(parts, run, state, store)
    results = outline(parts, step)
    if parts.config.keep_features is not None:
        known = {head: stats["heads"][head] for head in parts.heads}
        results["features"] = {
            "method": parts.config.feature_selection,
            "of": int(known[HEAD]["mean"].size),
            "kept": {h: np.asarray(part["kept"]).tolist() for h, part in known.items()},
        }
    if parts.config.label_shift != "none":
        assert parts.target is not None
        params, results["label_shift"] = shift.correct_labels(
            parts.config, parts.scorer, (params, stats), parts.chosen, parts.target
        )
    weights = stats.get("examples", {}).get("validation")
    validation = parts.chosen.validation
    held = of_head(validation, HEAD)
    if weights is not None and validation is not None and held is not None:
        told = parts.scorer.logits(params, stats, held)
        results |= _weighted(told, held, weights[rows_of_head(validation, HEAD)])
    names = parts.chosen.head_names(parts.config.tasks)
    found = {
        head: reports(
            parts.scorers[head],
            (params, stats),
            {name: of_head(images, head) for name, images in _scored(parts).items()},
            names[head],
            seed=parts.config.seed,
        )
        for head in parts.heads
    }
    results |= found.pop(HEAD)
    if found:
        results["tasks"] = found
    if parts.target is not None:

        def logits(images: ImageSet) -> Any:
            return parts.scorer.logits(params, stats, images)

        rules = parts.config.select, "mixval"
        results["label_free"] = _without_labels(parts, logits, rules)
    if parts.config.sources:
        results["sources"] = _by_source(parts, (params, stats))
    scored_on = parts.chosen.test or parts.chosen.validation
    if parts.teacher is not None and scored_on is not None:
        results["distillation"] = compare(
            parts.teacher, parts.scorer, parts.sweep, (params, stats), scored_on
        )
    pictures = _pictures(parts, run, (params, stats))
    if run.is_main_process:
        entry = {head: head_entry(parts.heads[head], names[head]) for head in names}
        write_artefacts(run.path, params, stats, parts.manifest(step), entry)
        run.metrics.flush()
        description = describe(parts.stage, parts.params)
        write_run_report(
            run, parts.config, results, description=description, pictures=pictures
        )
        write_results(run, results)
    return FinetuneResult.of(run, complete=False, results=results)


def _without_labels(
    parts: Parts, logits: Callable[[ImageSet], Any], rules: tuple[str, ...]
) -> dict[str, float]:
    """What the target's images say of the classifier: all that the predictions alone
    tell, and of `rules` what takes more."""
    told = logits(parts.of_target)
    found = label_free(told)
    if "mixval" in rules:
        found[MIXVAL] = mixed_agreement(parts.of_target, told, logits)
    if "neighbours" in rules:
        found[NEIGHBOURS] = neighbour_information(told, parts.near)
    return found


def _pictures(
    parts: Parts, run: Run, model: tuple[Any, Any]
) -> dict[str, tuple[str, pathlib.Path]]:
    """{heading: (caption, PNG)} for the report."""
    if parts.target is None:
        return {}
    folder, name = run.path / "pictures", parts.config.compose
    path = folder / "domains.png" if run.is_main_process else None
    images = parts.chosen.train, parts.target.images
    drawn = domain_picture(parts.scorer, model, *images, path)
    found = {"Source and target, as the head reads them": drawn} if drawn else {}
    if run.is_main_process and name != "none":
        path, seed = folder / "composed.png", parts.config.seed
        drawn = composed_picture(name, *images, path, seed=seed)
        found["Labelled images, composed with the target's"] = drawn
    return found


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
    known = averaged_stats({"ema_stats": {}, **tree})
    stats = {"encoder": {}, "heads": {}, **known}
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


def _by_source(parts: Parts, model: tuple[Any, Any]) -> dict[str, Any]:
    """{source: its training images, the report on its own test images}."""
    found = {}
    for number, name in enumerate((parts.config.data, *parts.config.sources)):
        test = _of_source(parts.chosen.test, number)
        report = reports(
            parts.scorer,
            model,
            {"test": of_head(test, HEAD)},
            parts.chosen.class_names,
            seed=parts.config.seed,
        )
        train = _of_source(parts.chosen.train, number)
        found[name] = {"training_images": len(train) if train else 0, **report}
    return found


def _of_source(images: ImageSet | None, number: int) -> ImageSet | None:
    """The images of one source; None where it has none."""
    if images is None:
        return None
    rows = np.flatnonzero(images.tasks[SOURCE].values == number)
    return images.subset(rows) if len(rows) else None
