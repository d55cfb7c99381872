"""A classifier of rows that are no images: `afterimage.stages`, with labels.

A subclass gives the logits of a batch; the rest of a classification is here: classes
and splits, the loss, the scores of every split with their intervals, and the page.
Text and volumes are made of it.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from afterimage.data.sets import Columns
from afterimage.errors import DataError
from afterimage.finetune.figures import diagrams, figures
from afterimage.outputs.classes import Classes
from afterimage.runs import Run
from afterimage.stages import OwnStage
from afterimage.training.batches import EvaluationRunner, spaced
from afterimage.training.loop import StopSignal
from afterimage.training.stage import Phase, Term
from afterimage.training.step import State

_MOST_FOLLOWED = 1_000
"""Training rows that are scored where no validation rows are given."""
_LONGEST_LABEL = 1024


def class_names(
    labels: Sequence[str], rows: Mapping[str, np.ndarray], source: str, unit: str
) -> tuple[str, ...]:
    """The classes, sorted; `rows` has those of train, validation and test.

    Raises DataError for fewer than two classes, one without training rows, a label that
    is a text rather than a name, and no row to test on. `unit` is what a row is.
    """
    classes = sorted(set(labels))
    if len(longest := max(classes, key=len)) > _LONGEST_LABEL:
        raise DataError(
            f"{source}: a label has {len(longest)} characters, {longest[:40]!r}…; "
            f"expected at most {_LONGEST_LABEL}. Is the right column read?"
        )
    if len(classes) < 2:
        raise DataError(
            f"{source}: every {unit} has the label {classes[0]!r}; expected at least 2 "
            "classes"
        )
    unknown = sorted(set(classes) - {labels[row] for row in rows["train"]})
    if unknown or not len(rows["test"]):
        missing = f"no {unit} of {', '.join(map(repr, unknown[:10]))} to train on"
        raise DataError(
            f"{source}: {missing if unknown else f'no {unit} to test on'}; change the "
            "column split, or the shares that are held out"
        )
    return tuple(classes)


def over(
    runner: EvaluationRunner,
    rows: Columns,
    function: Callable[[Any], Any],
    poll: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """A jitted function of batches, for every row; calls `poll` between batches."""
    found = []
    for _, batch, mask in runner.batches(rows):
        poll()
        found.append(np.asarray(function(batch))[mask])
    return np.concatenate(found)


class ClassifierStage(OwnStage):
    """A stage that learns one class for each row.

    After `super().__init__`, set `params`, `stats` and `arrays`, the inputs of all
    rows, and call `ready` with phases whose term is `cross_entropy`.
    """

    arrays: Mapping[str, np.ndarray]
    unit = "row"
    """What a row is, in words."""

    def __init__(
        self,
        config: Any,
        run: Run,
        name: str,
        fingerprint: str,
        *,
        ids: Sequence[str],
        labels: Sequence[str],
        classes: Sequence[str],
        rows: Mapping[str, np.ndarray],
        tested: str,
        origin: Mapping[str, Any] | None = None,
    ):
        """`classes` are those of `class_names`, `rows` has the rows of each split, and
        `tested` says what the test's are."""
        super().__init__(config, run, name, fingerprint, origin)
        self.ids, self.tested = ids, tested
        self.rows = {split: some for split, some in rows.items() if len(some)}
        self.outputs = Classes(names=tuple(classes))
        number = {label: n for n, label in enumerate(self.outputs.names)}
        self.labels = np.array([number[label] for label in labels], np.int32)

    def set_of(self, rows: Any) -> Columns:
        """Rows at these positions, with their labels."""
        some = np.asarray(rows, np.int64)
        chosen = {name: array[some] for name, array in self.arrays.items()}
        chosen["label"] = self.labels[some]
        return Columns(
            self.identity["name"], chosen, [self.ids[int(row)] for row in some]
        )

    def ready(self, *phases: Phase) -> None:
        self.sets = {split: self.set_of(rows) for split, rows in self.rows.items()}
        super().ready(*phases)

    def zero_head(self, width: int) -> dict[str, np.ndarray]:
        """A linear layer that knows nothing."""
        classes = len(self.outputs.names)
        kernel = np.zeros((width, classes), np.float32)
        return {"kernel": kernel, "bias": np.zeros(classes, np.float32)}

    def logits(self, params: Any, stats: Any, batch: Any, key: Any = None) -> Any:
        """float32 [b, classes] of a batch; `key` only in training."""
        raise NotImplementedError

    cross_entropy = Term(
        name="cross_entropy",
        fn=lambda view: _cross_entropy(view["train/logits"], view["train/label"]),
        reads=("train/logits", "train/label"),
    )

    def rules(
        self, params: Any, stats: Any, batch: Any, key: Any, step: Any, trainable: Any
    ) -> dict[str, Any]:
        """What the term reads."""
        return {
            "train/logits": lambda _: self.logits(params, stats, batch, key),
            "train/label": lambda _: batch["label"],
            "stats/next": lambda _: stats,
        }

    @functools.cached_property
    def _logits(self) -> Any:
        return self.runner.jit(self.logits)

    def _scored(
        self, weights: tuple[Any, Any], rows: Columns, poll: Callable[[], None]
    ) -> tuple[np.ndarray, np.ndarray]:
        logits = over(
            self.runner, rows, functools.partial(self._logits, *weights), poll
        )
        return logits, rows.arrays["label"]

    def score(
        self,
        weights: tuple[Any, Any],
        rows: Columns,
        poll: Callable[[], None] = lambda: None,
    ) -> dict[str, Any]:
        """The report of a split: measures with their intervals, classes, confusions."""
        scored = self._scored(weights, rows, poll)
        return self.outputs.report(*scored, seed=self.config.seed)

    def evaluate(
        self, state: State, step: int, stop: StopSignal
    ) -> Mapping[str, float]:
        """Measures of the validation rows; without any, `train_…` of training rows."""
        rows = self.followed_set()
        if "validation" not in self.sets:
            some = spaced(len(rows), _MOST_FOLLOWED)
            rows = self.set_of(self.rows["train"][some])
        found = self.outputs.measures(
            *self._scored(self.weights(state), rows, stop.check)
        )
        return {self.prefix + name: value for name, value in found.items()}

    def scores(self, params: Any, stats: Any) -> dict[str, Any]:
        rule = self.chosen_by if self.best else "the last step"
        return {
            "classes": list(self.outputs.names),
            "examples": len(self.train),
            "held_out": self.tested,
            "test_ids": [self.ids[row] for row in self.rows["test"]],
            "selection": {"rule": rule},
            **super().scores(params, stats),
        }

    def lines(self, results: Mapping[str, Any]) -> list[str]:
        test = results["test"]
        shown = [f"{k} {v}" for k, v in self.outputs.figures(test).items()]
        return [
            f"test ({test['examples']} {self.unit}s): {', '.join(shown)}",
            f"tested on {results['held_out']}",
        ]

    def curves(self) -> dict[str, dict[str, str]]:
        return {
            name: {
                "training": f"train/{key}",
                "evaluated": f"eval/{self.prefix}{key}",
            }
            for name, key in {"Loss": "loss", "Accuracy": "accuracy"}.items()
        }

    def shown(self, results: Mapping[str, Any]) -> dict[str, Any]:
        scored = results["test"]
        each = figures(scored).items()
        return {
            "headline": {f"test {k} (95 % interval)": v for k, v in each},
            "parts": diagrams(scored),
            "grids": self.outputs.grids(scored),
        }

    def content(self) -> dict[str, Any]:
        return {"classes": list(self.outputs.names)}


def _cross_entropy(logits: Any, label: Any) -> tuple[Any, dict[str, Any]]:
    each = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    return each, {"accuracy": jnp.mean(logits.argmax(-1) == label)}
