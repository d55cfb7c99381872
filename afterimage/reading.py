"""How a data set is to be read where its names do not say it."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadingOptions:
    """How folders and tables are read."""

    train: str | None = None
    """The folder with the training images, by its path below that of the data, where
    names do not say it; `.` for the whole, each folder a class. With any of these three
    other folders are left aside. Of a table: the value of its column split. Also holds
    for --sources, --target and --unlabelled that have such folders."""

    validation_folder: str | None = None
    """The folder with the validation images, as --train. (--validation is a share.)"""

    test: str | None = None
    """The folder with the test images, as --train."""

    missing: str = ""
    """Labels that mean there is none, separated by commas: NA,nan,unknown. In tables
    and in arrays of strings; an empty cell always means so."""

    outside_images: bool = False
    """A table may name images outside its own folder: absolute paths, and `..`."""

    def settings(self) -> dict[str, Any]:
        """These settings alone, of a configuration that has others too."""
        fields = dataclasses.fields(ReadingOptions)
        return {field.name: getattr(self, field.name) for field in fields}

    @property
    def split_folders(self) -> dict[str, str]:
        """{split: the folder named for it}."""
        named = {
            "train": self.train,
            "validation": self.validation_folder,
            "test": self.test,
        }
        return {split: name for split, name in named.items() if name is not None}

    def is_missing(self, label: str) -> bool:
        """Whether this label means that there is none."""
        return not label or label in {text.strip() for text in self.missing.split(",")}
