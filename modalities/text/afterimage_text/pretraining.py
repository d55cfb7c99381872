"""Masked-language-model pretraining on own texts.

Of each text 15 % of the tokens are predicted: 80 % of these are replaced by [MASK],
10 % by any token, and 10 % stay (Devlin et al. 2019, section 3.1). They are drawn anew
at every step, on the device, from the step's key.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Int

from afterimage.data.sets import Columns, stratified
from afterimage.errors import DataError
from afterimage.runs import Run
from afterimage.stages import StageResult
from afterimage.training.job import execute
from afterimage.training.loop import NO_CALLBACKS, Callbacks
from afterimage.training.optimiser import EVERYTHING
from afterimage.training.stage import Phase, Term
from afterimage_text.bert import abstract, fresh
from afterimage_text.config import PretrainConfig
from afterimage_text.files import ENCODER
from afterimage_text.job import TextStage, begun, opened
from afterimage_text.models import cast
from afterimage_text.texts import Texts, columns

SHARE, MASKED, RANDOM = 0.15, 0.8, 0.1
"""Of the tokens; of those chosen."""


class Masked(NamedTuple):
    """Texts with hidden tokens, and what was there."""

    tokens: Int[Array, "b n"]
    places: Int[Array, "b k"]
    targets: Int[Array, "b k"]
    chosen: Bool[Array, "b k"]
    """False where a text is too short for k tokens."""


def mask_tokens(
    key: Array,
    tokens: Int[Array, "b n"],
    free: Bool[Array, "b n"],
    *,
    mask: int,
    vocabulary: int,
) -> Masked:
    """Chooses 15 % of the `free` tokens of each text, at least one, and hides them."""
    first, second, third = jax.random.split(key, 3)
    most = max(1, round(SHARE * (tokens.shape[1] - 2)))
    order = jnp.where(free, jax.random.uniform(first, tokens.shape), -1.0)
    _, places = jax.lax.top_k(order, most)
    count = free.sum(1, keepdims=True)
    wanted = jnp.minimum(count, jnp.maximum(1, jnp.round(SHARE * count)))
    chosen = jnp.arange(most)[None] < wanted
    targets = jnp.take_along_axis(tokens, places, 1)
    draw = jax.random.uniform(second, places.shape)
    anything = jax.random.randint(third, places.shape, 0, vocabulary)
    new = jnp.where(draw < MASKED, mask, targets)
    new = jnp.where((draw >= MASKED) & (draw < MASKED + RANDOM), anything, new)
    new = jnp.where(chosen, new, targets)
    rows = jnp.arange(len(tokens))[:, None]
    return Masked(tokens.at[rows, places].set(new), places, targets, chosen)


def pretrain(
    config: PretrainConfig, *, callbacks: Callbacks = NO_CALLBACKS
) -> StageResult:
    """Pretrain as `config` says, or continue the run in its folder.

    Raises:
      UserError, DataError: invalid settings or texts, or another run's folder.
      CheckpointError: damaged weights or checkpoints; RunLocked: a folder in use.
      Diverged, Interrupted: as in the loop; the progress so far is saved.
    """
    run, texts = opened(config, "text-pretrain")
    if len(texts.texts) < 2:
        raise DataError(f"{texts.name} has one text; at least 2 are needed")
    with run:
        return execute(_Pretraining(config, run, texts), run, callbacks)


class _Pretraining(TextStage):
    artefact = ENCODER
    lead = "An encoder of texts that learns to predict masked tokens."
    config: PretrainConfig

    def __init__(self, config: PretrainConfig, run: Run, texts: Texts):
        super().__init__(config, run, texts.name, texts.fingerprint)
        self.title = f"Pretraining on {texts.name}"
        size = len(texts.texts)
        train, held = stratified(None, size, config.validation, config.seed)
        self.tokenise(texts, begun(config, run, [texts.texts[row] for row in train]))
        self.sets = {
            name: columns(texts, rows, **self.arrays)
            for name, rows in {"train": train, "validation": held}.items()
        }
        sizes = self.stored.config
        head = fresh(sizes, config.seed + 1, head=True)
        self.params = {**self.stored.params, "head": head}
        self.encoder_network, _ = abstract(sizes, remat=config.remat)
        self.head_network, _ = abstract(sizes, head=True)
        ends = ("[CLS]", "[SEP]", "[PAD]")
        self.fixed = np.array([self.tokenizer.token_to_id(name) for name in ends])
        term = Term(
            name="masked_tokens",
            fn=lambda view: self.loss(view["params"], view["train/masked"]),
            reads=("params", "train/masked"),
        )
        phase = Phase(
            name="masked",
            terms=(term,),
            groups=EVERYTHING,
            steps=config.total_steps(len(self.train), default_epochs=10.0),
            options=config,
        )
        self.ready(phase)

    def rules(
        self, params: Any, stats: Any, batch: Any, key: Any, step: Any, trainable: Any
    ) -> dict[str, Any]:
        """What the term reads."""
        return {
            "params": lambda _: params,
            "train/masked": lambda _: (self.mask(key, batch), batch["attention"]),
            "stats/next": lambda _: stats,
        }

    def mask(self, key: Array, batch: Mapping[str, Array]) -> Masked:
        """The batch with hidden tokens; [CLS] and [SEP] are never hidden."""
        tokens = batch["tokens"]
        free = batch["attention"] & ~jnp.isin(tokens, self.fixed)
        mask = self.tokenizer.token_to_id("[MASK]")
        assert mask is not None  # `read_tokenizer` looks
        return mask_tokens(
            key, tokens, free, mask=mask, vocabulary=self.tokenizer.get_vocab_size()
        )

    def sums(self, params: Any, masked: Masked, attention: Array) -> tuple[Array, ...]:
        """(summed cross-entropy, right predictions, tokens) of each text."""
        params = cast(params, self.config.precision)
        states, _ = self.encoder_network.apply(
            params["encoder"], {}, masked.tokens, attention
        )
        there = jnp.take_along_axis(states, masked.places[..., None], 1)
        words = params["encoder"]["words"]["embedding"]
        logits, _ = self.head_network.apply(
            params["head"], {}, cast(there, self.config.precision), words
        )
        each = optax.softmax_cross_entropy_with_integer_labels(logits, masked.targets)
        right = logits.argmax(-1) == masked.targets
        kept = masked.chosen
        return (each * kept).sum(1), (right & kept).sum(1), kept.sum(1)

    def loss(self, params: Any, read: tuple[Masked, Array]):
        """(mean cross-entropy of the hidden tokens in nats, {masked_accuracy})."""
        loss, right, count = (part.sum() for part in self.sums(params, *read))
        count = jnp.maximum(count, 1)
        return loss / count, {"masked_accuracy": right / count}

    def score(
        self,
        weights: tuple[Any, Any],
        rows: Columns,
        poll: Callable[[], None] = lambda: None,
    ) -> dict[str, float]:
        """{loss, masked_accuracy} of texts, hidden the same way each time."""
        totals = np.zeros(3)
        for number, batch, _ in self.runner.batches(rows):
            poll()
            totals += np.array(self._held(weights[0], batch, number), np.float64)
        loss, right, count = totals.tolist()
        count = max(count, 1.0)
        return {"loss": loss / count, "masked_accuracy": right / count}

    @functools.cached_property
    def _held(self):
        def run(params, batch, number):
            key = jax.random.fold_in(jax.random.key(self.config.seed), number)
            found = self.sums(params, self.mask(key, batch), batch["attention"])
            return [(part * batch["mask"]).sum() for part in found]

        return self.runner.jit(run)

    def kept(self, params: Any, stats: Any) -> tuple[Any, Any]:
        return {"encoder": params["encoder"]}, {}

    def curves(self) -> dict[str, dict[str, str]]:
        return {
            name: {"training": f"train/{key}", "evaluated": f"eval/{key}"}
            for name, key in {"Loss": "loss", "Accuracy": "masked_accuracy"}.items()
        }

    def lines(self, results: Mapping[str, Any]) -> list[str]:
        each = [f"{k} {v}" for k, v in _figures(results).items()]
        return [f"held-out texts: {', '.join(each)}"]

    def shown(self, results: Mapping[str, Any]) -> dict[str, Any]:
        return {"headline": _figures(results)}


def _figures(results: Mapping[str, Any]) -> dict[str, str]:
    found = results["validation"].items()
    return {name.replace("_", " "): f"{value:.3f}" for name, value in found}
