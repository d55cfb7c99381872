"""How good features are: probes, spectrum, alignment, confusion, calibration."""

from typing import TYPE_CHECKING

from afterimage.lazy import exports

if TYPE_CHECKING:
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

__getattr__, __dir__ = exports(
    __name__,
    {
        "LinearProbe": "afterimage.evaluation.probes",
        "Moments": "afterimage.evaluation.spectrum",
        "Protocol": "afterimage.evaluation.representations",
        "Representation": "afterimage.evaluation.vectors",
        "StreamedRidge": "afterimage.evaluation.probes",
        "alignment_matrix": "afterimage.evaluation.spectrum",
        "choose_k": "afterimage.evaluation.probes",
        "classification_report": "afterimage.evaluation.classification",
        "collapsed_dimensions": "afterimage.evaluation.spectrum",
        "draw_embedding": "afterimage.evaluation.embedding",
        "effective_rank": "afterimage.evaluation.spectrum",
        "embed": "afterimage.evaluation.embedding",
        "encoder_representation": "afterimage.evaluation.vectors",
        "fit_logistic": "afterimage.evaluation.logistic",
        "fit_ridge": "afterimage.evaluation.probes",
        "knn_accuracy": "afterimage.evaluation.probes",
        "knn_predict": "afterimage.evaluation.probes",
        "linear_cka": "afterimage.evaluation.spectrum",
        "pixel_representation": "afterimage.evaluation.vectors",
        "pixel_vectors": "afterimage.evaluation.probes",
        "probe_report": "afterimage.evaluation.probes",
        "report_text": "afterimage.evaluation.text",
        "representation_report": "afterimage.evaluation.representations",
        "representation_text": "afterimage.evaluation.text",
        "ridge_accuracy": "afterimage.evaluation.probes",
    },
)
