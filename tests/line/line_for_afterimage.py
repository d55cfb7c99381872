"""A stage of another package: a line through rows of numbers, with all its parts."""

import dataclasses
import hashlib
import pathlib
from typing import Any

import msgspec
import numpy as np

from afterimage.checkpoints.weights import read_artefact
from afterimage.commands.flags import Command, PackageCommand
from afterimage.training.options import RunOptions, TrainingOptions, check


# [settings]
@dataclasses.dataclass(frozen=True, kw_only=True)
class LineConfig(TrainingOptions, RunOptions):
    """Fit a line through rows of numbers."""

    data: str
    """A .npy file with rows of numbers; the last of each is predicted."""

    def __post_init__(self) -> None:
        check(TrainingOptions.problems(self), RunOptions.problems(self))


# [stage]
def fit_line(config: LineConfig) -> Any:
    """Fit as `config` says, or continue the run in its folder."""
    # Imported here: parsing the command line needs no JAX.
    import jax.numpy as jnp

    from afterimage.data.sets import Columns
    from afterimage.stages import OwnStage, open_run
    from afterimage.training.job import execute
    from afterimage.training.optimiser import EVERYTHING
    from afterimage.training.stage import Phase, Term

    class Line(OwnStage):
        artefact, best = "line", "error"
        chosen_by = "the smallest validation error"
        title, lead = "A line", "The last number of a row, predicted from the others."

        def __init__(self, config, run, table):
            mark = hashlib.sha256(table.tobytes()).hexdigest()
            super().__init__(config, run, config.data, mark)
            rows = np.arange(len(table))
            self.sets = {
                name: Columns(
                    config.data,
                    {"x": table[some, :-1], "y": table[some, -1]},
                    [f"row {row}" for row in rows[some]],
                )
                for name, some in (
                    ("train", rows % 5 > 0),
                    ("validation", rows % 5 == 0),
                )
            }
            self.params = {"slopes": np.zeros(table.shape[1] - 1, np.float32)}
            term = Term(
                name="squared_error",
                fn=lambda view: (jnp.square(view["train/error"]), {}),
                reads=("train/error",),
            )
            steps = config.total_steps(len(self.train))
            phase = {"terms": (term,), "groups": EVERYTHING, "options": config}
            self.ready(Phase(name="fit", steps=steps, **phase))

        def rules(self, params, stats, batch, key, step, trainable):
            return {
                "train/error": lambda _: batch["x"] @ params["slopes"] - batch["y"],
                "stats/next": lambda _: stats,
            }

        def score(self, weights, rows, poll=lambda: None):
            slopes = np.asarray(weights[0]["slopes"])
            error = rows.arrays["x"] @ slopes - rows.arrays["y"]
            return {"error": float(np.abs(error).mean())}

        def facts(self):
            return {"Rows": self.counts()}

        def lines(self, results):
            return [f"validation: {results['validation']['error']:.3f} off on average"]

        def content(self):
            return {"width": self.params["slopes"].size}

    run = open_run(config, "fit-line")
    table = np.load(config.data).astype(np.float32)
    with run:
        return execute(Line(config, run, table), run)


# [artefact]
class LineManifest(msgspec.Struct):
    """What manifest.json of a line says, by which it is checked when it is read."""

    width: int
    data: dict[str, str]
    trained: dict[str, Any]


def load_line(run: str | pathlib.Path) -> np.ndarray:
    """The slopes, from a finished run; every byte is compared with its checksum."""
    return read_artefact(run, {"line": "afterimage fit-line"}).params["slopes"]


# [command]
FIT = PackageCommand(
    Command(
        name="fit-line",
        kind="fit-line",
        config=LineConfig,
        positional="data",
        about="Fit a line through rows of numbers.",
        common={"Settings": ("data", "out", "steps", "batch_size", "lr", "seed")},
    ),
    lambda config: fit_line(config).text,
)
# [end]
