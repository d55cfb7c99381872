"""Afterimage: pretrain an encoder-decoder on images, keep the encoder, reuse it.

The stages are packages: `afterimage.pretrain`, `afterimage.finetune`.
"""

from typing import TYPE_CHECKING

from afterimage.lazy import exports

if TYPE_CHECKING:
    from afterimage.anomalies.detector import AnomalyDetector as AnomalyDetector
    from afterimage.classifier import Classifier as Classifier
    from afterimage.classifier import load_classifier as load_classifier
    from afterimage.encoder import Encoder as Encoder
    from afterimage.encoder import load_encoder as load_encoder
    from afterimage.evaluation.acquisition import images_to_label as images_to_label
    from afterimage.evaluation.label_issues import LabelIssues as LabelIssues
    from afterimage.evaluation.label_issues import (
        find_label_issues as find_label_issues,
    )
    from afterimage.sklearn import EncoderTransformer as EncoderTransformer
    from afterimage.sklearn import ImageClassifier as ImageClassifier

__version__ = "0.1.0"

__getattr__, __dir__ = exports(__name__, __file__)
