"""BERT's encoder, its head for masked tokens, and the vector of a text.

Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers"; the blocks
are those of Vaswani et al. 2017, "Attention Is All You Need", normalised after each
sum. Without dropout, as in Geiping & Goldstein 2023, "Cramming". Layer norms and the
softmax are computed in float32.
"""

import functools
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import msgspec
from flax import nnx
from jaxtyping import Array, Bool, Float, Int
from msgspec import Meta

from afterimage.models.encoder import Network

Size = Annotated[int, Meta(ge=1, le=2**16)]


class BertConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The sizes of a network; also their schema in a manifest."""

    vocabulary: Annotated[int, Meta(ge=5, le=2**20)]
    width: Size
    depth: Annotated[int, Meta(ge=1, le=256)]
    heads: Size
    hidden: Size
    """Width of the layer inside each block."""
    positions: Annotated[int, Meta(ge=3, le=2**16)]
    """Tokens of the longest text."""
    types: Annotated[int, Meta(ge=1, le=16)] = 2
    """Kinds of segments; all texts here are of the first."""
    eps: Annotated[float, Meta(gt=0, lt=1)] = 1e-12
    """Added to the variance by layer norms."""

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of {self.heads} heads")


def _layers(config: BertConfig, rngs: nnx.Rngs) -> tuple[Any, Any, Any]:
    """Makers of dense layers, layer norms and embeddings, initialised as BERT's."""
    normal = nnx.initializers.truncated_normal(0.02)
    dense = functools.partial(nnx.Linear, kernel_init=normal, rngs=rngs)
    norm = functools.partial(
        nnx.LayerNorm, epsilon=config.eps, use_fast_variance=False, rngs=rngs
    )
    embed = functools.partial(
        nnx.Embed, features=config.width, embedding_init=normal, rngs=rngs
    )
    return dense, norm, embed


class Block(nnx.Module):
    """Self-attention and two dense layers, each added to its input and normalised."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        dense, norm, _ = _layers(config, rngs)
        width = config.width
        self.heads = config.heads
        self.query, self.key, self.value, self.out = (
            dense(width, width) for _ in range(4)
        )
        self.attention_norm = norm(width)
        self.up, self.down = dense(width, config.hidden), dense(config.hidden, width)
        self.norm = norm(width)

    def __call__(
        self, x: Float[Array, "b n w"], attention: Bool[Array, "b n"]
    ) -> Float[Array, "b n w"]:
        parts = (layer(x) for layer in (self.query, self.key, self.value))
        query, key, value = (p.reshape(*p.shape[:2], self.heads, -1) for p in parts)
        mask = attention[:, None, None, :]
        seen = jax.nn.dot_product_attention(query, key, value, mask=mask)
        x = self.attention_norm(x + self.out(seen.reshape(x.shape)))
        return self.norm(x + self.down(jax.nn.gelu(self.up(x), approximate=False)))


class Bert(nnx.Module):
    """Tokens to one vector a token."""

    def __init__(self, config: BertConfig, *, remat: bool = False, rngs: nnx.Rngs):
        _, norm, embed = _layers(config, rngs)
        self.remat = remat
        self.words, self.positions, self.types = (
            embed(count)
            for count in (config.vocabulary, config.positions, config.types)
        )
        self.norm = norm(config.width)
        blocks = (Block(config, rngs=rngs) for _ in range(config.depth))
        self.blocks = nnx.List(blocks)

    def __call__(
        self,
        tokens: Int[Array, "b n"],
        attention: Bool[Array, "b n"],
        *,
        train: bool = False,
    ) -> Float[Array, "b n w"]:
        del train  # nothing differs
        places = self.positions(jnp.arange(tokens.shape[1])[None])
        first = self.types(jnp.zeros((1, 1), jnp.int32))
        x = self.norm(self.words(tokens) + places + first)
        run = nnx.remat(Block.__call__) if self.remat else Block.__call__
        for block in self.blocks:
            x = run(block, x, attention)
        return x


class MaskedHead(nnx.Module):
    """Scores of all tokens at masked places; the last layer is the embedding's."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        dense, norm, _ = _layers(config, rngs)
        self.dense, self.norm = dense(config.width, config.width), norm(config.width)
        self.bias = nnx.Param(jnp.zeros(config.vocabulary))

    def __call__(
        self,
        x: Float[Array, "b k w"],
        words: Float[Array, "v w"],
        *,
        train: bool = False,
    ) -> Float[Array, "b k v"]:
        del train
        x = self.norm(jax.nn.gelu(self.dense(x), approximate=False))
        return x @ words.T + self.bias[...][None, None]


def abstract(
    config: BertConfig, *, remat: bool = False, head: bool = False
) -> tuple[Network, dict[str, Any]]:
    """The encoder as a pure function (or its head for masked tokens), and the shapes
    of its parameters."""

    def build() -> nnx.Module:
        if head:
            return MaskedHead(config, rngs=nnx.Rngs(0))
        return Bert(config, remat=remat, rngs=nnx.Rngs(0))

    network, params, _ = Network.create(nnx.eval_shape(build))
    return network, params


def fresh(config: BertConfig, seed: int, *, head: bool = False) -> dict[str, Any]:
    """Random parameters of the encoder, or of its head for masked tokens."""
    kind = MaskedHead if head else Bert
    return Network.create(kind(config, rngs=nnx.Rngs(seed)))[1]


def text_vector(
    states: Float[Array, "b n w"], attention: Bool[Array, "b n"]
) -> Float[Array, "b w"]:
    """The mean over a text's tokens, at unit length (Reimers & Gurevych 2019)."""
    counted = attention[..., None].astype(states.dtype)
    mean = (states * counted).sum(1) / counted.sum(1)
    return mean / jnp.maximum(jnp.linalg.norm(mean, axis=-1, keepdims=True), 1e-12)
