"""Semantic segmentation: a class for every pixel, on a pretrained encoder."""

from typing import TYPE_CHECKING

from afterimage.lazy import exports

if TYPE_CHECKING:
    from afterimage_segmentation.config import SegmentConfig as SegmentConfig
    from afterimage_segmentation.config import (
        SegmentPredictConfig as SegmentPredictConfig,
    )
    from afterimage_segmentation.predict import segment_predict as segment_predict
    from afterimage_segmentation.segmenter import Segmenter as Segmenter
    from afterimage_segmentation.segmenter import load_segmenter as load_segmenter
    from afterimage_segmentation.training import segment as segment

__getattr__, __dir__ = exports(__name__, __file__)
