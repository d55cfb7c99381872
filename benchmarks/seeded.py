"""What must not change: small seeded runs of every method, bit for bit.

`python -m benchmarks.seeded --out FILE.json` makes the runs and stores every number
they log, every figure of their results and a checksum of their weights;
`python -m benchmarks.seeded --compare OLD.json NEW.json` says which runs differ, and
where first. Run it before and after a change that must not affect the mathematics, on
one machine: another machine, or another version of JAX, rounds differently. It takes
about six minutes on one core, mostly for compilation; with
JAX_COMPILATION_CACHE_DIR=FOLDER and JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.1 the
next time takes two.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import pathlib
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

RENAMED: Mapping[str, str | None] = {
    "results/from/trained/corruption_strength": None,
    "results/from/trained/from/trained/corruption_strength": None,
    "results/episodes/accuracy/prototypical": "results/episodes/accuracy/prototypes",
    "train/bad_row": "train/bad_steps",
}
"""Names in old files that have changed: {old: new}; None: removed. A name is what
`--compare` prints, or a part of it that ends at a slash."""

UNTOLD = ("time/", "runtime/", "seconds", "images_per_second", "faster", "bytes")
"""Names that contain one of these are figures of the machine, not the mathematics."""

Record = dict[str, dict[str, str]]
"""{"step 12" or "end": {name: value}}; floats in hexadecimal, exact."""


class Home:
    """The folder of all runs; runs that others need are made on demand."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.done: set[str] = set()
        self.name = ""

    def run(self, name: str) -> pathlib.Path:
        """The folder of this run, which is made first if it is missing."""
        if name not in self.done:
            outer, self.name = self.name, name
            try:
                RUNS[name](self)
            finally:
                self.name = outer
            self.done.add(name)
        return self.folder / name

    @property
    def out(self) -> pathlib.Path:
        """The folder of the run being made."""
        return self.folder / self.name

    def data(self, name: str) -> str:
        """A data spec: digits from another domain, or with a second label."""
        import numpy as np
        from sklearn.datasets import load_digits

        file = self.folder / f"{name}.npz"
        if not file.exists():
            digits: Any = load_digits()
            images = (digits.images * 255 / 16).astype(np.uint8)[..., None]
            arrays = {"x": DOMAINS[name](images), "y": digits.target}
            if name == "parity":
                known = np.arange(len(images)) % 3 > 0
                arrays["y_parity"] = np.where(known, digits.target % 2, -1)
            split = {"train": slice(0, 600), "test": slice(600, 900)}
            sets = {
                key.replace(key[0], f"{key[0]}_{part}", 1): array[rows]
                for part, rows in split.items()
                for key, array in arrays.items()
            }
            np.savez(file, **sets)
        return f"npz:{file}"


DOMAINS: Mapping[str, Callable[[Any], Any]] = {
    "dim": lambda images: images // 3 + 40,
    "inverted": lambda images: 255 - images,
    "turned": lambda images: images.swapaxes(1, 2),
    "parity": lambda images: images,
}


def pretrain(home: Home, **settings: Any) -> None:
    """Pretraining on digits for 24 steps; `settings` override the defaults."""
    from afterimage.pretrain import PretrainConfig, pretrain

    usual = {
        "data": "digits",
        "model": "conv",
        "width": 0.25,
        "steps": 24,
        "batch_size": 32,
        "log_every": 1,
        "eval_every": 12,
        "probe_images": 200,
        "pictures": 0,
        "tensorboard": False,
    }
    pretrain(PretrainConfig(out=str(home.out), **{**usual, **settings}))


def finetune(home: Home, **settings: Any) -> None:
    """Fine-tuning from the run `plain` on 100 digits for 20 steps."""
    from afterimage.finetune import FinetuneConfig, finetune

    usual = {
        "data": "digits",
        "labels": 100,
        "steps": 20,
        "batch_size": 20,
        "log_every": 1,
        "eval_every": 10,
        "tensorboard": False,
    }
    if "from_" not in settings:
        usual["from_"] = str(home.run("plain"))
    finetune(FinetuneConfig(out=str(home.out), **{**usual, **settings}))


def adapt(home: Home, **settings: Any) -> None:
    """The same, adapting to dim digits without labels."""
    usual = {"mode": "full", "target": home.data("dim"), "select": "last"}
    finetune(home, **{**usual, **settings})


def method(name: str, **settings: Any) -> dict[str, Any]:
    """A method, a mode or a task with settings."""
    return {"name": name, **settings}


def continual(home: Home, *methods: dict[str, Any], **task: Any) -> None:
    """Two tasks of two classes, ten steps each."""
    usual = {"steps": 20, "labels": None, "weight_decay": 0.0, "lr": 3e-3}
    sequence = method("continual", sequence=("0,1", "2,3"), **task)
    finetune(home, mode="full", task=sequence, methods=methods, **usual)


