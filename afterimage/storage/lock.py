"""The right to write to a run folder in a bucket, for one process at a time.

Stores have no locks, but the better ones can refuse to replace an object. The lock is
an object `lock/NUMBER.json` that only its creator could write. Its owner writes it
again every minute; one that was not written for ten minutes, by the clock of the store,
has no owner any more, and is taken over by creating the next number. The highest number
holds: an owner that was only asleep finds it before it publishes anything.
"""

import contextlib
import datetime
import json
import os
import re
import socket
import time
import uuid
from typing import Any

from afterimage.checkpoints.errors import RunLocked
from afterimage.checkpoints.files import alive, in_use
from afterimage.storage.bucket import Bucket

FOLDER = "lock"
EXPIRES = 600.0
"""Seconds after which a lock that was not renewed has no owner."""
RENEW = 60.0
_NAME = re.compile(FOLDER + r"/(\d{6})\.json")


class BucketLock:
    """The lock of a run folder in a bucket.

    `exclusive` is False after `acquire` if the store replaces objects although it is
    asked not to: two processes that begin together can then both get the lock.
    """

    def __init__(self, bucket: Bucket):
        self.bucket, self.exclusive = bucket, True
        self._name: str | None = None
        self._renewed = 0.0
        self._owner = {
            "id": uuid.uuid4().hex,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "machine": _machine(),
            "start": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        }

    def acquire(self) -> None:
        """Take the lock, or raise RunLocked with the name of its owner."""
        found = self._locks()
        dead = {name: owner for name, owner in found.items() if self._dead(name, owner)}
        if alive_ones := sorted(found.keys() - dead.keys()):
            raise self._refusal(alive_ones[-1], found[alive_ones[-1]])
        number = max((_number(name) for name in found), default=0) + 1
        name = f"{FOLDER}/{number:06}.json"
        try:
            self.bucket.put(name, self._content(), create=True)
        except FileExistsError:
            raise self._refusal(name, self._read(name)) from None
        try:
            self.bucket.put(name, self._content(), create=True)
            self.exclusive = False
        except FileExistsError:
            self.exclusive = True
        self._name, self._renewed = name, time.monotonic()
        ids = {self._owner["id"], *(owner.get("id") for owner in dead.values())}
        for other, owner in self._locks().items():
            if owner.get("id") not in ids:  # it began while we looked
                self.release()
                raise self._refusal(other, owner)
        self.bucket.delete(dead)

    def check(self) -> None:
        """Raise RunLocked if another process has taken the lock over."""
        if self._name is None:
            raise RunLocked(f"{self.bucket.url} is not locked by this process.")
        newest = max(self._locks().items(), default=(self._name, {}))
        if newest[0] > self._name or newest[1].get("id") not in (
            None,
            self._owner["id"],
        ):
            raise self._refusal(*newest)

    def renew(self) -> None:
        """Show that the owner is alive, if it is time; raises RunLocked as `check`."""
        if self._name is None or time.monotonic() - self._renewed < RENEW:
            return
        self._renewed = time.monotonic()  # first: several threads may call
        self.check()
        self.bucket.put(self._name, self._content())

    def release(self) -> None:
        """Give the lock back."""
        name, self._name = self._name, None
        if name is not None and self._read(name).get("id") == self._owner["id"]:
            self.bucket.delete([name])

    def _content(self) -> bytes:
        return json.dumps(self._owner).encode()

    def _locks(self) -> dict[str, dict[str, Any]]:
        names = [name for name in self.bucket.entries(FOLDER) if _NAME.fullmatch(name)]
        return {name: self._read(name) for name in names}

    def _read(self, name: str) -> dict[str, Any]:
        try:
            content = json.loads(self.bucket.get(name))
        except (FileNotFoundError, ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) else {}

    def _dead(self, name: str, owner: dict[str, Any]) -> bool:
        pid = owner.get("pid")
        if owner.get("machine") == self._owner["machine"] and isinstance(pid, int):
            return not alive(pid)
        return self._age(name) > EXPIRES

    def _age(self, name: str) -> float:
        """Seconds since a lock was written, by the clock of the store."""
        probe = f"{FOLDER}/clock-{self._owner['id']}"
        try:
            self.bucket.put(probe, b"")
            now = self.bucket.modified(probe)
            return (now - self.bucket.modified(name)).total_seconds()
        except FileNotFoundError:  # released meanwhile
            return EXPIRES + 1
        finally:
            self.bucket.delete([probe])

    def _refusal(self, name: str, owner: dict[str, Any]) -> RunLocked:
        return RunLocked(
            f"{in_use(self.bucket.url, owner)} If that machine is gone, its lock "
            f"expires within {EXPIRES / 60:.0f} minutes; you can then also delete "
            f"{self.bucket.path(name)} yourself."
        )


def _number(name: str) -> int:
    found = _NAME.fullmatch(name)
    return int(found[1]) if found else 0


def _machine() -> str:
    """This boot and this container: process ids mean something only inside them."""
    parts = [socket.gethostname(), f"{uuid.getnode():x}"]
    with contextlib.suppress(OSError):
        with open("/proc/sys/kernel/random/boot_id") as file:
            parts.append(file.read().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)
