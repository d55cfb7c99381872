"""A detection run: an encoder, images and boxes in; a detector and scores out."""

import dataclasses
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from afterimage import runtime
from afterimage.checkpoints import files, schemas
from afterimage.checkpoints.store import Store
from afterimage.checkpoints.trees import transfer
from afterimage.checkpoints.weights import write_encoder
from afterimage.data import Preprocessing
from afterimage.data.sets import Columns
from afterimage.errors import UserError
from afterimage.finetune.source import SourceModel
from afterimage.models import ModelConfig, Network, abstract_encoder
from afterimage.report import Figure, Gallery, Table, Tile, logged, write_report
from afterimage.report.parts import image_uri
from afterimage.runs import Run, write_json
from afterimage.training.batches import (
    BatchLoader,
    EvaluationRunner,
    check_batch,
    make_mesh,
    spaced,
)
from afterimage.training.job import Job, Say, Trainer, best_saved, execute
from afterimage.training.loop import NO_CALLBACKS, Callbacks, StopSignal
from afterimage.training.optimiser import Group
from afterimage.training.sharding import whole
from afterimage.training.stage import Context, Phase, Stage, Term, describe
from afterimage.training.step import State, averaged_params, averaged_stats
from afterimage_detection import losses
from afterimage_detection.config import DetectConfig
from afterimage_detection.data import PADDING, Data, Letterbox, open_boxes
from afterimage_detection.detector import DETECTOR, drawn, fill_of, load_detector
from afterimage_detection.network import DetectionModel, cell_of
from afterimage_detection.scores import average_precision

_RESULTS, _PAGE = "results.json", "report.html"
_SHOWN, _SCORE = 8, 0.3
"""Images on the page, and the least score of a box there."""


@dataclasses.dataclass(frozen=True)
class DetectResult:
    """The files and scores of a run."""

    run: pathlib.Path
    """The run folder; of a run in a bucket, its copy on this machine."""
    where: str
    """The run folder as it was given."""
    results: Mapping[str, Any]
    """results.json: the step, and the scores of `validation` and `test`."""
    complete: bool
    """True if the run was already complete, so that nothing was trained."""

    def summary(self) -> str:
        """A few lines for a terminal."""
        name = "test" if self.results["test"] else "validation"
        lines = [f"step {self.results['step']:,} of {self.results['steps']:,}"]
        if found := self.results[name]:
            lines = [
                f"{name} ({found['images']:,} images, {found['boxes']:,} boxes): mAP "
                f"{found['map']:.3f}, {found['map50']:.3f} at IoU 0.5",
                *(f"  {n}: AP {_text(ap)}" for n, ap in [*found["ap"].items()][:8]),
                *lines,
            ]
        for what, place in (("detector", DETECTOR), ("report", _PAGE)):
            lines.append(f"{what:8}  {self.where}/{place}")
        return "\n".join(lines)


def detect(
    config: DetectConfig, *, callbacks: Callbacks = NO_CALLBACKS
) -> DetectResult:
    """Train as `config` says, or continue the run in its folder.

    A complete run is left unchanged and its result returned.

    Raises:
      UserError, DataError: invalid settings, images or boxes, or another run's folder.
      CheckpointError: the encoder or every checkpoint of the run is damaged.
      Diverged, Interrupted: as in the training loop; progress is saved.
    """
    runtime.enable_compile_cache()
    augment = losses.boxed_augment(config.augment)
    check_batch(config.batch_size, config.accumulate, make_mesh(config.devices))
    run = Run(config.out, kind="detect", config=config)
    run.check_settings()
    source = SourceModel.read(config.from_)
    if config.mode == "scratch" and source.model.norm == "frozen":
        raise UserError(
            f"mode=scratch: the encoder in {config.from_} has norm 'frozen', which "
            "never learns; give the same encoder imported with --norm batch"
        )
    prep = source.preprocessing
    side = config.image_size or max(prep.image_size)
    prep = dataclasses.replace(prep, image_size=(side, side))
    # A bottleneck, which no cell needs, is left out.
    model = dataclasses.replace(source.model, bottleneck=None, remat=config.remat)
    DetectionModel(model, side, 1, rngs=nnx.Rngs(0), fresh=False)  # before reading
    shape = (side, side, prep.channels)
    decoder = Letterbox(shape, shape[:2], prep.value_range, fill_of(prep))
    data = open_boxes(config, decoder)
    with run:
        run.check_data(data.train.name, data.fingerprint)
        job = DetectJob(config, run, data, source, model, prep, augment)
        return execute(job, run, callbacks)


