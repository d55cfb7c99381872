"""Object detection: boxes and classes, on a pretrained encoder."""

from typing import TYPE_CHECKING

from afterimage.lazy import exports

if TYPE_CHECKING:
    from afterimage_detection.config import DetectConfig as DetectConfig
    from afterimage_detection.config import PredictConfig as PredictConfig
    from afterimage_detection.detector import Detections as Detections
    from afterimage_detection.detector import Detector as Detector
    from afterimage_detection.detector import load_detector as load_detector
    from afterimage_detection.detector import predict as predict
    from afterimage_detection.scores import average_precision as average_precision
    from afterimage_detection.training import detect as detect

__getattr__, __dir__ = exports(__name__, __file__)
