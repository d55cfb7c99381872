"""Tables of texts, their splits, and tokens: what is read, and what is refused."""

import numpy as np
import pytest
from afterimage_text.texts import (
    SPECIAL,
    columns,
    encode,
    new_tokenizer,
    read_texts,
    read_tokenizer,
    split_rows,
)
from tokenizers import Tokenizer, models

from afterimage.checkpoints.errors import CheckpointError
from afterimage.errors import DataError

WORDS = ["the cat sat on the mat", "a dog ran in the park", "the cat ran"] * 3


@pytest.fixture
def table(tmp_path):
    """Writes a table; returns its path."""

    def write(content, name="texts.csv"):
        place = tmp_path / name
        place.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(place)

    return write


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ('text,label\n"one, two",a\nthree,b\n', "t.csv"),
        ("text\tlabel\none, two\ta\nthree\tb\n", "t.tsv"),
        ('{"text": "one, two", "label": "a"}\n{"text": "three", "label": "b"}', "t.jsonl"),  # noqa: E501
        ("text,label\n\"one, two\",a\nthree,b\n".encode("utf-16"), "t.csv"),
    ],
)  # fmt: skip
def test_tables_in_several_forms(table, content, name):
    found = read_texts(table(content, name), "text", "label")
    assert found.texts == ["one, two", "three"]
    assert found.labels == ["a", "b"]


def test_the_prefix_csv_is_no_part_of_the_path(table):
    place = table("text,label\none,a\ntwo,b\n")
    plain, named = (read_texts(p, "text", "label") for p in (place, f"csv:{place}"))
    assert (named.name, named.texts) == (plain.name, ["one", "two"])
    assert named.fingerprint == plain.fingerprint
    with pytest.raises(DataError, match=r"^nowhere\.csv"):
        read_texts("csv:nowhere.csv", "text")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("review,label\nx,a\n", "no column 'text'.*review, label.*--text-column"),
        ("text,lable\nx,a\n", "no column 'label'; did you mean 'lable'"),
        ("text,label\nx,a\n  ,b\ny,\n", "(?s)line 3: the text is empty.*4: no label"),
        (b"text,label\nx,a\ncaf\xe9,b\n", "line 3 is not UTF-8.*save .* as UTF-8"),
        ("text,label,split\nx,a,train\ny,b,tets\n", "line 3: the split 'tets'"),
        ("text,label\n", "no texts"),
        ("\n \n", "is empty; expected a table with a column 'text'"),
        ("text,label\nx\n", "line 2 has 1 cells"),
    ],
)  # fmt: skip
def test_bad_tables_say_which_line(table, content, said):
    with pytest.raises(DataError, match=said):
        read_texts(table(content), "text", "label")


def test_half_a_character_is_refused(table):
    with pytest.raises(DataError, match="line 1: the text is not Unicode"):
        read_texts(table('{"text": "\\ud800"}', "t.jsonl"), "text")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for place in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(DataError, match=str(place)):
            read_texts(str(place), "text")


def test_a_share_of_each_class_is_held_out(table):
    rows = "".join(f"text {i},{'ab'[i % 4 == 0]}\n" for i in range(40))
    texts = read_texts(table("text,label\n" + rows), "text", "label")
    rows, how = split_rows(texts, ["a", "b"], 0.2, 0)
    held = [texts.labels[row] for row in rows["test"]]
    assert (held.count("a"), held.count("b")) == (6, 2)
    assert sorted([*rows["train"], *rows["test"]]) == list(range(40))
    assert "20%" in how
    assert "seed 0" in how
    other, _ = split_rows(texts, ["a", "b"], 0.2, 1)
    assert list(other["test"]) != list(rows["test"])


def test_the_column_split_decides(table):
    content = "text,label,split\nx,a,test\ny,b,Train\nz,a,train\nv,b,validation\n"
    texts = read_texts(table(content), "text", "label")
    rows, _ = split_rows(texts, ["a", "b"], 0.2, 0)
    assert {k: v.tolist() for k, v in rows.items()} == {
        "train": [1, 2],
        "validation": [3],
        "test": [0],
    }
    chosen = columns(texts, rows["train"], label=np.arange(4))
    assert chosen.ids == ["line 3", "line 4"]
    assert chosen.targets(np.array([0]))["label"].tolist() == [1]


def test_long_texts_are_cut_and_counted():
    tokenizer = new_tokenizer(WORDS, 60)
    arrays, cut = encode(tokenizer, ["the cat", "the cat sat on the mat " * 4], 8)
    assert cut == 1
    assert arrays["tokens"].shape == (2, 8)
    names = [tokenizer.id_to_token(t) for t in arrays["tokens"][0].tolist()]
    assert names == ["[CLS]", "the", "cat", "[SEP]", *["[PAD]"] * 4]
    assert arrays["attention"].sum(1).tolist() == [4, 8]
    assert arrays["tokens"][1, -1] == tokenizer.token_to_id("[SEP]")


def test_a_new_vocabulary_has_the_words_and_bert_s_tokens():
    tokenizer = new_tokenizer(WORDS, 60)
    assert [tokenizer.token_to_id(name) for name in SPECIAL] == list(range(5))
    assert tokenizer.encode("The CAT").tokens == ["[CLS]", "the", "cat", "[SEP]"]
    assert tokenizer.get_vocab_size() <= 60
    again = read_tokenizer(tokenizer.to_str(), 60, "here")
    assert again.encode("cats ran").ids == tokenizer.encode("cats ran").ids


def test_other_tokenizers_are_refused():
    other = Tokenizer(models.BPE()).to_str()
    good = new_tokenizer(WORDS, 60).to_str()
    for text, size in [("{", 60), ("[]", 60), (other, 60), (good, 20)]:
        with pytest.raises(CheckpointError, match="here"):
            read_tokenizer(text, size, "here")
