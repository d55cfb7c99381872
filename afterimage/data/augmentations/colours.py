"""Augmentations of colours and detail, each one piece of a spec: color, grey, blur, ….

All results are clipped to [0, 1]. What needs three channels leaves other images as they
are, so that a spec for photos also suits grey ones.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from afterimage.data.augmentations.resampling import takes
from afterimage.plugins import AUGMENTATIONS

Images = Float[Array, "b h w c"]
_LUMA = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601), as torchvision rounds them."""
_TRIES = 10


@AUGMENTATIONS.add("brightness")
@takes(amount=(0, 1))
def brightness(key: Array, images: Images, amount: float = 0.4) -> Images:
    """Multiply each image by a factor in 1 ± AMOUNT (0.4)."""
    return jnp.clip(images * _factor(key, images, amount), 0, 1)


@AUGMENTATIONS.add("contrast")
@takes(amount=(0, 1))
def contrast(key: Array, images: Images, amount: float = 0.4) -> Images:
    """Scale each image's contrast around its mean grey by 1 ± AMOUNT (0.4)."""
    middle = mean_grey(images)
    return blend(images, middle, _factor(key, images, amount))


@AUGMENTATIONS.add("saturation")
@takes(amount=(0, 1))
def saturation(key: Array, images: Images, amount: float = 0.4) -> Images:
    """Scale how far the colours are from grey by 1 ± AMOUNT (0.4).

    RGB only.
    """
    if images.shape[-1] != 3:
        return images
    return blend(images, to_grey(images), _factor(key, images, amount))


@AUGMENTATIONS.add("hue")
@takes(amount=(0, 0.5))
def hue(key: Array, images: Images, amount: float = 0.1) -> Images:
    """Turn the hue by up to AMOUNT (0.1) of the colour circle each way.

    RGB only.
    """
    if images.shape[-1] != 3:
        return images
    turn = jax.random.uniform(key, (len(images), 1, 1), None, -amount, amount)
    return _turned(images, turn)


@AUGMENTATIONS.add("color")
@takes(strength=(0, 1.25), probability=(0, 1))
def color(
    key: Array, images: Images, strength: float = 0.5, probability: float = 0.8
) -> Images:
    """Change brightness, contrast, saturation and hue, in any order.

    Factors are in 1 ± 0.8 STRENGTH (0.5), hues turn by up to 0.2 STRENGTH of the
    circle; a share of PROBABILITY (0.8) of the images changes. Exact colour and light
    no longer matter. torchvision's ColorJitter, as in SimCLR (Chen et al. 2020). Images
    that are not RGB change only brightness and contrast.
    """
    chosen, order, factors, turn = jax.random.split(key, 4)
    kinds = 4 if images.shape[-1] == 3 else 2
    one_each = (len(images), 1, 1, 1)
    places = _places(jax.random.uniform(order, (kinds, *one_each)))
    kind_of = jnp.arange(kinds).reshape(kinds, 1, 1, 1, 1)
    low = max(0.0, 1 - 0.8 * strength)
    factors = jax.random.uniform(
        factors, (kinds, *one_each), None, low, 1 + 0.8 * strength
    )
    turn = jax.random.uniform(turn, one_each[:3], None, -1, 1) * 0.2 * strength
    found = images
    for place in range(kinds):
        kind, factor = (
            jnp.where(places == place, x, 0).sum(0) for x in (kind_of, factors)
        )
        grey, middle = to_grey(found), mean_grey(found)
        # Of kind 0: brightness, 1: contrast, 2: saturation.
        other = jnp.where(kind == 0, 0, jnp.where(kind == 1, middle, grey))
        blended = blend(found, other, factor)
        if kinds == 4:
            blended = jnp.where(kind == 3, _turned(found, turn), blended)
        # Computed once: XLA would repeat each change for every use of it on CPU.
        found = jax.lax.optimization_barrier(blended)
    return jnp.where(_chosen(chosen, images, probability), found, images)


