"""How to read a data set whose names do not say what they mean."""

import dataclasses
from typing import Any, Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadingOptions:
    """How folders and tables are read."""

    train: str | None = None
    """The folder of the training images, if its name does not say so: a path relative
    to the data. All other folders are then ignored. `.`: every folder is a class. For a
    table: a value in its column split. Also applies to --sources, --target and
    --unlabelled if they have such folders."""

    validation_folder: str | None = None
    """The folder of the validation images, like --train (--validation is a share)."""

    test: str | None = None
    """The folder of the test images, like --train."""

    missing: str = ""
    """Labels that mean no label, separated by commas, e.g. NA,nan,unknown. Used for
    tables and arrays of strings. An empty cell always means no label."""

    outside_images: bool = False
    """Allow a table to list images outside its own folder: absolute paths, and `..`."""

    def settings(self) -> dict[str, Any]:
        """These settings alone, of a configuration that has others too."""
        fields = dataclasses.fields(ReadingOptions)
        return {field.name: getattr(self, field.name) for field in fields}

    @property
    def split_folders(self) -> dict[str, str]:
        """{split: the folder given for it}."""
        named = {
            "train": self.train,
            "validation": self.validation_folder,
            "test": self.test,
        }
        return {split: name for split, name in named.items() if name is not None}

    def is_missing(self, label: str) -> bool:
        """Whether this text means "no label"."""
        return not label or label in {text.strip() for text in self.missing.split(",")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class NumberReading:
    """Labels that are read as numbers: several labels an image, or measurements."""

    kind: Literal["multi-label", "regression"]
    """multi-label: 0 or 1 for each label; regression: any numbers."""

    columns: tuple[str, ...] = ()
    """A column for each label or measurement. Default: the column `label`, for
    multi-label with cells such as `a|b`."""

    empty: Literal["unlabelled", "none"] = "unlabelled"
    """What an empty cell says: nothing, or that the image has none of the labels."""

    names: tuple[str, ...] | None = None
    """The labels or measurements of a trained head; others are errors."""
