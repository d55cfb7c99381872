"""Which texts are URLs of a bucket, and their parts."""

import os
import re

SCHEMES = {"s3": "s3", "gs": "gcs", "memory": ""}
"""{scheme: the extra that installs what reads it}. `memory` lasts as long as the
process; it is for tests."""
_URL = re.compile(r"([A-Za-z][\w+.-]+)://")


def scheme_of(place: object) -> str | None:
    """The scheme of a URL, in lower case; None for a path or anything else."""
    found = _URL.match(place) if isinstance(place, str) else None
    return found[1].lower() if found else None


def is_remote(place: object) -> bool:
    """Whether this is the URL of a bucket that Afterimage can use."""
    return scheme_of(place) in SCHEMES


def problem(text: str) -> str | None:
    """What is wrong with a URL; None if nothing is, or if it is a path."""
    # A Path collapses the two slashes to one.
    found = re.match(r"([A-Za-z][\w+.-]+):/(/?)", text)
    if found is None:
        return None
    scheme = found[1].lower()
    if scheme not in SCHEMES:
        known = " and ".join(f"{name}://" for name in SCHEMES if name != "memory")
        return (
            f"{scheme}:// is not supported; expected {known}. Otherwise copy the data "
            "to this machine or mount it, and give the local path"
        )
    if not found[2]:
        return f"only one slash after {scheme}: (give a URL as text, not as a Path)"
    bucket, _, rest = text[found.end() :].partition("/")
    if not bucket:
        return f"names no bucket; expected {scheme}://BUCKET/FOLDER"
    if any(part in ("", ".", "..") for part in rest.rstrip("/").split("/") if rest):
        return "has an empty part, `.` or `..` in its path; object stores have neither"
    return None


def joined(url: str, *names: str) -> str:
    """The URL of what is below another one."""
    return "/".join([url.rstrip("/"), *names])


def name_of(url: str) -> str:
    """The last part of a URL."""
    return url.rstrip("/").rpartition("/")[2]


def parent_of(url: str) -> str:
    """The URL of the folder that holds this."""
    return url.rstrip("/").rpartition("/")[0]


def as_text(place: str | os.PathLike[str]) -> str:
    """A path or URL as text, a URL without slashes at its end."""
    text = os.fspath(place)
    return text.rstrip("/") if is_remote(text) else text
