"""`python -m benchmarks.sound --packages FOLDER`: spoken letters of unheard speakers.

Twenty letters, each spoken once in twelve languages, by other speakers in each
(Debian's klettres-data, GPL-2+ by its copyright file; not English, where most of their
names are others). For each seed, four languages are for testing. Two encoders are
pretrained on all letters and syllables of the other languages, without labels: by
`afterimage pretrain sound:TABLE`, and by the same with `--objective masked --augment
time-shift`. Their features, MFCC, raw log-mel spectrograms and the features of random
weights are scored by logistic regression with 1, 3 and all labels a letter (one a
language); and both networks are fine-tuned, beside the same from scratch.

Needs the package afterimage-sound: pip install ./modalities/sound
"""

import csv
import dataclasses
import pathlib
import shutil
import string
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tyro

from afterimage import runtime
from afterimage.commands import exit_code
from afterimage.errors import UserError
from benchmarks.image_sets import Places
from benchmarks.programs import accuracy, finetuned, quietly
from benchmarks.results import figure, row, write_results
from benchmarks.strangers import vectors_of

NAME = "sound"
LETTERS = tuple(sorted(set(string.ascii_uppercase) - set("CQVWXY")))
"""Those that every language below has."""
LANGUAGES = (
    *("cs", "da", "de", "es", "fr", "hu"),
    *("it", "lt", "nb", "nds", "nl", "pt_BR"),
)
SETTINGS = "seconds=1,mels=32,hop=500,clips=loudest"
_TEST = 4  # languages
_LABELS = (1, 3)  # a letter, and all
_DRAWS = 3
_COEFFICIENTS = 20
PRETRAINED = {
    "pretrained": {},
    "pretrained, masked": {"objective": "masked", "augment": "time-shift"},
}
"""Settings of pretraining beside the recipe's, by row."""
NOTES = (
    "Accuracy on test speakers, %, mean ± deviation over seeds of the speakers, the "
    "encoder and the labels; chance is 5. Logistic regression: the mean of three draws "
    "of the labels, its penalty chosen on training labels. MFCC: the first 20 "
    "coefficients of the cosine transform of each of the 32 frames, taken from the "
    "picture that the encoders see: 32 mel bands in 8 bits, relative to the loudest "
    "value of the clip. Masked: `--objective masked --augment time-shift`; all other "
    "settings are the recipe's, as for the other encoder. Nothing is chosen on test "
    "speakers. A letter's name differs between languages."
)


@dataclasses.dataclass(frozen=True)
class Sound:
    """Pretrains on recordings, and scores what comes out on unheard speakers."""

    packages: str = "../packages"
    """Folder with the unpacked Debian package klettres-data, if it is not installed."""
    seeds: int = 3
    """Seeds of the speakers, of pretraining and of fine-tuning."""
    steps: int = 100
    """Steps of pretraining."""
    finetune_steps: int = 80
    """Steps of fine-tuning and of training from scratch."""
    out: str = "runs/sound-letters"
    """Folder for recordings, tables and runs."""
    results: str | None = None
    """Folder of sound.json. Default: benchmarks/results."""

    def __post_init__(self) -> None:
        if min(self.seeds, self.steps, self.finetune_steps) < 1:
            raise UserError("seeds, steps and finetune_steps: at least 1")


