"""Masked pretraining: hidden blocks of volumes are reconstructed from the others."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from afterimage.data.sets import Columns, stratified
from afterimage.errors import DataError
from afterimage.pictures import draw_rows
from afterimage.runs import Run, write_png
from afterimage.stages import StageResult, open_run
from afterimage.training.job import execute
from afterimage.training.loop import NO_CALLBACKS, Callbacks
from afterimage.training.optimiser import EVERYTHING
from afterimage.training.stage import Phase, Term
from afterimage_volumes.config import BLOCK, PretrainConfig
from afterimage_volumes.files import Geometry
from afterimage_volumes.job import VolumeStage
from afterimage_volumes.models import ENCODER
from afterimage_volumes.network import (
    Decoder,
    Encoder,
    Mask,
    VolumeModel,
    at,
    augment,
    fresh,
    network,
)
from afterimage_volumes.volumes import Found, find

FLAT = 0.02
"""Blocks whose values deviate less than this share of the range do not count."""
_SHOWN, _PICTURE = 6, "rebuilt.png"


def pretrain(
    config: PretrainConfig, *, callbacks: Callbacks = NO_CALLBACKS
) -> StageResult:
    """Pretrain as `config` says, or continue the run in its folder.

    Raises:
      UserError, DataError: invalid settings or volumes, or another run's folder.
      CheckpointError: damaged checkpoints; RunLocked: a folder in use.
      Diverged, Interrupted: as in the loop; the progress so far is saved.
    """
    run, found = open_run(config, "volume-pretrain"), find(config.data)
    if len(found.ids) < 2:
        raise DataError(f"{found.name} has one volume; at least 2 are needed")
    with run:
        return execute(_Pretraining(config, run, found), run, callbacks)


def draw_mask(key: Array, volumes: int, side: int, share: float) -> Mask:
    """Blocks to hide, of each volume the same number, drawn at random."""
    blocks = side // BLOCK
    count = min(max(1, round(share * blocks**3)), blocks**3 - 1)
    rank = jnp.argsort(jnp.argsort(jax.random.uniform(key, (volumes, blocks**3))))
    return (rank < count).reshape(volumes, blocks, blocks, blocks)


def counted(x: Float[Array, "b s s s"], mask: Mask) -> Float[Array, "b s s s"]:
    """1 at the voxels of hidden blocks that are not flat, as air is; else 0."""
    b, side = x.shape[:2]
    n = side // BLOCK
    blocks = x.reshape(b, n, BLOCK, n, BLOCK, n, BLOCK)
    counts = mask & (blocks.std((2, 4, 6)) > FLAT)
    return jnp.where(at(counts, side), 1.0, jnp.zeros_like(x))


class _Pretraining(VolumeStage):
    artefact = ENCODER
    lead = "An encoder of volumes that learns to rebuild hidden blocks."
    config: PretrainConfig

    def __init__(self, config: PretrainConfig, run: Run, found: Found):
        geometry = Geometry(config.size, config.spacing, config.window)
        super().__init__(config, run, found, VolumeModel(config.width), geometry)
        size, seed = len(found.ids), config.seed
        train, held = stratified(None, size, config.validation, seed)
        self.title = f"Pretraining on {found.name}"
        self.sets = {
            name: found.columns(rows, volume=self.volumes)
            for name, rows in {"train": train, "validation": held}.items()
        }
        self.decoder_network = network(Decoder, self.model, config.precision)
        self.params = {
            "encoder": fresh(Encoder, self.model, seed),
            "decoder": fresh(Decoder, self.model, seed + 1),
        }
        term = Term(
            name="hidden",
            fn=lambda view: self.loss(view["params"], view["train/volume"]),
            reads=("params", "train/volume"),
        )
        phase = Phase(
            name="masked",
            terms=(term,),
            groups=EVERYTHING,
            steps=config.total_steps(len(self.train)),
            options=config,
        )
        self.ready(phase)

    def rules(
        self, params: Any, stats: Any, batch: Any, key: Any, step: Any, trainable: Any
    ) -> dict[str, Any]:
        """What the term reads: changed volumes, and the blocks to hide."""

        def volume(_: Any) -> Any:
            first, second = jax.random.split(key)
            x = batch["volume"].astype(jnp.float32) / 255
            x = augment(first, x, flip=self.config.flip)
            return x, draw_mask(second, len(x), x.shape[1], self.config.mask)

        return {
            "params": lambda _: params,
            "train/volume": volume,
            "stats/next": lambda _: stats,
        }

    def rebuilt(self, params: Any, x: Array, mask: Mask) -> Float[Array, "b s s s"]:
        """The decoder's volumes, in [0, 1]."""
        maps, _ = self.encoder_network.apply(params["encoder"], {}, x, mask)
        y, _ = self.decoder_network.apply(params["decoder"], {}, maps, mask)
        return (y + 1) / 2

    def sums(self, params: Any, x: Array, mask: Mask) -> tuple[Array, ...]:
        """Of the voxels that count, by volume: (squared errors, x, x squared, 1)."""
        weight, error = counted(x, mask), self.rebuilt(params, x, mask) - x
        parts = (4 * jnp.square(error), x, jnp.square(x), jnp.ones_like(x))
        return tuple((weight * part).sum((1, 2, 3)) for part in parts)

    def loss(self, params: Any, read: tuple[Array, Mask]) -> Any:
        """(mean squared error of values in [-1, 1] by volume, {explained})."""
        sums = self.sums(params, *read)
        explained = _metrics(jnp.stack(sums).sum(1))[1]
        return sums[0] / jnp.maximum(sums[3], 1), {"explained": explained}

    def score(
        self,
        weights: tuple[Any, Any],
        rows: Columns,
        poll: Callable[[], None] = lambda: None,
    ) -> dict[str, float]:
        """{loss, explained} of volumes, hidden the same way each time."""
        totals = np.zeros(4)
        for number, batch, _ in self.runner.batches(rows):
            poll()
            totals += np.array(self._held(weights[0], batch, number), np.float64)
        loss, explained = _metrics(totals)
        return {"loss": float(loss), "explained": float(explained)}

    @functools.cached_property
    def _held(self) -> Any:
        def run(params: Any, batch: Any, number: Any) -> Any:
            x = batch["volume"].astype(jnp.float32) / 255
            sums = self.sums(params, x, self._hidden(number, x))
            return [(part * batch["mask"]).sum() for part in sums]

        return self.runner.jit(run)

    def _hidden(self, number: Any, x: Array) -> Mask:
        key = jax.random.fold_in(jax.random.key(self.config.seed), number)
        return draw_mask(key, len(x), x.shape[1], self.config.mask)

    def scores(self, params: Any, stats: Any) -> dict[str, Any]:
        self._picture(params)
        return super().scores(params, stats)

    def kept(self, params: Any, stats: Any) -> tuple[Any, Any]:
        return params["encoder"], {}

    def curves(self) -> dict[str, dict[str, str]]:
        return {
            name.capitalize(): {
                "training": f"train/{name}",
                "validation": f"eval/{name}",
            }
            for name in ("loss", "explained")
        }

    def lines(self, results: Mapping[str, Any]) -> list[str]:
        found = results["validation"]
        return [
            f"volumes held out: loss {found['loss']:.4f}, "
            f"{100 * found['explained']:.1f} % of the variance of hidden blocks "
            "explained"
        ]

    def shown(self, results: Mapping[str, Any]) -> dict[str, Any]:
        found = results["validation"].items()
        place = self.run.pictures / _PICTURE
        return {
            "headline": {f"validation {k}": f"{v:.3f}" for k, v in found},
            "pictures": {"Middle slices": ("Volumes held out.", place)},
        }

    def _picture(self, params: Any) -> None:
        """Draws middle slices of volumes held out: whole, partly hidden, rebuilt."""
        held = self.sets["validation"]
        _, batch, mask = next(iter(self.runner.batches(held)))

        def run(params: Any, volumes: Any) -> Any:
            x = volumes.astype(jnp.float32) / 255
            hidden = self._hidden(0, x)
            seen = jnp.where(at(hidden, x.shape[1]), 0.5, x)
            rows = x, seen, self.rebuilt(params, x, hidden)
            return [jnp.rot90(row[..., x.shape[-1] // 2], axes=(1, 2)) for row in rows]

        found = self.runner.jit(run)(params, batch["volume"])
        rows = [np.asarray(row)[mask][:_SHOWN, ..., None] for row in found]
        picture = draw_rows(dict(zip(("volume", "seen", "rebuilt"), rows)))
        if self.run.is_main_process:
            write_png(picture, self.run.pictures / _PICTURE)


def _metrics(sums: Any) -> tuple[Any, Any]:
    """(loss, 1 - loss / variance) of the `sums` of all volumes."""
    errors, first, second, count = sums
    count = jnp.maximum(count, 1)
    variance = 4 * (second / count - jnp.square(first / count))
    return errors / count, 1 - errors / count / jnp.maximum(variance, 1e-9)
