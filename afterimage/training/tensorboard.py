"""The metrics for TensorBoard: a copy of metrics.jsonl that is not essential."""

import contextlib
import importlib
import os
import pathlib
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any


class TensorBoard:
    """Writes one event file, in the thread that calls.

    (tensorboardX's own SummaryWriter writes in a thread that ends at the first disk
    error, after which training waits forever for room in its queue.)

    If the file cannot be written, a note is printed once and training continues.
    """

    def __init__(self, folder: pathlib.Path, *, purge_step: int | None = None) -> None:
        self._writer: Any = None
        with self._or_without():
            from tensorboardX.record_writer import RecordWriter

            folder.mkdir(parents=True, exist_ok=True)
            # TensorBoard needs the second and the host; the rest makes the name new,
            # whatever the clock says.
            name = f"{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
            name = f"events.out.tfevents.{name}.{time.monotonic_ns()}"
            # Absolute: of a relative path the part before a colon is taken for a host.
            self._writer = RecordWriter(str(folder.absolute() / name))
            self._event(0, file_version="brain.Event:2")
            if purge_step is not None:
                # Earlier files' values from this step on are ignored.
                session = _messages("event").SessionLog
                self._event(purge_step, session_log=session(status=session.START))

    def scalars(self, step: int, values: Mapping[str, float | int]) -> None:
        """The numbers of one step."""
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
                with contextlib.suppress(OSError):  # closing writes once more
                    writer.close()
            print(
                f"Going on without TensorBoard files: {error}. All metrics are in "
                "metrics.jsonl.",
                file=sys.stderr,
            )


def _messages(name: str) -> Any:
    """A module of generated classes, which type checkers cannot see into."""
    return importlib.import_module(f"tensorboardX.proto.{name}_pb2")
