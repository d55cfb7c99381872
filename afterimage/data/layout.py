"""What the folders in image names say: split and class."""

from collections.abc import Sequence

from afterimage.errors import DataError

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}


def layout(
    names: Sequence[str], source: str
) -> dict[str, tuple[list[int], list[str | None]]]:
    """{split: (rows into `names`, class name of each, or None where unlabelled)}.

    Folders named train, val or validation, and test are splits where no other folder
    stands beside them; a lone folder around everything is looked through. Below that,
    the first folder is the class, provided that every image of the split lies in one.
    """
    paths = [name.split("/") for name in names]
    while _is_wrapper(paths):
        paths = [path[1:] for path in paths]
    tops = {path[0] if len(path) > 1 else "" for path in paths}
    found = {SPLITS.get(top.lower()) for top in tops}
    given = ["train"] * len(paths)
    if None not in found:
        given = [SPLITS[path[0].lower()] for path in paths]
        paths = [path[1:] for path in paths]
    splits = by_split(given, source)
    result = {}
    for split, rows in splits.items():
        labelled = all(len(paths[row]) > 1 for row in rows)
        result[split] = (rows, [paths[row][0] if labelled else None for row in rows])
    return result


def by_split(given: Sequence[str], source: str) -> dict[str, list[int]]:
    """{split: rows} of each row's split; DataError where none is for training."""
    splits: dict[str, list[int]] = {}
    for row, split in enumerate(given):
        splits.setdefault(split, []).append(row)
    if "train" not in splits:
        raise DataError(
            f"{source} has {' and '.join(sorted(splits))} but no train; name one of "
            "them as the data, or add train"
        )
    return splits


def _is_wrapper(paths: list[list[str]]) -> bool:
    tops = {path[0] for path in paths if len(path) > 1}
    if len(tops) != 1 or any(len(path) == 1 for path in paths):
        return False
    (top,) = tops
    # Below a lone `train` or `test` everything is one set; any other lone folder is a
    # class, unless there are folders in it for all images.
    return top.lower() in SPLITS or all(len(path) > 2 for path in paths)
