"""Stage 1: an encoder-decoder learns to reconstruct images without labels."""

from typing import TYPE_CHECKING

from afterimage.lazy import exports

if TYPE_CHECKING:
    from afterimage.pretrain.config import PretrainConfig
    from afterimage.pretrain.program import pretrain
    from afterimage.pretrain.summary import PretrainResult

__all__ = ["PretrainConfig", "PretrainResult", "pretrain"]

__getattr__, __dir__ = exports(
    __name__,
    {
        "PretrainConfig": "afterimage.pretrain.config",
        "PretrainResult": "afterimage.pretrain.summary",
        "pretrain": "afterimage.pretrain.program",
    },
)
