"""A sequence of tasks, from the first to the table of accuracies."""

from typing import Any

import numpy as np
from jaxtyping import Float

from afterimage.checkpoints.files import finite
from afterimage.checkpoints.store import Store
from afterimage.finetune.artefact import head_entry, write_artefacts
from afterimage.finetune.continual.measures import continual_measures
from afterimage.finetune.continual.memory import remembered
from afterimage.finetune.continual.parts import REPLAY, ContinualParts
from afterimage.finetune.results import outline
from afterimage.finetune.running import Program
from afterimage.finetune.summary import FinetuneResult, write_results, write_run_report
from afterimage.report import logged
from afterimage.runs import Run
from afterimage.training.batches import BatchLoader
from afterimage.training.job import Say
from afterimage.training.signals import StopSignal
from afterimage.training.stage import describe
from afterimage.training.state import State


class ContinualProgram(Program):
    """One run over a sequence of tasks.

    After each task all of them are scored; the rows stand in metrics.jsonl before the
    checkpoint of that step, so a run that is killed anywhere ends with the same table.
    """

    parts: ContinualParts

    def __init__(self, parts: ContinualParts, folder: Run):
        super().__init__(parts, folder)
        tasks = parts.tasks
        assert parts.chosen.test is not None
        self._tests = [tasks.images(parts.chosen.test, [i]) for i in range(len(tasks))]

    def begin(self, say: Say, stop: StopSignal) -> State:
        """As for one task; scores the tasks first, for the forward transfer."""
        state = super().begin(say, stop)
        if self.parts.tasks.per_task and not self.folder.metrics.has(0, "eval/"):
            found = self.evaluate(state, 0, stop)
            row = {f"eval/{name}": value for name, value in found.items()}
            self.folder.metrics.write(0, row)
        return state

    def feed(self, phase: int) -> BatchLoader:
        parts, memory = self.parts, self.parts.memory(phase)
        return BatchLoader(
            parts.images(phase),
            options=parts.config,
            mesh=parts.mesh,
            streams={} if memory is None else {REPLAY: memory},
        )

    def between(self, state: State, phase: int) -> State:
        """What is remembered of the task that a phase has learned."""
        parts = self.parts
        if "continual" not in state["stats"]:
            return state
        kept = remembered(
            parts.config.continual,
            parts.classifier,
            parts.tasks.outlets(range(phase + 1))[-1],
            parts.images(phase),
            state["params"],
            state["stats"],
        )
        return {**state, "stats": {**state["stats"], "continual": kept}}

    def evaluate(self, state: State, step: int, stop: StopSignal) -> dict[str, float]:
        """The test accuracy on every task (`task_1`, …), and the mean over those begun.

        Class-incremental: among the classes seen so far.
        """
        parts, tasks = self.parts, self.parts.tasks
        params, stats, _ = parts.weights(state)
        seen = parts.seen(step)
        found = {}
        for number, images in enumerate(self._tests):
            known = [number] if tasks.per_task else range(seen)
            (outlet,) = tasks.outlets(known)
            scorer = parts.scorers[outlet.head]
            logits = scorer.logits(params, stats, images, stop.check)
            best = logits[:, np.asarray(outlet.columns)].argmax(1)
            predicted = np.asarray(outlet.classes)[best]
            found[f"task_{number + 1}"] = float((predicted == images.labels).mean())
        begun = [found[f"task_{i + 1}"] for i in range(seen)]
        return {**found, "mean_accuracy": float(np.mean(begun))}

    def table(self) -> tuple[Float[np.ndarray, "t t"], Float[np.ndarray, " t"] | None]:
        """(R, b): accuracy after each task, and before the first, from metrics.jsonl.

        Joint training has only the last row. What the file lacks is NaN.
        """
        parts, count = self.parts, len(self.parts.tasks)
        rows = self.folder.metrics.rows
        at = np.full((parts.total + 1, count), np.nan)
        for task in range(count):
            for step, value in logged(rows, f"eval/task_{task + 1}"):
                at[step, task] = value
        accuracy = np.full((count, count), np.nan)
        phases = len(parts.rows)
        for index in range(phases):
            accuracy[count - phases + index] = at[parts.stage.start(index + 1)]
        before = at[0] if parts.tasks.per_task else None
        return accuracy, before

    def finish(self, state: State, store: Store) -> FinetuneResult:
        parts, run = self.parts, self.folder
        params, stats, step = parts.weights(state)
        accuracy, before = self.table()
        tasks = [parts.tasks.label(i) for i in range(len(parts.tasks))]
        found: dict[str, Any] = {
            "scenario": parts.config.scenario,
            "method": parts.config.continual,
            "tasks": tasks,
            "accuracy": finite(accuracy.tolist()),
            "before": None if before is None else finite(before.tolist()),
            **continual_measures(accuracy, before),
        }
        results = outline(parts, step)
        results |= {"validation": None, "test": None, "continual": found}
        if run.is_main_process:
            entries = {
                name: head_entry(head, parts.tasks.head_classes()[name])
                for name, head in parts.heads.items()
            }
            write_artefacts(run.path, params, stats, parts.manifest(step), entries)
            run.metrics.flush()
            rows = run.metrics.rows
            names = enumerate(tasks, 1)
            curves = {name: logged(rows, f"eval/task_{i}") for i, name in names}
            lines = [[name, *line] for name, line in zip(tasks, found["accuracy"])]
            lines = [line for line in lines if line[-1] is not None]
            write_run_report(
                run,
                parts.config,
                results,
                description=describe(parts.stage, parts.params),
                more_curves={"Test accuracy by task": curves},
                more_grids={
                    "Test accuracy after each task": (["after", *tasks], lines)
                },
            )
            write_results(run, results)
        return FinetuneResult.of(run, complete=False, results=results)
