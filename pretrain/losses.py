"""Reconstruction losses and their units.

There are three spaces: *pixels* in [0, 1]; *standardised* images, `(pixels - mean) /
std` by the training data's channel statistics (the network's input, unless each image
is normalised by its own too); and the *target*, which the network's output is compared
with. The target is the standardised image, the
same normalised per image (`target="image"`) or per patch (`"patch"`), its histograms of
gradients (`"hog"`), or the pixels (`bce`, where the network's output is a logit). Every
loss is a mean over one image's values, so it depends on neither image nor batch size;
with a `mask`, the mean is over the pixels where it is true.
"""

import dataclasses
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

from afterimage.data.preprocessing import Preprocessing
from afterimage.errors import UserError
from afterimage.models import ops

Loss = Literal["mse", "l1", "huber", "bce", "ssim"]
Target = Literal["data", "image", "patch", "hog"]
LOSSES: tuple[Loss, ...] = get_args(Loss)

Images = Float[Array, "b h w c"]
PerImage = Float[Array, " b"]
Mask = Bool[Array, "b h w"] | None

HUBER_DELTA = 1.0
SSIM_WEIGHT = 0.84
_LEVELS = 5
_SMALLEST = 4
"""Smallest side, in pixels, of a map that the pyramid still halves."""
# A flat image has no contrast to normalise by, so its values stay zero.
_VARIANCE_FLOOR = 1e-6


def _mean(values: Images, mask: Mask) -> PerImage:
    if mask is None:
        return jnp.mean(values, axis=(1, 2, 3))
    total = jnp.sum(jnp.where(mask[..., None], values, 0), axis=(1, 2, 3))
    count = jnp.sum(mask, axis=(1, 2)) * values.shape[-1]
    return total / jnp.maximum(count, 1)


def mse(prediction: Images, target: Images, mask: Mask = None) -> PerImage:
    """Mean squared error, `mean((p - t)^2)`, without the factor 1/2; [B], ≥ 0.

    On standardised images the unit is the data's variance: predicting the channel means
    scores 1.
    """
    return _mean(jnp.square(prediction - target), mask)


def l1(prediction: Images, target: Images, mask: Mask = None) -> PerImage:
    """Mean absolute error, `mean(|p - t|)`; [B], ≥ 0, in units of the data's std."""
    return _mean(jnp.abs(prediction - target), mask)


def huber(prediction: Images, target: Images, mask: Mask = None) -> PerImage:
    """Huber loss with δ = 1: `e²/2` for |e| ≤ δ, else `δ(|e| - δ/2)`; [B], ≥ 0.

    Quadratic up to one standard deviation of the data, linear beyond. Near zero it is
    half of `mse`.
    """
    error = jnp.abs(prediction - target)
    inner = jnp.minimum(error, HUBER_DELTA)
    return _mean(inner * (error - 0.5 * inner), mask)


def bce(logits: Images, target: Images, mask: Mask = None) -> PerImage:
    """Binary cross-entropy of pixels in [0, 1] given logits; [B], nats per value.

    `-t log σ(z) - (1 - t) log(1 - σ(z))`, computed as `max(z, 0) - zt + log(1 +
    e^-|z|)`, which cannot overflow. For grey targets the minimum is above zero: their
    own entropy.
    """
    overflow_free = jnp.maximum(logits, 0) + jnp.log1p(jnp.exp(-jnp.abs(logits)))
    return _mean(overflow_free - logits * target, mask)


def gradient(error: Images) -> PerImage:
    """Mean |difference of neighbours|, along rows plus along columns; [B], ≥ 0.

    It penalises misplaced or blurred edges, but not a shift of the mean: Mathieu et
    al., "Deep Multi-Scale Video Prediction Beyond Mean Square Error" (2016), section
    3.2, with the signs of the differences kept. Sides must be at least 2 pixels.
    """
    down = jnp.abs(error[:, 1:] - error[:, :-1])
    across = jnp.abs(error[:, :, 1:] - error[:, :, :-1])
    return jnp.mean(down, axis=(1, 2, 3)) + jnp.mean(across, axis=(1, 2, 3))


