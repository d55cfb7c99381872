"""The base class of fine-tuning methods; each method has its own file in `methods/`.

A method is a small frozen dataclass of settings, with hooks that a run calls. A run
calls the hooks of its methods in the order in which the methods were given; by default
a hook does nothing. A method never stores what it computes for a run: that is either
the return value of `open` (`setup.opened[name]`, on the host) or its state
(`stats[name]`, on the devices and in every checkpoint).

    @METHODS.add("my-method")
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class MyMethod(Method):
        \"\"\"One line, shown in lists of methods.\"\"\"

        weight: float = 1.0
        \"\"\"The help text of --my-method.weight.\"\"\"

        def terms(self, setup, phase=0):
            return [Term(name="my_method", fn=..., reads=(...), weight=self.weight)]
"""

import dataclasses
import pathlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from afterimage.plugins import METHODS

if TYPE_CHECKING:
    from afterimage.data import ImageSet, Splits
    from afterimage.data.sets import Rows
    from afterimage.finetune.config import FinetuneConfig
    from afterimage.finetune.data import Opener, RunData
    from afterimage.finetune.setup import RunSetup
    from afterimage.models.classifier import HeadConfig
    from afterimage.training.stage import Context, Term
    from afterimage.training.step import Combine, State
else:  # naming a method must not start JAX
    ImageSet = Splits = Rows = HeadConfig = FinetuneConfig = RunData = Opener = (
        RunSetup
    ) = Any
    State = Combine = Context = Term = Any

__all__ = ["METHODS", "Method", "Now", "Sections", "Stream"]

Tree = dict[str, Any]
Model = tuple[Any, Any]
"""(params, stats)"""
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Stream:
    """Images read alongside the labelled ones; its name is its key in a mapping.

    Terms read `NAME/image`, `NAME/maps`, `NAME/logits/HEAD` and the like.
    """

    images: "ImageSet"
    ratio: int = 1
    """Images per labelled image in each step."""
    augment: str | None = None
    """Augmentation. Default: that of the labelled images."""
    views: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """{name: augmentation}: further streams of the same images, by name."""

    def rows(self, config: Any) -> "Rows":
        """What training with these settings reads: whole photos, if they are asked for
        and every augmentation of the stream cuts them."""
        from afterimage.data.augmentations import cuts_first
        from afterimage.data.whole_photos import WholePhotos

        specs = (self.augment or config.augment, *self.views.values())
        whole = config.whole_photos and all(map(cuts_first, specs))
        return WholePhotos(self.images) if whole else self.images


@dataclasses.dataclass(frozen=True)
class Now:
    """The inputs of a training step's providers; traced arrays."""

    params: Any
    stats: Any
    """The model's statistics, and the state of each method by its name."""
    batch: Mapping[str, Any]
    key: Any
    """The random key of the step; `key_of` makes one of your own."""
    trainable: frozenset[str] = frozenset()
    """The parts that learn in this phase, such as `encoder`."""

    def key_of(self, method: "Method") -> Any:
        """A key for the method's own draws."""
        import jax

        return jax.random.fold_in(self.key, zlib.crc32(method.name.encode()))


