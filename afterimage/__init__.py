"""Afterimage: pretrain an encoder-decoder on images, keep the encoder, reuse it.

The stages are packages: `afterimage.pretrain`, `afterimage.finetune`.
"""

from typing import TYPE_CHECKING

from afterimage.lazy import exports

if TYPE_CHECKING:
    from afterimage.encoder import Encoder as Encoder
    from afterimage.encoder import load_encoder as load_encoder
    from afterimage.sklearn import EncoderTransformer as EncoderTransformer

__version__ = "0.1.0"

__getattr__, __dir__ = exports(__name__, __file__)
