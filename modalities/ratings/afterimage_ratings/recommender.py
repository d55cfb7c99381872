"""Finished recommenders: the artefact, and its use in Python and from the command."""

import functools
import numbers
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
from msgspec import Meta
from scipy.sparse import csr_array

from afterimage.checkpoints import schemas
from afterimage.checkpoints.errors import CheckpointError
from afterimage.checkpoints.trees import flatten
from afterimage.checkpoints.weights import read_artefact
from afterimage.errors import DataError, UserError
from afterimage.runtime import jit
from afterimage.training.batches import eval_batches
from afterimage_ratings.networks import Model, Params
from afterimage_ratings.table import Ratings, UserRows

RECOMMENDER = "recommender"
"""The kind in the manifest, and also the folder's name in a run."""
_Size = Annotated[int, Meta(ge=1, le=2**14)]


class ModelFields(msgspec.Struct, forbid_unknown_fields=True):
    """`networks.Model`."""

    name: Literal["mult-vae", "autorec"]
    width: _Size
    latent: _Size
    like: schemas.Number | None
    mean: schemas.Number
    std: Annotated[float, Meta(gt=0, lt=1e300)]


class RecommenderManifest(msgspec.Struct, kw_only=True):
    """`manifest.json` of a recommender."""

    model: ModelFields
    data: schemas.DataFields
    trained: schemas.Free


def stored_items(items: list[str]) -> dict[str, np.ndarray]:
    """The ids as bytes beside the weights: a manifest is too small for millions."""
    return {"items": np.frombuffer("\0".join(items).encode(), np.uint8)}


class Recommender:
    """A trained model and its items; `load_recommender` returns one."""

    items: list[str]
    """The items that it can recommend, in the order of its scores."""
    manifest: Mapping[str, Any]

    def __init__(
        self,
        params: Params,
        stats: Mapping[str, Any],
        manifest: Mapping[str, Any],
    ):
        """Raises CheckpointError if the arrays do not fit each other."""
        self.manifest, self.model = manifest, Model(**manifest["model"])
        try:
            self.items = (
                np.asarray(stats["items"], np.uint8).tobytes().decode().split("\0")
            )
        except (KeyError, UnicodeDecodeError) as error:
            raise CheckpointError("its list of items is damaged") from error
        self._place = {name: n for n, name in enumerate(self.items)}
        fresh = jax.eval_shape(lambda: self.model.fresh(len(self.items), 0))
        wanted = {path: leaf.shape for path, leaf in flatten(fresh).items()}
        found = {path: leaf.shape for path, leaf in flatten(params).items()}
        if wanted != found or len(self._place) < len(self.items):
            raise CheckpointError(
                f"its weights do not fit its {len(self.items):,} items and its sizes"
            )
        self.params = params

    def __repr__(self) -> str:
        return f"Recommender {self.model.name} of {len(self.items):,} items"

    def recommend(
        self, history: Mapping[str, float] | Iterable[str], n: int = 10
    ) -> list[tuple[str, float]]:
        """The best `n` items for a user that are not in the history, with scores.

        `history` has items and their ratings, or only items that the user likes. Items
        that the model does not know are ignored. The scores are probabilities (mult-
        vae), or predicted ratings (autorec). Raises DataError for a history that is
        none, UserError for an `n` below 1.
        """
        if isinstance(history, str):
            raise DataError(f"history={history!r}: give a list of items, not one")
        if n < 1:
            raise UserError(f"n={n}: must be at least 1")
        if not isinstance(history, Mapping):
            model = self.model
            good = model.mean + model.std if model.like is None else model.like
            history = dict.fromkeys(history, good)
        wrong = [
            item
            for item, rating in history.items()
            if not isinstance(rating, numbers.Real) or not np.isfinite(rating)
        ]
        if wrong:
            raise DataError(f"history: the rating of {wrong[0]!r} is no number")
        known = {
            self._place[item]: rating
            for item, rating in history.items()
            if item in self._place
        }
        row = np.zeros(len(known), np.int32), np.array(list(known), np.int32)
        value = np.array(list(known.values()), np.float32)
        matrix = csr_array((value, row), (1, len(self.items)))
        return next(self._best(matrix, n, 1))

    def recommend_all(
        self, ratings: Ratings, n: int = 10, *, batch_size: int = 256
    ) -> Iterator[list[tuple[str, float]]]:
        """The same for every user of a table, in the order of its users."""
        place = np.array([self._place.get(name, -1) for name in ratings.items])
        cells = ratings.matrix.tocoo()
        column = place[cells.col]
        known = column >= 0
        where = (cells.row[known], column[known])
        shape = (len(ratings.users), len(self.items))
        matrix = csr_array((cells.data[known], where), shape)
        yield from self._best(matrix, n, batch_size)

    def _best(
        self, matrix: csr_array, n: int, batch_size: int
    ) -> Iterator[list[tuple[str, float]]]:
        rows = UserRows("users", [""] * np.shape(matrix)[0], {"ratings": matrix})
        for batch in eval_batches(rows, batch_size):
            found = self._top(self.params, batch["ratings"], n=n)
            scores, order = (np.asarray(part)[batch["mask"]] for part in found)
            for own, each in zip(order, scores):
                yield [
                    (self.items[i], float(s)) for i, s in zip(own, each) if s > -np.inf
                ]

    @functools.cached_property
    def _top(self) -> Any:
        def top(params, ratings, n):
            scores = self.model.scores(params, ratings)
            scores = jnp.exp(scores) if self.model.name == "mult-vae" else scores
            scores = jnp.where(jnp.isnan(ratings), scores, -jnp.inf)
            return jax.lax.top_k(scores, min(n, len(self.items)))

        return jit(top, static_argnames="n")


def load_recommender(place: str | os.PathLike[str]) -> Recommender:
    """The recommender of a finished run of `afterimage ratings`.

    Raises UsageError where there is none, CheckpointError where it is damaged.
    """
    found = read_artefact(place, {RECOMMENDER: "afterimage ratings"})
    try:
        return Recommender(found.params, found.stats, found.manifest)
    except CheckpointError as error:
        raise CheckpointError(f"{found.folder}: {error}") from error
