"""The table of objectives; what they have in common is said in `plain`."""

from collections.abc import Mapping

from afterimage.models import ModelConfig
from afterimage.pretrain.config import PretrainConfig
from afterimage.pretrain.contractive import Contractive
from afterimage.pretrain.dictionary import Dictionary
from afterimage.pretrain.latent import Latent
from afterimage.pretrain.masked import Masked
from afterimage.pretrain.plain import Plain
from afterimage.pretrain.quantised import Quantised
from afterimage.pretrain.sparse import Sparse
from afterimage.pretrain.variational import Variational

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
