"""`python -m benchmarks.transfer`: domain adaptation, MNIST → USPS and back.

An encoder is pretrained on the training images of both domains, without labels; then
every method is fine-tuned on the source's labels with the target's images beside them,
and scored once on the target's test split. source-only never sees the target; row
target-only has the target's labels. Data: `--folder` with mnist.npz and usps.npz.
"""

import contextlib
import dataclasses
import io
import pathlib
import sys
import tempfile
import time
from typing import Any

import numpy as np
import tyro

from afterimage import runtime
from afterimage.cli import exit_code
from afterimage.errors import did_you_mean
from benchmarks import learning
from benchmarks.results import read_results, row, write_results

TABLES = {"mnist-usps": ("mnist", "usps"), "usps-mnist": ("usps", "mnist")}
ALL = (*TABLES, *learning.TABLES)
METHODS: dict[str, dict[str, Any]] = {
    "source-only": {},
    "target-only": {},
    "dann": {"align": ("dann",)},
    "cdan": {"align": ("cdan",)},
    "cdan-e": {"align": ("cdan-e",)},
    "mmd": {"align": ("mmd",)},
    "jmmd": {"align": ("jmmd",)},
    "coral": {"align": ("coral",)},
    "density-ratio": {"density_ratio": "classifier"},
    "cdan-e + l2-sp": {
        "align": ("cdan-e",),
        "l2_sp": 0.01,
        "l2_head": 0.01,
        "weight_decay": 0.0,
        "layer_decay": 0.75,
    },
}
_LABELLED = {"mnist": 10_000, "usps": None}


@dataclasses.dataclass(frozen=True)
class Transfer:
    """Adaptation tables: rows are methods, columns the target's test accuracy."""

    folder: str = "../shared/data"
    """Where mnist.npz and usps.npz are; without them nothing is run."""
    tables: tuple[str, ...] = ALL
    """Which tables."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Which rows of the adaptation tables."""
    seeds: int = 3
    """Seeds of pretraining and fine-tuning."""
    steps: int = 2_000
    """Steps of each fine-tuning run."""
    pretrain_steps: int = 2_000
    """Steps of pretraining on both domains."""
    select: str = "auto"
    """How the step is chosen: auto is accuracy on held-out source images."""
    out: str | None = None
    """Where the run folders go. Default: a temporary folder."""
    record: bool = False
    """Write the rows to benchmarks/results/transfer.json."""


def joined(folder: pathlib.Path, out: pathlib.Path) -> str:
    """A spec of both domains' training images at 28 pixels, for pretraining."""
    import cv2

    path = out / "both.npz"
    if not path.exists():
        with (
            np.load(folder / "mnist.npz") as mnist,
            np.load(folder / "usps.npz") as usps,
        ):
            small = usps["x_train"].reshape(-1, 16, 16)
            large = [cv2.resize(image, (28, 28)) for image in small]
            both = [mnist["x_train"].reshape(-1, 28, 28), np.stack(large)]
            np.savez(path, images=np.concatenate(both)[..., None])
    return f"npz:{path}"


def pretrained(run: Transfer, out: pathlib.Path, seed: int) -> str:
    """The run folder of an encoder of both domains."""
    from pretrain.presets import preset_config
    from pretrain.program import pretrain

    folder = out / f"pretrain-{seed}"
    config = preset_config(
        "small-images",
        data=joined(pathlib.Path(run.folder), out),
        out=str(folder),
        seed=seed,
        steps=run.pretrain_steps,
        epochs=None,
        tensorboard=False,
    )
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        pretrain(config)
    return str(folder)


def adapted(
    run: Transfer, out: pathlib.Path, table: str, method: str, seed: int, encoder: str
) -> dict[str, Any]:
    """The results of one run, scored on the target's test split."""
    from finetune.config import FinetuneConfig
    from finetune.program import finetune

    source, target = (f"npz:{run.folder}/{name}.npz" for name in TABLES[table])
    data, domain = source, {"target": target, "select": run.select}
    labels = _LABELLED[TABLES[table][0]]
    if method == "target-only":
        data, domain, labels = target, {}, None
    settings = {"weight_decay": 0.01, **domain, **METHODS[method]}
    name = method.replace(" ", "")
    config = FinetuneConfig(
        from_=encoder,
        data=data,
        out=str(out / f"{table}-{name}-{seed}"),
        seed=seed,
        steps=run.steps,
        labels=labels,
        mode="two-phase",
        head_steps=max(1, run.steps // 10),
        tensorboard=False,
        **settings,
    )
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        return dict(finetune(config).results)


def measure(run: Transfer, table: str, out: pathlib.Path) -> list[dict[str, Any]]:
    """One table: a row a method, and `best`, chosen without target labels."""
    rows, held = [], {}
    for method in run.methods:
        accuracy, source, rules, clock = [], [], set(), time.perf_counter()
        for seed in range(run.seeds):
            encoder = pretrained(run, out, seed)
            found = adapted(run, out, table, method, seed, encoder)
            accuracy.append(100 * found["test"]["accuracy"]["value"])
            rules.add(found["selection"]["rule"])
            if found["validation"] is not None and method != "target-only":
                source.append(100 * found["validation"]["accuracy"]["value"])
        spent = (time.perf_counter() - clock) / run.seeds
        mean = np.mean(accuracy)
        print(f"{table}: {method:15} {mean:.2f} %, {spent:.0f} s a run", flush=True)
        more = {"selection": "; ".join(sorted(rules)), "seconds": round(spent, 1)}
        rows.append(row(table, method, "target test accuracy, %", accuracy, **more))
        if METHODS[method] and len(source) == run.seeds:
            held[method] = (float(np.mean(source)), accuracy, more)
    if held:
        best = max(held, key=lambda name: held[name][0])
        _, accuracy, more = held[best]
        chosen = f"{best}: the method of highest source validation accuracy"
        extra = {**more, "method": chosen}
        rows.append(row(table, "best", "target test accuracy, %", accuracy, **extra))
    return rows


def main(run: Transfer) -> None:
    """Every table asked for; says so where the data are missing."""
    for name, known in (("tables", ALL), ("methods", METHODS)):
        for given in getattr(run, name):
            if given not in known:
                sys.exit(f"{name}: {given!r} is unknown{did_you_mean(given, known)}")
    needed = {f"{n}.npz" for t in run.tables for n in TABLES.get(t, ())}
    needed |= {learning.TABLES[t][1] for t in run.tables if t in learning.TABLES}
    missing = [n for n in sorted(needed) if not (pathlib.Path(run.folder) / n).exists()]
    if missing:
        print(f"Skipped: {run.folder} has no {' and no '.join(missing)}")
        return
    runtime.start()
    with contextlib.ExitStack() as stack:
        out = run.out or stack.enter_context(tempfile.TemporaryDirectory())
        folder = pathlib.Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        for table in run.tables:
            if table in learning.TABLES:
                rows = learning.TABLES[table][0](run, table, folder)
            else:
                rows = measure(run, table, folder)
            if run.record:
                others = [r for r in read_results("transfer") if r["table"] != table]
                title = "Transfer between domains"
                write_results("transfer", [*others, *rows], title=title)


if __name__ == "__main__":
    program = "python -m benchmarks.transfer"
    sys.exit(exit_code(lambda: main(tyro.cli(Transfer, prog=program))))