def laplacian(error: Images) -> PerImage:
    """The sum over the levels of a Laplacian pyramid of the mean |level|; [B], ≥ 0.

    A level is what is lost when a map is halved; the last is the smallest map itself.
    With means, every level has the same weight, as in Bojanowski et al., "Optimizing
    the Latent Space of Generative Networks" (2018), section 3.2 (Lap1). Halving
    averages 2 x 2 pixels and doubling repeats them, instead of using five taps.
    """
    total = jnp.zeros(len(error))
    for _ in range(_LEVELS):
        _, height, width, _ = error.shape
        if min(height, width) < _SMALLEST:
            break
        coarse = ops.mean_pool(error)
        lost = error - ops.upsample_nearest(coarse, 2)[:, :height, :width]
        total = total + jnp.mean(jnp.abs(lost), axis=(1, 2, 3))
        error = coarse
    return total + jnp.mean(jnp.abs(error), axis=(1, 2, 3))


def ssim_window(height: int, width: int) -> np.ndarray:
    """The normalised 1-D Gaussian of SSIM: σ 1.5, 11 taps, fewer for small images.

    The length is the largest odd number that is ≤ 11 and fits both sides.
    """
    size = min(11, height, width)
    size -= 1 - size % 2
    taps = np.exp(-0.5 * ((np.arange(size) - size // 2) / 1.5) ** 2)
    return taps / taps.sum()


def _blur_matrix(length: int, window: np.ndarray) -> np.ndarray:
    """[length - k + 1, length]: filtering along one side, without borders."""
    rows = length - len(window) + 1
    matrix = np.zeros((rows, length), np.float32)
    for row in range(rows):
        matrix[row, row : row + len(window)] = window
    return matrix


def ssim(prediction: Images, target: Images) -> PerImage:
    """Mean structural similarity of pixels in [0, 1]; [B], in [-1, 1], 1 if equal.

    `(2 μx μy + C1)(2 σxy + C2) / ((μx² + μy² + C1)(σx² + σy² + C2))`, moments weighted
    by a Gaussian window, averaged over all windows inside the image and over channels;
    C1 = 0.01², C2 = 0.03². Same as scikit-image's `structural_similarity` with
    `gaussian_weights=True, use_sample_covariance=False, data_range=1` (per its source
    code), after Wang, Bovik, Sheikh and Simoncelli, IEEE TIP 13 (2004).
    """
    _, height, width, _ = prediction.shape
    window = ssim_window(height, width)
    down, across = _blur_matrix(height, window), _blur_matrix(width, window)

    def blur(x: Array) -> Array:
        # Banded matrix products, not shifted sums: 22 ms instead of 1,095 ms for loss
        # and gradient at 256x32x32x3 on two cores.
        x = jnp.einsum("oh,bhwc->bowc", down, x)
        return jnp.einsum("pw,bowc->bopc", across, x)

    c1, c2 = 0.01**2, 0.03**2
    mean_x, mean_y = blur(prediction), blur(target)
    product, squares = mean_x * mean_y, mean_x**2 + mean_y**2
    covariance = blur(prediction * target) - product
    variances = blur(prediction**2 + target**2) - squares
    score = (2 * product + c1) * (2 * covariance + c2)
    score = score / ((squares + c1) * (variances + c2))
    return jnp.mean(score, axis=(1, 2, 3))


def masked_mean(values: PerImage, mask: Shaped[Array, " b"] | None = None) -> Array:
    """Mean over images whose mask is true; padding has no weight, even if NaN.

    An all-false mask gives 0.
    """
    if mask is None:
        return jnp.mean(values)
    mask = mask.astype(bool)
    total = jnp.sum(jnp.where(mask, values, 0))
    return total / jnp.maximum(jnp.sum(mask), 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReconstructionLoss:
    """A reconstruction loss with its target space.

    `preprocessing` has the statistics that standardise targets. `patch` is the side of
    the squares that `target="patch"` normalises, or that `"hog"` divides into whole
    cells; `mean_histogram`, [c][9], is subtracted from histograms. The weighted terms
    are added: neighbouring differences and a Laplacian pyramid of the error, in units
    of the target (of pixels with `bce`), and 1 - SSIM of pixels. Raises UserError if
    loss and target are incompatible.
    """

    loss: str
    target: str
    preprocessing: Preprocessing
    patch: int = 1
    gradient_weight: float = 0.0
    laplacian_weight: float = 0.0
    ssim_weight: float = 0.0
    mean_histogram: tuple[tuple[float, ...], ...] | None = None

    def __post_init__(self) -> None:
        problems = loss_problems(
            self.loss,
            self.target,
            ssim_weight=self.ssim_weight,
            gradient_weight=self.gradient_weight,
            laplacian_weight=self.laplacian_weight,
        )
        if problems:
            raise UserError("\n".join(problems))

    def targets(self, pixels: Images) -> Images:
        """Pixels in [0, 1] -> the target for the network's output."""
        if self.loss == "bce":
            return pixels
        if self.target == "hog":
            from afterimage.pretrain.hog import hog_target

            return hog_target(pixels, self._cell, self.mean_histogram)
        standardised = self.preprocessing.standardise(pixels)
        if self.target == "data":
            return standardised
        centre, spread = self._moments(standardised)
        return (standardised - centre) / spread

    @property
    def _cell(self) -> int:
        from afterimage.pretrain.hog import cell_size

        cell = cell_size(self.patch)
        assert cell is not None, f"no HOG cells fit in patches of {self.patch} pixels"
        return cell

    def _moments(self, standardised: Images) -> tuple[Array, Array]:
        if self.target == "patch":
            return _patch_moments(standardised, self.patch)
        return _image_moments(standardised)

    def per_image(self, output: Images, target: Images, mask: Mask = None) -> PerImage:
        """Network output and target, [B,H,W,C] each -> loss of each image, [B].

        With a mask only its pixels count; terms that compare more than single pixels
        take the other pixels from the target.
        """
        said = jax.nn.sigmoid(output) if self.loss == "bce" else output
        if mask is not None:
            said = jnp.where(mask[..., None], said, target)
        total = self._loss(output, said, target, mask)
        if self.gradient_weight:
            total = total + self.gradient_weight * gradient(said - target)
        if self.laplacian_weight:
            total = total + self.laplacian_weight * laplacian(said - target)
        if self.ssim_weight:
            x, y = self._pixels(said), self._pixels(target)
            total = total + self.ssim_weight * (1 - ssim(x, y))
        return total

    def squared_errors(self, output: Images, pixels: Images) -> Float[Array, "b h w"]:
        """The squared error of each pixel, the mean over channels; ≥ 0.

        In the space of the target, whatever the loss.
        """
        said = jax.nn.sigmoid(output) if self.loss == "bce" else output
        return jnp.mean(jnp.square(said - self.targets(pixels)), axis=-1)

    def _loss(self, output: Images, said: Images, target: Images, mask: Mask):
        if self.loss == "ssim":
            x, y = self._pixels(said), self._pixels(target)
            return SSIM_WEIGHT * (1 - ssim(x, y)) + (1 - SSIM_WEIGHT) * l1(x, y)
        function = {"mse": mse, "l1": l1, "huber": huber, "bce": bce}[self.loss]
        return function(output, target, mask)

    def _pixels(self, images: Images) -> Images:
        """The target's space -> pixels in [0, 1], unless it is that already."""
        return images if self.loss == "bce" else self.preprocessing.denormalise(images)

    def pictures(self, output: Images, pixels: Images) -> Images:
        """Network output -> pixels in [0, 1].

        With `target="image"` or `"patch"` the network does not predict brightness and
        contrast, so they are taken from the image itself, `pixels`. With `"hog"` it
        predicts edges, drawn as strokes on black.
        """
        if self.loss == "bce":
            return jax.nn.sigmoid(output)
        if self.target == "hog":
            from afterimage.pretrain.hog import hog_picture

            return hog_picture(output, self._cell, self.mean_histogram)
        if self.target != "data":
            centre, spread = self._moments(self.preprocessing.standardise(pixels))
            output = output * spread + centre
        return jnp.clip(self.preprocessing.denormalise(output), 0, 1)

    def constant_output(self, mean_target: Float[Array, "h w c"]) -> Array:
        """The mean of all targets, as a network output; [H,W,C]."""
        if self.loss != "bce":
            return mean_target
        # A pixel that is always black or white would need an infinite logit.
        chance = jnp.clip(mean_target, 1e-6, 1 - 1e-6)
        return jnp.log(chance) - jnp.log1p(-chance)


def loss_problems(
    loss: str,
    target: str,
    *,
    ssim_weight: float = 0.0,
    gradient_weight: float = 0.0,
    laplacian_weight: float = 0.0,
) -> list[str]:
    """What is wrong with these settings, one sentence each; empty if nothing."""
    problems = []
    if loss not in LOSSES:
        problems.append(f"loss={loss!r}: must be one of {', '.join(LOSSES)}.")
    if target not in get_args(Target):
        problems.append(
            f"target={target!r}: must be one of {', '.join(get_args(Target))}."
        )
    if target != "data" and loss in ("bce", "ssim"):
        problems.append(
            f"loss={loss!r} compares pixels in [0, 1], but target={target!r} "
            "normalises them. Use target='data', or loss 'mse', 'l1' or 'huber'."
        )
    weights = {"gradient_weight": gradient_weight, "laplacian_weight": laplacian_weight}
    problems += [
        f"{name}={weight} compares neighbouring pixels, but target='hog' has none. "
        "Use another target."
        for name, weight in weights.items()
        if target == "hog" and weight
    ]
    if target != "data" and ssim_weight:
        problems.append(
            f"ssim_weight={ssim_weight} compares pixels in [0, 1], but "
            f"target={target!r} normalises them. Use target='data'."
        )
    return problems


def _image_moments(images: Images) -> tuple[Array, Array]:
    """Mean and standard deviation of each image over pixels and channels, [B,1,1,1].

    The whole-image counterpart of the per-patch target below.
    """
    centre = jnp.mean(images, axis=(1, 2, 3), keepdims=True)
    variance = jnp.mean(jnp.square(images - centre), axis=(1, 2, 3), keepdims=True)
    return centre, jnp.sqrt(variance + _VARIANCE_FLOOR)


def _patch_moments(images: Images, patch: int) -> tuple[Array, Array]:
    """The same for each patch, spread over its pixels, [B,H,W,1]; variance unbiased.

    He et al., "Masked Autoencoders Are Scalable Vision Learners" (2022), section 3,
    "reconstruction target"; `norm_pix_loss` in its code, which divides by n - 1. A last
    patch that extends beyond the image uses the pixels it has.
    """
    _, height, width, channels = images.shape

    def spread_sum(x: Array) -> Array:
        blocks = ops.space_to_depth(ops.pad_to_multiple(x, patch), patch)
        total = blocks.sum(-1, keepdims=True)
        return ops.upsample_nearest(total, patch)[:, :height, :width]

    count = spread_sum(jnp.ones((1, height, width, 1))) * channels
    centre = spread_sum(images) / count
    variance = spread_sum(jnp.square(images - centre)) / jnp.maximum(count - 1, 1)
    return centre, jnp.sqrt(variance + _VARIANCE_FLOOR)
