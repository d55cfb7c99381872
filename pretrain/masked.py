"""Masked autoencoding: reconstruct the patches that the encoder did not see."""

from jaxtyping import Array, Float

from afterimage.models import Network
from afterimage.pretrain.hog import cell_size
from afterimage.pretrain.masks import draw_mask, patch_size
from afterimage.pretrain.plain import Pass, Plain, Tree


class Masked(Plain):
    """The loss is that of masked pixels; every layer of the encoder leaves them out.

    Tian et al., "Designing BERT for Convolutional Networks: Sparse and Hierarchical
    Masked Modeling" (2023, SparK), sections 3.1-3.3; Woo et al., "ConvNeXt V2" (2023,
    FCMAE), section 3.1, where masked dense layers stand in for sparse ones, as here.
    """

    def mistakes(self) -> list[str]:
        height, width = self.model.image_size
        patch, found = patch_size(self.config, (height, width)), []
        if patch >= max(height, width):
            found.append(
                f"mask_patch={patch}: images of {height}x{width} pixels would be one "
                "patch; take less than the longer side"
            )
        if self.config.target == "hog" and cell_size(patch) is None:
            found.append(
                f"mask_patch={patch}: target='hog' divides patches into cells of 3 to "
                "8 pixels; take a multiple of one of these"
            )
        return found

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
