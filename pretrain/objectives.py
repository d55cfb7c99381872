"""The table of objectives; what they have in common is said in `plain`."""

from collections.abc import Mapping

from afterimage.models import ModelConfig
from pretrain.config import PretrainConfig
from pretrain.masked import Masked
from pretrain.plain import Plain

OBJECTIVES: Mapping[str, type[Plain]] = {"plain": Plain, "masked": Masked}


def make_objective(config: PretrainConfig, model: ModelConfig) -> Plain:
    """The objective that `config.objective` names, for this model."""
    return OBJECTIVES[config.objective](config, model)
