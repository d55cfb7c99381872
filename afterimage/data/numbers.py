"""Labels that are numbers: several labels an image, or measurements.

Several labels: a cell `a|b`, a list of names, or 0 and 1 for each label. A cell that is
empty says nothing (or with `empty="none"` that the image has none of the labels); a
cell `|` always says that it has none. Measurements: a number for each name. NaN, and -1
for a label, mean that this number is unknown.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from afterimage.checkpoints.names import class_name, spelling
from afterimage.console import say_once
from afterimage.data.sets import Numbers
from afterimage.data.table import Table, listed
from afterimage.errors import DataError, did_you_mean
from afterimage.reading import NumberReading, ReadingOptions

LABEL_NAMES = "label_names"
"""The array that names the columns of a matrix of labels."""
SEPARATOR = "|"
_TRUTH = {"true": 1.0, "false": 0.0}

Where = Callable[[int], str]
Names = frozenset[str]


def table_numbers(
    table: Table,
    label: str | None,
    wanted: NumberReading,
    source: str,
    reading: ReadingOptions,
) -> Numbers | None:
    """The labels of every row of a table; None for a table without labels.

    `label` is the column to read if `wanted` names none. Raises one DataError for all
    cells that cannot be read, with their lines, and for columns that do not exist.
    """
    missing = [name for name in wanted.columns if name not in table.columns]
    if missing:
        raise DataError(
            f"{source} has no column {missing[0]!r}"
            f"{did_you_mean(missing[0], tuple(table.columns))} It has "
            f"{', '.join(table.columns)}"
        )
    columns = wanted.columns or ((label,) if label is not None else ())
    if not columns:
        return None

    def where(row: int) -> str:
        return f"{table.unit} {table.lines[row]}"

    cells = {name: table.columns[name] for name in columns}
    if wanted.kind == "multi-label" and not wanted.columns:
        sets, problems = _label_sets(cells[columns[0]], wanted, reading, where)
        names = _names(sets, wanted)
        values = _matrix(sets, names)
    else:
        values, problems = _cells(cells, wanted, reading, where)
        names = _columns(wanted, columns)
    if problems:
        raise DataError(listed(problems, source))
    return Numbers(values, names)


def say_unknown(numbers: Numbers | None, wanted: NumberReading, source: str) -> None:
    """Say how many images have no label, if any."""
    count = 0 if numbers is None else int((~numbers.known).sum())
    none = ". An image with none of the labels has | or --multi-label.empty none"
    if count:
        say_once(
            f"{source}: {count:,} images have no label and are left out"
            + (none if wanted.kind == "multi-label" else "")
        )


def value_numbers(
    given: Mapping[str, Mapping[str, Any] | Any | None],
    wanted: NumberReading,
    source: str,
    reading: ReadingOptions,
    label_names: np.ndarray | None = None,
) -> dict[str, Numbers | None]:
    """Numbers by split, of arrays or of one value per record.

    A split's labels are [N] or [N, K] numbers, N texts, N lists of names, or, with
    `wanted.columns`, a mapping of N numbers for each column; None has no labels. All
    splits share one order of names. Raises one DataError for all values that cannot be
    read, with their split and position.
    """
    problems: list[str] = []
    parts: dict[str, Any] = {}
    for split, values in given.items():

        def where(row: int, split: str = split) -> str:
            return f"{split} label {row}"

        if isinstance(values, Mapping):
            parts[split] = _of_columns(values, wanted, split, source)
        elif values is None or all(_is_none(one) for one in values):
            parts[split] = None
        elif wanted.kind == "multi-label" and _named(values):
            found, wrong = _label_sets(values, wanted, reading, where)
            parts[split], problems = found, problems + wrong
        else:
            parts[split] = _numeric(values, f"{source} [{split}]")
    matrices = {s: p for s, p in parts.items() if isinstance(p, np.ndarray)}
    sets = {s: p for s, p in parts.items() if isinstance(p, list)}
    if matrices and sets:
        raise DataError(
            f"{source}: labels are numbers in one split and names in another"
        )
    if sets:
        names = _names([one for part in sets.values() for one in part], wanted)
        found = {split: _matrix(part, names) for split, part in sets.items()}
    else:
        names = _matrix_names(matrices, wanted, source, label_names)
        found = matrices
        for split, values in matrices.items():
            problems += _check(values, names, wanted, split)
    if problems:
        raise DataError(listed(problems, source))
    return {s: Numbers(found[s], names) if s in found else None for s in given}


def _label_sets(
    values: Sequence[Any], wanted: NumberReading, reading: ReadingOptions, where: Where
) -> tuple[list[Names | None], list[str]]:
    """(the names of each image, None where unlabelled; problems)."""
    found: list[Names | None] = []
    problems = []
    for row, value in enumerate(values):
        if isinstance(value, bytes):
            value = value.decode(errors="surrogateescape")
        if value is None or (isinstance(value, str) and reading.is_missing(value)):
            blank = value is None or not value
            none = wanted.empty == "none" and blank
            found.append(frozenset() if none else None)
            continue
        parts = value.split(SEPARATOR) if isinstance(value, str) else value
        names = frozenset(class_name(str(part).strip()) for part in parts) - {""}
        unknown = sorted(names - set(wanted.names)) if wanted.names else []
        if unknown:
            known = wanted.names or ()
            problems.append(
                f"{where(row)}: {spelling(unknown[0])} is not a label that was "
                f"trained{did_you_mean(unknown[0], known)} There are "
                f"{', '.join(known)}"
            )
        found.append(names)
    return found, problems


def _names(sets: Sequence[Names | None], wanted: NumberReading) -> tuple[str, ...]:
    every = {name for one in sets if one is not None for name in one}
    return wanted.names or tuple(sorted(every))


def _matrix(
    sets: Sequence[Names | None], names: Sequence[str]
) -> Float32[np.ndarray, "n k"]:
    out = np.zeros((len(sets), len(names)), np.float32)
    place = {name: column for column, name in enumerate(names)}
    for row, one in enumerate(sets):
        if one is None:
            out[row] = np.nan
        else:
            out[row, [place[name] for name in one if name in place]] = 1
    return out


def _cells(
    cells: Mapping[str, Sequence[str]],
    wanted: NumberReading,
    reading: ReadingOptions,
    where: Where,
) -> tuple[Float32[np.ndarray, "n k"], list[str]]:
    """(a number for each cell, NaN where it is missing; problems)."""
    out, problems = np.empty((len(next(iter(cells.values()))), len(cells))), []
    for column, (name, texts) in enumerate(cells.items()):
        for row, text in enumerate(texts):
            if reading.is_missing(text):
                no = not text and wanted.kind == "multi-label"
                out[row, column] = 0 if no and wanted.empty == "none" else np.nan
                continue
            try:
                out[row, column] = _number(text, wanted)
            except ValueError as error:
                at = f"{where(row)}, column {spelling(name)}"
                problems.append(f"{at}: {spelling(text)} {error}")
                out[row, column] = np.nan
    return out.astype(np.float32), problems


def _number(text: str, wanted: NumberReading) -> float:
    """The number in a cell; ValueError says why it is none."""
    labels = wanted.kind == "multi-label"
    if labels and text.casefold() in _TRUTH:
        return _TRUTH[text.casefold()]
    try:
        number = float(text)
    except ValueError:
        comma = "; write a decimal point" if "," in text else ""
        what = "0, 1 or empty" if labels else "a number"
        raise ValueError(f"is not {what}{comma}") from None
    if labels and number not in (0, 1):
        raise ValueError("is not 0, 1 or empty")
    if not abs(number) < np.finfo(np.float32).max:
        hint = "; for a missing value, leave the cell empty or use --missing"
        raise ValueError(f"is not a finite number{hint}")
    return number


def _columns(wanted: NumberReading, columns: Sequence[str]) -> tuple[str, ...]:
    """The names of columns; of a trained head's single one, whatever it is called."""
    if wanted.names is not None and len(wanted.names) == len(columns):
        return wanted.names
    return tuple(columns)


