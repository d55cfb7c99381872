"""Evaluation of features: probes, spectrum, label-free criteria, calibration."""

from typing import TYPE_CHECKING

from afterimage.lazy import exports

if TYPE_CHECKING:
    from afterimage.evaluation.classification import (
        classification_report as classification_report,
    )
    from afterimage.evaluation.criteria import alignment as alignment
    from afterimage.evaluation.criteria import label_free_report as label_free_report
    from afterimage.evaluation.criteria import (
        neighbour_agreement as neighbour_agreement,
    )
    from afterimage.evaluation.criteria import own_view_retrieval as own_view_retrieval
    from afterimage.evaluation.criteria import spectral_decay as spectral_decay
    from afterimage.evaluation.criteria import uniformity as uniformity
    from afterimage.evaluation.embedding import draw_embedding as draw_embedding
    from afterimage.evaluation.embedding import embed as embed
    from afterimage.evaluation.logistic import fit_logistic as fit_logistic
    from afterimage.evaluation.probes import LinearProbe as LinearProbe
    from afterimage.evaluation.probes import StreamedRidge as StreamedRidge
    from afterimage.evaluation.probes import choose_k as choose_k
    from afterimage.evaluation.probes import fit_ridge as fit_ridge
    from afterimage.evaluation.probes import knn_accuracy as knn_accuracy
    from afterimage.evaluation.probes import knn_predict as knn_predict
    from afterimage.evaluation.probes import pixel_vectors as pixel_vectors
    from afterimage.evaluation.probes import probe_report as probe_report
    from afterimage.evaluation.probes import ridge_accuracy as ridge_accuracy
    from afterimage.evaluation.representations import Protocol as Protocol
    from afterimage.evaluation.representations import (
        representation_report as representation_report,
    )
    from afterimage.evaluation.spectrum import Moments as Moments
    from afterimage.evaluation.spectrum import alignment_matrix as alignment_matrix
    from afterimage.evaluation.spectrum import (
        collapsed_dimensions as collapsed_dimensions,
    )
    from afterimage.evaluation.spectrum import effective_rank as effective_rank
    from afterimage.evaluation.spectrum import linear_cka as linear_cka
    from afterimage.evaluation.text import report_text as report_text
    from afterimage.evaluation.text import representation_text as representation_text
    from afterimage.evaluation.vectors import Representation as Representation
    from afterimage.evaluation.vectors import (
        encoder_representation as encoder_representation,
    )
    from afterimage.evaluation.vectors import hog_representation as hog_representation
    from afterimage.evaluation.vectors import (
        pixel_representation as pixel_representation,
    )


__getattr__, __dir__ = exports(__name__, __file__)
