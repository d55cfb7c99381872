"""The network: attention against NumPy, padding, precision, the vector of a text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from afterimage_text.bert import Bert, BertConfig, abstract, fresh, text_vector
from flax import nnx
from scipy.special import erf, softmax

TINY = BertConfig(vocabulary=40, width=16, depth=2, heads=4, hidden=24, positions=12)


@pytest.fixture(scope="module")
def params():
    """Random numbers everywhere, also in biases and scales."""
    draws = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: leaf + draws.normal(0, 0.3, leaf.shape).astype(np.float32),
        fresh(TINY, 0),
    )


def texts(lengths, width):
    """Random tokens of texts of these lengths, padded with zeros."""
    draws = np.random.default_rng(1).integers(1, 40, (len(lengths), 12), np.int32)
    attention = np.arange(width) < np.array(lengths)[:, None]
    return np.where(attention, draws[:, :width], 0), attention


def normed(x, p):
    centred = x - x.mean(-1, keepdims=True)
    scale = np.sqrt(np.square(centred).mean(-1, keepdims=True) + 1e-12)
    return centred / scale * p["scale"] + p["bias"]


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


def reference(params, tokens, attention):
    """The same in float64 NumPy, one head of one text at a time."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    words, places = params["words"]["embedding"], params["positions"]["embedding"]
    kind = params["types"]["embedding"][0]
    x = normed(words[tokens] + places[: tokens.shape[1]] + kind, params["norm"])
    for block in params["blocks"].values():
        query, key, value = (dense(x, block[n]) for n in ("query", "key", "value"))
        seen = np.zeros_like(x)
        for row in range(len(x)):
            for head in range(4):
                of = np.s_[row, :, 4 * head : 4 * head + 4]
                score = query[of] @ key[of].T / 2.0
                score[:, ~attention[row]] = -np.inf
                seen[of] = softmax(score, axis=-1) @ value[of]
        x = normed(x + dense(seen, block["out"]), block["attention_norm"])
        inner = dense(x, block["up"])
        inner = inner * 0.5 * (1 + erf(inner / np.sqrt(2)))
        x = normed(x + dense(inner, block["down"]), block["norm"])
    return x


def apply(params, tokens, attention, **options):
    network, _ = abstract(TINY, **options)
    run = jax.jit(lambda *inputs: network.apply(inputs[0], {}, *inputs[1:])[0])
    return np.asarray(run(params, tokens, attention))


def test_the_encoder_is_the_one_of_the_paper(params):
    tokens, attention = texts([9, 5, 2], 9)
    found = apply(params, tokens, attention)
    np.testing.assert_allclose(
        found[attention], reference(params, tokens, attention)[attention], atol=2e-5
    )


def test_padding_changes_nothing(params):
    short, long = texts([5, 3], 5), texts([5, 3], 12)
    found = [text_vector(jnp.asarray(apply(params, *t)), t[1]) for t in (short, long)]
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    junk = np.where(long[1], long[0], 7)
    again = text_vector(jnp.asarray(apply(params, junk, long[1])), long[1])
    np.testing.assert_allclose(again, found[1], atol=1e-6)


def test_a_vector_is_the_mean_over_the_text_at_unit_length(params):
    tokens, attention = texts([4, 9], 9)
    states = apply(params, tokens, attention)
    mean = states[0, :4].mean(0)
    found = np.asarray(text_vector(jnp.asarray(states), attention))
    np.testing.assert_allclose(found[0], mean / np.linalg.norm(mean), atol=1e-6)


@pytest.mark.slow
def test_recomputed_activations_give_the_same_gradient(params):
    tokens, attention = texts([9, 5], 9)

    def gradient(remat):
        network, _ = abstract(TINY, remat=remat)
        loss = lambda p: network.apply(p, {}, tokens, attention)[0][:, 0].sum()  # noqa: E731
        return jax.jit(jax.grad(loss))(params)

    for one, other in zip(*map(jax.tree.leaves, (gradient(False), gradient(True)))):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="no multiple of 5 heads"):
        BertConfig(vocabulary=9, width=16, depth=1, heads=5, hidden=8, positions=8)


def test_new_weights_follow_the_paper():
    kernel = nnx.state(Bert(TINY, rngs=nnx.Rngs(0)))["blocks"][0]["up"]["kernel"]
    assert 0.01 < float(jnp.std(kernel[...])) < 0.025
