"""Stage 1: an encoder learns from images without labels."""

from typing import TYPE_CHECKING

from afterimage.lazy import exports

if TYPE_CHECKING:
    from afterimage.pretrain.config import PretrainConfig
    from afterimage.pretrain.report import PretrainResult
    from afterimage.pretrain.run import pretrain

__all__ = ["PretrainConfig", "PretrainResult", "pretrain"]

__getattr__, __dir__ = exports(
    __name__,
    {
        "PretrainConfig": "afterimage.pretrain.config",
        "PretrainResult": "afterimage.pretrain.report",
        "pretrain": "afterimage.pretrain.run",
    },
)
