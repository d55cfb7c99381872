"""`python -m benchmarks.representations`: pretraining, compared with published tables.

Every row is measured over seeds of pretraining, choice of labels and fine-tuning; its
control is the same network from random weights with the same labels and fine-tuning.
The step to keep is chosen on validation images cut from the labelled ones (if these are
few, it is the last step); test images are scored once.

  python -m benchmarks.representations --table mnist-masci
  python -m benchmarks.representations --table cifar10 --stand-in

Each row is written to benchmarks/results/representations.json as soon as it is
measured, and the next call with the same settings keeps it. Complete runs in `--out`
are reused, and interrupted ones continued. With `--stand-in` a table uses settings that
a CPU finishes in hours; with it, or with fewer steps than the recipe's, the rows are
marked as stand-ins.
"""

import dataclasses
import pathlib
import sys
import time
from typing import Any

import tyro

from afterimage import runtime
from afterimage.commands import exit_code
from afterimage.errors import DataError, UserError, did_you_mean
from benchmarks.programs import finetuned, pretrained
from benchmarks.recipes import ACCURACY, TABLES, files_of
from benchmarks.results import read_results, row, write_results

NAME = "representations"
# Pretraining settings that also apply to a network from random weights.
_NETWORK = ("model", "width", "image_size")
NOTES = (
    "MNIST as published; CIFAR-10 is JPEG-compressed, so its figures differ slightly "
    "from those on the original pixels. A row whose settings say stand-in was trained "
    "for fewer steps than the table's recipe, for CIFAR-10 with model conv in place of "
    "ResNet-18. conv-masci has our RMS norm after every "
    "convolution, and its fully connected layer of 300 is the head's hidden layer on "
    "the means of a 2x2 grid."
)


@dataclasses.dataclass(frozen=True)
class Representations:
    """Measures pretraining against the same network from scratch."""

    table: tuple[str, ...] = tuple(TABLES)
    """Which tables."""
    only: tuple[str, ...] = ()
    """Which rows of them. Default: all."""
    seeds: int = 5
    """Seeds of pretraining, of the choice of labels and of fine-tuning."""
    stand_in: bool = False
    """The table's small form, for a machine without an accelerator."""
    steps: int | None = None
    """Pretraining steps. Default: the table's own."""
    finetune_steps: int | None = None
    """Fine-tuning steps. Default: the table's own."""
    folder: str = "../shared/data"
    """Folder with mnist.npz and cifar10/."""
    out: str = "runs/representations"
    """Folder for the runs."""
    results: str | None = None
    """Folder of representations.json. Default: benchmarks/results."""

    def __post_init__(self) -> None:
        wrong = [
            f"table={name!r}{did_you_mean(name, TABLES)} Known: {', '.join(TABLES)}."
            for name in self.table
            if name not in TABLES
        ]
        rows = [r for name in self.table if name in TABLES for r in TABLES[name].rows]
        wrong += [
            f"only={name!r}{did_you_mean(name, rows)} Known: {', '.join(rows)}."
            for name in self.only
            if name not in rows
        ]
        wrong += [
            f"{name}={value}: at least 1"
            for name in ("seeds", "steps", "finetune_steps")
            if (value := getattr(self, name)) is not None and value < 1
        ]
        if wrong:
            raise UserError("\n".join(wrong))

    def settings_of(self, name: str, row_name: str) -> dict[str, Any]:
        """All that determines a row's figures; equal settings mean equal rows."""
        table = TABLES[name]
        wanted = table.rows[row_name]
        pretraining = table.pretrain | wanted.pretrain
        tuning = table.finetune | wanted.settings
        short = self.stand_in
        if self.stand_in:
            pretraining |= table.stand_in["pretrain"]
            tuning |= table.stand_in["finetune"]
        short |= (self.finetune_steps or tuning["steps"]) < tuning["steps"]
        tuning["steps"] = self.finetune_steps or tuning["steps"]
        if wanted.kind == "scratch":
            # Only the encoder's architecture is used: one step is enough.
            pretraining = {k: v for k, v in pretraining.items() if k in _NETWORK}
            pretraining["steps"] = 1
        else:
            short |= (self.steps or pretraining["steps"]) < pretraining["steps"]
            pretraining["steps"] = self.steps or pretraining["steps"]
        probe = wanted.kind.endswith("probe")
        viewed = {} if wanted.views == "none" else {"views": wanted.views}
        viewed |= {"grid_3": True} if wanted.grid_3 else {}
        return {
            "kind": wanted.kind,
            "labels": wanted.labels,
            "seeds": self.seeds,
            "pretrain": pretraining,
            "finetune": {} if probe else tuning,
            "budget": "stand-in" if short else "full",
            **viewed,
        }


