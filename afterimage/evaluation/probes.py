"""kNN and ridge probe of several representations of the same images, in memory."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from afterimage.evaluation.checks import check_labelled
from afterimage.evaluation.classification import wilson
from afterimage.evaluation.knn import knn_predict
from afterimage.evaluation.ridge import fit_ridge
from afterimage.evaluation.spectrum import collapsed_dimensions, effective_rank


def probe_report(
    features_by_name: Mapping[str, tuple[Any, Any]],
    labels: tuple[Any, Any],
    *,
    k: int = 20,
) -> dict[str, dict[str, Any]]:
    """kNN and ridge accuracy, effective rank, collapsed dimensions of each.

    `features_by_name` maps e.g. "trained", "untrained", "raw pixels" to (train [n, d],
    validation [m, d]); `labels` is (train [n], validation [m]), integers ≥ 0. Both
    probes are fitted on train and measured on validation; accuracies are
    {"value", "low", "high"} with a 95 % Wilson interval. Plain Python, JSON-ready.
    """
    report: dict[str, dict[str, Any]] = {}
    for name, (train, validation) in features_by_name.items():
        train, validation = np.asarray(train), np.asarray(validation)
        train_labels = check_labelled(f"{name}: train", train, labels[0])
        truth = check_labelled(f"{name}: validation", validation, labels[1])
        near = knn_predict(train, train_labels, validation, k=k)
        linear = fit_ridge(train, train_labels).predict(validation)
        report[name] = {
            "dimensions": int(train.shape[1]),
            "knn": wilson(int((near == truth).sum()), len(truth)),
            "ridge": wilson(int((linear == truth).sum()), len(truth)),
            "effective_rank": effective_rank(validation),
            "collapsed": collapsed_dimensions(validation),
        }
    return report
