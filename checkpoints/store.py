"""Checkpoints of a run: saved in the background, atomic, verified before use.

Orbax writes and reads the arrays; we handle names and checksums and decide which
checkpoint is good (docs/design/checkpoints.md says why).
"""

import contextlib
import datetime
import functools
import logging
import math
import os
import pathlib
import shutil
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from afterimage.checkpoints import (
    files,
    inspect,
    manifest,
    names,
    schemas,
    trees,
    weights,
)
from afterimage.checkpoints.errors import (
    CheckpointError,
    SaveError,
    UsageError,
    explain,
)
from afterimage.checkpoints.manifest import STEP, Finding, require_json
from afterimage.checkpoints.processes import (
    array_from_main,
    in_main,
    is_main_process,
)

_log = logging.getLogger("checkpoints")
_STATE = "state"
_WEIGHTS = ("params/", "stats/", "ema/")  # a state's leaves that must be finite
_writing: set[pathlib.Path] = set()  # partial folders of this process's saves
_under_way: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
_unraised: set[SaveError] = set()  # errors that no caller has seen yet


# When a save fails, keep the tracebacks of Orbax's threads off the terminal: the error
# is raised in the caller that waits for the save. Orbax also logs it from each of its
# threads, and TensorStore calls back into closed event loops.
logging.getLogger("absl").addFilter(
    lambda record: "_SignalingThread.run() raised" not in record.getMessage()
)
_show_unraisable = sys.unraisablehook


def _unless_late(unraisable: Any) -> None:
    late = isinstance(unraisable.exc_value, RuntimeError)
    if not (late and str(unraisable.exc_value) == "Event loop is closed"):
        _show_unraisable(unraisable)


sys.unraisablehook = _unless_late

_NO_LIMIT = 2**31 - 1
"""Seconds, 68 years. Orbax measures its timeout by the wall clock, which can jump by
hours when a laptop sleeps or the clock is corrected."""


