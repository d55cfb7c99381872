"""Settings of the objectives, as a mixin of `PretrainConfig`."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

OPTIONS: Mapping[str, tuple[str, ...]] = {
    "plain": (),
    "masked": (
        "mask",
        "mask_ratio",
        "mask_ratio_max",
        "mask_patch",
        "latent_weight",
        "teacher_decay",
        "teacher_decay_end",
        "teacher_warmup",
    ),
    "variational": ("beta", "beta_warmup", "free_bits"),
    "sparse": ("sparsity", "sparsity_weight", "sparsity_k"),
    "vq": ("codes", "commitment"),
    "contractive": ("contraction",),
    "dictionary": (),
}
"""The settings each objective reads; beside another one they are a mistake."""


_WEIGHTS = (
    "latent_weight",
    "teacher_warmup",
    "beta",
    "beta_warmup",
    "free_bits",
    "sparsity_weight",
    "commitment",
    "contraction",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveOptions:
    """What the network must do, and how hard it is made."""

    objective: Literal[
        "plain", "masked", "variational", "sparse", "vq", "contractive", "dictionary"
    ] = "plain"
    """plain: reconstruct the image, from a corrupted one where a corruption is set;
    masked: reconstruct the patches that the encoder does not see; variational: from a
    noisy code near a standard normal distribution; sparse: from few channels; vq: from
    vectors of a learned codebook; contractive: from a code that moves little where the
    image does; dictionary, of model conv-patches: each whitened patch by one filter."""

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

    latent_weight: float = 0.0
    """masked: adds the error of predicting a teacher's features of the whole image at
    masked sites, times this. The teacher is a running mean of the encoder."""

    teacher_decay: float = 0.99
    """masked, with a latent_weight: the running mean's decay in the first step."""

    teacher_decay_end: float = 0.999
    """masked, with a latent_weight: and from teacher_warmup on."""

    teacher_warmup: int = 1000
    """masked, with a latent_weight: steps over which the decay rises."""

    beta: float = 1.0
    """variational: weight of the KL divergence; 1 is the evidence bound with loss=bce.
    Less keeps more of the image in the code."""

    beta_warmup: int = 0
    """variational: steps over which beta rises from zero."""

    free_bits: float = 0.0
    """variational: nats of KL that each channel has free, against a code that is not
    used."""

    sparsity: Literal["l1", "top-k"] = "l1"
    """sparse: pay for the size of the code, or keep only its largest channels at each
    site."""

    sparsity_weight: float = 0.01
    """sparse: weight of the mean size of the code (l1)."""

    sparsity_k: int = 16
    """sparse: how many channels are kept (top-k)."""

    codes: int = 512
    """vq: vectors in the codebook."""

    commitment: float = 0.25
    """vq: weight of the distance between the code and its vectors."""

    contraction: float = 0.1
    """contractive: weight of the squared norm of the code's derivative."""

    def problems(self) -> list[str]:
        """Every setting that cannot work, in one list."""
        if self.objective not in OPTIONS:
            return [f"objective={self.objective!r} is none of {', '.join(OPTIONS)}"]
        changed = self._changed()
        found = [
            f"{name}={getattr(self, name)} belongs to objective={owner!r}, and this is "
            f"objective={self.objective!r}"
            for owner, names in OPTIONS.items()
            for name in names
            if name in changed and name not in OPTIONS[self.objective]
        ]
        if not 0 < self.mask_ratio < 1:
            found.append(f"mask_ratio={self.mask_ratio}: between 0 and 1")
        high = self.mask_ratio_max
        if high is not None and not self.mask_ratio <= high < 1:
            found.append(f"mask_ratio_max={high}: at least mask_ratio, and below 1")
        if self.mask_patch is not None and self.mask_patch < 1:
            found.append(f"mask_patch={self.mask_patch}: at least 1")
        low, high = self.teacher_decay, self.teacher_decay_end
        if not 0 <= low <= high < 1:
            found.append(
                f"teacher_decay={low}, teacher_decay_end={high}: at least 0, rising, "
                "below 1"
            )
        if not self.latent_weight and any(n.startswith("teacher_") for n in changed):
            found.append("teacher_* settings need a latent_weight above 0")
        for name in _WEIGHTS:
            if not getattr(self, name) >= 0:
                found.append(f"{name}={getattr(self, name)}: at least 0")
        if self.sparsity_k < 1:
            found.append(f"sparsity_k={self.sparsity_k}: at least 1")
        unread = {"l1": "sparsity_k", "top-k": "sparsity_weight"}.get(self.sparsity)
        if unread is None:
            found.append(f"sparsity={self.sparsity!r} is neither 'l1' nor 'top-k'")
        elif self.objective == "sparse" and unread in changed:
            found.append(f"sparsity={self.sparsity!r} does not read {unread}")
        if self.mask not in ("random", "block"):
            found.append(f"mask={self.mask!r} is neither 'random' nor 'block'")
        if self.codes < 2:
            found.append(f"codes={self.codes}: at least 2")
        return found

    def _changed(self) -> set[str]:
        """Settings of any objective that are not their default."""
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        names = {name for some in OPTIONS.values() for name in some}
        return {name for name in names if getattr(self, name) != defaults[name]}
