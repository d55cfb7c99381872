"""Settings of the objectives, as a mixin of `PretrainConfig`."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

OPTIONS: Mapping[str, tuple[str, ...]] = {
    "plain": (),
    "masked": ("mask", "mask_ratio", "mask_ratio_max", "mask_patch"),
}
"""The settings each objective reads; beside another one they are a mistake."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveOptions:
    """What the network must do, and how hard it is made."""

    objective: Literal["plain", "masked"] = "plain"
    """plain: reconstruct the image, from a corrupted one where a corruption is set;
    masked: reconstruct the patches that the encoder does not see."""

    mask: Literal["random", "block"] = "random"
    """masked: patches at random, or in a few blocks."""

    mask_ratio: float = 0.6
    """masked: share of the patches that is hidden."""

    mask_ratio_max: float | None = None
    """masked: each image draws its own ratio, between mask_ratio and this. Default: all
    the same."""

    mask_patch: int | None = None
    """masked: pixels a side of a patch, of any size. Default: a power of two near a
    seventh of the image: 4 for 28 and 32 pixels, 32 for 224."""

    def problems(self) -> list[str]:
        """Every setting that cannot work, in one list."""
        if self.objective not in OPTIONS:
            return [f"objective={self.objective!r} is none of {', '.join(OPTIONS)}"]
        found = self._strangers()
        if not 0 < self.mask_ratio < 1:
            found.append(f"mask_ratio={self.mask_ratio}: between 0 and 1")
        high = self.mask_ratio_max
        if high is not None and not self.mask_ratio <= high < 1:
            found.append(f"mask_ratio_max={high}: at least mask_ratio, and below 1")
        if self.mask_patch is not None and self.mask_patch < 1:
            found.append(f"mask_patch={self.mask_patch}: at least 1")
        return found

    def _strangers(self) -> list[str]:
        """Settings of objectives that are not the one chosen."""
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        return [
            f"{name}={getattr(self, name)} belongs to objective={owner!r}, and this is "
            f"objective={self.objective!r}"
            for owner, names in OPTIONS.items()
            for name in names
            if name not in OPTIONS[self.objective]
            and getattr(self, name) != defaults[name]
        ]
