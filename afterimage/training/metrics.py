"""Metrics to metrics.jsonl, TensorBoard and, on request, Weights & Biases.

Damage to an earlier metrics.jsonl never stops a run.
"""

import contextlib
import hashlib
import importlib
import io
import json
import logging
import os
import pathlib
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from afterimage.checkpoints import files
from afterimage.checkpoints.files import finite, replace_file
from afterimage.errors import UserError

_log = logging.getLogger("afterimage")
_LONGEST = 2**20  # bytes of a line; ours have a few hundred
_MOST = 2**32  # bytes of a file
_DECODER = msgspec.json.Decoder(dict[str, bool | int | float | str | None])


class MetricsWriter:
    """Writes lines such as `{"step": 10, "train/loss": 0.03, …}`.

    On resume, lines after the restored step are dropped, so that a resumed run leaves
    the same file as an uninterrupted one. Keys under `time/` depend on the machine.
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
        """Opens the files; drops lines after `step` and moves damaged ones away."""
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
        row |= {
            key: value if isinstance(value, str | int) else finite(float(value))
            for key, value in values.items()
        }
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
        """Writes an RGB uint8 [H, W, 3] picture to TensorBoard."""
        if self._tensorboard is not None:
            self._tensorboard.picture(step, tag, image)

    def flush(self) -> None:
        """Syncs to disk before returning; the next checkpoint relies on it."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
        if self._tensorboard is not None:
            self._tensorboard.flush()

    def close(self) -> None:
        """Writes what is left; raises an OSError of the disk after all are closed."""
        tensorboard, self._tensorboard = self._tensorboard, None
        if tensorboard is not None:
            tensorboard.close()
        wandb, self._wandb = self._wandb, None
        if wandb is not None:
            wandb.finish()
        file, self._file = self._file, None
        if file is not None:
            with file:  # closed even if the flush fails
                file.flush()
                os.fsync(file.fileno())


class NoMetrics(MetricsWriter):
    """For every process but the first: touches no file."""

    def start(self, step: int) -> None:
        del step

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        self.rows.append({"step": step, **values})


def _open_wandb(folder: pathlib.Path, config: Mapping[str, Any]) -> Any:
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            "--wandb needs the package wandb: pip install wandb (the [wandb] extra)"
        ) from error
    # Runs with the same name in different folders are different runs.
    place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
    return wandb.init(
        project="afterimage",
        id=f"{folder.name}-{place}",
        name=folder.name,
        dir=str(folder),
        resume="allow",
        config=dict(config),
    )


class TensorBoard:
    """Writes one event file, in the calling thread.

    (tensorboardX's own SummaryWriter writes in a thread that ends at the first disk
    error, after which training waits forever for room in its queue.)

    If the file cannot be written, a note is printed once and training continues.
    """

    def __init__(self, folder: pathlib.Path, *, purge_step: int | None = None) -> None:
        self._writer: Any = None
        with self._or_without():
            from tensorboardX.record_writer import RecordWriter

            folder.mkdir(parents=True, exist_ok=True)
            # TensorBoard needs the time in seconds and the host; the rest makes the
            # name unique, whatever the clock says.
            name = f"{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
            name = f"events.out.tfevents.{name}.{time.monotonic_ns()}"
            # Absolute: in a relative path the part before a colon would be a host.
            self._writer = RecordWriter(str(folder.absolute() / name))
            self._event(0, file_version="brain.Event:2")
            if purge_step is not None:
                # Earlier files' values from this step on are ignored.
                session = _messages("event").SessionLog
                self._event(purge_step, session_log=session(status=session.START))

    def scalars(self, step: int, values: Mapping[str, float | int]) -> None:
        """Writes the numbers of one step."""
        made = _messages("summary").Summary()
        for tag, value in values.items():
            made.value.add(tag=tag, simple_value=value)
        self._event(step, summary=made)

    def picture(self, step: int, tag: str, image: Any) -> None:
        """An RGB uint8 [H, W, 3] picture."""
        if self._writer is not None:
            from tensorboardX.summary import image as summary

            self._event(step, summary=summary(tag, image, dataformats="HWC"))

    def flush(self) -> None:
        """On disk when this returns."""
        if self._writer is not None:
            with self._or_without():
                self._writer.flush()

    def close(self) -> None:
        """Writes what is left and closes the file."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with self._or_without():
                try:
                    writer.flush()
                finally:
                    writer.close()

    def _event(self, step: int, **content: Any) -> None:
        if self._writer is not None:
            event = _messages("event").Event(
                step=step, wall_time=time.time(), **content
            )
            with self._or_without():
                self._writer.write(event.SerializeToString())

    @contextlib.contextmanager
    def _or_without(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            writer, self._writer = self._writer, None
            if writer is not None:
                with contextlib.suppress(OSError):  # closing writes again
                    writer.close()
            print(
                f"TensorBoard files are no longer written: {error}. metrics.jsonl has "
                "all metrics.",
                file=sys.stderr,
            )


def _messages(name: str) -> Any:
    """A module of generated classes, opaque to type checkers."""
    return importlib.import_module(f"tensorboardX.proto.{name}_pb2")


def read_rows(
    path: pathlib.Path, note: Callable[[str], None], *, keep_bad: bool = True
) -> list[dict[str, Any]]:
    """The good lines of a metrics.jsonl, as dictionaries with a step >= 0.

    Damaged lines are appended to `NAME.damaged` beside it, and a path that is not a
    file is renamed to that; `note` is called with one sentence about it. An incomplete
    last line, as a killed writer leaves, is dropped silently. With `keep_bad=False`
    nothing is written (another process does it).
    """
    if not os.path.lexists(path):
        return []
    aside = path.with_name(f"{path.name}.damaged")
    try:
        file = files.open_regular(path)
        if os.fstat(file.fileno()).st_size > _MOST:
            file.close()
            raise OSError(f"has more than {_MOST} bytes")
    except OSError as error:
        if keep_bad:
            new = _rename(path, aside)
            note(f"{path} {files.reason(error)}; it was renamed to {new}")
        return []
    rows: list[dict[str, Any]] = []
    bad = 0
    with file, contextlib.ExitStack() as stack:
        kept = io.BytesIO()
        while line := file.readline(_LONGEST):
            row = _row(line)
            if row is not None:
                rows.append(row)
            elif line.endswith(b"\n") or len(line) == _LONGEST:
                if not bad and keep_bad:
                    kept = stack.enter_context(aside.open("ab"))
                bad += 1
                _copy_line(line, file, kept if keep_bad else None)
    if bad and keep_bad:
        note(f"{path}: damaged lines ({bad}) were moved to {aside}")
    return rows


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = _DECODER.decode(line)
    except (msgspec.MsgspecError, UnicodeError, RecursionError, OverflowError):
        return None
    step = row.get("step")
    return row if type(step) is int and 0 <= step < 2**53 else None


def _copy_line(line: bytes, file: io.BufferedReader, to: Any) -> None:
    """Copies a bad line of any length, in pieces."""
    while line:
        if to is not None:
            to.write(line)
        if line.endswith(b"\n"):
            return
        line = file.readline(_LONGEST)
    if to is not None:
        to.write(b"\n")


def _rename(path: pathlib.Path, aside: pathlib.Path) -> pathlib.Path:
    """Move a path to a new name, without overwriting anything."""
    number = 1
    while os.path.lexists(aside):
        number += 1
        aside = aside.with_name(f"{path.name}.damaged-{number}")
    return path.rename(aside)
