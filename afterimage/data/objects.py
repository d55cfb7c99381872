"""Data as objects (to come)."""

from typing import Any

from afterimage.data.arrays import array_splits
from afterimage.data.sets import Request, Splits


def open_object(data: Any, name: str | None, request: Request) -> Splits:
    """The splits of an object."""
    return array_splits(data, name or "object", request)
