"""Image and text: an encoder aligned with frozen text vectors, zero-shot, search."""

from typing import TYPE_CHECKING

from afterimage.lazy import exports

if TYPE_CHECKING:
    from afterimage_captions.aligner import Aligner as Aligner
    from afterimage_captions.aligner import load_aligner as load_aligner
    from afterimage_captions.config import AlignConfig as AlignConfig
    from afterimage_captions.config import ZeroShotConfig as ZeroShotConfig
    from afterimage_captions.predict import zero_shot as zero_shot
    from afterimage_captions.training import align as align

__getattr__, __dir__ = exports(__name__, __file__)
