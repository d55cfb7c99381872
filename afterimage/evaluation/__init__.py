"""What an encoder is worth: probes, spectrum, alignment, confusion, calibration."""

from typing import TYPE_CHECKING

from afterimage.lazy import exports

if TYPE_CHECKING:
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

_HOMES = {
    "alignment": "alignment_matrix linear_cka",
    "classification": "classification_report",
    "embedding": "draw_embedding embed",
    "knn": "choose_k knn_accuracy knn_predict",
    "layers": "Representation encoder_representation pixel_representation "
    "pixel_vectors",
    "linear": "LinearProbe",
    "logistic": "fit_logistic",
    "moments": "Moments",
    "probes": "probe_report",
    "render": "report_text",
    "representations": "Protocol representation_report",
    "representations_text": "representation_text",
    "ridge": "StreamedRidge fit_ridge ridge_accuracy",
    "spectrum": "collapsed_dimensions effective_rank",
}
__getattr__, __dir__ = exports(
    __name__,
    {
        name: f"{__name__}.{module}"
        for module, names in _HOMES.items()
        for name in names.split()
    },
)