def _places(draws: Float[Array, "k b 1 1 1"]) -> Int[Array, "k b 1 1 1"]:
    """The place of each number among those of its image; of equal ones, the first comes
    first. Without a sort, which takes a TPU's compiler seconds."""
    number = jnp.arange(len(draws)).reshape(-1, 1, 1, 1, 1)
    one, other = draws[:, None], draws[None]
    equal = (other == one) & (number[None] < number[:, None])
    return ((other < one) | equal).sum(1)


@AUGMENTATIONS.add("white-balance")
@takes(amount=(0, 1))
def white_balance(key: Array, images: Images, amount: float = 0.2) -> Images:
    """Multiply each channel by a factor of its own in 1 ± AMOUNT (0.2).

    Images with one channel stay as they are.
    """
    if images.shape[-1] == 1:
        return images
    each = (len(images), 1, 1, images.shape[-1])
    factor = jax.random.uniform(key, each, None, 1 - amount, 1 + amount)
    return jnp.clip(images * factor, 0, 1)


@AUGMENTATIONS.add("grey")
@takes(probability=(0, 1))
def grey(key: Array, images: Images, probability: float = 0.2) -> Images:
    """Turn a share of PROBABILITY (0.2) of the images grey.

    Colour no longer matters. RGB only. torchvision's RandomGrayscale.
    """
    if images.shape[-1] != 3:
        return images
    return jnp.where(_chosen(key, images, probability), to_grey(images), images)


@AUGMENTATIONS.add("solarise")
@takes(probability=(0, 1), threshold=(0, 1))
def solarise(
    key: Array, images: Images, probability: float = 0.2, threshold: float = 0.5
) -> Images:
    """Invert the pixels of at least THRESHOLD (0.5), with PROBABILITY (0.2).

    torchvision's RandomSolarize, as in BYOL (Grill et
    al. 2020).
    """
    bright = _chosen(key, images, probability) & (images >= threshold)
    return jnp.where(bright, 1 - images, images)


@AUGMENTATIONS.add("blur")
@takes(probability=(0, 1), low=(0.01, 10), high=(0.01, 10))
def blur(
    key: Array,
    images: Images,
    probability: float = 0.5,
    low: float = 0.1,
    high: float = 2.0,
) -> Images:
    """Blur images by a Gaussian, with PROBABILITY (0.5).

    Its standard deviation is uniform in LOW (0.1) to HIGH (2) pixels; the kernel is as
    wide as a tenth of the side, at least 3 pixels. Fine detail no longer matters.
    torchvision's GaussianBlur, as in SimCLR.
    """
    chosen, width = jax.random.split(key)
    sigma = jax.random.uniform(width, (len(images), 1, 1), None, low, max(low, high))
    found = images
    for axis in (1, 2):
        form = "bij,bjwc->biwc" if axis == 1 else "bij,bhjc->bhic"
        weights = _gaussian(sigma, images.shape[axis]).astype(images.dtype)
        found = jnp.einsum(form, weights, found)
    return jnp.where(
        _chosen(chosen, images, probability), jnp.clip(found, 0, 1), images
    )


@AUGMENTATIONS.add("erase")
@takes(probability=(0, 1), largest=(0.02, 1))
def erase(
    key: Array, images: Images, probability: float = 0.5, largest: float = 0.33
) -> Images:
    """Erase a rectangle, with PROBABILITY (0.5).

    Its share of the area is uniform in 0.02 to LARGEST (0.33), its height/width
    log-uniform in 0.3 to 3.3; it is filled with the image's mean colour. No single part
    decides any more. torchvision's RandomErasing.
    """
    count, height, width, _ = images.shape
    chosen, share, form, down, across = jax.random.split(key, 5)
    tries = (_TRIES, count)
    pixels = height * width * jax.random.uniform(share, tries, None, 0.02, largest)
    sides = jnp.log(jnp.array([0.3, 3.3]))
    ratio = jnp.exp(jax.random.uniform(form, tries, None, *sides))
    h, w = jnp.round(jnp.sqrt(pixels * ratio)), jnp.round(jnp.sqrt(pixels / ratio))
    fits = (h < height) & (w < width)
    first = jnp.argmax(fits, 0)[None]
    h = jnp.take_along_axis(h, first, 0)[0]
    w = jnp.take_along_axis(w, first, 0)[0]
    top = jnp.floor(jax.random.uniform(down, (count,)) * (height - h + 1))
    left = jnp.floor(jax.random.uniform(across, (count,)) * (width - w + 1))
    rows, columns = jnp.arange(height)[None], jnp.arange(width)[None]
    inside = (rows >= top[:, None]) & (rows < (top + h)[:, None])
    beside = (columns >= left[:, None]) & (columns < (left + w)[:, None])
    gone = inside[:, :, None, None] & beside[:, None, :, None]
    gone &= fits.any(0)[:, None, None, None] & _chosen(chosen, images, probability)
    return jnp.where(gone, images.mean((1, 2), keepdims=True), images)


