"""A run folder in a bucket, worked on in a folder of this machine.

The run writes to the local folder as always. A thread uploads: single files when they
changed, and whatever has a manifest (checkpoints, encoder, classifier) with its
manifest last. A later run, here or on another machine, first fetches what it lacks.
"""

import contextlib
import hashlib
import json
import pathlib
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Callable

from afterimage.cache import cache_dir
from afterimage.checkpoints import manifest
from afterimage.checkpoints.errors import RunLocked
from afterimage.checkpoints.files import RunLock, replace_file
from afterimage.storage import units
from afterimage.storage.bucket import Bucket
from afterimage.storage.faults import RemoteError
from afterimage.storage.lock import FOLDER, BucketLock
from afterimage.storage.urls import as_text, name_of

POLL = 5.0
"""Seconds between looks for new checkpoints."""
EVERY = 60.0
"""Seconds between uploads of metrics and the like, and after a failed upload."""
_CLAIM = f"{FOLDER}/working-copy"
_CONFIG = "config.json"
_NOT_SENT = ("wandb/",)
Stat = tuple[int, int]


def _warn(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class WorkingCopy:
    """The local folder `path` of the run folder at `url`.

    The object `lock/working-copy` names the local folder that wrote last. That folder
    has everything that the bucket has, and perhaps more; every other one is out of
    date, and is moved aside before the run goes on from the bucket.
    """

    def __init__(self, url: str, note: Callable[[str], None] = _warn):
        self.url, self.note = as_text(url), note
        self.bucket = Bucket(self.url)
        self.lock = BucketLock(self.bucket)
        mark = hashlib.sha256(self.url.encode()).hexdigest()[:16]
        self.folder = cache_dir() / "remote" / mark
        self.path = self.folder / name_of(self.url)
        self._sent: dict[str, Stat] = {}
        self._published: dict[str, str] = {}
        self._mutex, self._stop = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None
        self._lost: RunLocked | None = None
        self._failed = ""
        self._loose_at = 0.0

    def peek(self) -> pathlib.Path:
        """A folder with the run's config.json and the names of all else, to look at."""
        if self._is_ours():
            return self.path
        shown = self.folder / "peek"
        shutil.rmtree(shown, ignore_errors=True)
        shown.mkdir(parents=True)
        for name in filter(units.safe, self.bucket.entries()):
            (shown / name).parent.mkdir(parents=True, exist_ok=True)
            (shown / name).touch()
        if (shown / _CONFIG).exists():
            self.bucket.download(_CONFIG, shown / _CONFIG)
        return shown

    def open(self) -> None:
        """Lock the folder in the bucket, fetch what is missing here, start uploading.

        Raises RunLocked with the name of another writer, RemoteError.
        """
        self.lock.acquire()
        try:
            if not self.lock.exclusive:
                self.note(
                    f"{self.url}: this store replaces objects although it is asked not "
                    "to, so two runs that start together would not see each other"
                )
            if not self._is_ours():
                self._begin_anew()
            self._fetch()
            if not self._own():
                replace_file(self.folder / "copy", uuid.uuid4().hex.encode())
            if not self._is_ours():
                self.bucket.put(_CLAIM, self._own().encode())
        except BaseException:
            with contextlib.suppress(RemoteError):
                self.lock.release()
            raise
        self._thread = threading.Thread(target=self._work, name="upload", daemon=True)
        self._thread.start()

    @property
    def is_open(self) -> bool:
        """Whether the local folder is locked and up to date."""
        return self._thread is not None

    def check(self) -> None:
        """Raise RunLocked if another process has taken the folder over."""
        if self._lost is not None:
            raise RunLocked(f"{self._lost} {self._kept()}") from self._lost

    def close(self, error: BaseException | None = None) -> None:
        """Upload what is left and give the lock back.

        `error` is what ended the run, if anything did. Raises RemoteError if the upload
        fails; everything is kept in `path`, and the next run uploads it.
        """
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        try:
            self.check()
            if isinstance(error, KeyboardInterrupt):
                self.note(f"Not everything is uploaded to {self.url}. {self._kept()}")
                return
            try:
                self.sync()
            except RunLocked as taken:
                self._lost = taken
                self.check()
            except RemoteError as failure:
                text = f"Not everything was uploaded: {failure}. {self._kept()}"
                raise RemoteError(text, failure.kind) from error
            if self._failed:
                self.note(f"Everything is uploaded to {self.url} now")
        finally:
            with contextlib.suppress(RemoteError):  # it then expires
                self.lock.release()

    def sync(self) -> None:
        """Upload whatever changed, and delete what was deleted here."""
        with self._mutex:
            self.lock.check()
            found, loose = units.local_units(self.path)
            self._send(loose)
            self._publish(found)

    def _publish(self, found: list[str]) -> None:
        """Steps in their order, then the rest: a final artefact comes last."""
        numbers = {unit: number for number, unit in units.steps(found)}
        for unit in sorted(found, key=lambda unit: (numbers.get(unit, 2**63), unit)):
            with contextlib.suppress(FileNotFoundError):
                sealed = (self.path / unit / manifest.NAME).read_bytes()
                if units.digest(sealed) == self._published.get(unit):
                    continue
                lock = self.lock
                done = units.publish(
                    self.bucket, self.path, unit, lock.check, lock.renew
                )
                if done is not None:
                    self._published[unit] = done
        newest = max((n for n, _ in units.steps(self._published)), default=-1)
        for number, unit in list(units.steps(self._published)):
            if number < newest and not (self.path / unit).exists():
                units.withdraw(self.bucket, unit)
                del self._published[unit]

    def _send(self, loose: list[str]) -> None:
        """Upload single files that changed since they were sent."""
        now: dict[str, Stat] = {}
        for name in loose:
            with contextlib.suppress(FileNotFoundError):
                status = (self.path / name).stat()
                now[name] = (status.st_size, status.st_mtime_ns)
        changed = [
            name
            for name, stat in now.items()
            if self._sent.get(name) != stat and not name.startswith(_NOT_SENT)
        ]

        def send(name: str) -> None:
            with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                self._upload(name)

        units.in_parallel(send, changed)
        self.bucket.delete(name for name in self._sent if name not in now)
        self._sent, self._loose_at = now, time.monotonic()
        replace_file(self.folder / "sent.json", json.dumps(now).encode())

    def _upload(self, name: str) -> None:
        # As it is now: a file that grows would change while it is sent.
        self.bucket.put(name, (self.path / name).read_bytes())

    def _work(self) -> None:
        """The thread: look, upload, and go on whatever the store says."""
        wait = POLL
        while not self._stop.wait(wait):
            wait = POLL
            try:
                self.lock.renew()
                if self._due():
                    self.sync()
                if self._failed:
                    self.note(f"Uploading to {self.url} works again")
                    self._failed = ""
            except RunLocked as error:
                self._lost = error
                return
            except (RemoteError, OSError) as error:
                if not self._failed:
                    self.note(
                        f"Not uploaded yet, the run goes on and will try again: {error}"
                    )
                self._failed, wait = str(error), EVERY

    def _due(self) -> bool:
        if time.monotonic() - self._loose_at > EVERY:
            return True
        return any(
            unit not in self._published for unit in units.local_units(self.path)[0]
        )

    def _is_ours(self) -> bool:
        """Whether the local folder wrote last."""
        try:
            return self._own() == self.bucket.get(_CLAIM).decode()
        except FileNotFoundError:
            return False

    def _own(self) -> str:
        try:
            return (self.folder / "copy").read_text()
        except OSError:
            return ""

    def _begin_anew(self) -> None:
        """Move a local folder of an earlier state aside; delete one never used."""
        if not self.folder.exists():
            return
        if not self._own() or not self.path.exists():
            shutil.rmtree(self.folder)
            return
        with RunLock(self.path):  # raises if a process still writes there
            pass
        number = 1
        while (aside := self.folder.with_name(f"{self.folder.name}-{number}")).exists():
            number += 1
        self.folder.rename(aside)
        self.note(
            f"{self.url} was continued or emptied elsewhere since it was written from "
            f"this machine. The run goes on from there; the old local folder is now "
            f"{aside} and can be deleted"
        )

    def _fetch(self) -> None:
        """Download what the bucket has and the local folder has not."""
        self.path.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError, ValueError):
            stored = json.loads((self.folder / "sent.json").read_text())
            self._sent = {name: (size, when) for name, (size, when) in stored.items()}
        names = [name for name in self.bucket.entries() if units.safe(name)]
        found = units.remote_units(names)
        for unit in found:
            final = unit
            if unit.endswith(".replaced"):  # a replacement that was not finished
                folder, slash, name = unit.rpartition("/")
                name = name.removeprefix(".").removesuffix(".replaced")
                final = folder + slash + name
                if final in found:
                    continue
            if not (self.path / final / manifest.NAME).is_file():
                done = units.fetch(self.bucket, unit, self.path / final)
            else:
                done = units.digest(self.bucket.get(f"{unit}/{manifest.NAME}"))
            if final == unit:
                self._published[unit] = done
        lost = [n for n in names if self._is_loose(n, found)]
        units.in_parallel(lambda n: self.bucket.download(n, self.path / n), lost)
        for name in lost:
            status = (self.path / name).stat()
            self._sent[name] = (status.st_size, status.st_mtime_ns)

    def _is_loose(self, name: str, found: list[str]) -> bool:
        if any(units.inside(name, folder) for folder in (*found, FOLDER)):
            return False
        half = name.startswith(f"{manifest.STEPS}/")  # a step without a manifest
        hidden = any(part.startswith(".") for part in name.split("/"))
        return not half and not hidden and not (self.path / name).exists()

    def _kept(self) -> str:
        return (
            f"Everything is kept in {self.path}; the same command on this machine "
            "uploads it"
        )