class DetectJob(Job[DetectResult]):
    """A detection run, as a job for the trainer."""

    best, direction = "map", "max"

    def __init__(
        self,
        config: DetectConfig,
        run: Run,
        data: Data,
        source: SourceModel,
        model: ModelConfig,
        preprocessing: Preprocessing,
        augment: losses.Augment,
    ):
        self.config, self.run, self.data, self.source = config, run, data, source
        self.model, self.preprocessing, self.augment = model, preprocessing, augment
        self.side, self.mesh = preprocessing.image_size[0], make_mesh(config.devices)
        options = {"rngs": nnx.Rngs(config.seed), "fresh": config.mode == "scratch"}
        module = DetectionModel(model, self.side, len(data.classes), **options)
        self.network, self.params, self.stats = Network.create(
            module, dtype=config.precision
        )
        steps = config.total_steps(len(data.train))
        stage = Stage(phases=(self._phase(steps),), providers=self._provide)
        size = config.batch_size // config.accumulate
        batch = {
            name: jax.ShapeDtypeStruct((size, *array.shape[1:]), array.dtype)
            for name, array in data.train.arrays.items()
        }
        stage.check(self.params, self.stats, batch)
        self.trainer = Trainer(
            stage, self.params, mesh=self.mesh, images=len(data.train)
        )
        self.runner = EvaluationRunner(self.mesh, size)
        self._peaks = self.runner.jit(
            lambda *inputs: losses.peaks(*self._apply(*inputs)[0])
        )
        if data.validation is None:  # then the last step is kept
            self.best = None

    def _apply(self, params: Any, stats: Any, images: Any, train: bool = False) -> Any:
        images = self.preprocessing.normalise(images)
        return self.network.apply(params, stats, images, train=train)

    def _phase(self, steps: int) -> Phase:
        config = self.config
        encoder = Group("encoder", "^encoder/", freeze=config.mode == "frozen")
        if config.mode == "full":
            encoder = dataclasses.replace(encoder, lr=config.encoder_lr)

        def term(name: str, loss: Any) -> Term:
            reads = (f"train/{name}", "train/targets")
            of: Any = lambda view: (loss(*(view[read] for read in reads)), {})  # noqa: E731
            return Term(name=name, fn=of, reads=reads)

        return Phase(
            name=config.mode,
            terms=(term("centres", losses.focal), term("sides", losses.sides)),
            groups=(Group("head", "^head/"), encoder),
            steps=steps,
            options=config,
        )

    def _provide(self, params, stats, batch, key, step, trainable) -> Any:
        del step
        cell = cell_of(self.side)

        def moved(_: Context) -> Any:
            pixels = batch["image"].astype(jnp.float32) / 255
            return self.augment(key, pixels, batch["boxes"], batch["classes"])

        def targets(ctx: Context) -> Any:
            _, boxes, classes = ctx["train/moved"]
            cells = self.side // cell
            return losses.make_targets(
                boxes, classes, cells, cell, len(self.data.classes)
            )

        return {
            "train/moved": moved,
            "train/forward": lambda ctx: self._apply(
                params, stats, ctx["train/moved"][0], "encoder" in trainable
            ),
            "train/targets": targets,
            "train/centres": lambda ctx: ctx["train/forward"][0][0],
            "train/sides": lambda ctx: ctx["train/forward"][0][1],
            "stats/next": lambda ctx: ctx["train/forward"][1],
        }

    def _fresh(self, params: Any, stats: Any) -> State:
        seed, ema = self.config.seed, self.config.ema > 0
        return self.trainer.fresh(params, stats, seed=seed, ema=ema)

    def template(self) -> State:
        def array(leaf: Any) -> Any:
            shaped = isinstance(leaf, jax.ShapeDtypeStruct)
            return np.zeros(leaf.shape, leaf.dtype) if shaped else leaf

        return self._fresh(*jax.tree.map(array, (self.params, self.stats)))

    def lost(self) -> tuple[str, ...] | None:
        lost = self.run.missing([DETECTOR, "encoder"], [_PAGE, _RESULTS])
        if lost is None:
            try:
                self.result(complete=True)
            except (OSError, ValueError):
                return (_RESULTS,)
        return lost

    def result(self, *, complete: bool) -> DetectResult:
        path, where = self.run.path, self.run.where.rstrip("/")
        results = schemas.parse(files.read_bytes(path / _RESULTS, schemas.MOST))
        return DetectResult(path, where, results, complete)

    def begin(self, say: Say, stop: StopSignal) -> State:
        if self.config.mode == "scratch":
            return self._fresh(self.params, self.stats)
        given = {k: v for k, v in self.source.params.items() if k != "bottleneck"}
        params, _ = transfer({"encoder": given}, {"encoder": self.params["encoder"]})
        old = {"encoder": self.source.stats} if self.source.stats else {}
        stats, _ = transfer(old, self.stats)
        return self._fresh({**self.params, **params}, stats)

    def feed(self, phase: int) -> BatchLoader:
        del phase
        return BatchLoader(self.data.train, options=self.config, mesh=self.mesh)

    def introduction(self) -> str:
        data, names = self.data, self.data.classes
        parts = {"validation": data.validation, "test": data.test}
        held = [f"{len(p):,} {n}" for n, p in parts.items() if p is not None]
        return (
            f"{data.train.name}: {len(data.train):,} training images with "
            f"{_boxes(data.train):,} boxes, {' and '.join(held) or 'none held out'}\n"
            f"{len(names)} classes: {', '.join(names[:8])}"
            f"{', …' * (len(names) > 8)}; in squares of {self.side} pixels\n"
            + describe(self.trainer.stage, self.params)
        )

    # Scores.

    def score(
        self, weights: Any, part: Columns, check: Any = lambda: None
    ) -> dict[str, Any]:
        """The scores of a set. IoU is the same in the pixels of the squares."""
        found: list[np.ndarray] = []
        for _, batch, mask in self.runner.batches(part):
            check()
            rows = np.asarray(self._peaks(*weights, batch["image"]), np.float64)
            found += list(rows[mask])
        counts = {"images": len(part), "boxes": _boxes(part)}
        names = self.data.classes
        return counts | average_precision(_truth(part), found, names)

    def evaluate(
        self, state: State, step: int, stop: StopSignal
    ) -> Mapping[str, float]:
        """Scores of the validation images; without any, `train_…` of training ones."""
        part, prefix = self.data.validation, ""
        if part is None:
            part, prefix = self.data.train, "train_"
        found = self.score(self.weights(state), part, stop.check)
        some = {name: found[name] for name in ("map", "map50", "map75")}
        some |= {f"ap/{n}": v for n, v in found["ap"].items() if v is not None}
        return {prefix + name: value for name, value in some.items()}

    def weights(self, state: State) -> tuple[Any, Any]:
        """(params, stats) of a state; the running means if they are kept."""
        partition = self.trainer.partition(int(state["step"]))
        return averaged_params(state, partition), averaged_stats(state)

    # What is kept.

    def manifest(self, step: int) -> dict[str, Any]:
        """The manifest of the encoder of a step."""
        info = abstract_encoder(self.model).feature_info
        return {
            "model": self.model.to_dict(),
            "preprocessing": self.preprocessing.to_dict(),
            "feature_info": [dataclasses.asdict(each) for each in info],
            "data": {
                "name": self.data.train.name,
                "fingerprint": self.data.fingerprint,
            },
            "trained": {
                "stage": "detect",
                "mode": self.config.mode,
                "steps": step,
                "of": self.trainer.stage.steps,
                "labels": len(self.data.train),
                "seed": self.config.seed,
                "from": self.source.describe(),
            },
        }

    def encoder(self, state: State) -> tuple[Any, Any, dict[str, Any]]:
        params, stats = self.weights(state)
        step = int(state["step"])
        return params["encoder"], stats.get("encoder", {}), self.manifest(step)

    def finish(self, state: State, store: Store) -> DetectResult:
        step, weights = int(state["step"]), self.weights(state)
        saved = best_saved(self.run, store, step) if self.best else None
        if saved is not None:
            *weights, step = saved
        results = {
            name: None if part is None else self.score(weights, part)
            for name, part in (
                ("validation", self.data.validation),
                ("test", self.data.test),
            )
        }
        params, stats = whole(tuple(weights))
        if self.run.is_main_process:
            own, folder = self.manifest(step), self.run.path
            kept = {"classes": self.data.classes, "numbers": self.data.numbers}
            write_encoder(folder / DETECTOR, params, stats, kept | own, kind=DETECTOR)
            alone = params["encoder"], stats.get("encoder", {})
            write_encoder(folder / "encoder", *alone, own)
            self._write_page(results, step)
        return self.result(complete=False)

    def _write_page(self, results: Mapping[str, Any], step: int) -> None:
        """Writes report.html, then results.json: its presence means all is there."""
        run, data, steps = self.run, self.data, self.trainer.stage.steps
        run.keep_time()
        run.metrics.flush()
        name = "test" if results["test"] else "validation"
        rows, kind = run.metrics.rows, "" if data.validation else "train_"
        headline: dict[str, Figure] = {}
        parts: dict[str, Any] = {f"Images of {name}": self._gallery(name)}
        if scored := results[name]:
            meaning = (
                "Average precision over classes and IoU of 0.5 to 0.95, as COCO's."
            )
            headline = {
                f"{name} mAP": Figure(_text(scored["map"]), meaning),
                f"{name} mAP at IoU 0.5": Figure(_text(scored["map50"])),
            }
            each = [[n, _text(ap)] for n, ap in scored["ap"].items()]
            parts["AP by class"] = Table(["class", "AP"], each)
        chosen = ", chosen by validation mAP" if data.validation else ""
        terms = ("loss", "centres", "sides")
        write_report(
            run.path / _PAGE,
            title=f"Detector of {data.train.name} (mode {self.config.mode})",
            lead="Boxes and classes of objects, learned from images and boxes.",
            facts={
                "Run": run.where,
                "Encoder": self.config.from_,
                "Boxes": f"{_boxes(data.train):,} in {len(data.train):,} images",
                "Step": f"{step:,} of {steps:,}{chosen}",
                **run.sessions.facts(),
            },
            command=next(iter(run.sessions.commands), ""),
            headline=headline,
            parts=parts,
            curves={
                "Loss": {term: logged(rows, f"train/{term}") for term in terms},
                "mAP": {"validation": logged(rows, f"eval/{kind}map")},
                "Learning rate": {"learning rate": logged(rows, "train/lr")},
            },
            settings=run.settings,
            tables={"Machine": runtime.fingerprint()},
        )
        finished = time.strftime("%Y-%m-%dT%H:%M:%S")
        found = {"step": step, "steps": steps, **results, "finished": finished}
        write_json(run.path / _RESULTS, found)

    def _gallery(self, name: str) -> Gallery:
        """Some images with their true boxes, and with those found."""
        part, names = getattr(self.data, name) or self.data.train, self.data.classes
        some = spaced(len(part), _SHOWN)
        images, rows = part.arrays["image"][some], []
        every = load_detector(self.run.path).rows(images)
        truths = _truth(
            Columns("", part.inputs(some), [part.ids[int(n)] for n in some])
        )
        for n, image, truth, found in zip(some, images, truths, every):
            truth = truth[truth[:, 4] >= 0]
            truth[:, 2:4] -= truth[:, :2]
            tiles = [
                Tile(image_uri(drawn(image, boxes, names), 192), caption)
                for caption, boxes in (
                    ("truth", truth),
                    ("found", found[found[:, 5] >= _SCORE]),
                )
            ]
            rows.append((str(part.ids[int(n)]), tiles))
        note = f"Found: boxes with a score of at least {_SCORE}. A colour for a class."
        return Gallery(note, rows, aligned=True)


def _truth(part: Columns) -> list[np.ndarray]:
    """(x1, y1, x2, y2, class) of the objects of each image."""
    boxes, classes = (part.arrays[n].astype(np.float64) for n in ("boxes", "classes"))
    rows = np.concatenate([boxes, classes[..., None]], -1)
    return [row[row[:, 4] != PADDING] for row in rows]


def _boxes(part: Columns) -> int:
    """How many objects there are."""
    return int((part.arrays["classes"] >= 0).sum())


def _text(ap: float | None) -> str:
    return "-" if ap is None else f"{ap:.3f}"
