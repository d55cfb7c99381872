"""`python -m benchmarks.strangers`: what the default command is worth on real images.

Each run is a command: `afterimage pretrain SET --out RUN --minutes M`, with the flags
of a row. Its default feature vector is then scored on test images, beside raw pixels,
HOG and the untrained encoder, with linear probes and nearest neighbours; and the
encoder is fine-tuned with ten labels a class, beside the same network from scratch.

  python -m benchmarks.strangers                        the default command on strangers
  python -m benchmarks.strangers --table objectives     every objective, equal time
  python -m benchmarks.strangers --table recipes        what the recipe was chosen from
  python -m benchmarks.strangers --table label-free     criteria without labels

Strangers are image sets that no recipe was chosen on; the other tables use the
development sets (`benchmarks.image_sets`). Sets that are not on this machine are left
out, with a message how to get them. What is measured is stored at once: the next call
goes on from there, and interrupted runs continue.
"""

import dataclasses
import json
import os
import pathlib
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tyro

from afterimage import runtime
from afterimage.commands import exit_code
from afterimage.errors import UserError, did_you_mean
from afterimage.runs import write_json
from benchmarks.image_sets import (
    DEVELOPMENT,
    STRANGERS,
    Missing,
    Places,
    Prepared,
    prepared,
)
from benchmarks.programs import quietly
from benchmarks.results import figure, row, with_others, write_results

NAME = "strangers"
DEFAULT: Mapping[str, tuple[str, ...]] = {"default": ()}
_HOG = ("--objective", "masked", "--masked.target", "hog", "--decoder", "block")
_OTHERS = (
    *("vicreg", "byol", "plain", "masked", "latent", "variational", "sparse", "vq"),
    "contractive",
)
OBJECTIVES: Mapping[str, tuple[str, ...]] = {
    **DEFAULT,
    **{name: ("--objective", name) for name in _OTHERS},
    "masked-hog": _HOG,
    "dictionary": ("--objective", "dictionary", "--model", "conv-patches"),
}
RECIPES: Mapping[str, tuple[str, ...]] = {
    **DEFAULT,
    "vicreg": ("--objective", "vicreg"),
    "normalise-data": ("--normalise", "data"),
    "norm-group": ("--norm", "group"),
    "whole-views": ("--augment", "crop-flip"),
    "whole-photos": ("--whole-photos", "--augment", "photos"),
    "photos": ("--augment", "photos"),
    "writing": ("--augment", "writing"),
    "batch-64": ("--batch-size", "64"),
    "batch-256": ("--batch-size", "256"),
    "lr-1e-3": ("--lr", "1e-3"),
    "lr-4e-3": ("--lr", "4e-3"),
    "ema": ("--ema", "0.99"),
    "width-1.5": ("--width", "1.5"),
    # The decoder beside the embeddings: none, what it sees, what reaches the encoder.
    **{
        f"reconstruct-{what}": ("--objective", "simclr", "--simclr.reconstruct", what)
        for what in ("none", "image", "masked")
    },
    **{
        f"gradient-{share}": (
            *("--objective", "simclr"),
            *("--simclr.reconstruction-gradient", share),
        )
        for share in ("0.1", "1")
    },
}
ROWS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "strangers": DEFAULT,
    "objectives": OBJECTIVES,
    "recipes": RECIPES,
    "label-free": {},
}
MEASURES = {
    "linear, 10 a class": ("linear probe", "10"),
    "linear, all": ("linear probe", "all"),
    "kNN, all": ("kNN", "all"),
    "kNN, 10 a class": ("kNN", "10"),
}
BASELINES = ("raw pixels", "HOG", "random weights")
ALONE = "network alone"
"""The pooled maps of the vector, without the patches and the HOG that it joins."""
_FINETUNED = "fine-tuned, 10 a class"
_LABELS, _DRAWS = 10, 3
NOTES = (
    "Pretraining sees no label. Accuracy on test images, %, mean ± deviation over "
    "seeds of the run and the labels; with ten labels a class, each seed is the mean "
    "of three draws. Sets have at most 10,000 labelled images. Nothing is chosen "
    "on test images: C and k on training labels, the recipe on the development sets. "
    "Development sets: CIFAR-10 (part 0, JPEG-compressed), MNIST (training split), "
    "Google's emoji, Tux Paint's stamps, tiles of maps of Wesnoth, letters of 88 fonts "
    "(tested on other families). cifar10-other are other photos of CIFAR-10 "
    "than those. Spoken are spectrograms of letters and syllables; their class is the "
    "language, and so the speaker. Test drawings of Omniglot are by other people than "
    "the training ones. Alone are the pooled maps of the network, without the patches "
    "and the HOG that the default vector joins."
)


