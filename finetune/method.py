"""What a fine-tuning method is: a class, in a file of its own in `methods/`.

A method is a small frozen dataclass of settings, with hooks that a run calls. A run
calls the hooks of its methods in the order in which the methods were given; every hook
does nothing unless the method overrides it. What a method computes for a run is never
stored in the method: it is what `open` returns (`setup.opened[name]`, on the host), or
its state (`stats[name]`, on the devices and in every checkpoint).

    @METHODS.add("my-method")
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class MyMethod(Method):
        \"\"\"One line: what lists of methods show.\"\"\"

        weight: float = 1.0
        \"\"\"What the help says of --my-method.weight.\"\"\"

        def terms(self, setup, phase=0):
            return [Term(name="my_method", fn=..., reads=(...), weight=self.weight)]
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from afterimage.plugins import METHODS

if TYPE_CHECKING:
    from afterimage.data import ImageSet, Splits
    from afterimage.finetune.classifier import HeadConfig
    from afterimage.finetune.config import FinetuneConfig
    from afterimage.finetune.data import Opener, RunData
    from afterimage.finetune.setup import RunSetup
    from afterimage.training.stage import Context, Term
    from afterimage.training.step import Combine, State
else:  # naming a method must not start JAX
    ImageSet = Splits = HeadConfig = FinetuneConfig = RunData = Opener = RunSetup = Any
    State = Combine = Context = Term = Any

__all__ = ["METHODS", "Method", "Now", "Sections", "Stream"]

Tree = dict[str, Any]
Model = tuple[Any, Any]
"""(params, stats)"""
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Stream:
    """Images that are read beside the labelled ones; its name is a key of a mapping.

    Terms read `NAME/image`, `NAME/maps`, `NAME/logits/HEAD` and the like.
    """

    images: "ImageSet"
    ratio: int = 1
    """Images a step for each labelled one."""
    augment: str | None = None
    """Their augmentation. Default: that of the labelled images."""
    views: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """{name: augmentation}: the same images once more, as streams of these names."""


@dataclasses.dataclass(frozen=True)
class Now:
    """What the rules of a training step are made from; traced arrays."""

    params: Any
    stats: Any
    """The model's statistics, and the state of each method by its name."""
    batch: Mapping[str, Any]
    key: Any
    """The random key of the step; fold a constant of your own into it."""


