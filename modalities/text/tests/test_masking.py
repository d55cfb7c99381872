"""Which tokens are hidden, how, and that every step hides others."""

import functools

import jax
import numpy as np
import pytest
from afterimage_text.pretraining import mask_tokens

MASK, VOCABULARY = 4, 1000


def masked(seed, lengths, width=42):
    """Texts [CLS] … [SEP] of these lengths, with some tokens hidden."""
    draws = np.random.default_rng(seed)
    tokens = draws.integers(5, VOCABULARY, (len(lengths), width), np.int32)
    place, length = np.arange(width), np.array(lengths)[:, None]
    free = (place > 0) & (place < length - 1)
    tokens = np.where(place == 0, 2, np.where(place == length - 1, 3, tokens))
    tokens = np.where(place >= length, 0, tokens)
    hide = jax.jit(functools.partial(mask_tokens, mask=MASK, vocabulary=VOCABULARY))
    found = hide(jax.random.key(seed), tokens, free)
    return tokens, free, jax.tree.map(np.asarray, found)


@pytest.fixture(scope="module")
def many():
    return masked(0, [42] * 3000)


def test_fifteen_percent_of_each_text(many):
    _, _, found = many
    assert set(found.chosen.sum(1)) == {6}  # of 40


def test_eighty_ten_ten(many):
    _, _, found = many
    new = np.take_along_axis(found.tokens, found.places, 1)[found.chosen]
    old = found.targets[found.chosen]
    # 18,000 draws: five standard deviations are 0.015.
    assert (new == MASK).mean() == pytest.approx(0.8, abs=0.015)
    assert (new == old).mean() == pytest.approx(0.1, abs=0.012)
    other = new[(new != MASK) & (new != old)]
    assert len(other) / len(old) == pytest.approx(0.1, abs=0.012)
    assert np.bincount(other * 10 // VOCABULARY).min() > 100  # of about 180


def test_places_are_uniform_and_never_the_ends(many):
    tokens, free, found = many
    counts = np.zeros(42, int)
    np.add.at(counts, found.places[found.chosen], 1)
    assert counts[0] == counts[41] == 0
    assert counts[1:41] == pytest.approx(np.full(40, 450), abs=110)
    hidden = found.tokens != tokens
    assert not (hidden & ~free).any()
    np.testing.assert_array_equal(
        found.targets, np.take_along_axis(tokens, found.places, 1)
    )


def test_short_texts_hide_one_token_and_empty_ones_none():
    tokens, _, found = masked(1, [2, 3, 4, 12, 30])
    assert found.chosen.sum(1).tolist() == [0, 1, 1, 2, 4]
    np.testing.assert_array_equal(found.tokens[0], tokens[0])


def test_another_key_hides_other_tokens(many):
    _, _, first = many
    again, other = masked(0, [42] * 3000)[2], masked(1, [42] * 3000)[2]
    np.testing.assert_array_equal(first.places, again.places)
    assert (np.sort(first.places) != np.sort(other.places)).any(1).mean() > 0.99
