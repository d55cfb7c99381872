"""Settings of several domains: labelled sources, a target without labels."""

import dataclasses
from typing import Literal

from afterimage.finetune.options import is_default

Alignment = Literal["dann", "cdan", "cdan-e", "mdan", "mmd", "jmmd", "coral", "jdot"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetOptions:
    """A second, unlabelled domain, on which the classifier is to work."""

    target: str | None = None
    """Images of the target domain, as --data names them. Their labels are never
    trained on; a labelled test split is what the run is tested on."""

    align: tuple[Alignment, ...] = ()
    """Make the features of both domains alike. dann, cdan, cdan-e: an adversary that
    tells them apart; mdan: one for each of several sources; mmd, jmmd, coral: a
    distance between them; jdot: the cost of carrying one to the other, labels with it.
    Several may be named, at most one adversary."""

    align_weight: tuple[float, ...] = ()
    """One weight for each method of --align. Default: 1 each, coral 10, mdan 0.01 (its
    authors' value)."""

    jdot_mass: float = 0.75
    """The share of a batch that jdot carries, above 0 and at most 1; what costs most
    stays, since no two batches have the same number of every class. 0.5 where the
    classes are not as frequent in both domains; too little may carry one class only."""

    compose: Literal["none", "mixup", "ink"] = "none"
    """Draw the labelled images with pixels of the target's, more so until half of the
    phase is done. mixup: each blended with a target image; ink: for letters, signs and
    drawings, bright on dark: what is bright is filled with a colour and a target image,
    what is dark with others."""

    domain_statistics: Literal["source", "target", "joint", "frozen"] | None = None
    """Whose normalisation statistics an encoder with BatchNorm keeps while it is
    aligned: each domain is normalised by its own batch and source's or target's
    moments are kept; joint: both as one batch; frozen: the stored moments. Encoders
    without such statistics need no choice. With --unlabelled the same question:
    joint where all images are of one domain."""

    density_ratio: Literal["none", "classifier", "kmm", "ulsif"] = "none"
    """Covariate shift: weigh each labelled image by p_target / p_source of its
    features, estimated once before the first step."""

    density_cap: float = 10.0
    """No weight exceeds so many times the mean."""

    label_shift: Literal["none", "bbse", "em"] = "none"
    """Label shift: estimate the target's class frequencies from unlabelled predictions
    and correct the finished classifier by them."""

    def problems(self) -> list[str]:
        """Every setting that cannot work, in one list."""
        found = []
        if self.target is None:
            used = [
                name
                for name, unused in (
                    ("align", ()),
                    ("compose", "none"),
                    ("density_ratio", "none"),
                    ("label_shift", "none"),
                )
                if getattr(self, name) != unused
            ]
            found += [
                f"{name}={getattr(self, name)!r} needs images of the target domain: "
                "give target"
                for name in used
            ]
        if len(set(self.align)) < len(self.align):
            found.append(f"align={self.align}: each method once")
        if self.align_weight and len(self.align_weight) != len(self.align):
            found.append(
                f"align_weight has {len(self.align_weight)} numbers for "
                f"{len(self.align)} methods of align: give one each"
            )
        if not 0 < self.jdot_mass <= 1:
            found.append(f"jdot_mass={self.jdot_mass}: above 0 and at most 1")
        if "jdot" not in self.align and not is_default(self, "jdot_mass"):
            found.append(f"jdot_mass={self.jdot_mass} is of jdot: add it to align")
        if not all(weight > 0 for weight in self.align_weight):
            found.append(f"align_weight={self.align_weight}: more than 0")
        if not self.density_cap >= 1:
            found.append(f"density_cap={self.density_cap}: at least 1")
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Several labelled domains."""

    sources: tuple[str, ...] = ()
    """Further labelled images beside --data, each as --data names them, of the same
    classes. All are trained on as one set; each knows where it comes from."""

    source_weights: tuple[float, ...] = ()
    """Weights of the images of --data and of each of --sources. Default: 1 each."""

    mdan_gamma: float = 10.0
    """--align mdan: how far the hardest source outweighs the others; 0.1 is nearly
    their mean."""

    def problems(self) -> list[str]:
        """Every setting that cannot work, in one list."""
        found = []
        if self.source_weights and len(self.source_weights) != len(self.sources) + 1:
            found.append(
                f"source_weights has {len(self.source_weights)} numbers for "
                f"{len(self.sources) + 1} sources: give one for data and for each of "
                "sources"
            )
        if not all(0 < weight < float("inf") for weight in self.source_weights):
            found.append(f"source_weights={self.source_weights}: more than 0")
        if not self.mdan_gamma > 0:
            found.append(f"mdan_gamma={self.mdan_gamma}: more than 0")
        return found
