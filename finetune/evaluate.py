"""`afterimage evaluate`: a fine-tuned classifier on other labelled images."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from afterimage.checkpoints import schemas
from afterimage.checkpoints.names import spelling
from afterimage.classifier import Classifier, load_classifier
from afterimage.data import ImageSet, has_tasks, open_data
from afterimage.data.sources.zip import archive_paths
from afterimage.errors import DataError, UserError
from afterimage.evaluation.configs import EvaluateConfig
from afterimage.finetune.data import known_labels, labelled, matched
from afterimage.finetune.scoring import Scorer
from afterimage.models.classifier import HEAD
from afterimage.outputs import Outputs, outputs_of_report
from afterimage.storage.reading import local
from afterimage.training.batches import EvaluationRunner, make_mesh


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """The report of a classifier on a labelled data set: see `Outputs.report`.

    Also "data", "split", "skipped" (broken images left out), "views" (per image, as
    requested) and "trained_on": how many of these images the classifier was trained
    on, if its run folder is there to tell.

    Raises:
      DataError: no labels, classes unknown to the classifier, or another shape.
      CheckpointError: the classifier is missing or damaged.
    """
    loaded = load_classifier(config.from_)
    tasks = [head for head in loaded.class_names if head != HEAD]
    split, images = images_for(
        loaded, config, tasks=tasks if has_tasks(config.data) else ()
    )
    used = _labels_file(config) if split == "train" else None
    if used is not None and config.split == "auto":
        split, images = _held_out(images, used)
    sweep = sweep_for(config.batch_size)

    def report(head: str, images: ImageSet) -> dict[str, Any]:
        outputs = loaded.outputs[head]
        if outputs.reading is None:
            images = matched(images, outputs.names)
        else:
            images = _with_numbers(images, outputs)
        scorer = Scorer(loaded.network, head, sweep, config.views, outputs.activation)
        logits = scorer.logits(loaded.params, loaded.stats, images)
        return outputs.report(logits, known_labels(images))

    found = report(HEAD, images)
    if tasks:
        found["tasks"] = {
            task: report(task, images.of_task(task))
            for task in tasks
            if task in images.tasks
        }
    found |= {"data": images.name, "split": split, "skipped": len(images.skipped)}
    found["views"] = config.views
    found["trained_on"] = _trained_on(used, images.ids)
    return found


def images_for(
    loaded: Classifier, config: EvaluateConfig, tasks: Sequence[str] = ()
) -> tuple[str, ImageSet]:
    """(name of the split, images) of `config`, prepared for this classifier."""
    preprocessing = loaded.preprocessing
    height, width = preprocessing.image_size
    channels = preprocessing.channels
    splits = open_data(
        config.data,
        image_size=height if height == width else None,
        channels=channels,
        value_range=preprocessing.value_range,
        rendering=preprocessing.rendering,
        on_bad_image=config.on_bad_image,
        cache=config.cache,
        tasks=tasks,
        numbers=loaded.outputs[HEAD].reading if HEAD in loaded.outputs else None,
        reading=config,
    )
    split, images = _split(config, splits)
    wanted = (height, width, channels)
    if images.shape != wanted:
        raise UserError(
            f"{images.name} has images of shape {images.shape}; this classifier needs "
            f"{wanted} (height, width, channels)"
        )
    return split, images


def _with_numbers(images: ImageSet, outputs: Outputs) -> ImageSet:
    """The images with a label; DataError if none has."""
    found = labelled(images)
    if found is None:
        raise DataError(
            f"{images.name} has no labels to compute a score: they are read from "
            f"{', '.join(outputs.columns_read) or 'the column label'}"
        )
    return found


def sweep_for(batch_size: int) -> EvaluationRunner:
    """A runner with batches of this size over all devices."""
    mesh = make_mesh()
    return EvaluationRunner(mesh, -(-batch_size // mesh.size) * mesh.size)


def _labels_file(config: EvaluateConfig) -> dict[str, Any] | None:
    """`labels.json` of the classifier's run, if it was trained on this data."""
    place = local(config.from_, "classifier")
    for file in (place / "labels.json", place.parent / "labels.json"):
        if os.path.lexists(file):
            cure = "restore it, or delete it: it only lists the labels that were used"
            used = schemas.read(
                file, schemas.LabelsFile, cure, most=schemas.LARGEST_LABELS
            )
            same = used["data"] == spelling(config.data)  # works for non-UTF-8 too
            same = same or _place(used["data"]) == _place(config.data)
            return used if same else None
    return None


def _trained_on(used: Mapping[str, Any] | None, ids: Sequence[str]) -> int:
    """How many of the images `ids` the run of this `labels.json` was trained on."""
    learnt = used["train"].values() if used is not None else ()
    return len({name for names in learnt for name in names}.intersection(ids))


def _held_out(images: ImageSet, used: Mapping[str, Any]) -> tuple[str, ImageSet]:
    """(split, images): those held out for the test of the run, if there are any."""
    listed = {name for names in used.get("held_out", {}).values() for name in names}
    rows = [row for row, name in enumerate(images.ids) if name in listed]
    return ("held out", images.subset(rows)) if rows else ("train", images)


def _place(spec: str) -> tuple[str, list[str]]:
    """Kind and files of a data spec, with normalised paths."""
    kind, _, rest = spec.partition(":")
    paths = archive_paths(rest) if kind == "zip" else [rest]
    return kind, [os.path.realpath(os.path.expanduser(path)) for path in paths]


def _split(config: EvaluateConfig, splits: Any) -> tuple[str, Any]:
    if config.split == "auto":
        name = "test" if splits.test is not None else "train"
        return name, getattr(splits, name)
    images = getattr(splits, config.split)
    if images is None:
        there = [n for n in ("train", "validation", "test") if getattr(splits, n)]
        raise UserError(
            f"split={config.split}: {config.data} has only {', '.join(there)}"
        )
    return config.split, images


def text(report: Mapping[str, Any]) -> str:
    """The report for a terminal."""
    head = f"{report['data']}, {report['examples']} labelled images"
    if report["skipped"]:
        head += f"; {report['skipped']} damaged images were skipped"
    if report["views"] != "none":
        head += f"; averaged over several views of each ({report['views']})"
    if report["trained_on"]:
        head += (
            f"; {report['trained_on']} of them were used for training, so this is not "
            "a test"
        )
    parts = [head, outputs_of_report(report).text(report)]
    for task, found in report.get("tasks", {}).items():
        parts += [f"Task {task}", outputs_of_report(found).text(found)]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"
