"""How a data set is to be read where its names do not say it."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadingOptions:
    """How folders and tables are read."""

    train: str | None = None
    """The folder with the training images, by its path inside the data's folder, where
    the names do not say it; other folders are then ignored. `.` is the whole: each
    folder is a class. Of a table: the value in its column `split`. Also used for
    --sources, --target and --unlabelled where they have such a folder."""

    validation_folder: str | None = None
    """The folder with the validation images, given as in --train. (--validation is a
    share of the training images.)"""

    test: str | None = None
    """The folder with the test images, given as in --train."""

    missing: str = ""
    """Labels that stand for no label, separated by commas: NA,nan,unknown. For tables
    and arrays of strings; an empty cell is never a label."""

    outside_images: bool = False
    """Let a table name images outside its own folder, by absolute paths or `..`."""

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
