"""Settings of both commands: frozen, documented, checked on construction."""

import dataclasses
from typing import Literal

from afterimage.fields import above_0, at_least_0, at_least_1, field_problems
from afterimage.training.options import RunOptions, TrainingOptions, check

_FEWEST_STEPS, _MOST_STEPS = 300, 20_000
_SIZES = {"width": 600, "latent": 200}
_WIDEST = 2**14


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableOptions:
    """Where the ratings are."""

    table: str
    """The ratings: a CSV file with a line for each rating. Other columns are
    ignored."""

    user_column: str = "user"
    """The column that names the user."""

    item_column: str = "item"
    """The column that names the item."""

    rating_column: str = "rating"
    """The column that holds the rating, a number; none if a line only says that a user
    chose an item: then every line counts as a rating of 1."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RatingsConfig(TrainingOptions, RunOptions, TableOptions):
    """Train a recommender on users' ratings."""

    from_: str | None = None
    """A finished run on another category of items, to start from. Default: random
    weights."""

    model: Literal["mult-vae", "autorec"] | None = None
    """mult-vae: a variational autoencoder with a multinomial likelihood, of what users
    like. autorec: predicts ratings, from squared errors on the known ones. Default: as
    in --from, else mult-vae."""

    like: float | None = None
    """Ratings of at least this mean that a user likes an item. Default: as in --from,
    else every rating."""

    width: int | None = None
    """Units of the hidden layers. Default: 600; with --from as there."""

    latent: int | None = None
    """Size of the code of mult-vae. Default: 200; with --from as there."""

    dropout: float = 0.5
    """Share of a user's ratings hidden from the network at each step (mult-vae)."""

    beta: float = 0.2
    """Weight of the KL divergence (mult-vae), reached linearly after half of the
    steps."""

    freeze: float = 0.3
    """With --from: share of the steps at the beginning in which only the layers of the
    items learn; the inner layers are frozen. 1: all steps."""

    inner_lr: float = 0.1
    """With --from: the learning rate of the inner layers afterwards, as a multiple of
    lr."""

    validation: float = 0.1
    """Share of the training users that choose the step, drawn by seed, if the column
    split names no validation users."""

    test: float = 0.2
    """Share of the users to test on, drawn by seed, if the table has no column
    split."""

    epochs: float | None = None
    """Passes over the training users, instead of steps. Default: 100, but at least 300
    and at most 20,000 steps."""

    batch_size: int = 100
    """Users per step, over all devices."""

    weight_decay: float = 0.01
    """AdamW's decoupled weight decay; not applied to biases."""

    def __post_init__(self) -> None:
        check(field_problems(self))  # first: the others compare these with numbers
        parts = (TrainingOptions.problems(self), RunOptions.problems(self))
        check(*parts, self._problems())

    def _problems(self) -> list[str]:
        found = above_0(self, "inner_lr") + at_least_0(self, "beta")
        for name in ("validation", "test"):
            if not 0 < getattr(self, name) < 1:
                found.append(f"{name}={getattr(self, name)}: must be in (0, 1)")
        if not 0 <= self.dropout < 1:
            found.append(f"dropout={self.dropout}: must be in [0, 1)")
        if not 0 <= self.freeze <= 1:
            found.append(f"freeze={self.freeze}: must be in [0, 1]")
        for name in _SIZES:
            value = getattr(self, name)
            if value is not None and not 1 <= value <= _WIDEST:
                found.append(f"{name}={value}: must be from 1 to {_WIDEST}")
            if value is not None and self.from_ is not None:
                found.append(f"{name}={value}: only for new weights, without --from")
        if self.model == "autorec" and self.latent is not None:
            found.append(f"latent={self.latent}: autorec has no code; use --width")
        return found

    @property
    def sizes(self) -> dict[str, int]:
        """{width, latent} of a new network."""
        return {name: getattr(self, name) or size for name, size in _SIZES.items()}

    def total_steps(self, images: int, *, default_epochs: float = 100.0) -> int:
        """Steps of the run for this number of training users."""
        total = TrainingOptions.total_steps(self, images, default_epochs=default_epochs)
        if self.steps is None and self.epochs is None:
            return min(max(total, _FEWEST_STEPS), _MOST_STEPS)
        return total


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecommendConfig(TableOptions):
    """The best items for every user of a table, into a file."""

    from_: str
    """A finished run of `afterimage ratings`, or its recommender/ folder."""

    out: str
    """The file to write: .csv, .jsonl or .parquet, a row for each recommendation."""

    top: int = 10
    """Items for each user. What a user has rated is left out."""

    batch_size: int = 256
    """Users computed together."""

    def __post_init__(self) -> None:
        check(field_problems(self), at_least_1(self, "top", "batch_size"))
