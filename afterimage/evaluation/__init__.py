"""How good features are: probes, spectrum, alignment, confusion, calibration."""

from afterimage.evaluation.classification import classification_report
from afterimage.evaluation.embedding import draw_embedding, embed
from afterimage.evaluation.logistic import fit_logistic
from afterimage.evaluation.probes import (
    LinearProbe,
    StreamedRidge,
    choose_k,
    fit_ridge,
    knn_accuracy,
    knn_predict,
    pixel_vectors,
    probe_report,
    ridge_accuracy,
)
from afterimage.evaluation.representations import Protocol, representation_report
from afterimage.evaluation.spectrum import (
    Moments,
    alignment_matrix,
    collapsed_dimensions,
    effective_rank,
    linear_cka,
)
from afterimage.evaluation.text import report_text, representation_text
from afterimage.evaluation.vectors import (
    Representation,
    encoder_representation,
    pixel_representation,
)

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
