"""The manifest of a segmenter."""

from typing import Annotated

from msgspec import Meta

from afterimage.checkpoints import schemas

SEGMENTER = "segmenter"
"""The kind in the manifest, and the folder's name in a run."""
_Level = Annotated[int, Meta(ge=0, le=255)]


class SegmenterManifest(schemas.EncoderManifest, kw_only=True):
    """`manifest.json` of a segmenter folder."""

    classes: Annotated[list[schemas.Name], Meta(min_length=2, max_length=254)]
    values: Annotated[list[Annotated[int, Meta(ge=0, lt=2**24)]], Meta(max_length=254)]
    colours: Annotated[list[tuple[_Level, _Level, _Level]], Meta(max_length=254)]
    coloured: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        if not len(self.classes) == len(self.values) == len(self.colours):
            raise ValueError(
                f"{len(self.classes)} classes, {len(self.values)} values and "
                f"{len(self.colours)} colours"
            )
