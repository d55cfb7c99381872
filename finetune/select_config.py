"""Settings of a comparison of finished runs."""

import dataclasses
from typing import Literal

from afterimage.evaluation.configs import ImagesOptions

FEWEST = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectConfig(ImagesOptions):
    """Compare finished runs on images without labels."""

    from_: tuple[str, ...]
    """Fine-tuning runs, or their classifier/ folders, with the same classes: two or
    more with encoder, three or more without."""

    encoder: str | None = None
    """The pretrained encoder, a run or its encoder/ folder; an image's neighbours are
    found in its features. Best use the one that the runs started from. Without it, runs
    are ordered by agreement with the mean of all predictions."""

    split: Literal["train", "validation", "test"] = "train"
    """Which split of the images to use."""

    most: int = 10_000
    """Use at most this many images, evenly spaced."""

    out: str | None = None
    """Write the figures to this file, as JSON."""

    def problems(self) -> list[str]:
        """All problems with the settings, in one list."""
        found = super().problems()
        runs = self.from_
        if len(runs) < 2:
            found.append(f"from has {len(runs)} runs: name two or more")
        elif len(runs) < FEWEST and self.encoder is None:
            found.append(
                f"from has {len(runs)} runs: name {FEWEST} or more, since of two the "
                "surer one would always win; or give --encoder"
            )
        if self.most < 2:
            found.append(f"most={self.most}: at least 2 images")
        if len(set(runs)) < len(runs):
            twice = next(one for one in sorted(runs) if runs.count(one) > 1)
            found.append(f"from names {twice} twice: each run once")
        return found
