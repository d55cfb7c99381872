"""The plain objective, and with it what every objective is.

An objective says what is trained (`build`) and what one pass through it gives
(`forward`): an output to be compared with the target, and what is paid besides. Losses,
corruptions and augmentations are the same for all and not its business.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Bool, Float

from afterimage.models import Autoencoder, ModelConfig, Network
from afterimage.pretrain.config import PretrainConfig

Tree = Mapping[str, Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pass:
    """What one pass of a batch of b images gave."""

    output: Float[Array, "b h w c"]
    """What is compared with the target."""
    stats: Tree
    mask: Bool[Array, "b h w"] | None = None
    """The pixels that are compared, where not all are; the encoder did not see them."""
    penalty: Float[Array, " b"] | None = None
    """Added to the reconstruction loss of each image."""
    measures: Mapping[str, Float[Array, "b ..."]] = dataclasses.field(
        default_factory=dict
    )
    """Diagnostics of each image; `summarise` is given their means."""


@dataclasses.dataclass(frozen=True)
class Plain:
    """Reconstruct the image; a denoising autoencoder where inputs are corrupted.

    Vincent et al., "Extracting and Composing Robust Features with Denoising
    Autoencoders" (2008), section 2.3.
    """

    config: PretrainConfig
    model: ModelConfig

    def mistakes(self) -> list[str]:
        """What cannot work with this model and size of images, one sentence each."""
        return []

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        """What is trained: has an `encoder`, that of `model`."""
        return Autoencoder(self.model, rngs=rngs)

    def start(self, params: Tree, stats: Tree) -> Tree:
        """The statistics of the first step, from what was built."""
        del params
        return stats

    def forward(
        self,
        network: Network,
        params: Tree,
        stats: Tree,
        inputs: Float[Array, "b h w c"],
        key: Array,
        step: Array | None,
    ) -> Pass:
        """One pass of standardised images; `step` is None where nothing is trained."""
        del key
        train = step is not None
        output, stats = network.apply(params, stats, inputs, train=train)
        return Pass(output, stats)

    def summarise(self, means: Tree) -> dict[str, Any]:
        """Metrics from the means of the measures over images; scalars."""
        return dict(means)

    def samples(
        self, network: Network, params: Tree, stats: Tree, key: Array, count: int
    ) -> Array | None:
        """So many outputs without an input, where the objective can; else None."""
        return None
