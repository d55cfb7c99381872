"""Stage 1: an encoder learns from images without labels."""

from typing import TYPE_CHECKING

from afterimage.lazy import exports

if TYPE_CHECKING:
    from afterimage.pretrain.config import PretrainConfig as PretrainConfig
    from afterimage.pretrain.recipe import recommend as recommend
    from afterimage.pretrain.report import PretrainResult as PretrainResult
    from afterimage.pretrain.run import pretrain as pretrain
    from afterimage.pretrain.run import show_augment as show_augment


__getattr__, __dir__ = exports(__name__, __file__)