class Store:
    """The checkpoints of one run folder, `FOLDER/checkpoints/STEP/`.

    `folder` is the run folder (its `checkpoints/` itself is accepted). The newest
    `keep_last` steps are kept, and the `keep_best` best by `metric` if `best` is "min"
    or "max". Leftovers of an interrupted save are cleaned up on construction if this
    process holds the run's `RunLock`. `warn` is called with one sentence for each
    problem found; by default it is logged.

    As a context manager it waits at the end, so that no save or error is lost. With
    several processes, every process must call every method; only the first reads and
    writes the folder, so the others need not see it.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        keep_last: int = 3,
        keep_best: int = 1,
        best: Literal["min", "max"] | None = None,
        warn: Callable[[str], None] = _log.warning,
    ):
        if keep_last < 1 or keep_best < 0 or best not in ("min", "max", None):
            raise UsageError(
                f"keep_last={keep_last}, keep_best={keep_best}, best={best!r}: "
                "keep_last must be at least 1, keep_best at least 0, and best 'min', "
                "'max' or None."
            )
        self.folder = manifest.steps_folder(folder).absolute()
        if (reason := names.unfit_for_arrays(str(self.folder))) is not None:
            raise UsageError(f"{names.spelling(str(self.folder))}: {reason}")
        self.keep_last, self.keep_best, self.best = keep_last, keep_best, best
        self.findings: list[Finding] = []
        """Problems found by the last `restore`."""
        self._warn = warn
        self._thread: threading.Thread | None = None
        self._error: SaveError | None = None
        if is_main_process() and files.holds_lock(self.folder.parent):
            manifest.recover(self.folder, _writing)

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.wait()
            return
        try:  # do not replace the exception in flight
            self.wait()
        except SaveError as error:
            self._warn(str(error))

    def steps(self) -> list[int]:
        """Complete steps, oldest first; their bytes are not verified here."""
        return in_main(lambda: manifest.complete_steps(self.folder), _elsewhere())

    def best_step(self) -> int | None:
        """The best complete step by the metric; None if none is ranked."""

        def best() -> int | None:
            rows = inspect.list_steps(self.folder.parent)
            return next((row.step for row in rows if row.best), None)

        return in_main(best, _elsewhere())

    def save(
        self,
        step: int,
        tree: Any,
        *,
        manifest: Mapping[str, Any],
        encoder: tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]]
        | None = None,
        metric: float | int | None = None,
        wait: bool = False,
    ) -> None:
        """Save a pytree of arrays under a step number, in the background.

        All arrays are copied before this returns, so they may be donated at once. An
        `encoder` (params, stats, manifest) is written next to the state as a
        self-contained artefact. `restore` returns `manifest` and `metric` (None or not
        finite: no metric). An existing step is replaced once the new one is complete.

        Raises SaveError when there is no space, or when an earlier save failed.
        """
        flat = trees.paths(tree)
        trees.require_arrays(flat)
        content = {
            "kind": STEP,
            "step": int(step),
            "created": datetime.datetime.now(datetime.UTC).isoformat("T", "seconds"),
            "metric": None if metric is None else files.finite(float(metric)),
            "best": self.best,
            "manifest": require_json(manifest, "A checkpoint's manifest"),
            "leaves": {path: trees.spec(leaf) for path, leaf in flat.items()},
        }
        artefact = None

        def begin() -> str:
            nonlocal artefact
            self.wait()
            artefact = weights.collect(*encoder) if encoder is not None else None
            return str(self._begin(step, flat, artefact))

        partial = pathlib.Path(in_main(begin, _elsewhere()))
        if not is_main_process():
            _take_part(trees.to_host(flat))
            return
        _writing.add(partial)
        try:
            write = _writer(partial / _STATE, trees.to_host(flat))
        except Exception as error:
            self._abandon(partial)
            raise explain(error, f"Step {step}", self.folder) from error
        self._thread = threading.Thread(
            target=self._finish,
            args=(step, partial, content, artefact, write),
            name=f"checkpoint-{step}",
        )
        self._thread.start()
        _under_way.add(self._thread)
        if wait:
            self.wait()

    def check(self) -> None:
        """Raise the error of an earlier asynchronous save, without waiting."""
        error, self._error = self._error, None
        if error is not None:
            _unraised.discard(error)
            raise error

    def wait(self) -> None:
        """Wait until pending saves are on disk; raises their SaveError."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def restore(
        self, target: Any = None, step: int | None = None
    ) -> tuple[int, Any, dict[str, Any]]:
        """(step, tree, manifest) of the newest good checkpoint, or of `step`.

        Every file is checked against its checksum first. A damaged, half-written or
        foreign checkpoint is reported (`warn`, `findings`) and the one before it is
        used. `target` is a pytree of arrays or `jax.ShapeDtypeStruct`s: the result has
        its structure, dtypes and shardings. Without it: nested dicts of NumPy arrays.

        Raises CheckpointError if none is good, or if a good one differs from the target
        in tree, shape or dtype (all differences are listed).
        """
        self.wait()
        flat: dict[str, np.ndarray] = {}

        def read() -> Any:
            nonlocal flat
            number, content, flat = self._newest(target, step)
            return number, content

        number, content = in_main(read, _elsewhere())
        flat = _from_main(flat, content["leaves"])
        if target is None:
            return number, trees.unflatten(flat), content["manifest"]
        return number, trees.rebuild(target, flat), content["manifest"]

    def _newest(
        self, target: Any, step: int | None
    ) -> tuple[int, dict[str, Any], dict[str, np.ndarray]]:
        """(step, manifest, arrays by path) of what `restore` returns."""
        self.findings = []
        for number, path in reversed(manifest.numbered_steps(self.folder)):
            if step not in (None, number) or (content := self._verified(path)) is None:
                continue
            if target is not None:
                trees.require_fit(target, content["leaves"], path)
            try:
                flat = _read_arrays(path / _STATE, content["leaves"])
                finite = {p: a for p, a in flat.items() if p.startswith(_WEIGHTS)}
                text = schemas.listed(weights.not_finite(finite))
            except Exception as error:  # whatever Orbax raises, try the one before
                text = f"cannot be restored: {type(error).__name__}: {error}"
            else:
                if not text:
                    return number, content, flat
            self._note(Finding(str(path), "damaged", text))
        which = "checkpoint" if step is None else f"checkpoint of step {step}"
        raise CheckpointError(
            f"There is no good {which} in {self.folder}"
            + "".join(f"\n  {finding}" for finding in self.findings if finding.fatal)
        )

    def _verified(self, path: pathlib.Path) -> dict[str, Any] | None:
        """The manifest if every byte of the checkpoint is correct, else None."""
        content, findings = manifest.check_folder(path, (STEP,))
        for finding in findings:
            self._note(finding)
        if any(finding.fatal for finding in findings):
            return None
        return content or manifest.read(path, (STEP,))

    def _note(self, finding: Finding) -> None:
        self.findings.append(finding)
        self._warn(f"{finding}; {'not used' if finding.fatal else 'ignored'}")

    def _begin(
        self, step: int, flat: Mapping[str, Any], artefact: weights.Artefact | None
    ) -> pathlib.Path:
        """Check the space, and make the partial folder."""
        partial = self.folder / f".{step}.partial-{os.getpid()}"
        needed = sum(math.prod(x.shape) * x.dtype.itemsize for x in flat.values())
        needed += 2**16 + 1024 * len(flat) + (artefact.nbytes if artefact else 0)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            files.require_space(self.folder, needed, f"Step {step}")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
        except OSError as error:
            raise explain(error, f"Step {step}", self.folder) from error
        return partial

    def _finish(
        self,
        step: int,
        partial: pathlib.Path,
        content: dict[str, Any],
        artefact: weights.Artefact | None,
        write: Callable[[], Any],
    ) -> None:
        """In the background: encoder, state, checksums and manifest, then rename."""
        try:
            response = write()
            try:
                if artefact is not None:
                    artefact.write(partial / weights.ENCODER)
            finally:
                if response is not None:
                    response.result()
            # Orbax only warns if its own files are missing.
            arrays = partial / _STATE
            if response is not None and not any(arrays.glob("*/manifest.ocdbt")):
                raise CheckpointError(f"Orbax wrote no arrays to {arrays}")
            self._complete(step, partial, content)
        except BaseException as error:
            self._abandon(partial)
            self._error = explain(error, f"Step {step}", self.folder)
            _unraised.add(self._error)
        finally:
            _writing.discard(partial)

    def _complete(self, step: int, partial: pathlib.Path, content: dict) -> None:
        sealed = manifest.seal(content, partial)
        files.write_bytes(partial / manifest.NAME, sealed)
        for parent, _, _ in os.walk(partial):
            files.sync_folder(pathlib.Path(parent))
        final = self.folder / str(step)
        if (aside := manifest.set_aside(final)) is not None:
            self._warn(
                f"{final} is not a complete checkpoint and was renamed to {aside}"
            )
        files.put_in_place(partial, final)
        try:
            self._retain(step)
        except OSError as error:
            self._warn(
                f"step {step} is saved, but an old step could not be deleted: {error}"
            )

    def _retain(self, newest: int) -> None:
        """Delete earlier steps that are not to be kept."""
        metrics: dict[int, float | None] = {}
        for number, path in manifest.numbered_steps(self.folder):
            with contextlib.suppress(CheckpointError):
                if number <= newest:
                    metrics[number] = manifest.read(path, (STEP,))["metric"]
        kept = manifest.kept_steps(
            metrics, keep_last=self.keep_last, keep_best=self.keep_best, best=self.best
        )
        for number in set(metrics) - kept - {newest}:
            manifest.delete_step(self.folder, number)

    def _abandon(self, partial: pathlib.Path) -> None:
        shutil.rmtree(partial, ignore_errors=True)
        _writing.discard(partial)


