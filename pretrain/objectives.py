"""The table of objectives; what they have in common is said in `plain`."""

from collections.abc import Mapping

from afterimage.models import ModelConfig
from pretrain.config import PretrainConfig
from pretrain.contractive import Contractive
from pretrain.dictionary import Dictionary
from pretrain.latent import Latent
from pretrain.masked import Masked
from pretrain.plain import Plain
from pretrain.quantised import Quantised
from pretrain.sparse import Sparse
from pretrain.variational import Variational

OBJECTIVES: Mapping[str, type[Plain]] = {
    "plain": Plain,
    "masked": Masked,
    "variational": Variational,
    "sparse": Sparse,
    "vq": Quantised,
    "contractive": Contractive,
    "dictionary": Dictionary,
}


def make_objective(config: PretrainConfig, model: ModelConfig) -> Plain:
    """The objective that `config.objective` names, for this model."""
    if config.latent_weight:
        return Latent(config, model)
    return OBJECTIVES[config.objective](config, model)
