"""A run folder: one writer, one configuration, everything the run writes."""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

import afterimage
from afterimage import runtime
from afterimage.checkpoints import processes, schemas
from afterimage.checkpoints.errors import CheckpointError
from afterimage.checkpoints.files import RunLock, finite, is_partial, replace_file
from afterimage.checkpoints.names import printable, shown
from afterimage.checkpoints.weights import read_folder
from afterimage.data.sets import BadImage
from afterimage.errors import UserError, disk_errors, out_of_memory, require_writable
from afterimage.sessions import Sessions
from afterimage.settings import choices, default_of, dotted, to_dict
from afterimage.storage.urls import is_remote
from afterimage.storage.working import WorkingCopy
from afterimage.training.metrics import MetricsWriter, NoMetrics
from afterimage.training.options import FREE_TO_CHANGE


def write_json(path: pathlib.Path, value: Any) -> None:
    """Write a JSON file atomically. Non-finite numbers become null."""
    value = finite(json.loads(json.dumps(value, default=str)))
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    replace_file(path, text.encode())


def write_png(
    picture: UInt8[np.ndarray, "h w 3"], path: str | pathlib.Path
) -> pathlib.Path:
    """Write a picture atomically, creating its folders."""
    from PIL import Image

    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", optimize=True)
    return replace_file(path, buffer.getvalue())


