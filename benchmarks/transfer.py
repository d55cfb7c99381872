"""`python -m benchmarks.transfer`: what each transfer method achieves.

  python -m benchmarks.transfer --tables mnist-usps --record
  python -m benchmarks.transfer --tables few-labels --steps 200 --only probe-100

Data: `--folder` with the files a table needs. Each row is printed, and with `--record`
written, as soon as it is measured; complete runs in `--out` are not repeated.
"""

import contextlib
import dataclasses
import pathlib
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

import tyro

from afterimage import runtime
from afterimage.commands import exit_code
from afterimage.errors import did_you_mean
from benchmarks import domains, labels, learning
from benchmarks.results import read_results, write_results

NOTES = (
    "The full budget is 2,000 steps of pretraining and of fine-tuning; rows with fewer "
    "are stand-ins, and say so in the fields `steps` and `pretrain_steps` of "
    "transfer.json and in their command. The step is kept by the rule in `selection`; "
    "`best` is the method of highest accuracy on labelled source images that its runs "
    "did not learn from; of usps-mnist, where they learn from all, the best by "
    "infomax; or the best by the rule that its command names. Seconds a run are of one "
    "core with other work beside it, and left out where that differed."
)
Measure = Callable[[Any, str, pathlib.Path], Iterator[dict[str, Any]]]


class Table(NamedTuple):
    """How a table is measured, the files it needs, the rows that can be requested."""

    measure: Measure
    files: Collection[str]
    rows: Collection[str]


_SHOTS = Table(learning.few_shot, {learning.OMNIGLOT}, learning.EPISODES)
_SPLIT = Table(learning.task_sequence, {"mnist.npz"}, learning.SEQUENCES)
TABLES: dict[str, Table] = {
    **{
        name: Table(domains.measure, domains.needed(name), domains.METHODS)
        for name in domains.TABLES
    },
    **{
        name: Table(labels.few_labels, labels.needed(name), labels.ROWS)
        for name in labels.TABLES
    },
    "distillation-mnist": Table(labels.distillation, {"mnist.npz"}, labels.KINDS),
    "omniglot-5w1s": _SHOTS,
    "omniglot-5w5s": _SHOTS,
    "split-mnist-task": _SPLIT,
    "split-mnist-class": _SPLIT,
}


@dataclasses.dataclass(frozen=True)
class Transfer:
    """Measures transfer methods."""

    folder: str = "../shared/data"
    """Folder with the data; a table whose files are missing is skipped."""
    tables: tuple[str, ...] = tuple(TABLES)
    """Which tables."""
    only: tuple[str, ...] = ()
    """Which rows of them. Default: all."""
    seeds: int = 3
    """Seeds of pretraining and fine-tuning."""
    steps: int = 2_000
    """Steps of each fine-tuning run."""
    pretrain_steps: int = 2_000
    """Steps of each pretraining run."""
    select: str = "auto"
    """How adaptation chooses the step, and row `best` its method; auto uses held-out
    source images."""
    out: str | None = None
    """Folder for the runs. Default: a temporary folder."""
    record: bool = False
    """Write the rows to benchmarks/results/transfer.json."""

    def wants(self, row: str) -> bool:
        """Whether this row was requested."""
        return not self.only or row in self.only


def _record(run: Transfer, found: dict[str, Any]) -> None:
    """Stores this row, replacing its earlier version."""
    budget = {"steps": run.steps, "pretrain_steps": run.pretrain_steps}
    key = tuple(found[name] for name in ("table", "row", "metric"))
    others = [
        r
        for r in read_results("transfer")
        if (r["table"], r["row"], r["metric"]) != key
    ]
    rows = sorted([*others, {**budget, **found}], key=lambda r: r["table"])
    write_results("transfer", rows, title="Transfer", notes=NOTES)


def main(run: Transfer) -> None:
    """Measures every requested table; reports any whose data are missing."""
    for given in run.tables:
        if given not in TABLES:
            sys.exit(f"tables: {given!r} is unknown{did_you_mean(given, TABLES)}")
    rows = [row for table in run.tables for row in TABLES[table].rows]
    for given in run.only:
        if given not in rows:
            sys.exit(f"only: no row {given!r}{did_you_mean(given, rows)}")
    runtime.start()
    with contextlib.ExitStack() as stack:
        out = run.out or stack.enter_context(tempfile.TemporaryDirectory())
        folder = pathlib.Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        for table in run.tables:
            measure, files, _ = TABLES[table]
            missing = [
                n for n in sorted(files) if not (pathlib.Path(run.folder) / n).exists()
            ]
            if missing:
                print(f"{table}: skipped, {run.folder} has no {', no '.join(missing)}")
                continue
            for found in measure(run, table, folder):
                figure = f"{found['mean']:.2f} ± {found['std'] or 0:.2f}"
                spent = (
                    f", {found['seconds']:.0f} s a run" if "seconds" in found else ""
                )
                name = f"{table}: {found['row']}"
                print(f"{name:36} {figure} {found['metric']}{spent}", flush=True)
                if run.record:
                    _record(run, found)


if __name__ == "__main__":
    program = "python -m benchmarks.transfer"
    sys.exit(exit_code(lambda: main(tyro.cli(Transfer, prog=program))))
