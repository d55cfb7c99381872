"""Size and channels of images in NumPy."""

import numpy as np
from jaxtyping import Num

from afterimage.errors import UserError


def cover_box(
    height: int, width: int, size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """The centred (top, left, height, width) with the proportions of `size`."""
    scale = min(height / size[0], width / size[1])
    box_height = min(height, max(1, round(size[0] * scale)))
    box_width = min(width, max(1, round(size[1] * scale)))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def cover_and_crop(
    image: Num[np.ndarray, "h w c"], size: tuple[int, int]
) -> Num[np.ndarray, "hh ww c"]:
    """Scale until `size` is covered and crop the centre: nothing is distorted.

    Shrinking to half or less averages over area; by less it interpolates linearly
    between neighbours, without an antialiasing filter, so fine patterns may alias there
    (the average costs five times as much); enlarging is bicubic, clipped to the range
    of the input's type.
    """
    import cv2

    top, left, height, width = cover_box(image.shape[0], image.shape[1], size)
    part = image[top : top + height, left : left + width]
    if (height, width) == size:
        return np.ascontiguousarray(part)
    ratio = min(height / size[0], width / size[1])
    how = cv2.INTER_CUBIC if ratio < 1 else cv2.INTER_LINEAR
    how = cv2.INTER_AREA if ratio >= 2 else how
    # OpenCV resizes up to four channels together, and takes a crop as it lies.
    groups = [part[..., i : i + 4] for i in range(0, part.shape[2], 4)]
    done = [
        cv2.resize(group, size[::-1], interpolation=how).reshape(*size, -1)
        for group in groups
    ]
    result = done[0] if len(done) == 1 else np.concatenate(done, -1)
    return result if image.dtype == np.uint8 else np.clip(result, 0, 1)


_BLOCK = 2**20  # pixels made grey together, with wider numbers in between


def looks_channels_first(shape: tuple[int, ...], channels: int | None) -> bool:
    """Whether images [N, H, W, C] rather are [N, C, H, W]; `channels` are expected.

    No picture is 1 to 4 pixels high, and few have that many channels unasked.
    """
    if len(shape) != 4 or shape[3] in (1, 3):
        return False
    few = 1 <= shape[1] <= 4 and min(shape[2:]) > 4
    return few or (channels not in (None, shape[3]) and shape[1] == channels)


def transposed_hint(shape: tuple[int, ...]) -> str:
    """The sentence for such images."""
    return (
        f"images of shape {shape} look as if channels came first; give "
        "images.transpose(0, 2, 3, 1), so that they are [N, H, W, C]"
    )


def change_channels(
    images: Num[np.ndarray, "*b h w c"], channels: int
) -> Num[np.ndarray, "*b h w cc"]:
    """Grey <-> RGB; grey is 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601, as Pillow)."""
    have = images.shape[-1]
    if looks_channels_first(images.shape, channels):
        raise UserError(transposed_hint(images.shape))
    if have == channels:
        return images
    if have == 1 and channels == 3:
        return np.repeat(images, 3, -1)
    if have == 3 and channels == 1:
        if images.dtype == np.uint8:
            return _luma(images)
        luma = images @ np.array([0.299, 0.587, 0.114], images.dtype)
        return luma[..., None]
    raise UserError(
        f"images with {have} channel{'s' * (have != 1)} where {channels} are expected; "
        "only grey (1) and RGB (3) turn into each other. Give data with as many bands"
    )


def _luma(images: np.ndarray) -> np.ndarray:
    # Pillow's integer weights, so that both paths give the same bytes.
    weights = np.array([19595, 38470, 7471], np.uint32)
    pixels = images.reshape(-1, 3)
    grey = np.empty(len(pixels), np.uint8)
    for start in range(0, len(pixels), _BLOCK):
        block = slice(start, start + _BLOCK)
        grey[block] = (pixels[block] @ weights + 0x8000) >> 16
    return grey.reshape(*images.shape[:-1], 1)
