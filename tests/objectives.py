"""What tests of single objectives share."""

from afterimage.data import Preprocessing
from afterimage.models import ModelConfig
from afterimage.pretrain.objective import Forward, ModelSetup


def passing(objective, network, model=None):
    """(params, stats, images, key, step) -> what one pass of the objective gives."""

    def run(params, stats, images, key, step):
        return objective.forward(
            forward(network, params, stats, key, step, model), images
        )

    return run


def forward(network, params, stats, key, step=None, model=None):
    """A network with its weights, as an objective is given it."""
    model = model or ModelConfig(image_size=(8, 8), channels=1)
    setup = ModelSetup(model, network, Preprocessing((8, 8), (0.4,), (0.2,), 1))
    return Forward(setup, params, stats, key, step)
