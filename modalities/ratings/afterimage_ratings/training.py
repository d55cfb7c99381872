"""A run on ratings: from scratch, or from a recommender of another category."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from afterimage.console import say_doing
from afterimage.errors import DataError, UserError
from afterimage.runs import Run
from afterimage.stages import OwnStage, StageResult, open_run
from afterimage.training.job import execute
from afterimage.training.loop import NO_CALLBACKS, Callbacks
from afterimage.training.optimiser import EVERYTHING, Group
from afterimage.training.stage import Phase, Term
from afterimage_ratings.config import RatingsConfig
from afterimage_ratings.networks import Model, Params, moved
from afterimage_ratings.recommender import (
    RECOMMENDER,
    Recommender,
    load_recommender,
    stored_items,
)
from afterimage_ratings.scores import NAMES, ranking
from afterimage_ratings.table import (
    Ratings,
    UserRows,
    read_ratings,
    split_users,
)


def train(config: RatingsConfig, *, callbacks: Callbacks = NO_CALLBACKS) -> StageResult:
    """Train as `config` says, or continue the run in its folder.

    Raises:
      UserError, DataError: invalid settings or ratings, or another run's folder.
      CheckpointError: the recommender to start from or every checkpoint is damaged.
      Diverged, Interrupted: as in the training loop; progress is saved.
    """
    run = open_run(config, "ratings")
    source = origin = None
    if config.from_ is not None:
        source = load_recommender(config.from_)
        origin = {"path": config.from_, "checksum": source.manifest["checksum"]}
    say_doing(f"Reading {config.table}")
    ratings = read_ratings(config)
    with run:
        return execute(_Ratings(config, run, ratings, source, origin), run, callbacks)


class _Ratings(OwnStage):
    artefact, best, direction = RECOMMENDER, "ndcg100", "max"
    chosen_by = "NDCG@100 of the validation users"
    lead = "Which items a user may like, learned from the ratings of others."
    config: RatingsConfig

    def __init__(
        self,
        config: RatingsConfig,
        run: Run,
        ratings: Ratings,
        source: Recommender | None,
        origin: Mapping[str, Any] | None,
    ):
        super().__init__(config, run, ratings.name, ratings.fingerprint, origin)
        self.ratings, self.users = ratings, split_users(ratings, config)
        self.sets = {"train": ratings.rows(self.users["train"])}
        self.model = self._model(source)
        self.title = f"Recommender of {ratings.name} ({self.model.name})"
        self.params, self.known = self._start(source)
        held = {split: self._held(split) for split in ("validation", "test")}
        self.sets |= held
        self.ready(*self._phases())
        self._measured = self.runner.jit(self._measure)

    def _model(self, source: Recommender | None) -> Model:
        """The source's model or a new one, for these ratings."""
        config = self.config
        model = Model(config.model or "mult-vae", **config.sizes, like=config.like)
        if source is not None:
            model = source.model
            if config.model not in (None, model.name):
                raise UserError(
                    f"model={config.model}: {config.from_} is of {model.name}; leave "
                    "out --model"
                )
            if config.like is not None:
                model = dataclasses.replace(model, like=config.like)
        values = self.train.parts["ratings"].data
        if model.like is not None and values.max() < model.like:
            raise DataError(
                f"like={model.like:g}: no training user has a rating of at least that; "
                f"they are from {values.min():g} to {values.max():g}"
            )
        if model.name == "autorec":
            scale = {"mean": float(values.mean()), "std": float(values.std()) or 1.0}
            model = dataclasses.replace(model, **scale)
        return model

    def _start(self, source: Recommender | None) -> tuple[Params, int]:
        """The parameters before the first step, and how many items were known."""
        items = self.ratings.items
        if source is None:
            return self.model.fresh(len(items), self.config.seed), 0
        params, known = moved(source.params, source.items, items)
        if not known and self.model.name == "autorec":
            raise UserError(
                f"{self.ratings.name} and {self.config.from_} have no item in common, "
                "but nearly all of an autorec are the layers of its items, so nothing "
                "could be kept. Use mult-vae, or the same ids for the same items"
            )
        return params, known

    def _held(self, split: str) -> UserRows:
        """The users of a split, and what is scored."""
        rows = self.ratings.folded(self.users[split], self.config.seed)
        scored = rows.parts["held"].data
        like = -np.inf if self.model.like is None else self.model.like
        if not (scored >= like).any():
            raise DataError(
                f"{rows.name}: none of {len(rows):,} {split} users can be scored. A "
                "user needs at least 5 ratings, and to like one of the fifth that is "
                "held out; give more users, or lower --like"
            )
        return rows

    def _phases(self) -> tuple[Phase, ...]:
        """All layers; from another category first those of the items, then all."""
        config, total = self.config, self.config.total_steps(len(self.train))
        first = 0 if config.from_ is None else round(config.freeze * total)
        items, inner = Group("items", "^items/"), Group("inner", "^inner/")
        frozen = (items, dataclasses.replace(inner, freeze=True))
        learn = (items, dataclasses.replace(inner, lr=config.inner_lr))
        if config.from_ is None:
            learn = EVERYTHING
        plan = (("items", frozen, 0, first), ("all", learn, first, total - first))
        return tuple(
            Phase(
                name=name,
                terms=self._terms(start, max(1, total // 2)),
                groups=groups,
                steps=steps,
                options=config,
            )
            for name, groups, start, steps in plan
            if steps
        )

    def _terms(self, start: int, ramp: int) -> tuple[Term, ...]:
        """The losses; the KL's weight rises over the first `ramp` steps of the run."""

        def weight(step: Any) -> Any:
            return self.config.beta * jnp.minimum(1.0, (step + start) / ramp)

        vae = self.model.name == "mult-vae"
        return tuple(
            Term(
                name=name,
                fn=lambda view, name=name: (view["train/losses"][name], {}),
                reads=("train/losses",),
                weight=each,
            )
            for name, each in (
                {"nll": 1.0, "kl": weight} if vae else {"squared_error": 1.0}
            ).items()
        )

    def rules(
        self, params: Any, stats: Any, batch: Any, key: Any, step: Any, trainable: Any
    ) -> dict[str, Any]:
        """What the terms read."""
        return {
            "train/losses": lambda _: self.model.losses(
                params, batch["ratings"], key, self.config.dropout
            ),
            "stats/next": lambda _: stats,
        }

    def facts(self) -> dict[str, str]:
        """What the run is about, for the terminal and the page."""
        table, like, start = self.ratings, self.model.like, self.config.from_
        later = f"; later ones replaced {table.repeated:,}" if table.repeated else ""
        return {
            "Ratings": f"{table.matrix.nnz:,} of {len(table.items):,} items in "
            f"{table.name}" + later,
            "Users": ", ".join(f"{len(u):,} {name}" for name, u in self.users.items()),
            "Liking": "every rating"
            if like is None
            else f"a rating of {like:g} or more",
            "Start": "random weights"
            if start is None
            else f"{start}; it knows {self.known:,} of the items, and the others start "
            "as its average item",
        }

    # Scores.

    def _measure(self, params: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The measures of each user of a batch."""
        known, held = batch["ratings"], batch["held"]
        scores, relevant = self.model.scores(params, known), self.model.liked(held)
        there = ~jnp.isnan(held)
        return {
            **ranking(scores, relevant, ~jnp.isnan(known)),
            "users": relevant.any(1),
            "count": there.sum(1),
            "wrong": jnp.where(there, jnp.square(scores - held), 0).sum(1),
        }

    def score(
        self,
        weights: tuple[Any, Any],
        rows: UserRows,
        poll: Callable[[], None] = lambda: None,
    ) -> dict[str, Any]:
        """Means over the users with a relevant item, and their standard errors."""
        parts = []
        for _, batch, mask in self.runner.batches(rows):
            poll()
            found = self._measured(weights[0], batch)
            parts.append({name: np.asarray(v)[mask] for name, v in found.items()})
        each = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
        users = each["users"]
        found: dict[str, Any] = {"users": int(users.sum()), "standard_error": {}}
        for name in NAMES:
            own = each[name][users].astype(np.float64)
            found[name] = float(own.mean())
            found["standard_error"][name] = float(own.std() / np.sqrt(len(own)))
        if self.model.name == "autorec":
            found["rmse"] = float(np.sqrt(each["wrong"].sum() / each["count"].sum()))
        return found

    def trained(self, step: int) -> dict[str, Any]:
        return {**super().trained(step), "known_items": self.known}

    def content(self) -> dict[str, Any]:
        return {"model": vars(self.model)}

    def kept(self, params: Any, stats: Any) -> tuple[Any, Any]:
        return params, stored_items(self.ratings.items)

    def curves(self) -> dict[str, dict[str, str]]:
        losses = [term.name for term in self.trainer.stage.phases[0].terms]
        return {
            "Loss": {name: f"train/{name}" for name in losses},
            "Validation": {title: f"eval/{name}" for name, title in NAMES.items()},
        }

    def lines(self, results: Mapping[str, Any]) -> list[str]:
        test = results["test"]
        figures = [f"{title} {test[name]:.3f}" for name, title in NAMES.items()]
        figures += [f"RMSE {test['rmse']:.3f}"] if "rmse" in test else []
        return [f"test ({test['users']:,} users): {', '.join(figures)}"]

    def shown(self, results: Mapping[str, Any]) -> dict[str, Any]:
        test = results["test"]
        return {
            "headline": {
                f"test {title} (standard error)": f"{test[name]:.3f} "
                f"({test['standard_error'][name]:.3f})"
                for name, title in NAMES.items()
            }
        }