@dataclasses.dataclass(frozen=True)
class Strangers:
    """Pretrains on image sets by commands, and scores what comes out."""

    table: str = "strangers"
    """strangers, objectives, recipes or label-free."""
    sets: tuple[str, ...] = ()
    """Which image sets. Default: all strangers, or all development sets."""
    only: tuple[str, ...] = ()
    """Which rows of the table. Default: all."""
    seeds: int = 3
    """Seeds of pretraining, of the choice of labels and of fine-tuning."""
    first_seed: int = 0
    """The first of them."""
    minutes: float = 8.0
    """`--minutes` of each run."""
    finetune_steps: int = 300
    """Steps of fine-tuning; 0 leaves it out. Only in the table of strangers."""
    folder: str = "../shared/data"
    """Folder with mnist.npz, usps.npz, cifar10/ and omniglot/."""
    packages: str = "../packages"
    """Folder with unpacked Debian and npm packages, besides those installed."""
    out: str = "runs/strangers"
    """Folder for data, runs and scores."""
    results: str | None = None
    """Folder of strangers.json. Default: benchmarks/results."""

    def __post_init__(self) -> None:
        known = {"table": ROWS, "sets": DEVELOPMENT | STRANGERS}
        known["only"] = ROWS.get(self.table, {})
        wrong = [
            f"{name}={value!r}{did_you_mean(value, there)} Known: {', '.join(there)}."
            for name, there in known.items()
            for value in ([self.table] if name == "table" else getattr(self, name))
            if value not in there
        ]
        wrong += [] if self.seeds >= 1 else [f"seeds={self.seeds}: at least 1"]
        wrong += [] if self.minutes > 0 else [f"minutes={self.minutes}: more than 0"]
        if wrong:
            raise UserError("\n".join(wrong))

    @property
    def budget(self) -> str:
        """What every run of the table may take."""
        return f"{self.minutes:g}-min"

    def chosen_sets(self) -> tuple[str, ...]:
        """The names of the image sets."""
        strangers = self.table == "strangers"
        return self.sets or tuple(STRANGERS if strangers else DEVELOPMENT)

    def open(self, name: str) -> Prepared:
        """The paths of an image set, written if it is not there yet."""
        places = Places(pathlib.Path(self.folder), pathlib.Path(self.packages))
        return prepared(name, places, pathlib.Path(self.out) / "data")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run: an image set, a row of a table, a seed."""

    config: Strangers
    data: Prepared
    set_name: str
    row: str
    seed: int

    @property
    def run(self) -> pathlib.Path:
        """The run folder; the default row is the same run in every table."""
        folder = pathlib.Path(self.config.out) / "runs" / self.config.budget
        return folder / self.set_name / f"{self.row}-{self.seed}"

    @property
    def command(self) -> list[str]:
        """The command as typed."""
        config, flags = self.config, ROWS[self.config.table][self.row]
        length = ("--minutes", f"{config.minutes:g}")
        place = ("--out", str(self.run), "--seed", str(self.seed))
        return ["afterimage", "pretrain", self.data.unlabelled, *place, *length, *flags]

    def pretrain(self) -> dict[str, float]:
        """Runs the command unless it was; minutes of wall clock and of CPU."""
        log = self.run.with_suffix(".log")
        # Not part of what is compared: all checkpoints stay for the label-free table.
        quiet = ("--keep-last", "100", "--no-tensorboard")
        before, clock = _children(), time.perf_counter()
        with log.open("a") as file:
            done = subprocess.run(
                [sys.executable, "-m", *self.command, *quiet],
                stdout=file,
                stderr=subprocess.STDOUT,
                check=False,
            )
        if done.returncode:
            tail = log.read_text().splitlines()[-5:]
            raise UserError(f"{shlex.join(self.command)} failed:\n" + "\n".join(tail))
        return {
            "minutes": (time.perf_counter() - clock) / 60,
            "CPU minutes": (_children() - before) / 60,
        }

    @property
    def size(self) -> int:
        """The side that the run stored images at."""
        return self.encoder().preprocessing.image_size[0]

    def encoder(self) -> Any:
        """The run's encoder."""
        from afterimage.encoder import load_encoder

        return load_encoder(self.run)