@dataclasses.dataclass(frozen=True)
class Sections:
    """What a method or a task adds to the report."""

    headline: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """{label: figure}, shown in large type."""
    curves: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    """{heading: {series: [(step, value)]}}."""
    grids: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """{heading: (header, rows)}."""
    tables: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    """{heading: {key: value}}, collapsed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """A fine-tuning method: its settings are the fields, its hooks the methods below.

    The hooks are in the order in which a run calls them.
    """

    name: ClassVar[str]
    """The name it is registered under."""
    group: ClassVar[str]
    """Set by the decorator. "target": it needs images of a target domain,
    `setup.data.target`; "continual", "episodes": it works only with this task."""
    target_in_batch: ClassVar[bool] = False
    """Every batch includes images of the target domain: the stream `target`."""
    streams: ClassVar[tuple[str, ...]] = ()
    """The streams, besides `train`, on which it runs the encoder in training."""
    needs_source: ClassVar[bool] = False
    """It reads the frozen source model: its parameters as `source/params`, its maps of
    the training images as `source/maps`."""
    columns: ClassVar[tuple[str, ...]] = ()
    """Further label columns of the data, each of them a task with its own head."""
    needs_classes: ClassVar[bool] = True
    """It works only with classes, not with several labels or numbers."""
    acts_on_encoder: ClassVar[bool] = False
    """It has no effect if the encoder is frozen."""

    @property
    def task(self) -> str:
        """The task it works with."""
        alone = self.group in ("continual", "episodes")
        return self.group if alone else "classification"

    @property
    def needs_source_head(self) -> bool:
        """It also reads the source's own classifier: `source/logits`, and the head
        `source`, a copy that keeps learning with the encoder."""
        return False

    @property
    def weighs_examples(self) -> bool:
        """It implements `example_weights`."""
        return False

    @property
    def weighs_validation(self) -> str | None:
        """How the validation images are weighted, in words; None if they are not."""
        return None

    @property
    def trains_earlier_heads(self) -> bool:
        """In a sequence of tasks, the heads of earlier tasks keep learning."""
        return False

    # Before anything is built.

    def problems(self, config: "FinetuneConfig") -> list[str]:
        """Problems with the settings, one sentence each, without the method's name."""
        return []

    def open_labelled(self, splits: "Splits", opener: "Opener") -> "Splits":
        """The labelled images, including any that the method adds."""
        return splits

    def open_streams(self, data: "RunData", opener: "Opener") -> Mapping[str, Stream]:
        """Further streams of images, by name."""
        return {}

    def open(self, config: "FinetuneConfig", data: "RunData") -> Any:
        """Anything else the method reads from disk; stored as `setup.opened[name]`."""

    # While the run is built: shapes are known, weights are not yet loaded.

    def change_head(self, head: "HeadConfig") -> "HeadConfig":
        """The config of each head that learns, changed as the method needs."""
        return head

    def state(self, setup: "RunSetup") -> Any:
        """The structure of the state kept on the devices, `stats[name]`; None for no
        state. It must own its arrays: the state is donated to each step."""

    def labelled_terms(
        self, setup: "RunSetup", terms: list["Term"], phase: int
    ) -> list["Term"]:
        """The losses of the labelled images, with changes or additions."""
        return terms

    def terms(self, setup: "RunSetup", phase: int = 0) -> Sequence["Term"]:
        """The losses that the method adds in this phase."""
        return ()

    def combine(self) -> "Combine | None":
        """How the gradients of several tasks are combined; None adds them up."""

    def phase_streams(self, setup: "RunSetup", phase: int) -> Mapping[str, Stream]:
        """Streams of images that differ from phase to phase."""
        return {}

    def providers(
        self,
        setup: "RunSetup",
        known: Mapping[str, Callable[["Context"], Any]],
        now: Now,
    ) -> Mapping[str, Callable[["Context"], Any]]:
        """Values that terms can read, by name. `known` has those of others; a method
        may replace one, e.g. `stats/next`, by a function that wraps it."""
        return {}

    # Before the first step, with the weights loaded.

    def fit_heads(self, setup: "RunSetup", model: Model, say: Say) -> Tree:
        """`stats["heads"]`, before anything is measured with the heads."""
        return model[1]["heads"]

    def example_weights(
        self, setup: "RunSetup", model: Model, say: Say
    ) -> Mapping[str, Any]:
        """{"train": weights [n]} of the labelled images, and {"validation": …} if
        `weighs_validation`. Weights of several methods are multiplied."""
        return {}

    def measure(self, setup: "RunSetup", model: Model, say: Say) -> Any:
        """`stats[name]` at the start of training; by default as `state` made it."""
        return model[1].get(self.name)

    # During training.

    def remember(self, setup: "RunSetup", state: "State", phase: int) -> Any:
        """`stats[name]` after a phase; it must depend on the training state alone, so
        that a resumed run computes the same."""
        return state["stats"].get(self.name)

    def metrics(
        self, setup: "RunSetup", model: Model, logits: Callable[["ImageSet"], Any]
    ) -> Mapping[str, float]:
        """More metrics of an evaluation."""
        return {}

    # After the last step, with the selected step's weights.

    def correct(self, setup: "RunSetup", model: Model) -> tuple[Any, Mapping[str, Any]]:
        """(params, entries of results.json): the finished model, corrected."""
        return model[0], {}

    def results(self, setup: "RunSetup", model: Model) -> Mapping[str, Any]:
        """Entries of results.json."""
        return {}

    def pictures(
        self, setup: "RunSetup", model: Model, folder: pathlib.Path | None
    ) -> Mapping[str, tuple[str, pathlib.Path]]:
        """{heading: (caption, PNG)}, written to `folder`. Every process calls this;
        only the first has a folder."""
        return {}

    def report(self, results: Mapping[str, Any]) -> Sections:
        """What the method adds to report.html; its headline is also in the summary."""
        return Sections()