def _probe_accuracy(run: str, data: str, settings: dict, seed: int) -> float:
    """Accuracy of a linear probe on the best layer on validation, with all labels."""
    from afterimage.data import open_data
    from afterimage.encoder import load_encoder
    from afterimage.evaluation import (
        Protocol,
        encoder_representation,
        representation_report,
    )

    encoder = load_encoder(run)
    if settings["kind"] == "untrained-probe":
        encoder = encoder.untrained(seed)
    splits = open_data(data, image_size=encoder.preprocessing.image_size[0])
    assert splits.test is not None
    views = {name: settings[name] for name in ("views", "grid_3") if name in settings}
    report = representation_report(
        [encoder_representation("encoder", encoder, **views)],
        splits.train,
        splits.test,
        Protocol(per_class=(), most=50_000, seed=seed, probes=("linear probe",)),
    )
    *_, best = report["accuracy"].values()  # the best layer's row comes last
    return best["linear probe"]["all"]["mean"]


def _tuned_accuracy(
    out: pathlib.Path, run: str, data: str, settings: dict, seed: int
) -> float:
    tuning = dict(settings["finetune"])
    if settings["kind"] == "scratch":
        tuning["mode"] = "scratch"
        tuning.pop("layer_decay", None)  # it protects pretrained weights: none here
    results, _ = finetuned(
        from_=run,
        data=data,
        out=str(out),
        seed=seed,
        labels=settings["labels"],
        eval_every=max(1, tuning["steps"] // 5),
        **tuning,
    )
    if "views" in settings:
        from afterimage.evaluation.configs import EvaluateConfig
        from afterimage.finetune.evaluate import evaluate

        scored = EvaluateConfig(
            from_=str(out), data=data, split="test", views=settings["views"]
        )
        return evaluate(scored)["accuracy"]["value"]
    return results["test"]["accuracy"]["value"]


def measure(config: Representations, name: str, row_name: str) -> dict[str, Any]:
    """One row of a table, over all seeds; prints a line for each."""
    table, settings = TABLES[name], config.settings_of(name, row_name)
    # Even with as many steps, the small form is a different recipe.
    form = f"{name}-stand-in" if config.stand_in else name
    home, metric = pathlib.Path(config.out) / form, table.rows[row_name].metric
    data = table.data.replace("{}", config.folder)
    runs = table.rows[row_name].runs or row_name
    encoder = "untrained" if settings["kind"] == "scratch" else "pretrain"
    # Rows share an encoder, unless a row needs its own.
    encoder += f"-{runs}" if table.rows[row_name].pretrain else ""
    values, began = [], time.perf_counter()
    for seed in range(config.seeds):
        clock = time.perf_counter()
        steps = settings["pretrain"]["steps"]
        run = pretrained(
            data, home / f"{encoder}-{steps}-{seed}", seed, **settings["pretrain"]
        )
        if settings["kind"].endswith("probe"):
            accuracy = _probe_accuracy(run, data, settings, seed)
        else:
            out = home / f"{runs}-{steps}-{settings['finetune']['steps']}-{seed}"
            accuracy = _tuned_accuracy(out, run, data, settings, seed)
        values.append(100 * (accuracy if metric == ACCURACY else 1 - accuracy))
        spent = time.perf_counter() - clock
        print(
            f"{name}: {row_name}, seed {seed}: {metric} {values[-1]:.2f}, {spent:.0f} s"
        )
    seconds = round(time.perf_counter() - began)
    return row(
        name,
        row_name,
        metric,
        values,
        settings=settings,
        each=values,
        seconds=seconds,
    )


def _check_data(config: Representations) -> None:
    files = [
        pathlib.Path(config.folder) / file
        for name in config.table
        for file in files_of(TABLES[name].data)
    ]
    missing = [str(file) for file in dict.fromkeys(files) if not file.is_file()]
    if missing:
        raise DataError(f"missing: {', '.join(missing)}. Give --folder.")


def run(config: Representations) -> list[dict[str, Any]]:
    """Measures missing rows; writes the file after each, prints a table at the end."""
    _check_data(config)
    runtime.start()
    place = {} if config.results is None else {"folder": pathlib.Path(config.results)}
    for name in config.table:
        for row_name in TABLES[name].rows:
            if config.only and row_name not in config.only:
                continue
            rows = read_results(NAME, **place)
            key = name, row_name
            old = [r for r in rows if (r["table"], r["row"]) == key]
            if old and old[0]["settings"] == config.settings_of(*key):
                print(f"{name}: {row_name}: kept, measured {old[0]['date']}")
                continue
            new = measure(config, *key)
            others = [r for r in rows if (r["table"], r["row"]) != key]
            title = "What pretraining is worth"
            write_results(NAME, [*others, new], title=title, notes=NOTES, **place)
    found = [r for r in read_results(NAME, **place) if r["table"] in config.table]
    for entry in found:
        spread = "" if entry["std"] is None else f" ± {entry['std']:.2f}"
        print(
            f"{entry['table']}: {entry['row']:18} {entry['metric']} "
            f"{entry['mean']:.2f}{spread} ({entry['settings']['budget']})"
        )
    return found


if __name__ == "__main__":
    program = "python -m benchmarks.representations"
    sys.exit(exit_code(lambda: run(tyro.cli(Representations, prog=program))))
