"""Mixup and CutMix: pairs of labelled images become one, and so do their labels.

x = w x_i + (1 - w) x_j and loss = λ ℓ(y_i) + (1 - λ) ℓ(y_j), which for cross-entropy is
the loss of the label λ y_i + (1 - λ) y_j. j is the next image of the batch.

Mixup (Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization", equation 1):
w = λ everywhere, λ from Beta(α, α). CutMix (Yun et al. 2019, "CutMix", section 3.1):
w = 0 in a rectangle of the share 1 - λ of the area, λ uniform, around a uniform centre,
else 1; λ is then the share of the area that is left of x_i.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from afterimage.fields import above_0
from afterimage.finetune.method import METHODS, Method
from afterimage.training.stage import Context, Term, TermResult, View

LABEL, OTHER, SHARE = "train/label", "mixup/label", "mixup/share"


@METHODS.add("mixup")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixup(Method):
    """Blends pairs of images and their labels (Mixup), or pastes a part (CutMix)."""

    alpha: float = 0.2
    """Mixup's α: the share of the first image is from Beta(α, α). Small: one of the two
    images dominates; 1: uniform."""

    cutmix: float = 0.0
    """Probability that an image gets a rectangle of the other instead of a blend: 1 is
    CutMix alone, 0.5 half of each."""

    def problems(self, config):
        found = above_0(self, "alpha")
        if not 0 <= self.cutmix <= 1:
            found.append(f"cutmix={self.cutmix}: must be from 0 to 1")
        others = [
            method.name
            for method in config.methods
            if method.group == "target"
            or method.weighs_examples
            or method.columns
            or method.name == "sources"
        ]
        if others:
            found.append(
                f"does not work with {', '.join(others)}, which read the label of each "
                "image; leave one of them out"
            )
        return found

    def providers(self, setup, known, now):
        augmented = known["train/view"]
        labels = [name for name in known if (name + "/").startswith(LABEL + "/")]

        def drawn(ctx: Context) -> tuple[Array, Array]:
            shape = ctx["mixup/before"].shape
            return draw(now.key_of(self), shape, self.alpha, self.cutmix)

        def view(ctx: Context) -> Array:
            images, weights = ctx["mixup/before"], ctx["mixup/drawn"][0]
            return weights * images + (1 - weights) * other(images)

        return {
            "mixup/before": augmented,
            "mixup/drawn": drawn,
            "train/view": view,
            SHARE: lambda ctx: ctx["mixup/drawn"][1],
            **{
                renamed(name): lambda ctx, name=name: other(ctx[name])
                for name in labels
            },
        }

    def labelled_terms(self, setup, terms, phase):
        return [mixed(term) for term in terms]


def draw(
    key: Array, shape: tuple[int, ...], alpha: float, cutmix: float
) -> tuple[Float[Array, "b h w 1"], Float[Array, " b"]]:
    """(w of each pixel, λ of each image) for images of this shape."""
    count, height, width, _ = shape
    which, blend, area, down, across = jax.random.split(key, 5)
    share = jax.random.beta(blend, alpha, alpha, (count,))
    side = jnp.sqrt(1 - jax.random.uniform(area, (count,)))
    inside = (
        _within(down, side, height)[:, :, None]
        & _within(across, side, width)[:, None, :]
    )
    cut = jax.random.bernoulli(which, cutmix, (count, 1, 1))
    weights = jnp.where(cut, 1.0 - inside, share[:, None, None])
    return weights[..., None], weights.mean((1, 2))


def _within(key: Array, share: Float[Array, " b"], side: int) -> Array:
    """Pixels of a line inside a stretch of this share of it, around a uniform pixel."""
    half = jnp.floor(share * side).astype(jnp.int32)[:, None] // 2
    centre = jax.random.randint(key, (len(share), 1), 0, side)
    place = jnp.arange(side)[None]
    return (place >= centre - half) & (place < centre + half)


def other(values: Array) -> Array:
    """The values of each image's partner."""
    return jnp.roll(values, -1, axis=0)


def renamed(name: str) -> str:
    """The partner's label: `train/label/TASK` to `mixup/label/TASK`."""
    return OTHER + name.removeprefix(LABEL)


def mixed(term: Term) -> Term:
    """The term as λ times that of each image's label and 1 - λ times its partner's."""
    labels = [name for name in term.reads if (name + "/").startswith(LABEL + "/")]
    if not labels:
        return term

    def fn(view: View) -> TermResult:
        own, metrics = term.fn(view)
        partner, _ = term.fn(_Partner(view))
        share = view[SHARE]
        return share * own + (1 - share) * partner, metrics

    reads = (*term.reads, *map(renamed, labels), SHARE)
    return dataclasses.replace(term, fn=fn, reads=reads)


class _Partner(View):
    """A view in which every label is that of the image's partner."""

    def __init__(self, view: View):
        self._view = view

    def __getitem__(self, name: str) -> Any:
        label = (name + "/").startswith(LABEL + "/")
        return self._view[renamed(name) if label else name]