class Run:
    """An opened run folder; a context manager that holds its lock.

    A folder with checkpoints of another configuration is refused with a list of the
    differences; one that another process is writing to, with that process's name. While
    it is open, errors of a full, read-only or failing disk are raised as DiskError.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, kind: str, config: Any
    ) -> None:
        self.copy = _working_copy(folder)
        self.path = pathlib.Path(folder) if self.copy is None else self.copy.path
        self.where = str(folder) if self.copy is None else self.copy.url
        """The run folder for a message: the path or URL that the user knows."""
        self.kind = kind
        self.config = _as_dict(config)
        self._defaults = _defaults(config)
        self.is_main_process = jax.process_index() == 0
        self.notes: list[str] = []
        self._ended_by: BaseException | None = None
        self.sessions = Sessions(self.path / "sessions.json")

    def check_settings(self) -> None:
        """Refuses a folder that is not this run's, without a lock and without writing.

        Call it before opening the data, which can take a long time.
        """
        with self._disk():
            self.in_main(self._refuse_unwritable)
            self.in_main(self._refuse_others)

    def check(self) -> None:
        """Raises RunLocked if another process has taken the run over, in a bucket."""
        if self.copy is not None:
            self.copy.check()

    def __enter__(self) -> "Run":
        self._opened = contextlib.ExitStack()
        with self._disk():
            self.in_main(self._open)
        if not self.is_main_process:
            self.metrics = NoMetrics(self.path)
        return self

    def _disk(self) -> contextlib.AbstractContextManager[None]:
        then = (
            " Earlier checkpoints are unchanged; run the same command again to continue"
        )
        return disk_errors(f"out={self.where}", then)

    def in_main(self, action: Callable[[], Any]) -> Any:
        """What `action` returns in the first process, as JSON, on every process.

        Only the first reads and writes the folder. An error there ends every process.
        """
        refusal = UserError(
            f"out={self.where}: refused by the first process; see its output for the "
            "reason"
        )
        return processes.in_main(action, refusal)

    def start_metrics(self, began: int) -> None:
        """Opens metrics.jsonl; every process then has the lines up to step `began`."""
        self.in_main(lambda: self.metrics.start(began))
        rows = processes.json_from_main(
            self.metrics.rows if self.is_main_process else None
        )
        self.metrics.rows = rows

    def _refuse_unwritable(self) -> None:
        """DiskError if the folder cannot be created or written to."""
        require_writable(f"out={self.where}", self.path)

    def _open(self) -> None:
        self._refuse_unwritable()
        with contextlib.ExitStack() as opening:
            if self.copy is not None:
                self._refuse_others()  # before fetching what is not ours
                self.copy.open()
                opening.callback(self._close_copy)
            self.path.mkdir(parents=True, exist_ok=True)
            opening.enter_context(RunLock(self.path))
            self._refuse_others()
            self._record_config()
            self.sessions.open()
            wandb = self.config.get("wandb")
            self.metrics = MetricsWriter(
                self.path,
                tensorboard=bool(self.config.get("tensorboard", True)),
                wandb=self.config if wandb else None,
                note=self.notes.append,
            )
            self._opened = opening.pop_all()

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        self._ended_by = error
        self.keep_time(again=True)
        with self._disk():
            try:
                self.metrics.close()
            except OSError:
                if error is None:  # the first error is the one to report
                    raise
            finally:
                self._opened.close()
            if isinstance(error, OSError):
                raise error
        if (said := out_of_memory(error)) is not None:
            now = {k: self.config.get(k) for k in ("batch_size", "accumulate", "remat")}
            settings = ", ".join(f"{name}={value}" for name, value in now.items())
            raise UserError(
                f"The device ran out of memory with {settings}. Try --accumulate "
                f"{2 * (now['accumulate'] or 1)} (the same result), --remat, or a "
                f"smaller --batch-size or --image-size. The device reported: {said}"
            ) from error

    def _close_copy(self) -> None:
        if self.copy is not None:
            self.copy.close(self._ended_by)

    def keep_time(self, *, again: bool = False) -> None:
        """Records how long the run has taken; with `again` only if it has before, so
        that opening a complete run changes nothing."""
        if self.is_main_process and (self.sessions.kept or not again):
            self.sessions.keep()

    @property
    def settings(self) -> dict[str, tuple[Any, Any]]:
        """{path: (value, default)} of every setting; MISSING if it has no default."""
        return {
            path: (value, self._defaults.get(path, dataclasses.MISSING))
            for path, value in dotted(self.config).items()
            if not path.endswith(".package")
        }

    @property
    def pictures(self) -> pathlib.Path:
        folder = self.path / "pictures"
        folder.mkdir(exist_ok=True)
        return folder

    def missing(
        self, artefacts: Sequence[str], files: Sequence[str] = ()
    ) -> tuple[str, ...] | None:
        """The missing or damaged final artefacts and files of a run, or None."""

        def lost() -> list[str]:
            found = [name for name in files if not (self.path / name).is_file()]
            for name in artefacts:
                try:
                    read_folder(self.path / name, name)
                except CheckpointError:
                    found.append(name)
            return found

        return tuple(self.in_main(lost)) or None

    def _stored(self, folder: pathlib.Path | None = None) -> dict[str, Any] | None:
        path = (folder or self.path) / "config.json"
        if not os.path.lexists(path):
            return None
        return schemas.read(path, schemas.ConfigFile, "restore it, or use a new --out")

    def _refuse_others(self) -> None:
        """UserError for another run's folder, or one that is not a run's."""
        folder = self.path
        if self.copy is not None and not self.copy.is_open:
            folder = self.copy.peek()
        stored = self._stored(folder)
        if stored is None:
            entries = folder.iterdir() if folder.is_dir() else ()
            names = {entry.name for entry in entries} - {"lock", ".lock"}
            others = sorted(name for name in names if not is_partial(name))
            if others:
                raise UserError(
                    f"out={self.where} is not a run folder: it has no config.json and "
                    f"contains other files ({', '.join(others[:5])}). Give a new or "
                    "empty folder"
                )
            return
        if stored["kind"] != self.kind:
            raise UserError(
                f"out={self.where} contains a {printable(stored['kind'])} run, not a "
                f"{self.kind} run; give another folder"
            )
        changed = self._changed(stored)
        saved = any((folder / "checkpoints").glob("*"))
        if changed and (saved or (folder / "encoder").exists()):
            raise UserError(
                f"{self.where} contains a run with other settings:\n  "
                + "\n  ".join(changed)
                + "\nTo continue that run, use its settings; for a new run, give "
                "another --out"
            )

    def _changed(self, stored: Mapping[str, Any]) -> list[str]:
        """The settings that must not differ from the folder's, but do."""
        old, new = self._settings(stored), dotted(self.config)
        both = _made(old) & _made(new)  # of another choice, its name says enough
        return [
            f"{printable(key)}: {shown(old.get(key))} in the folder, {new.get(key)!r} "
            "now"
            for key in sorted(set(old) | set(new))
            if key not in FREE_TO_CHANGE and old.get(key) != new.get(key)
            if "." not in key or key.partition(".")[0] in both
        ]

    def _settings(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """{path: value} of the folder's settings."""
        # A run older than a setting used its default.
        return {**self._defaults, **dotted(stored.get("config", {}))}

    def _record_config(self) -> None:
        """Records the settings of a new run, or the changes to an existing one."""
        stored = self._stored()
        if stored is None or self._changed(stored):
            # Nothing was saved under the old settings: the user corrected a mistake.
            (self.path / "baselines.json").unlink(missing_ok=True)
            self._write_config(data=None)
            return
        self._note_machine(stored.get("runtime", {}), self._settings(stored))

    def _note_machine(self, old: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        now = runtime.fingerprint()
        moved = [(k, old[k], now[k]) for k in now if k in old and old[k] != now[k]]
        moved += [
            (f"--{k.replace('_', '-')}", config.get(k), self.config.get(k))
            for k in ("devices", "steps_per_dispatch")
            if config.get(k) != self.config.get(k)
        ]
        if moved:
            what = ", ".join(f"{k} {shown(old)} -> {new}" for k, old, new in moved)
            self.notes.append(
                "The machine or its settings have changed since the run began "
                f"({what}). The run continues with the same batches, but results may "
                "differ in the last bits"
            )

    def _write_config(
        self, data: Mapping[str, Any] | None, origin: Mapping[str, Any] | None = None
    ) -> None:
        write_json(
            self.path / "config.json",
            {
                "afterimage": afterimage.__version__,
                "kind": self.kind,
                "started": time.strftime("%Y-%m-%dT%H:%M:%S"),
                "config": self.config,
                "data": data,
                **({} if origin is None else {"from": origin}),
                "runtime": runtime.fingerprint(),
            },
        )

    def check_data(
        self, name: str, fingerprint: str, *, origin: Mapping[str, Any] | None = None
    ) -> None:
        """Records the data on first use; later, refuses to continue on other data.

        The same with the encoder that the run began from: its `path` and `checksum`.
        """
        self.in_main(lambda: self._check_data(name, fingerprint, origin))

    def _check_data(
        self, name: str, fingerprint: str, origin: Mapping[str, Any] | None
    ) -> None:
        stored = self._stored() or {}
        known, begun = stored.get("data"), stored.get("from")
        if known is None:
            data = {"name": name, "fingerprint": fingerprint}
            self._write_config(data, origin)
            return
        if origin and begun and begun["checksum"] != origin["checksum"]:
            raise UserError(
                f"The encoder in from={origin['path']} has changed since this run "
                f"began (checksum {origin['checksum'][:12]}, was "
                f"{shown(begun['checksum'])}). Restore it, or start a new run with "
                "another --out"
            )
        if known["fingerprint"] != fingerprint:
            raise UserError(
                f"The data of {name} have changed since this run began (fingerprint "
                f"{fingerprint[:12]}, was {known['fingerprint'][:12]}). Restore them, "
                "or start a new run with another --out"
            )

    def write_skipped(self, skipped: Sequence[BadImage]) -> None:
        """Lists the skipped images, one line each: path, tab, reason."""
        if not skipped:
            return
        path = self.path / "skipped.txt"
        self.notes.append(f"{len(skipped)} images were skipped; {path} lists them")
        if self.is_main_process:
            lines = [
                f"{printable(bad.path)}\t{printable(bad.reason)}\n" for bad in skipped
            ]
            replace_file(path, "".join(lines).encode())


def _working_copy(folder: str | os.PathLike[str]) -> WorkingCopy | None:
    """The local folder of a run in a bucket; None if it is not in one."""
    if not is_remote(folder):
        return None
    return WorkingCopy(os.fspath(folder))


def beside(run: str, name: str) -> pathlib.Path:
    """The folder for what is computed from an encoder: in its run, or in the cache."""
    place = pathlib.Path(run)
    if (place / "config.json").is_file():
        return place / name
    # Other folders are artefacts, whose files are listed with their checksums.
    mark = hashlib.sha256(os.fsencode(os.path.abspath(place))).hexdigest()[:16]
    return runtime.cache_dir() / name / mark


def _defaults(config: Any) -> dict[str, Any]:
    """{path: default} of the fields of a configuration and of its choices."""
    if not dataclasses.is_dataclass(config):
        return {}
    found = _field_defaults(config)
    for name, choice in choices(type(config)).items():
        value = getattr(config, name)
        for one in value if choice.several else (value,):
            own = _field_defaults(one)
            found |= {f"{one.name}.{key}": own[key] for key in own}
    return found


def _made(settings: Mapping[str, Any]) -> set[str]:
    """All names that are values of settings, among them the choices made."""
    several = (v if isinstance(v, list) else [v] for v in settings.values())
    return {one for values in several for one in values if isinstance(one, str)}


def _field_defaults(config: Any) -> dict[str, Any]:
    registries, found = choices(type(config)), {}
    for field in dataclasses.fields(config):
        value: Any = default_of(config, field.name)
        if field.name in registries:  # by name
            several = registries[field.name].several
            names = [
                getattr(one, "name", one) for one in (value if several else [value])
            ]
            value = names if several else names[0]
        if value is not dataclasses.MISSING:
            found[field.name] = value
    return _as_dict(found)


def _as_dict(config: Any) -> dict[str, Any]:
    values = to_dict(config) if dataclasses.is_dataclass(config) else config
    # Through JSON, so that tuples compare equal to the stored values.
    return json.loads(json.dumps(dict(values), default=str))