def _end_of_program() -> None:
    for thread in list(_under_way):
        thread.join()
    for error in _unraised:
        _log.error("%s", error)


# A program that ends without `wait` would close the thread pools Orbax needs before the
# save completes. Hooks run in reverse order of registration, so this one runs before
# the pools' own, registered by the import above. Without the hook such a save fails
# with an error.
_register: Any = getattr(threading, "_register_atexit", None)
if _register is not None:
    _register(_end_of_program)


def _writer(folder: pathlib.Path, arrays: Mapping[str, Any]) -> Callable[[], Any]:
    """`_write_arrays`, to be called beside steps."""
    if jax.process_count() == 1:
        return functools.partial(_write_arrays, folder, arrays)
    # Now: Orbax asks the other processes something, which must not mix with steps.
    started = _write_arrays(folder, arrays)
    return lambda: started


def _write_arrays(folder: pathlib.Path, arrays: Mapping[str, Any]) -> Any:
    """Start Orbax on {path: array}; None when there is nothing to write."""
    # Orbax refuses empty arrays; the manifest has their shape and dtype.
    some = {path: array for path, array in arrays.items() if array.size}
    if not some:
        return None
    context = _alone()
    context.async_options.create_directories_asynchronously = False
    context.async_options.timeout_secs = _NO_LIMIT
    context.memory_options.deepcopy_host_arrays = False  # these are already copies
    with context:
        return ocp.save_async(str(folder), some)


def _read_arrays(
    folder: pathlib.Path, leaves: Mapping[str, Mapping[str, Any]]
) -> dict[str, np.ndarray]:
    """{path: array} as the manifest lists them, each with its own dtype.

    Raises CheckpointError where Orbax returns others, and whatever Orbax raises.
    """
    flat = {
        path: np.empty(leaf["shape"], jnp.dtype(leaf["dtype"]))
        for path, leaf in leaves.items()
    }
    some = {path: array for path, array in flat.items() if array.size}
    if some:
        with _alone():
            flat |= ocp.load(str(folder), some)
    wrong = trees.differences(flat, leaves)
    if wrong:
        raise CheckpointError("; ".join(wrong))
    return flat


def _alone() -> ocp.Context:
    """For Orbax: the other processes of the job take no part."""
    context = ocp.Context()
    if jax.process_count() > 1:
        context.multiprocessing_options.active_processes = {0}
        context.multiprocessing_options.barrier_sync_key_prefix = "first-process"
    return context


def _take_part(arrays: Mapping[str, Any]) -> None:
    """What the other processes must do while the first calls `_write_arrays`.

    Orbax compares the paths of all processes, also of those that are not active
    (0.12.8, `_check_directory_consistency`): a broadcast, then a gathering of answers.
    """
    if any(array.size for array in arrays.values()):
        multihost_utils.broadcast_one_to_all(np.zeros(32, np.uint8))
        multihost_utils.process_allgather(np.int32(0))


def _from_main(
    flat: Mapping[str, np.ndarray], leaves: Mapping[str, Mapping[str, Any]]
) -> dict[str, np.ndarray]:
    """Process 0's arrays, which the manifest lists as `leaves`, on every process."""
    if jax.process_count() == 1:
        return dict(flat)
    return {
        path: array_from_main(
            flat[path]
            if is_main_process()
            else np.empty(leaf["shape"], jnp.dtype(leaf["dtype"]))
        )
        for path, leaf in leaves.items()
    }


def _elsewhere() -> CheckpointError:
    """Raised where another process refused."""
    return UsageError("refused by the first process; see its output for the reason")
