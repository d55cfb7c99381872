"""Settings of meta-learning over episodes."""

import dataclasses
from typing import Literal

from afterimage.finetune.options import is_default


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpisodeOptions:
    """Meta-learning: new classes from a few images each."""

    meta: Literal[
        "none",
        "maml",
        "maml-first-order",
        "anil",
        "proto-maml",
        "reptile",
        "prototypical",
    ] = "none"
    """Meta-learning over episodes, small tasks of classes drawn by seed. maml: a start
    from which a few steps learn new classes; maml-first-order: without second
    derivatives; anil: only the head takes those steps; proto-maml: as maml, from a head
    that is each episode's nearest class mean; reptile: moves towards what each
    episode's steps lead to; prototypical: the nearest class mean in feature space."""

    tied_head: bool = False
    """For maml, maml-first-order and anil: start every episode with the same weights
    for every class, their mean (Ye & Chao 2022). Finn's MAML has separate weights."""

    ways: int = 5
    """Classes of an episode."""

    shots: int = 1
    """Images of each class to learn from."""

    queries: int = 15
    """Images of each class to be scored on."""

    episodes_per_step: int = 4
    """Episodes of a training step; they take the place of batch_size."""

    inner_steps: int = 2
    """Steps of gradient descent within an episode. With --tied-head the first changes
    only the head: with one step the encoder learns between episodes only."""

    inner_lr: float = 0.01
    """Their learning rate."""

    test_inner_steps: int | None = None
    """The same when a held-out episode is scored. Default: inner_steps."""

    test_classes: float = 0.3
    """Share of the classes held out, by seed; the result is on episodes of those."""

    test_episodes: int = 600
    """Held-out episodes of the result, which comes with a 95 % interval."""

    def problems(self) -> list[str]:
        """Every setting that cannot work, in one list."""
        counts = ("shots", "queries", "episodes_per_step", "inner_steps")
        if self.meta == "none":
            more = ("tied_head", "ways", "inner_lr", "test_inner_steps", "test_classes")
            return [
                f"{name}={getattr(self, name)!r} is about episodes: give meta, e.g. "
                "maml"
                for name in (*counts, *more, "test_episodes")
                if not is_default(self, name)
            ]
        found = [
            f"{name}={getattr(self, name)}: at least 1"
            for name in (*counts, "test_inner_steps")
            if getattr(self, name) is not None and getattr(self, name) < 1
        ]
        if self.tied_head and self.meta not in ("maml", "maml-first-order", "anil"):
            found.append(
                f"tied_head: only for meta maml, maml-first-order and anil, not "
                f"{self.meta!r}"
            )
        if self.ways < 2:
            found.append(f"ways={self.ways}: at least 2 classes")
        if self.test_episodes < 2:
            found.append(f"test_episodes={self.test_episodes}: 600 are customary")
        if not self.inner_lr > 0:
            found.append(f"inner_lr={self.inner_lr}: more than 0")
        if not 0 < self.test_classes < 1:
            found.append(f"test_classes={self.test_classes}: a share in (0, 1)")
        if self.meta == "prototypical":
            found += [
                f"{name}={getattr(self, name)}: prototypes take no steps"
                for name in ("inner_steps", "inner_lr", "test_inner_steps")
                if not is_default(self, name)
            ]
        return found
