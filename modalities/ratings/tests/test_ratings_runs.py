"""Runs from the command line and from Python: results, moving, resuming, refusals."""

import csv
import json
import re
import shlex
import shutil

import numpy as np
import pytest
import tastes
from afterimage_ratings import RatingsConfig, load_recommender, train

from afterimage.checkpoints import CheckpointError
from afterimage.checkpoints.errors import UsageError
from afterimage.checkpoints.trees import flatten
from afterimage.checkpoints.weights import read_folder
from afterimage.commands import load, main
from afterimage.commands.flags import parse
from afterimage.errors import DataError, UserError
from tests import encoder_artefact
from tests.helpers import ROOT, cut_back

NEW = {"width": 16, "latent": 4}
SHORT = {"batch_size": 16, "steps": 40, "eval_every": 10, "lr": 0.01, "log_every": 10}


def settings(table, out, **more):
    given = {"table": str(table), "out": str(out), "tensorboard": False, "like": 4.0}
    return RatingsConfig(**given | SHORT | more)


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Two categories: of 24 items each, 12 are in both."""
    place = tmp_path_factory.mktemp("tables")
    tastes.write(place / "a.csv", tastes.rows(60, seed=0))
    tastes.write(place / "b.csv", tastes.rows(40, seed=1, first=12))
    return place


@pytest.fixture(scope="module")
def run(tables):
    """A finished run on the first category, by the command."""
    words = f"--like 4 --out {tables}/run --width 16 --latent 4 --steps 40 --lr 0.01 "
    words += "--batch-size 16 --eval-every 10 --log-every 10 --no-tensorboard"
    assert main(["ratings", str(tables / "a.csv"), *words.split()]) == 0
    return tables / "run"


def weights(run):
    params, stats, _ = read_folder(run / "recommender", "recommender")
    return flatten({"params": params, "stats": stats})


def same(one, other):
    assert one.keys() == other.keys()
    return all((one[path] == other[path]).all() for path in one)


def test_it_learns_tastes_and_writes_everything(run):
    results = json.loads((run / "results.json").read_text())
    # 24 items, at most one relevant one held out of 2: chance is near 0.35.
    assert results["test"]["ndcg100"] > 0.5
    assert 0 < results["test"]["users"] <= 12
    rows = [json.loads(s) for s in (run / "metrics.jsonl").read_text().splitlines()]
    found = {row["step"]: row["eval/ndcg100"] for row in rows if "eval/ndcg100" in row}
    assert results["validation"]["ndcg100"] == pytest.approx(max(found.values()))
    assert found[results["step"]] == max(found.values())
    assert "NDCG@100" in (run / "report.html").read_text()
    assert main(["checkpoints", "verify", str(run)]) == 0


def test_recommendations_fit_the_taste_and_leave_out_what_is_known(run):
    model = load_recommender(run)
    even = ["i0", "i2", "i4", "i6"]
    best = model.recommend(even, n=6)
    assert len(best) == 6
    assert sum(int(item[1:]) % 2 == 0 for item, _ in best) >= 5
    assert not {item for item, _ in best} & set(even)
    scores = [score for _, score in best]
    assert scores == sorted(scores, reverse=True)
    assert 0 < sum(scores) < 1
    # What the model does not know changes nothing, nor does what is not liked.
    assert model.recommend({**dict.fromkeys(even, 5), "x": 5}, n=6) == best
    disliked = model.recommend({**dict.fromkeys(even, 5), "i8": 1.0}, n=30)
    assert len(disliked) == 24 - 5
    assert "i8" not in dict(disliked)
    popular = model.recommend([])  # of nothing known: what users like
    assert len(popular) == 10
    assert model.recommend({"x": np.float32(5)}) == popular
    for history, n in (("i0", 1), ({"i0": np.nan}, 1), (even, 0)):
        with pytest.raises(UserError, match=r"history|n=0"):
            model.recommend(history, n)


def test_the_command_writes_what_python_says(run, tmp_path, capsys):
    lines = [("b", "i0", 5), ("b", "i2", 4), ("b", "new", 5), ("a", "i1", 2)]
    table = tastes.write(tmp_path / "t.csv", lines)
    words = ["recommend-items", table, "--from", str(run), "--top", "3", "--out"]
    assert main([*words, str(tmp_path / "best.csv")]) == 0
    assert "knows 3 of their 4 items" in capsys.readouterr().out
    with (tmp_path / "best.csv").open() as file:
        found = list(csv.DictReader(file))
    assert [(row["user"], row["rank"]) for row in found] == [
        (user, str(rank)) for user in "ab" for rank in (1, 2, 3)
    ]
    best = load_recommender(run).recommend({"i0": 5, "i2": 4}, 3)
    assert [row["item"] for row in found[3:]] == [item for item, _ in best]
    assert float(found[3]["score"]) == pytest.approx(best[0][1], rel=1e-5)
    assert "i1" not in [row["item"] for row in found[:3]]


def test_moving_freezes_the_inner_layers_and_keeps_known_items(run, tables, tmp_path):
    config = settings(
        tables / "b.csv", tmp_path / "moved", from_=str(run), freeze=1.0, like=None
    )
    assert train(config).results["test"]["users"] > 0
    before, after = weights(run), weights(tmp_path / "moved")
    inner = [path for path in before if path.startswith("params/inner/")]
    assert len(inner) == 5
    assert all((before[path] == after[path]).all() for path in inner)
    manifest = read_folder(tmp_path / "moved/recommender", "recommender")[2]
    assert manifest["trained"]["known_items"] == 12
    assert manifest["model"]["like"] == 4  # as it was
    assert not same(before, after)


def test_a_moved_run_resumes_bit_for_bit_across_the_phases(run, tables, tmp_path):
    more = {"from_": str(run), "freeze": 0.5, "keep_last": 9}
    whole, table = tmp_path / "whole", shutil.copy(tables / "b.csv", tmp_path)
    train(settings(table, whole, **more))
    copy = cut_back(whole, tmp_path / "copy", 10)  # in the first phase
    shutil.rmtree(copy / "recommender")
    train(settings(table, copy, **more))
    assert same(weights(whole), weights(copy))
    one, two = (json.loads((r / "results.json").read_text()) for r in (whole, copy))
    assert one["test"] == two["test"]
    tastes.write(table, tastes.rows(40, seed=2, first=12))
    with pytest.raises(UserError, match="changed since this run began"):
        train(settings(table, whole, **more))


def test_a_complete_run_is_left_alone_and_repaired(run, tables, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    assert train(settings(tables / "a.csv", copy, **NEW)).complete
    (copy / "results.json").write_text('{"step": 3}')
    assert not train(settings(tables / "a.csv", copy, **NEW)).complete
    assert json.loads((copy / "results.json").read_text())["step"] > 0


def test_autorec_predicts_ratings_and_moves_with_known_items(tables, tmp_path):
    more = {"model": "autorec", "lr": 0.03, "steps": 60}
    config = settings(tables / "a.csv", tmp_path / "a", width=16, **more)
    found = train(config)
    # Ratings are 4 or 5, and 1 or 2: their standard deviation is 1.3.
    assert found.results["test"]["rmse"] < 1
    assert "RMSE" in found.text
    best = load_recommender(tmp_path / "a").recommend({"i0": 5, "i2": 5, "i1": 1}, 9)
    assert 3 < best[0][1] < 6
    config = settings(tables / "b.csv", tmp_path / "b", from_=str(tmp_path / "a"))
    assert train(config).results["test"]["rmse"] > 0
    other = tastes.write(tmp_path / "c.csv", tastes.rows(40, seed=1, prefix="c-"))
    with pytest.raises(UserError, match="no item in common"):
        train(settings(other, tmp_path / "c", from_=str(tmp_path / "a")))


def test_settings_that_cannot_work_are_listed_together():
    with pytest.raises(UserError) as error:
        settings("t.csv", "out", test=1.0, dropout=1.0, freeze=2.0, inner_lr=0.0)
    for said in ("test=1.0", "dropout=1.0", "freeze=2.0", "inner_lr=0.0"):
        assert said in str(error.value)
    with pytest.raises(UserError, match="width=8: only for new weights"):
        settings("t.csv", "out", from_="run", width=8)


def test_runs_that_cannot_work(run, tables, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"like=9: .* from 1 to 5"):
        train(settings(tables / "a.csv", out, like=9.0))
    short = [(f"u{n}", f"i{n % 3}", 5) for n in range(40)]
    table = tastes.write(tmp_path / "short.csv", short)
    with pytest.raises(DataError, match=r"none of .* users can be scored"):
        train(settings(table, tmp_path / "b"))
    with pytest.raises(UserError, match="is of mult-vae; leave out --model"):
        train(settings(tables / "b.csv", out, from_=str(run), model="autorec"))
    with pytest.raises(UserError, match="other settings"):
        train(settings(tables / "a.csv", run, lr=0.5, **NEW))


def test_artefacts_that_are_missing_damaged_or_of_another_kind(run, tables, tmp_path):
    with pytest.raises(UsageError, match="has no recommender"):
        load_recommender(tables)
    encoder_artefact.write(tmp_path / "encoder")
    with pytest.raises(CheckpointError, match="recommender"):
        load_recommender(tmp_path / "encoder")
    shutil.copytree(run / "recommender", tmp_path / "damaged")
    file = tmp_path / "damaged" / "weights.safetensors"
    data = bytearray(file.read_bytes())
    data[-9] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match="weights"):
        load_recommender(tmp_path / "damaged")
    out = str(tmp_path / "best.txt")
    words = ["recommend-items", str(tables / "a.csv"), "--from", str(run), "--out", out]
    assert main(words) == 2


PAGES = [ROOT / "docs/guide/ratings.md", ROOT / "modalities/ratings/README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_exist(page):
    pattern = r"(?m)^afterimage (ratings|recommend-items) (.+)$"
    found = re.findall(pattern, page.read_text())
    assert {name for name, _ in found} == {"ratings", "recommend-items"}
    for name, words in found:
        parse(load(name).COMMAND, shlex.split(words))


@pytest.mark.parametrize("name", ["ratings", "recommend-items"])
def test_the_help_fits(name, capsys):
    assert main([name, "--help"]) == 0
    said = capsys.readouterr().out
    assert len(said.splitlines()) <= 120
    assert max(map(len, said.splitlines())) <= 88
    assert not re.search(r"\bimages?\b", said)
