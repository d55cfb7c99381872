"""Text for Afterimage: pretrain BERT on own texts, fine-tune it with few labels."""

from typing import TYPE_CHECKING

from afterimage.lazy import exports

if TYPE_CHECKING:
    from afterimage_text.config import FinetuneConfig as FinetuneConfig
    from afterimage_text.config import PretrainConfig as PretrainConfig
    from afterimage_text.finetuning import finetune as finetune
    from afterimage_text.models import TextClassifier as TextClassifier
    from afterimage_text.models import TextEncoder as TextEncoder
    from afterimage_text.models import load_text_classifier as load_text_classifier
    from afterimage_text.models import load_text_encoder as load_text_encoder
    from afterimage_text.pretraining import pretrain as pretrain

__getattr__, __dir__ = exports(__name__, __file__)
