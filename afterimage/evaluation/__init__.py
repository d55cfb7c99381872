"""What an encoder is worth: probes, spectrum, alignment, confusion, calibration."""

from afterimage.evaluation.alignment import alignment_matrix, linear_cka
from afterimage.evaluation.classification import classification_report
from afterimage.evaluation.embedding import draw_embedding, embed
from afterimage.evaluation.knn import choose_k, knn_accuracy, knn_predict
from afterimage.evaluation.layers import (
    Representation,
    encoder_representation,
    pixel_representation,
    pixel_vectors,
)
from afterimage.evaluation.linear import LinearProbe
from afterimage.evaluation.logistic import fit_logistic
from afterimage.evaluation.moments import Moments
from afterimage.evaluation.probes import probe_report
from afterimage.evaluation.render import report_text
from afterimage.evaluation.representations import Protocol, representation_report
from afterimage.evaluation.representations_text import representation_text
from afterimage.evaluation.ridge import StreamedRidge, fit_ridge, ridge_accuracy
from afterimage.evaluation.spectrum import collapsed_dimensions, effective_rank

__all__ = [
    "LinearProbe",
    "Moments",
    "Protocol",
    "Representation",
    "StreamedRidge",
    "alignment_matrix",
    "choose_k",
    "classification_report",
    "collapsed_dimensions",
    "draw_embedding",
    "effective_rank",
    "embed",
    "encoder_representation",
    "fit_logistic",
    "fit_ridge",
    "knn_accuracy",
    "knn_predict",
    "linear_cka",
    "pixel_representation",
    "pixel_vectors",
    "probe_report",
    "report_text",
    "representation_report",
    "representation_text",
    "ridge_accuracy",
]