def _is_none(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value)


def _named(values: Any) -> bool:
    """Whether labels are names: texts, or lists of texts."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "biuf":
        return False
    for value in values:
        if isinstance(value, str | bytes):
            return True
        if isinstance(value, Sequence | set | frozenset) and len(value):
            return isinstance(next(iter(value)), str | bytes)
    return False


def _numeric(values: Any, where: str) -> Float32[np.ndarray, "n k"]:
    """[N, K]; None becomes NaN in every column."""
    if not isinstance(values, np.ndarray):
        known = [np.asarray(v, np.float64) for v in values if v is not None]
        shapes = {one.shape for one in known}
        if len(shapes) > 1:
            raise DataError(f"{where}: labels have different shapes, {shapes}")
        empty = np.full(known[0].shape, np.nan)
        values = np.stack([empty if v is None else np.asarray(v) for v in values])
    if values.dtype.kind not in "biuf" or values.ndim not in (1, 2):
        raise DataError(
            f"{where}: labels are {values.dtype} {values.shape}; expected numbers, [N] "
            "or [N, K]"
        )
    return values.reshape(len(values), -1).astype(np.float32)


def _of_columns(
    columns: Mapping[str, Any], wanted: NumberReading, split: str, source: str
) -> Float32[np.ndarray, "n k"] | None:
    missing = [name for name in wanted.columns if name not in columns]
    if len(missing) == len(wanted.columns) and split != "train":
        return None
    if missing:
        raise DataError(f"{source} [{split}] has no labels {', '.join(missing)}")
    where = f"{source} [{split}]"
    parts = [_numeric(columns[name], f"{where}, {name}") for name in wanted.columns]
    return np.concatenate(parts, axis=1)


def _matrix_names(
    matrices: Mapping[str, np.ndarray],
    wanted: NumberReading,
    source: str,
    label_names: np.ndarray | None,
) -> tuple[str, ...]:
    """The names of the columns of matrices; DataError if their widths differ."""
    widths = {split: values.shape[1] for split, values in matrices.items()}
    given = wanted.names or wanted.columns
    if not given and label_names is not None:
        given = tuple(class_name(str(name)) for name in label_names.tolist())
        if len(set(given)) < len(given):
            raise DataError(f"{source}: {LABEL_NAMES} has a name twice")
    if len({*widths.values(), *([len(given)] if given else [])}) > 1:
        expected = f"; expected {len(given)} ({', '.join(given)})" if given else ""
        raise DataError(f"{source}: labels have {widths} columns{expected}")
    width = next(iter(widths.values()), 0)
    if given or wanted.kind == "multi-label":
        return given or tuple(map(str, range(width)))
    return ("value",) if width == 1 else tuple(f"value_{n}" for n in range(width))


def _check(
    values: np.ndarray, names: Sequence[str], wanted: NumberReading, split: str
) -> list[str]:
    """Problems with a matrix; marks unknown labels (-1) in place."""
    if wanted.kind == "multi-label":
        values[values == -1] = np.nan
        wrong, what = ~(np.isnan(values) | (values == 0) | (values == 1)), "0 or 1"
    else:
        wrong, what = np.isinf(values), "a finite number"
    return [
        f"{split} label {row}, {names[column]}: {values[row, column]:g} is not {what}"
        for row, column in np.argwhere(wrong).tolist()
    ]
