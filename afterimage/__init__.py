"""Afterimage: pretrain an encoder-decoder on images, keep the encoder, reuse it.

The stages are packages: `afterimage.pretrain`, `afterimage.finetune`.
"""

from typing import TYPE_CHECKING

from afterimage.lazy import exports

if TYPE_CHECKING:
    from afterimage.encoder import Encoder, load_encoder
    from afterimage.sklearn import EncoderTransformer

__version__ = "0.1.0"
__all__ = ["Encoder", "EncoderTransformer", "__version__", "load_encoder"]

__getattr__, __dir__ = exports(
    __name__,
    {
        "Encoder": "afterimage.encoder",
        "load_encoder": "afterimage.encoder",
        "EncoderTransformer": "afterimage.sklearn",
    },
)
