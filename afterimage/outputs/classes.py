"""One class an image: softmax, accuracy."""

import dataclasses
from typing import ClassVar

import jax
import numpy as np
from scipy.special import softmax

from afterimage.evaluation.classification import classification_report, measures
from afterimage.evaluation.text import MACRO_F1, percent, report_text
from afterimage.outputs import Activation, Outputs

FIGURES = {
    "accuracy": "accuracy",
    "macro_f1": MACRO_F1,
    "calibration_error": "calibration error",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classes(Outputs):
    """One of several classes."""

    kind: ClassVar[str] = "classes"
    activation: ClassVar[Activation] = "softmax"
    loss: ClassVar = ("Cross-entropy", "cross_entropy")
    curves: ClassVar = {"Accuracy": "accuracy"}

    def traced(self, logits):
        return jax.nn.softmax(logits)

    def values(self, logits):
        return softmax(logits.astype(np.float64), axis=1)

    def predicted(self, logits):
        return np.array(self.names)[logits.argmax(1)]

    def measures(self, logits, truth):
        return measures(logits, truth)

    def report(self, logits, truth, *, seed=0):
        return classification_report(logits, truth, self.names, seed=seed)

    @staticmethod
    def text(report):
        return report_text(report)

    @staticmethod
    def figures(report):
        known = [(label, key) for key, label in FIGURES.items() if key in report]
        return {label: percent(report[key]) for label, key in known}

    @staticmethod
    def shares(report):
        return {key.replace("_", " "): report[key] for key in FIGURES}

    @staticmethod
    def grids(report):
        classes = report["classes"]
        keys = ("precision", "recall", "f1", "support")
        rows = [[c["name"], *(c[key] for key in keys)] for c in classes]
        return {"Classes": (["class", *keys], rows)}

    def columns(self, values, top):
        order = np.argsort(-values, kind="stable")
        found = {}
        for place, number in enumerate(order[:top].tolist()):
            end = f"_{place + 1}" if place else ""
            found[f"class{end}"] = self.names[number]
            found[f"probability{end}"] = round(float(values[number]), 6)
        best, second = values[order[:2]]
        return {**found, "margin": round(float(best - second), 6)}

    def counted(self, row):
        return [row["class"]]
