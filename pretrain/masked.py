"""Masked autoencoding: reconstruct the patches that the encoder did not see."""

from jaxtyping import Array, Float

from afterimage.models import Network
from pretrain.masks import draw_mask
from pretrain.plain import Pass, Plain, Tree


class Masked(Plain):
    """The loss is that of masked pixels; every layer of the encoder leaves them out.

    Tian et al., "Designing BERT for Convolutional Networks: Sparse and Hierarchical
    Masked Modeling" (2023, SparK), sections 3.1-3.3; Woo et al., "ConvNeXt V2" (2023,
    FCMAE), section 3.1, where masked dense layers stand in for sparse ones, as here.
    """

    def mistakes(self) -> list[str]:
        patch, (height, width) = self.config.mask_patch, self.model.image_size
        if patch is None or patch < max(height, width):
            return []
        return [
            f"mask_patch={patch}: images of {height}x{width} pixels would be one "
            "patch; take less than the longer side"
        ]

    def forward(
        self,
        network: Network,
        params: Tree,
        stats: Tree,
        inputs: Float[Array, "b h w c"],
        key: Array,
        step: Array | None,
    ) -> Pass:
        """One pass; the same key draws the same masks."""
        batch, height, width, _ = inputs.shape
        mask = draw_mask(key, batch, (height, width), self.config)
        train = step is not None
        output, stats = network.apply(params, stats, inputs, mask=mask, train=train)
        return Pass(output, stats, mask=mask)