@dataclasses.dataclass(frozen=True)
class Sections:
    """What a method or a task adds to the report."""

    headline: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """{label: figure}, shown large."""
    curves: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    """{heading: {series: [(step, value)]}}."""
    grids: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """{heading: (header, rows)}."""
    tables: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    """{heading: {key: value}}, folded."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """A fine-tuning method: its settings are the fields, its hooks the methods below.

    The hooks are in the order in which a run calls them.
    """

    name: ClassVar[str]
    """The name it is registered under."""
    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    """The tasks that it works in."""
    needs_target: ClassVar[bool] = False
    """It reads images of a target domain: `setup.data.target`."""
    target_in_batch: ClassVar[bool] = False
    """Every batch has images of the target domain: the stream `target`."""
    streams: ClassVar[tuple[str, ...]] = ()
    """The streams on which it runs the encoder in training, beside `train`."""
    needs_source: ClassVar[bool] = False
    """The source model stays at hand, frozen: its parameters as `source/params`, what
    it makes of the training images as `source/maps`."""
    columns: ClassVar[tuple[str, ...]] = ()
    """Further label columns of the data, each of them a task with its own head."""
    acts_on_encoder: ClassVar[bool] = False
    """It does nothing where the encoder is frozen."""

    @property
    def needs_source_head(self) -> bool:
        """The source's own classifier stays at hand too: `source/logits`, and a copy
        that goes on learning with the encoder, the head `source`."""
        return False

    @property
    def weighs_examples(self) -> bool:
        """It has `example_weights`."""
        return False

    @property
    def weighs_validation(self) -> str | None:
        """How the validation images are weighed, in words; None if they are not."""
        return None

    @property
    def trains_earlier_heads(self) -> bool:
        """In a sequence of tasks, the heads of earlier tasks go on learning."""
        return False

    # Before anything is built.

    def problems(self, config: "FinetuneConfig") -> list[str]:
        """What cannot work, a sentence each, without the method's name."""
        return []

    def open_labelled(self, splits: "Splits", opener: "Opener") -> "Splits":
        """The labelled images, with those that the method adds."""
        return splits

    def open_streams(self, data: "RunData", opener: "Opener") -> Mapping[str, Stream]:
        """Further streams of images, by name."""
        return {}

    def open(self, config: "FinetuneConfig", data: "RunData") -> Any:
        """What else the method reads from disk: `setup.opened[name]`."""

    # While the run is built: shapes are known, weights are not loaded.

    def change_head(self, head: "HeadConfig") -> "HeadConfig":
        """Each of the heads that learn, as the method wants it."""
        return head

    def state(self, setup: "RunSetup") -> Any:
        """The structure of what the method keeps on the devices, `stats[name]`; None
        if it keeps nothing. Arrays of its own: the state is donated to each step."""

    def labelled_terms(
        self, setup: "RunSetup", terms: list["Term"], phase: int
    ) -> list["Term"]:
        """The losses of the labelled images, changed, or with others beside them."""
        return terms

    def terms(self, setup: "RunSetup", phase: int = 0) -> Sequence["Term"]:
        """The losses that the method adds in this phase."""
        return ()

    def combine(self) -> "Combine | None":
        """How one gradient is made of those of several tasks; None adds them up."""

    def phase_streams(self, setup: "RunSetup", phase: int) -> Mapping[str, Stream]:
        """Streams of images that differ from phase to phase."""
        return {}

    def providers(
        self,
        setup: "RunSetup",
        known: Mapping[str, Callable[["Context"], Any]],
        now: Now,
    ) -> Mapping[str, Callable[["Context"], Any]]:
        """Values that terms can read, by name; `known` has those of others, and a
        method may give one of them again, e.g. `stats/next`, wrapping the old one."""
        return {}

    # Before the first step, on the loaded weights.

    def fit_heads(self, setup: "RunSetup", model: Model, say: Say) -> Tree:
        """`stats["heads"]`, before anything else is measured through the heads."""
        return model[1]["heads"]

    def example_weights(
        self, setup: "RunSetup", model: Model, say: Say
    ) -> Mapping[str, Any]:
        """{"train": weights [n]} of the labelled images, and {"validation": …} if
        `weighs_validation`. Weights of several methods are multiplied."""
        return {}

    def measure(self, setup: "RunSetup", model: Model, say: Say) -> Any:
        """`stats[name]` as training begins; by default as `state` made it."""
        return model[1].get(self.name)

    # During training.

    def remember(self, setup: "RunSetup", state: "State", phase: int) -> Any:
        """`stats[name]` after a phase; a function of the training state alone, so that
        a resumed run remembers the same."""
        return state["stats"].get(self.name)

    def metrics(
        self, setup: "RunSetup", model: Model, logits: Callable[["ImageSet"], Any]
    ) -> Mapping[str, float]:
        """More metrics of an evaluation."""
        return {}

    # After the last step, on the step that was selected.

    def correct(self, setup: "RunSetup", model: Model) -> tuple[Any, Mapping[str, Any]]:
        """(params, entries of results.json): the finished model, corrected."""
        return model[0], {}

    def results(self, setup: "RunSetup", model: Model) -> Mapping[str, Any]:
        """Entries of results.json."""
        return {}

    def pictures(
        self, setup: "RunSetup", model: Model, folder: pathlib.Path | None
    ) -> Mapping[str, tuple[str, pathlib.Path]]:
        """{heading: (caption, PNG)}, written to `folder`; every process calls this, and
        only the first has a folder."""
        return {}

    def report(self, results: Mapping[str, Any]) -> Sections:
        """What the method adds to report.html; its headline is also in the summary."""
        return Sections()