def _children() -> float:
    """CPU seconds of finished commands."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def vectors_of(name: str, function: Callable[[np.ndarray], np.ndarray]) -> Any:
    """What `representation_report` scores, from a function of a batch of images."""
    from afterimage.evaluation.vectors import Representation

    def stream(batches: Any) -> Iterator[Mapping[str, np.ndarray]]:
        return ({"vector": function(batch)} for batch in batches)

    return Representation(name, stream, "vector")


def representations(cell: Cell, names: tuple[str, ...]) -> list[Any]:
    """The default features of a run, and baselines."""
    from afterimage.evaluation import pixel_vectors
    from afterimage.models.hog import hog_vectors

    encoder = cell.encoder()
    made = {
        "features": lambda: encoder.features,
        ALONE: lambda: alone(encoder).features,
        "raw pixels": lambda: pixel_vectors,
        "HOG": lambda: hog_vectors,
        "random weights": lambda: encoder.untrained(cell.seed).features,
    }
    return [vectors_of(name, made[name]()) for name in names]


def alone(encoder: Any) -> Any:
    """The encoder with its pooled maps as they are; a bottleneck stays the vector."""
    vector = encoder.vector
    return encoder if vector is None else encoder.with_vector(vector.pool)


def probe_scores(cell: Cell, names: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """{representation: {measure: %}} on the test images."""
    from afterimage.data import open_data
    from afterimage.evaluation import Protocol, representation_report

    splits = open_data(cell.data.labelled, image_size=cell.size)
    assert splits.test is not None
    protocol = Protocol(
        per_class=(_LABELS,),
        seeds=_DRAWS,
        seed=_DRAWS * cell.seed,
        probes=("linear probe", "kNN"),
    )
    report = representation_report(
        representations(cell, names), splits.train, splits.test, protocol
    )
    return {
        name: {
            measure: 100 * report["accuracy"][name][probe][budget]["mean"]
            for measure, (probe, budget) in MEASURES.items()
            if budget in report["accuracy"][name][probe]
        }
        for name in names
    }


def finetuned_score(cell: Cell, mode: str) -> float:
    """Test accuracy, %, of the network fine-tuned with ten labels a class."""
    from afterimage.finetune.config import FinetuneConfig
    from afterimage.finetune.run import finetune

    steps = cell.config.finetune_steps
    config = FinetuneConfig(
        from_=str(cell.run),
        data=cell.data.labelled,
        out=f"{cell.run}-{mode}-{steps}",
        mode=mode,  # pyright: ignore[reportArgumentType]
        labels_per_class=_LABELS,
        steps=steps,
        batch_size=64,
        eval_every=steps,
        seed=cell.seed,
        tensorboard=False,
    )
    return 100 * finetune(config).results["test"]["accuracy"]["value"]


def measure(cell: Cell) -> dict[str, Any]:
    """The scores of a run, {"scores": {row: {measure: %}}, …}; stored step by step."""
    file = cell.run.with_suffix(".json")
    stored: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    wanted = {"command": shlex.join(cell.command), "scores": {}}
    stored = wanted | stored
    file.parent.mkdir(parents=True, exist_ok=True)

    def keep(**more: Any) -> None:
        stored.update(more)
        write_json(file, stored)

    if "cost" not in stored:
        keep(cost=cell.pretrain())
    baselines = BASELINES if cell.row == "default" else ()
    names = ("features", ALONE, *baselines)
    missing = tuple(name for name in names if name not in stored["scores"])
    if missing:
        keep(scores=stored["scores"] | quietly(probe_scores, cell, missing))
    if cell.config.table == "strangers" and cell.config.finetune_steps:
        for name, mode in (("fine-tuned", "full"), ("scratch", "scratch")):
            if name not in stored["scores"]:
                found = {_FINETUNED: quietly(finetuned_score, cell, mode)}
                keep(scores={**stored["scores"], name: found})
    return stored


def run_table(config: Strangers) -> list[dict[str, Any]]:
    """Measures every run of a table, and its rows."""
    rows: list[dict[str, Any]] = []
    for set_name, data in available(config):
        for row_name in ROWS[config.table]:
            if config.only and row_name not in config.only:
                continue
            found = []
            for seed in range(config.first_seed, config.first_seed + config.seeds):
                cell = Cell(config, data, set_name, row_name, seed)
                found.append(measure(cell))
                print(_line(cell, found[-1]), flush=True)
            rows += _rows(config, set_name, row_name, found)
            _write(config, rows)
    return rows


def available(config: Strangers) -> Iterator[tuple[str, Prepared]]:
    """(name, paths) of the sets that are on this machine."""
    for name in config.chosen_sets():
        try:
            yield name, config.open(name)
        except Missing as error:
            print(f"{name} is left out: {error}", flush=True)


def _line(cell: Cell, found: Mapping[str, Any]) -> str:
    scores = "; ".join(
        f"{name} " + " ".join(f"{value:.1f}" for value in values.values())
        for name, values in found["scores"].items()
    )
    minutes = found["cost"]["CPU minutes"]
    return f"{cell.set_name}, {cell.row}, seed {cell.seed}: {scores}; {minutes:.1f} min"


def _rows(
    config: Strangers, set_name: str, row_name: str, found: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The rows of a set: what is scored, by every measure, over the seeds."""
    many = len(ROWS[config.table]) > 1
    rows = []
    for name, values in found[0]["scores"].items():
        ours = {"features": row_name, ALONE: f"{row_name}, alone"} if many else {}
        shown = str(ours.get(name, name))
        for measure_name in values:
            each = [one["scores"][name][measure_name] for one in found]
            cost = [one["cost"]["CPU minutes"] for one in found]
            rows.append(
                row(
                    f"{config.table}: {set_name}, {config.minutes:g} minutes",
                    shown,
                    f"{measure_name}, %",
                    each,
                    each=each,
                    budget=config.budget,
                    cpu_minutes=round(float(np.mean(cost)), 1),
                    run=found[0]["command"].replace(config.out, "runs/strangers"),
                )
            )
    return rows


def _write(config: Strangers, rows: list[dict[str, Any]]) -> None:
    """Replaces the rows that were measured now, and keeps the others."""
    place = {} if config.results is None else {"folder": pathlib.Path(config.results)}
    title = "The default command on image sets that it was not made for"
    every = with_others(NAME, rows, **place)
    write_results(NAME, every, title=title, notes=NOTES, **place)


def run(config: Strangers) -> list[dict[str, Any]]:
    """The rows of a table."""
    runtime.start()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if config.table == "label-free":
        from benchmarks.label_free import run_criteria

        rows = run_criteria(config)
        _write(config, rows)
    else:
        rows = run_table(config)
    for one in rows:
        print(f"{one['table']}: {one['row']}, {one['metric']}: {figure(one, 2)}")
    return rows


if __name__ == "__main__":
    program = "python -m benchmarks.strangers"
    sys.exit(exit_code(lambda: run(tyro.cli(Strangers, prog=program))))