def episodes(home: Home, name: str) -> None:
    """Meta-learning over small episodes."""
    usual = {"ways": 3, "shots": 2, "queries": 3, "per_step": 2, "test_episodes": 20}
    more = {"steps": 10, "labels": None, "weight_decay": 0.0}
    more |= {"batch_size": 64}  # the default: episodes replace it
    task = method("episodes", **usual)
    finetune(home, mode="full", task=task, methods=name, **more)


def command(home: Home, *words: str, out: str) -> None:
    """Runs a command of the command line that writes a file."""
    from afterimage.commands import main

    home.out.mkdir()
    code = main([*words, "--out", str(home.out / out)])
    if code:
        raise RuntimeError(f"afterimage {' '.join(words)} ended with {code}")


RUNS: Mapping[str, Callable[[Home], None]] = {
    "plain": lambda home: pretrain(home, steps=40, eval_every=20),
    "denoising": lambda home: pretrain(
        home,
        objective={"name": "plain", "corruption": "erasing", "gradient_weight": 0.1},
        augment="crop-flip",
        ema=0.9,
    ),
    "masked": lambda home: pretrain(
        home,
        objective={"name": "masked", "target": "patch"},
        decoder="hierarchical",
    ),
    "masked-hog": lambda home: pretrain(
        home,
        objective={"name": "masked", "target": "hog", "pattern": "block", "patch": 4},
        decoder="block",
    ),
    "latent": lambda home: pretrain(
        home,
        image_size=16,
        objective={"name": "latent", "patch": 8, "weight": 0.5, "teacher_warmup": 10},
    ),
    "simclr": lambda home: pretrain(
        home,
        objective={"name": "simclr", "reconstruct": "masked", "target": "image"},
        augment="shear",
        normalise="image",
    ),
    "vicreg": lambda home: pretrain(
        home,
        objective={"name": "vicreg", "reconstruct": "image"},
        augment="shear",
        norm="group",
        accumulate=2,
    ),
    "byol": lambda home: pretrain(
        home,
        objective={"name": "byol", "reconstruction_gradient": 0.5},
        augment="shear",
    ),
    "variational": lambda home: pretrain(
        home,
        objective={"name": "variational", "loss": "bce", "beta_warmup": 10},
        bottleneck=8,
    ),
    "sparse": lambda home: pretrain(home, objective="sparse"),
    "sparse-k": lambda home: pretrain(
        home, objective={"name": "sparse", "k": 4, "loss": "ssim"}
    ),
    "vq": lambda home: pretrain(home, objective={"name": "vq", "codes": 32}),
    "contractive": lambda home: pretrain(
        home, objective={"name": "contractive", "loss": "huber"}
    ),
    "dictionary": lambda home: pretrain(
        home, objective="dictionary", model="conv-patches", width=0.125
    ),
    "classic": lambda home: pretrain(
        home,
        model="conv-classic",
        objective={"name": "plain", "laplacian_weight": 0.1},
    ),
    "batch-norm": lambda home: pretrain(home, norm="batch", accumulate=2),
    "bfloat16": lambda home: pretrain(home, precision="bfloat16", remat=True),
    "resnet": lambda home: pretrain(home, model="resnet18", width=0.125, steps=6),
    "convnext": lambda home: pretrain(home, model="convnext-atto", width=0.2, steps=6),
    "probe": lambda home: finetune(home, mode="probe", features="pyramid-grid"),
    "partial": lambda home: finetune(home, mode=method("partial", stages=1)),
    "two-phase": lambda home: finetune(home, mode="two-phase", head="mlp"),
    "gradual": lambda home: finetune(home, mode="gradual", class_weights="balanced"),
    "full": lambda home: finetune(
        home, mode="full", layer_decay=0.7, label_smoothing=0.1, ema=0.9, labels=None
    ),
    "scratch": lambda home: finetune(home, mode="scratch", augment="strong"),
    "selected-features": lambda home: finetune(
        home,
        mode="probe",
        methods=method("feature-selection", score="fisher", keep=16),
    ),
    "kl-delta": lambda home: finetune(
        home,
        from_=str(home.run("full")),
        mode="full",
        methods=(method("kl-to-source", weight=1.0), method("delta", weight=0.1)),
    ),
    "dann-l2-sp": lambda home: adapt(
        home,
        methods=(method("l2-sp", weight=0.01, head=0.01), "dann"),
        weight_decay=0.0,
    ),
    "cdan-e": lambda home: adapt(
        home, methods=method("cdan", entropy=True), select="infomax"
    ),
    "distances": lambda home: adapt(home, methods=("mmd", "jmmd", "coral")),
    "jdot": lambda home: adapt(home, methods=("jdot", method("compose", kind="mixup"))),
    "mdan": lambda home: adapt(
        home,
        methods=(
            method("sources", images=(home.data("inverted"), home.data("turned"))),
            "mdan",
        ),
    ),
    "batch-norm-domains": lambda home: adapt(
        home,
        from_=str(home.run("batch-norm")),
        methods="coral",
        domain_statistics="target",
    ),
    "density-ratio": lambda home: adapt(
        home, methods=method("density-ratio", estimator="classifier"), select="mixval"
    ),
    "label-shift": lambda home: adapt(
        home, mode="probe", methods=method("label-shift", estimator="em")
    ),
    "pseudo-labels": lambda home: finetune(
        home,
        mode="full",
        methods=method(
            "pseudo-labels",
            confidence=0.3,
            ratio=2,
            propagation=0.5,
            distribution_alignment=True,
            alignment_momentum=0.9,
            alignment_frequencies="predicted",
        ),
    ),
    "distillation": lambda home: finetune(
        home,
        mode="scratch",
        methods=method(
            "distil",
            teacher=str(home.run("full")),
            kinds=("logits", "features", "relational"),
        ),
    ),
    "uncertainty": lambda home: finetune(
        home,
        mode="full",
        data=home.data("parity"),
        methods=method("tasks", columns=("parity",), weighting="uncertainty"),
        labels=None,
    ),
    "pcgrad": lambda home: finetune(
        home,
        mode="full",
        data=home.data("parity"),
        methods=method("tasks", columns=("parity",), weighting="pcgrad"),
        labels=None,
    ),
    "ewc": lambda home: continual(home, method("ewc"), scenario="task"),
    "replay": lambda home: continual(home, method("replay", memory=5)),
    "lwf": lambda home: continual(home, method("lwf")),
    "maml": lambda home: episodes(home, "maml"),
    "proto-maml": lambda home: episodes(home, "proto-maml"),
    "reptile": lambda home: episodes(home, "reptile"),
    "prototypical": lambda home: episodes(home, "prototypes"),
    "select": lambda home: command(
        home,
        *("select", "--from", str(home.run("full")), str(home.run("scratch"))),
        *("--encoder", str(home.run("plain")), "--data", home.data("dim")),
        out="select.json",
    ),
    "evaluate": lambda home: command(
        home,
        *("evaluate", "--from", str(home.run("full")), "--data", "digits"),
        *("--views", "shift"),
        out="evaluate.json",
    ),
    "evaluate-encoder": lambda home: command(
        home,
        *("evaluate", "--from", str(home.run("plain")), "--data", "digits"),
        *("--most", "300", "--per-class", "5", "--label-seeds", "2"),
        out="evaluate.json",
    ),
    "features": lambda home: command(
        home,
        *("features", "--from", str(home.run("plain")), "--data", "digits"),
        *("--pool", "grid"),
        out="features.npy",
    ),
}
"""Every run with its settings; the code below only reads files."""


