"""How much memory images may take while they are decoded, over all threads."""

import contextlib
import os
import pathlib
import threading
import time
from collections.abc import Iterator

_SHARE = 0.5  # of what is free; the rest is for everything else
_FRESH = 1.0  # seconds that a measurement holds
_CGROUPS = pathlib.Path("/sys/fs/cgroup")


def allowance() -> int:
    """Bytes that data may take now: half of what this process may still use.

    The least of the machine's available memory, the limits of each control group that
    the process is in (versions 1 and 2), RLIMIT_AS and RLIMIT_DATA.
    """
    free = [_machine(), *_rlimits(), *_groups()]
    return int(_SHARE * max(0, min(free)))


class Budget:
    """A semaphore that counts bytes. `hold` waits until they are free."""

    def __init__(self) -> None:
        self._held = 0
        self._jobs = 0
        self._measured = float("-inf")
        self._most = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Keep `size` bytes for the block; MemoryError if they can never be free."""
        with self._changed:
            while not self._take(size):
                self._changed.wait()
        try:
            yield
        finally:
            with self._changed:
                self._held -= size
                self._jobs -= 1
                self._changed.notify_all()

    def _take(self, size: int) -> bool:
        # Measured while nothing is held: what is held is no longer free.
        if not self._jobs and time.monotonic() - self._measured > _FRESH:
            self._most, self._measured = allowance(), time.monotonic()
        if self._held + size > self._most:
            if self._jobs:
                return False
            raise MemoryError(
                f"decoding needs {_text(size)}, but {_text(self._most)} are available: "
                "half of what this process may still use"
            )
        self._held += size
        self._jobs += 1
        return True


def _text(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"


def _machine() -> int:
    """Available memory in bytes; half of the physical where that is not known."""
    found = _lines(pathlib.Path("/proc/meminfo")).get("MemAvailable:")
    if found is not None:
        return found * 1024
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):
        return 2**32


def _rlimits() -> Iterator[int]:
    """What the limits of this process leave."""
    try:
        import resource
    except ImportError:  # Windows
        return
    used = _lines(pathlib.Path("/proc/self/status"))
    for limit, field in (
        (resource.RLIMIT_AS, "VmSize:"),
        (resource.RLIMIT_DATA, "VmData:"),
    ):
        soft = resource.getrlimit(limit)[0]
        if soft != resource.RLIM_INFINITY:
            yield soft - used.get(field, 0) * 1024


def _groups() -> Iterator[int]:
    """What each control group above this process leaves; page cache counts as free."""
    try:
        rows = pathlib.Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for row in rows:
        number, controllers, path = row.split(":", 2)
        if number == "0" and not controllers:
            names, root = ("memory.max", "memory.current", "inactive_file"), _CGROUPS
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
            names, root = (*names, "total_inactive_file"), _CGROUPS / "memory"
        else:
            continue
        # In a container the path may be the host's; the root is then its own group.
        inside = root / path.lstrip("/")
        for folder in (inside, *inside.parents):
            if folder.is_relative_to(root):
                yield from _left(folder, *names)


def _left(folder: pathlib.Path, limit: str, used: str, cache: str) -> Iterator[int]:
    with contextlib.suppress(OSError, ValueError):
        most = int((folder / limit).read_text())  # "max" is no number: no limit
        now = int((folder / used).read_text())
        yield most - now + _lines(folder / "memory.stat").get(cache, 0)


def _lines(path: pathlib.Path) -> dict[str, int]:
    """{first word: the number after it} of a text; empty where there is none."""
    try:
        rows = [row.split() for row in path.read_text().splitlines()]
    except OSError:
        return {}
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}
