"""Spellings: injective, printable, and no formula in a spreadsheet."""

import pathlib
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterimage.checkpoints.names import (
    alike,
    class_name,
    printable,
    spelling,
)

ROOT = pathlib.Path(__file__).parent.parent
RAW = st.one_of(
    st.binary(min_size=1, max_size=8).map(
        lambda b: b.decode("utf-8", "surrogateescape")
    ),
    st.text("\\x019eu\x01\x85\udc85\u202ea", max_size=8),
)


@pytest.mark.parametrize(
    ("raw", "stored"),
    [
        ("cat.png", "cat.png"),
        ("köln/猫 🐈.png", "köln/猫 🐈.png"),
        ("caf\udce9.png", r"caf\xe9.png"),
        ("a\nb\tc\0", r"a\x0ab\x09c\x00"),
        ("\x1b[2J\x7f\x9b", r"\x1b[2J\x7f\u009b"),
        ("gpj.\u202egnp\u2066\u2028", r"gpj.\u202egnp\u2066\u2028"),
        ("C:\\a\\b", "C:\\a\\b"),
        (r"caf\xe9", r"caf\\xe9"),
        ("\ud800", r"\ud800"),
    ],
)
def test_spellings(raw, stored):
    assert spelling(raw) == stored
    assert stored.encode()  # whatever is stored is UTF-8


@given(RAW, RAW)
def test_two_names_never_share_a_spelling(one, other):
    assert (spelling(one) == spelling(other)) == (one == other)
    assert printable(spelling(one)) == spelling(one)
    categories = {unicodedata.category(c) for c in spelling(one)}
    assert not categories & {"Cc", "Cs", "Zl", "Zp"}


def test_both_unicode_forms_are_one_class():
    assert class_name("Cafe\u0301") == class_name("Caf\u00e9") == "Caf\u00e9"


def test_names_that_differ_in_case_or_spaces():
    assert alike(["cat", "Cat", "dog", "dog ", "owl", "cat"]) == [
        ("cat", "Cat"),
        ("dog", "dog "),
    ]
