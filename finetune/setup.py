"""What is built from a run's settings and data before its first step.

`build` makes a `RunSetup`: the classifier, its parameters and the methods' state;
`make_stage` makes the phases with their terms; `begin` loads the weights and measures
what depends on them.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from afterimage.checkpoints.trees import TransferReport, flatten
from afterimage.data import ImageSet
from afterimage.data.augmentations import make_augment
from afterimage.data.whole_photos import WholePhotos
from afterimage.encoder import encoder_manifest
from afterimage.errors import UserError
from afterimage.finetune.classifier import providers, standardise
from afterimage.finetune.config import FinetuneConfig
from afterimage.finetune.data import RunData
from afterimage.finetune.losses import balanced_weights, cross_entropy
from afterimage.finetune.method import Model, Now, Say, Stream
from afterimage.finetune.scoring import Scorer
from afterimage.finetune.source import (
    SOURCE_HEAD,
    frozen_copy,
    load_weights,
    read_head,
    source_rules,
)
from afterimage.models import abstract_encoder
from afterimage.models.classifier import HEAD, ClassifierNetwork, HeadConfig
from afterimage.outputs import Outputs
from afterimage.runs import Run, write_json
from afterimage.training.batches import (
    EvaluationRunner,
    check_batch,
    eval_batches,
    make_mesh,
    subsample,
)
from afterimage.training.stage import Context, Phase, Stage, Term

_MOST_TO_STANDARDISE = 20_000
Tree = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSetup:
    """The parts of a run; methods read it in their hooks."""

    config: FinetuneConfig
    data: RunData
    opened: Mapping[str, Any]
    """What each method's `open` returned, by method name."""
    classifier: ClassifierNetwork
    heads: Mapping[str, HeadConfig]
    """The heads that learn; the main head comes first."""
    params: Tree
    """Structure of the parameters; the encoder's leaves may still be shapes."""
    stats: Tree
    """The same for the statistics and, by method name, the methods' state."""
    mesh: Mesh
    steps: int
    runner: EvaluationRunner
    """Runs jitted functions over whole image sets."""
    scorers: Mapping[str, Scorer]
    plan: Any = None
    """Set by the task: a sequence of tasks, or a sampler of episodes."""
    labelled: list[Term] = dataclasses.field(default_factory=list)
    """The losses of the labelled images, the main task's first; filled before methods
    are asked for their terms."""

    @property
    def scorer(self) -> Scorer:
        """The scorer of the main head."""
        return next(iter(self.scorers.values()))

    @functools.cached_property
    def outputs(self) -> Outputs:
        """What the main head predicts."""
        return self.config.task.outputs(self.data.labels)

    @property
    def width(self) -> int:
        """Number of features the first head reads."""
        return feature_width(self.stats, next(iter(self.heads)))

    def manifest(self, step: int) -> dict[str, Any]:
        """The manifest of an artefact of this run."""
        trained = {
            "stage": "finetune",
            "mode": self.config.mode.name,
            "steps": step,
            "of": self.steps,
            "labels": len(self.data.labels.train),
            "seed": self.config.seed,
            "from": self.data.source.describe(),
        }
        return encoder_manifest(
            self.data.model,
            abstract_encoder(self.data.model).feature_info,
            self.classifier.preprocessing,
            self.data.labels.train.identity,
            trained,
        )

    def add_parameters(self, terms: Sequence[Term]) -> None:
        """Adds the terms' own parameters, `terms/NAME/…`, to the run's."""
        own = {term.name: dict(term.params) for term in terms if term.params}
        if own:
            self.params["terms"] = own


def feature_width(stats: Tree, head: str) -> int:
    """Number of features a head reads."""
    known = stats["heads"][head]
    return known.get("kept", known["mean"]).size