def prepared(config: Sound, seed: int) -> tuple[str, str]:
    """(spec of the letters with their labels, spec of everything to pretrain on)."""
    folder = pathlib.Path(config.out) / "recordings"
    if not folder.exists():
        places = Places(pathlib.Path(), pathlib.Path(config.packages))
        found = places.debian("klettres-data", "usr/share/klettres")
        shutil.copytree(found, folder)
    held = set(np.random.default_rng(seed).permutation(LANGUAGES)[:_TEST].tolist())
    labelled = [
        [file, letter, "test" if language in held else "train", language]
        for language in LANGUAGES
        for letter, file in _letters(folder, language)
    ]
    every = (path.relative_to(folder) for path in folder.rglob("*.ogg"))
    heard = [[str(path)] for path in sorted(every) if path.parts[0] not in held]
    head = ["file", "label", "split", "speaker"]
    tables = {"letters": [head, *labelled], "heard": [head[:1], *heard]}
    for name, lines in tables.items():
        with (folder / f"{name}-{seed}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(lines)
    letters, unlabelled = (folder / f"{name}-{seed}.csv" for name in tables)
    return f"sound:{letters},{SETTINGS}", f"sound:{unlabelled},{SETTINGS}"


def _letters(folder: pathlib.Path, language: str) -> list[tuple[str, str]]:
    """(letter, file) of a language, as its menu names them."""
    menu = ElementTree.parse(folder / language / "sounds.xml")
    sounds = [s for part in menu.iter("alphabet") for s in part.iter("sound")]
    named = {str(s.get("name")).upper(): str(s.get("file")) for s in sounds}
    return [(letter, named[letter]) for letter in LETTERS]


def pretrained(config: Sound, data: str, seed: int, name: str) -> str:
    """The run folder of the encoder of a row: the recipe's settings, and a length."""
    from afterimage.pretrain import pretrain
    from afterimage.pretrain.recipe import recommend

    settings = PRETRAINED[name]
    kind = settings.get("objective", "recipe")
    out = f"{config.out}/runs/{kind}-{config.steps}-{seed}"
    how = {"seed": seed, "probe_images": 0, "pictures": 0, "tensorboard": False}
    steps = {"steps": config.steps, "eval_every": config.steps}
    pretrain(recommend(data, out=out, **how, **steps, **settings))
    return out


def mfcc(images: np.ndarray) -> np.ndarray:
    """The first coefficients of the cosine transform of each frame [b, 20 * frames]."""
    import scipy.fft

    spectra = images[:, ::-1, :, 0].astype(np.float32) / 255
    found = np.asarray(scipy.fft.dct(spectra, axis=1, norm="ortho"))
    return found[:, :_COEFFICIENTS].reshape(len(images), -1)


def probe_scores(
    runs: Mapping[str, str], data: str, seed: int
) -> dict[str, dict[str, float]]:
    """{representation: {labels a letter: accuracy, %}} by logistic regression."""
    from afterimage import load_encoder
    from afterimage.data import open_data
    from afterimage.evaluation import Protocol, pixel_vectors, representation_report

    encoders = {name: load_encoder(run) for name, run in runs.items()}
    splits, first = open_data(data), next(iter(encoders.values()))
    assert splits.test is not None
    known: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        **{name: encoder.features for name, encoder in encoders.items()},
        "MFCC": mfcc,
        "log-mel": pixel_vectors,
        "random weights": first.untrained(seed).features,
    }
    functions = {f"{name}, logistic regression": one for name, one in known.items()}
    protocol = Protocol(
        per_class=_LABELS, seeds=_DRAWS, seed=_DRAWS * seed, probes=("linear probe",)
    )
    made = [vectors_of(name, function) for name, function in functions.items()]
    report = representation_report(made, splits.train, splits.test, protocol)
    return {
        name: {
            budget: 100 * found["mean"]
            for budget, found in report["accuracy"][name]["linear probe"].items()
        }
        for name in functions
    }


def finetuned_scores(
    config: Sound, runs: Mapping[str, str], data: str, seed: int
) -> dict[str, Any]:
    """{fine-tuned and scratch: {labels a letter: accuracy, %}}."""
    scores: dict[str, dict[str, float]] = {}
    kinds = [(f"{name}, fine-tuned", "full", run) for name, run in runs.items()]
    kinds.append(("scratch", "scratch", next(iter(runs.values()))))
    for name, mode, run in kinds:
        scores[name] = {}
        for labels in (_LABELS[-1], None):
            results, _ = finetuned(
                from_=run,
                data=data,
                out=f"{run}-{mode}-{labels or 'all'}-{config.finetune_steps}",
                mode=mode,
                labels_per_class=labels,
                steps=config.finetune_steps,
                eval_every=config.finetune_steps,
                batch_size=32,
                augment="sounds",
                validation=0.0,
                seed=seed,
            )
            scores[name][str(labels or "all")] = accuracy(results)
    return scores


def table(scores: Sequence[dict[str, dict[str, float]]]) -> list[dict[str, Any]]:
    """The rows of the results, over the seeds."""
    return [
        row(
            "letters",
            name,
            "all labels, %" if budget == "all" else f"{budget} a letter, %",
            [one[name][budget] for one in scores],
            each=[round(one[name][budget], 2) for one in scores],
        )
        for name, budgets in scores[0].items()
        for budget in budgets
    ]


def run(config: Sound) -> list[dict[str, Any]]:
    """Measures every row, and writes the results."""
    runtime.start()
    scores = []
    for seed in range(config.seeds):
        letters, heard = prepared(config, seed)
        encoders = {
            name: quietly(pretrained, config, heard, seed, name) for name in PRETRAINED
        }
        found = quietly(probe_scores, encoders, letters, seed)
        found |= finetuned_scores(config, encoders, letters, seed)
        scores.append(found)
        print(f"seed {seed}: {found}", flush=True)
    rows = table(scores)
    place = {} if config.results is None else {"folder": pathlib.Path(config.results)}
    write_results(NAME, rows, title="Letters by unheard speakers", notes=NOTES, **place)
    for one in rows:
        print(f"{one['row']}, {one['metric']}: {figure(one, 1)}")
    return rows


if __name__ == "__main__":
    program = "python -m benchmarks.sound"
    sys.exit(exit_code(lambda: run(tyro.cli(Sound, prog=program))))
