"""Settings of a comparison of finished runs."""

import dataclasses
from typing import ClassVar, Literal

from afterimage.evaluation.configs import ImagesOptions

FEWEST = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectConfig(ImagesOptions):
    """Compare finished runs on images without labels."""

    UPLOADED: ClassVar = ("out",)

    from_: tuple[str, ...]
    """Fine-tuning runs, or their classifier/ folders, with the same classes: at least
    two with encoder, at least three without."""

    encoder: str | None = None
    """The pretrained encoder, a run or its encoder/ folder, whose features define an
    image's neighbours; best the one that the runs started from. Without it, runs are
    ranked by agreement with the mean of all predictions."""

    split: Literal["train", "validation", "test"] = "train"
    """Which split of the images to use."""

    most: int = 10_000
    """Use at most this many images, evenly spaced."""

    out: str | None = None
    """Write the results to this file, as JSON."""

    def problems(self) -> list[str]:
        """All problems with the settings, in one list."""
        found = super().problems()
        runs = self.from_
        if len(runs) < 2:
            found.append(f"from has {len(runs)} runs: give at least two")
        elif len(runs) < FEWEST and self.encoder is None:
            found.append(
                f"from has {len(runs)} runs: give at least {FEWEST}, as with two the "
                "more confident one always wins; or give --encoder"
            )
        if self.most < 2:
            found.append(f"most={self.most}: must be at least 2")
        if len(set(runs)) < len(runs):
            twice = next(one for one in sorted(runs) if runs.count(one) > 1)
            found.append(f"from names {twice} more than once: give each run once")
        return found