def build(
    config: FinetuneConfig,
    data: RunData,
    *,
    heads: Mapping[str, HeadConfig] | None = None,
    plan: Any = None,
) -> RunSetup:
    """The parts of a run.

    By default there is one head for the labels and one for each further label column.
    Raises UserError for any setting that cannot work, before the first step.
    """
    mesh = make_mesh(config.devices)
    check_batch(config.batch_size, config.accumulate, mesh)
    steps = config.total_steps(len(data.labels.train))
    opened = {method.name: method.open(config, data) for method in config.methods}
    heads = _heads(config, data) if heads is None else heads
    source_head = read_head(config)
    every = dict(heads)
    if source_head is not None:
        every[SOURCE_HEAD] = source_head.config
    classifier, params, stats = ClassifierNetwork.create(
        dataclasses.replace(data.model, remat=config.remat),
        every,
        data.preprocessing,
        seed=config.seed,
        dtype=config.precision,
        fresh=not config.mode.loads_source or bool(config.may_differ),
    )
    _check_statistics(config, stats["encoder"])
    runner = EvaluationRunner(mesh, config.batch_size // config.accumulate)
    setup = RunSetup(
        config=config,
        data=data,
        opened=opened,
        classifier=classifier,
        heads=heads,
        params=params,
        stats=stats,
        mesh=mesh,
        steps=steps,
        runner=runner,
        scorers={head: Scorer(classifier, head, runner) for head in heads},
        plan=plan,
    )
    if any(method.needs_source for method in config.methods):
        stats["source"] = frozen_copy(data.source, source_head)
    if any(method.weighs_examples for method in config.methods):
        stats["examples"] = {"weight": jnp.ones(len(data.labels.train))}
        held = data.labels.validation
        weighed = any(method.weighs_validation for method in config.methods)
        if held is not None and weighed:
            stats["examples"]["validation"] = jnp.ones(len(held))
    for method in config.methods:
        kept = method.state(setup)
        if kept is not None:
            stats[method.name] = kept
    return setup


def make_head(config: FinetuneConfig, classes: int) -> HeadConfig:
    """A head for this many classes."""
    head = HeadConfig(classes, config.head, config.features, width=config.head_width)
    for method in config.methods:
        head = method.change_head(head)
    return head


def _heads(config: FinetuneConfig, data: RunData) -> dict[str, HeadConfig]:
    names = data.labels.head_names(config.columns)
    return {head: make_head(config, len(classes)) for head, classes in names.items()}


def _check_statistics(config: FinetuneConfig, stats: Mapping[str, Any]) -> None:
    """Raises UserError if it is unclear which stream's moments BatchNorm keeps."""
    several = any(method.streams for method in config.methods)
    if several and config.domain_statistics is None and jax.tree.leaves(stats):
        raise UserError(
            "This encoder keeps normalisation statistics (BatchNorm), but there are "
            "two streams of images: set --domain-statistics to source, target, joint "
            "or frozen (joint if all images are of one domain)"
        )


# The stage: its phases, their terms, and what the terms read.


def make_stage(setup: RunSetup) -> Stage:
    """The phases of the mode, with the task's loss and the methods' terms."""
    config = setup.config
    terms = [config.task.loss(setup)]
    for method in config.methods:
        terms = method.labelled_terms(setup, terms, 0)
    setup.labelled.extend(terms)
    for method in config.methods:
        terms = [*terms, *method.terms(setup)]
    setup.add_parameters(terms)
    paths = list(flatten(setup.params))
    phases = config.mode.phases(paths, tuple(terms), setup.steps, config)
    return stage_of(setup, phases, setup.data.streams)


def stage_of(
    setup: RunSetup, phases: Sequence[Phase], streams: Mapping[str, Stream]
) -> Stage:
    """These phases and streams as a stage, checked from shapes alone."""
    combines = [method.combine() for method in setup.config.methods]
    stage = Stage(
        phases=tuple(phases),
        providers=_make_providers(setup, streams),
        combine=next((one for one in combines if one is not None), None),
    )
    stage.check(setup.params, setup.stats, _batch_shapes(setup, streams))
    return stage


def classification_loss(setup: RunSetup) -> Term:
    """The cross-entropy of the labels."""
    config = setup.config
    return cross_entropy(
        setup.heads[HEAD].classes,
        class_weights=_class_weights(setup),
        label_smoothing=config.label_smoothing,
        examples=example_weights(config),
    )


def example_weights(config: FinetuneConfig) -> str | None:
    """The name under which terms read example weights, if there are any."""
    weighed = any(method.weighs_examples for method in config.methods)
    return "train/weight" if weighed else None


def _class_weights(setup: RunSetup) -> tuple[float, ...] | None:
    given, labels = setup.config.class_weights, setup.data.labels
    names = labels.class_names
    if given == "none":
        return None
    if given == "balanced":
        return balanced_weights(labels.classes, len(names))
    weights = tuple(float(w) for w in given.split(","))
    if len(weights) != len(names):
        raise UserError(
            f"class_weights has {len(weights)} numbers for {len(names)} classes; give "
            f"one per class, in the order {', '.join(names)}"
        )
    return weights


def _batch_shapes(
    setup: RunSetup, streams: Mapping[str, Stream]
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a batch of every stream."""
    size = setup.config.batch_size // setup.config.accumulate
    train = setup.data.labels.train

    def rows(prefix: str, stream: Stream, count: int) -> Mapping[str, Any]:
        images = stream.images
        number = jax.ShapeDtypeStruct((count,), jnp.int32)
        pixels = jax.ShapeDtypeStruct((count, *train.shape), jnp.uint8)
        found = {f"{prefix}image": pixels, f"{prefix}index": number}
        if isinstance(stream.rows(setup.config), WholePhotos):
            found[f"{prefix}aspect"] = jax.ShapeDtypeStruct((count,), jnp.float32)
        if images.numbers is not None:
            wide = (count, len(images.numbers.names))
            found[f"{prefix}label"] = jax.ShapeDtypeStruct(wide, jnp.float32)
        elif images.labels is not None:
            found[f"{prefix}label"] = number
        return found | {f"{prefix}label.{task}": number for task in images.tasks}

    shapes = dict(rows("", Stream(train), size))
    for name, stream in streams.items():
        shapes |= rows(f"{name}/", stream, size * stream.ratio)
    return shapes


def _make_providers(
    setup: RunSetup, streams: Mapping[str, Stream]
) -> Callable[..., Mapping[str, Callable[[Context], Any]]]:
    """The providers of all streams, example weights, the source and the methods.

    `domain_statistics` says whose moments an encoder with BatchNorm keeps: with
    `source` and `target` each stream is normalised by its own batch; with `joint` all
    streams form one batch and share one forward pass; `frozen` keeps the stored
    moments. Without such layers all four are the same function.
    """
    config, classifier = setup.config, setup.classifier
    parts = {"train": providers(classifier, make_augment(config.augment))}
    for name, stream in streams.items():
        own = make_augment(stream.augment or config.augment)
        parts[name] = providers(classifier, own, name)
        for view, augment in stream.views.items():
            augmented = make_augment(augment)
            parts[view] = providers(classifier, augmented, view, of=name)
    statistics = config.domain_statistics
    # The last stream's moments are kept.
    last = "target" if statistics == "target" else "train"
    ordered = sorted(parts, key=lambda name: name == last)

    def provide(params, stats, batch, key, step, trainable):
        if statistics == "frozen":
            trainable = trainable - {"encoder"}
        found: dict[str, Callable[[Context], Any]] = {}
        for name in ordered:
            found |= parts[name](params, stats, batch, key, step, trainable)
        if statistics == "joint" and "encoder" in trainable:
            found |= _joint(classifier, params, stats, tuple(parts))
        if "examples" in stats:
            weights = stats["examples"]["weight"]
            found["train/weight"] = lambda _: jnp.take(weights, batch["index"])
        if "source" in stats:
            found |= source_rules(classifier, stats["source"])
        now = Now(params, stats, batch, key, trainable)
        for method in config.methods:
            found |= method.providers(setup, found, now)
        return found

    return provide


def _joint(
    classifier: ClassifierNetwork, params: Any, stats: Any, streams: tuple[str, ...]
) -> dict[str, Callable[[Context], Any]]:
    """One forward pass of all streams as a single batch, in training mode."""

    def forward(ctx: Context) -> Any:
        images = jnp.concatenate([ctx[f"{stream}/image"] for stream in streams])
        return classifier.maps(params, stats, images, train=True)

    def share(number: int) -> Callable[[Context], Any]:
        def rule(ctx: Context) -> Any:
            maps, after = ctx["joint/forward"]
            sizes = [len(ctx[f"{stream}/image"]) for stream in streams]
            start = sum(sizes[:number])
            return [m[start : start + sizes[number]] for m in maps], after

        return rule

    return {
        "joint/forward": forward,
        **{f"{stream}/forward": share(n) for n, stream in enumerate(streams)},
    }


# Before the first step: weights from the source, and what is measured with them.


def begin(setup: RunSetup, run: Run, say: Say, images: ImageSet | None = None) -> Model:
    """(params, stats) before the first step of a fresh run.

    Loads weights from the source, with a report in transfer.json; measures the feature
    statistics over `images`, by default the labelled ones; then lets methods measure.
    """
    config, labels = setup.config, setup.data.labels
    params, stats = setup.params, setup.stats
    if run.is_main_process:
        write_json(run.path / "labels.json", labels.record(config))
    if config.mode.loads_source:
        source = setup.data.source
        params, stats, reports = load_weights(source, params, stats, config.may_differ)
        say(_transferred(reports["params"]))
        if run.is_main_process:
            found = {name: report.to_dict() for name, report in reports.items()}
            write_json(run.path / "transfer.json", {"from": config.from_, **found})
    some = subsample(labels.train if images is None else images, _MOST_TO_STANDARDISE)
    batches = eval_batches(some, config.batch_size)
    stats = standardise(setup.classifier, params, stats, batches, list(setup.heads))
    for method in config.methods:
        stats = {**stats, "heads": method.fit_heads(setup, (params, stats), say)}
    if "examples" in stats:
        stats["examples"] = _measured_weights(setup, (params, stats), say)
    for method in config.methods:
        kept = method.measure(setup, (params, stats), say)
        if kept is not None:
            stats[method.name] = kept
    return params, stats


def _measured_weights(setup: RunSetup, model: Model, say: Say) -> Tree:
    """The example weights; the training weights have mean one."""
    train: Any = 1.0
    validation: Any = None
    for method in setup.config.methods:
        found = method.example_weights(setup, model, say)
        if "train" in found:
            train = train * np.asarray(found["train"], np.float64)
        if "validation" in found:
            own = found["validation"]
            validation = own if validation is None else validation * own
    made = {"weight": jnp.asarray(train / train.mean(), jnp.float32)}
    if validation is not None:
        made["validation"] = jnp.asarray(validation, jnp.float32)
    return made


def _transferred(report: TransferReport) -> str:
    """The totals and every leaf that was not loaded; transfer.json lists all leaves."""
    lines = str(report).splitlines()
    return "\n".join(line for line in lines if not line.startswith("loaded "))