def figures(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """(name, exact text) of every number in a JSON value, except the machine's."""
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in pairs:
            yield from figures(item, f"{name}/{key}" if name else str(key))
    elif isinstance(value, int | float) and not any(part in name for part in UNTOLD):
        yield name, value.hex() if isinstance(value, float) else str(value)


def weights(folder: pathlib.Path) -> dict[str, str]:
    """Checksums of the names and shapes of a folder's arrays, and of their values.

    The second ignores names, which distinguishes a renamed array from a changed one.
    """
    names, arrays = [], []
    for file in sorted(folder.rglob("*.safetensors")):
        data = file.read_bytes()
        body = 8 + int.from_bytes(data[:8], "little")
        for name, entry in sorted(json.loads(data[8:body]).items()):
            # Statistics of the feature vector are not the training's mathematics.
            if name != "__metadata__" and not name.startswith("stats/vector/"):
                begin, end = entry["data_offsets"]
                array = hashlib.sha256(data[body + begin : body + end]).hexdigest()
                arrays.append(f"{entry['dtype']} {entry['shape']} {array}")
                names.append(f"{name} {entry['shape']}")
    said = {"names": names, "numbers": sorted(arrays)}
    return {
        key: hashlib.sha256("\n".join(lines).encode()).hexdigest()
        for key, lines in said.items()
    }


def record(run: pathlib.Path) -> Record:
    """All figures of the mathematics in a run's files."""
    found: Record = {}
    log = run / "metrics.jsonl"
    for line in log.read_text().splitlines() if log.exists() else ():
        values = json.loads(line)
        row = found.setdefault(f"step {values.pop('step')}", {})
        for name, value in figures(values):
            while name in row:  # a step that is logged twice
                name += "'"
            row[name] = value
    end = found.setdefault("end", {})
    home = str(run.parent)  # in data names: a different folder each time
    for file in sorted(run.glob("*")):
        if file.name in ("results.json", "baselines.json", "transfer.json") or (
            file.suffix == ".json" and not log.exists()
        ):
            end.update(
                figures(json.loads(file.read_text().replace(home, "")), file.stem)
            )
        elif file.suffix == ".npy":
            end[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    for name in ("encoder", "classifier"):
        if (run / name).is_dir():
            end |= {f"{name}/{k}": v for k, v in weights(run / name).items()}
    return found


def machine() -> dict[str, str]:
    """What rounding depends on, besides the code."""
    import jax
    import numpy as np

    return {
        "jax": jax.__version__,
        "numpy": np.__version__,
        "cores": str(len(os.sched_getaffinity(0))),
        "python": sys.version.split()[0],
    }


def make(out: pathlib.Path, only: list[str]) -> int:
    """Makes the runs and writes their records; returns the number that failed."""
    records: dict[str, Record] = {}
    failed = 0
    with tempfile.TemporaryDirectory(prefix="seeded-") as folder:
        home = Home(pathlib.Path(folder))
        os.environ["AFTERIMAGE_CACHE"] = str(home.folder / "cache")
        for name in only or RUNS:
            began, said = time.perf_counter(), io.StringIO()
            try:
                with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                    records[name] = record(home.run(name))
                numbers = sum(map(len, records[name].values()))
                words = f"{numbers} numbers"
            except Exception:  # the other runs are still useful
                failed += 1
                words = f"FAILED\n{said.getvalue()[-1000:]}\n{traceback.format_exc()}"
            print(
                f"{name:20} {time.perf_counter() - began:5.1f} s  {words}", flush=True
            )
    content = {"machine": machine(), "runs": records}
    out.write_text(json.dumps(content, indent=1) + "\n")
    return failed


def renamed(name: str) -> str | None:
    """The current form of a name in an old file; None if it was removed."""
    for old, new in RENAMED.items():
        if name == old:
            return new
        if name.startswith(f"{old}/"):
            return None if new is None else new + name[len(old) :]
    return name


def difference(old: Record, new: Record) -> str | None:
    """The first number of `old` that is missing or different in `new`, else None.

    Additional figures in `new` do not count as a difference.
    """
    for step, row in old.items():
        for key, value in row.items():
            name = renamed(key)
            if name is None:
                continue
            other = new.get(step, {}).get(name)
            if other != value and not _same_bound(name, value, other):
                return f"{step}, {name}: {readable(value)} -> {readable(other)}"
    return None


def _same_bound(name: str, old: str, new: str | None) -> bool:
    """Whether the end of an interval differs only in its last digits.

    SciPy now computes Wilson's interval; the earlier code rounded differently.
    """
    floats = new is not None and "0x" in old and "0x" in new
    if not floats or not name.endswith(("/low", "/high")):
        return False
    return abs(float.fromhex(old) - float.fromhex(str(new))) < 1e-15


def readable(value: str | None) -> str:
    """A stored value, with its decimal form if it is a float."""
    if value is None:
        return "missing"
    return f"{value} ({float.fromhex(value)!r})" if "0x" in value else value


def compare(old: pathlib.Path, new: pathlib.Path, only: list[str]) -> int:
    """Prints a line per run, for `only` or for all in `old`.

    Returns the number of runs that differ or are missing.
    """
    before, after = (json.loads(path.read_text()) for path in (old, new))
    if before["machine"] != after["machine"]:
        print(f"Not one machine: {before['machine']} -> {after['machine']}")
    wrong, names = 0, only or list(before["runs"])
    for name in names:
        found: str | None = "missing"
        if name in before["runs"] and name in after["runs"]:
            found = difference(before["runs"][name], after["runs"][name])
        wrong += found is not None
        print(f"{name:20} {found or 'equal'}")
    print(f"{len(names) - wrong} of {len(names)} runs are equal")
    return wrong


def main() -> int:
    """Makes the runs, or compares two files; 1 for a failed run or a difference."""
    parser = argparse.ArgumentParser(prog="benchmarks.seeded", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=pathlib.Path, metavar="FILE.json")
    what.add_argument("--compare", type=pathlib.Path, nargs=2, metavar=("OLD", "NEW"))
    parser.add_argument("--only", nargs="+", choices=list(RUNS), default=[])
    given = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if given.compare:
        old, new = given.compare
        return int(compare(old, new, given.only) > 0)
    return int(make(given.out, given.only) > 0)


if __name__ == "__main__":
    raise SystemExit(main())
