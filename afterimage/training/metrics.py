"""metrics.jsonl always, TensorBoard beside it, Weights & Biases where asked for."""

import hashlib
import json
import logging
import math
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from afterimage.checkpoints.files import replace_file
from afterimage.errors import UserError
from afterimage.training.rows import read_rows
from afterimage.training.tensorboard import TensorBoard

_log = logging.getLogger("afterimage")


def _plain(value: Any) -> float | int | str | None:
    """A JSON value; what is not finite becomes null, since JSON has no NaN."""
    if isinstance(value, str | int):
        return value
    number = float(value)
    return number if math.isfinite(number) else None


class MetricsWriter:
    """One line a step: `{"step": 10, "train/loss": 0.03, …}`.

    On resume, lines after the restored step are dropped, so that a continued run leaves
    the file an uninterrupted one would. Keys under `time/` depend on the machine.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        *,
        tensorboard: bool = True,
        wandb: Mapping[str, Any] | None = None,
        note: Callable[[str], None] = _log.warning,
    ) -> None:
        self.path = folder / "metrics.jsonl"
        self._folder, self._note = folder, note
        self._tensorboard_on = tensorboard
        self._tensorboard: TensorBoard | None = None
        self._wandb: Any = _open_wandb(folder, wandb) if wandb is not None else None
        self._file: Any = None
        self.rows: list[dict[str, Any]] = []

    def start(self, step: int) -> None:
        """Opens the files; drops lines after `step`, moves damaged ones away."""
        kept = [r for r in read_rows(self.path, self._note) if r["step"] <= step]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        replace_file(self.path, text.encode())
        self.rows = kept
        self._file = self.path.open("a")
        if self._tensorboard_on:
            self._tensorboard = TensorBoard(
                self._folder / "tensorboard", purge_step=step + 1 if step else None
            )

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends a line; values are numbers or strings."""
        row: dict[str, Any] = {"step": step}
        row |= {key: _plain(value) for key, value in values.items()}
        self.rows.append(row)
        self._file.write(json.dumps(row) + "\n")
        numbers = {k: v for k, v in row.items() if isinstance(v, float | int)}
        numbers.pop("step", None)
        if self._tensorboard is not None:
            self._tensorboard.scalars(step, numbers)
        if self._wandb is not None:
            self._wandb.log(numbers, step=step)

    def has(self, step: int, prefix: str) -> bool:
        """Whether a line of `step` has a key that starts with `prefix`."""
        return any(
            row["step"] == step and any(key.startswith(prefix) for key in row)
            for row in self.rows
        )

    def picture(self, step: int, tag: str, image: Any) -> None:
        """An RGB uint8 [H, W, 3] picture into TensorBoard."""
        if self._tensorboard is not None:
            self._tensorboard.picture(step, tag, image)

    def flush(self) -> None:
        """On disk when this returns: a checkpoint that follows relies on it."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
        if self._tensorboard is not None:
            self._tensorboard.flush()

    def close(self) -> None:
        """Writes what is left; a disk's OSError is raised after all are closed."""
        tensorboard, self._tensorboard = self._tensorboard, None
        if tensorboard is not None:
            tensorboard.close()
        wandb, self._wandb = self._wandb, None
        if wandb is not None:
            wandb.finish()
        file, self._file = self._file, None
        if file is not None:
            with file:  # closed even where the flush fails
                file.flush()
                os.fsync(file.fileno())


class NoMetrics(MetricsWriter):
    """What every process but the first writes: nothing."""

    def start(self, step: int) -> None:
        rows = read_rows(self.path, self._note, keep_bad=False)
        self.rows = [row for row in rows if row["step"] <= step]

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        self.rows.append({"step": step, **values})


def _open_wandb(folder: pathlib.Path, config: Mapping[str, Any]) -> Any:
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            "--wandb needs the package: pip install wandb (the [wandb] extra)"
        ) from error
    # Two runs of one name in different folders are two runs.
    place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
    return wandb.init(
        project="afterimage",
        id=f"{folder.name}-{place}",
        name=folder.name,
        dir=str(folder),
        resume="allow",
        config=dict(config),
    )