def _chosen(key: Array, images: Images, probability: float) -> Array:
    return jax.random.bernoulli(key, probability, (len(images), 1, 1, 1))


def _factor(key: Array, images: Images, amount: float) -> Array:
    """One factor for each image, uniform in 1 ± amount."""
    one_each = (len(images), 1, 1, 1)
    return jax.random.uniform(key, one_each, None, 1 - amount, 1 + amount)


def blend(images: Images, other: Array, share: Array) -> Images:
    """`share` of the images and the rest of the other; beyond 1 it extrapolates."""
    return jnp.clip(share * images + (1 - share) * other, 0, 1)


def to_grey(images: Images) -> Float[Array, "b h w 1"]:
    """Grey of RGB; of other numbers of channels their mean."""
    if images.shape[-1] != 3:
        return images.mean(-1, keepdims=True)
    red, green, blue = (images[..., i : i + 1] for i in range(3))
    return _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue


def mean_grey(images: Images) -> Float[Array, "b 1 1 1"]:
    """The mean of `to_grey`, as a product: XLA's sums are slow on CPU."""
    count, height, width, channels = images.shape
    luma = jnp.array(_LUMA if channels == 3 else [1 / channels] * channels)
    weights = jnp.tile(luma / (height * width), height * width)
    mean = jnp.matmul(images.reshape(count, -1), weights, precision="highest")
    return mean[:, None, None, None]


def _turned(images: Images, turn: Float[Array, "b 1 1"]) -> Images:
    """RGB images with their hue turned by a share of the circle, as in HSV."""
    red, green, blue = (images[..., i] for i in range(3))
    value = images.max(-1)
    chroma = value - images.min(-1)
    by = jnp.where(chroma > 0, chroma, 1)
    sixth = jnp.where(
        value == red,
        (green - blue) / by,
        jnp.where(value == green, 2 + (blue - red) / by, 4 + (red - green) / by),
    )
    sixth = sixth + 6 * turn
    channels = []
    for start in (5, 3, 1):
        place = sixth + start
        place = place - 6 * jnp.floor(place / 6)
        share = jnp.clip(jnp.minimum(place, 4 - place), 0, 1)
        channels.append(value - chroma * share)
    return jnp.clip(jnp.stack(channels, -1), 0, 1)


def _gaussian(sigma: Float[Array, "b 1 1"], side: int) -> Float[Array, "b n n"]:
    """A Gaussian along a line as a matrix, mirrored at the border's pixels."""
    reach = min(max(1, round((side / 10 - 1) / 2)), side - 1)
    place = jnp.arange(side)
    here, there = place[None, :, None], place[None, None, :]

    def bell(apart: Array) -> Array:
        bell = jnp.exp(-0.5 * jnp.square(apart / sigma))
        return jnp.where(jnp.abs(apart) <= reach, bell, 0)

    last = side - 1
    weights = bell(here - there)
    weights += jnp.where(there > 0, bell(here + there), 0)
    weights += jnp.where(there < last, bell(2 * last - here - there), 0)
    return weights / weights.sum(-1, keepdims=True)
