"""Tables of ratings: what is read, what is refused, and what is held out."""

import numpy as np
import pytest
import tastes
from afterimage_ratings.config import RatingsConfig, TableOptions
from afterimage_ratings.table import UserRows, read_ratings, split_users
from scipy.sparse import csr_array

from afterimage.errors import DataError


def read(place, text, **more):
    (place / "t.csv").write_text(text)
    return read_ratings(TableOptions(table=f"csv:{place}/t.csv", **more))


def dense(ratings):
    rows = ratings.rows(np.arange(len(ratings.users)))
    return rows.inputs(np.arange(len(rows)))["ratings"]


def test_a_table_as_rows(tmp_path):
    text = "time,item;user,item,rating,user\n9,x,b,3,u2\n8,x,a,1,u1\n7,x,b,5,u1\n"
    found = read(tmp_path, text + "9,x,b,2.5,u2\n")
    assert (found.users, found.items) == (["u1", "u2"], ["a", "b"])
    np.testing.assert_array_equal(dense(found), [[1, 5], [np.nan, 2.5]])
    assert found.repeated == 1  # the later line counts
    shuffled = text.splitlines(keepends=True)
    again = read(
        tmp_path, "".join([shuffled[0], shuffled[3], shuffled[2], "1,x,b,2.5,u2\n"])
    )
    assert again.fingerprint == found.fingerprint


def test_other_columns_and_no_ratings(tmp_path):
    names = {"user_column": "who", "item_column": "what", "rating_column": "none"}
    found = read(tmp_path, "who;what\r\n1;7\r\n2;7\r\n1;8\r\n", **names)
    assert found.matrix.data.tolist() == [1, 1, 1]
    assert found.items == ["7", "8"]


WRONG = {
    "a missing column": ("user,film,rating\na,b,1\n", "one column 'item'.*film"),
    "no rating": ("user,item,rating\na,b,\n", "Row #2.*invalid value ''"),
    "a word": ("user,item,rating\na,b,1\na,c,good\n", "Row #3.*'good'"),
    "nan": ("user,item,rating\na,b,nan\n", "rating 1 .* no number"),
    "no user": ("user,item,rating\na,b,1\n,b,1\n", "rating 2 .* no user"),
    "a cell too few": ("user,item,rating\na,b\n", "Row #2.*Expected 3 columns"),
    "nothing": ("", "one column 'user'.*none"),
    "only a head": ("user,item,rating\n", "no ratings below"),
    "two splits": (
        "user,item,rating,split\na,b,1,train\na,c,1,test\n",
        "rating 1 .* another split too",
    ),
    "a strange split": (
        "user,item,rating,split\na,b,1,rest\n",
        "rating 1 .* train, validation, test",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(tmp_path, case):
    text, said = WRONG[case]
    with pytest.raises(DataError, match=f"(?s)t.csv.*{said}"):
        read(tmp_path, text)


def test_files_that_are_no_tables(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        read_ratings(TableOptions(table=str(tmp_path / "none.csv")))
    with pytest.raises(DataError, match="cannot be read"):
        read_ratings(TableOptions(table=str(tmp_path)))
    (tmp_path / "x.csv").write_bytes(b"user,item,rating\n\xff\xfe,b,1\n")
    with pytest.raises(DataError, match=r"UTF-?8"):
        read_ratings(TableOptions(table=str(tmp_path / "x.csv")))


def settings(table, **more):
    return RatingsConfig(table=table, out="unused", **more)


def test_users_are_split_once_each(tmp_path):
    table = tastes.write(tmp_path / "t.csv", tastes.rows(50, seed=0))
    ratings = read_ratings(TableOptions(table=table))
    found = split_users(ratings, settings(table))
    assert [len(users) for users in found.values()] == [36, 4, 10]
    assert sorted(np.concatenate(list(found.values()))) == list(range(50))
    other = split_users(ratings, settings(table, seed=1))
    assert found["test"].tolist() != other["test"].tolist()
    few = read_ratings(
        TableOptions(table=tastes.write(tmp_path / "few.csv", tastes.rows(3, seed=0)))
    )
    with pytest.raises(DataError, match="no user for validation"):
        split_users(few, settings(table))


def test_the_column_split_decides(tmp_path):
    names = ["train", "validation", "test"]
    lines = [
        (*row, names[int(row[0][1:]) % 3].upper()) for row in tastes.rows(9, seed=0)
    ]
    table = tastes.write(tmp_path / "t.csv", lines, ("user", "item", "rating", "split"))
    ratings = read_ratings(TableOptions(table=table))
    found = split_users(ratings, settings(table))
    assert {k: v.tolist() for k, v in found.items()} == {
        "train": [0, 3, 6],
        "validation": [1, 4, 7],
        "test": [2, 5, 8],
    }


def test_a_fifth_is_held_out_whatever_the_other_users(tmp_path):
    lines = [*tastes.rows(20, seed=0), *[("few", f"i{n}", 5) for n in range(4)]]
    whole = read_ratings(TableOptions(table=tastes.write(tmp_path / "a.csv", lines)))
    users = np.arange(len(whole.users))
    rows = whole.folded(users, seed=3).inputs(users)
    known, held = (~np.isnan(rows[name]) for name in ("ratings", "held"))
    assert held.sum(1).tolist() == [0, *[2] * 20]  # of 10; "few" is sorted first
    assert not (known & held).any()
    np.testing.assert_array_equal(known | held, ~np.isnan(dense(whole)))
    part = [row for row in lines if row[0] in ("u3", "u7")]
    some = read_ratings(TableOptions(table=tastes.write(tmp_path / "b.csv", part)))
    theirs = some.folded(np.array([1]), seed=3)
    u7 = whole.users.index("u7")
    of = {name: np.array(r.items) for name, r in (("all", whole), ("some", some))}
    found = of["some"][~np.isnan(theirs.inputs(np.array([0]))["held"][0])]
    assert found.tolist() == of["all"][held[u7]].tolist()


def test_only_a_batch_is_dense():
    users, items, each = 300_000, 100_000, 5
    start = np.arange(users + 1) * each
    cells = (np.ones(users * each, np.float32), np.tile(np.arange(each), users), start)
    part = csr_array(cells, (users, items))  # 120 GB if it were dense
    rows = UserRows("many", [""] * users, {"ratings": part})
    found = rows.inputs(np.array([7, users - 1]))["ratings"]
    assert found.shape == (2, items)
    assert rows.row_bytes == 4 * items
    assert np.nansum(found) == 2 * each
