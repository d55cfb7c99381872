"""PyTorch's side of the speed comparison has the same parameters and shapes."""

import jax
import pytest
from flax import nnx

from afterimage.models import ModelConfig, Network, build_autoencoder

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("name", ["conv", "conv-classic", "resnet18", "convnext-atto"])
def test_same_parameters_and_shapes(name):
    from benchmarks import torch_models

    config = ModelConfig(name, image_size=(28, 28), channels=1)
    module = nnx.eval_shape(lambda: build_autoencoder(config, rngs=nnx.Rngs(0)))
    _, params, _ = Network.create(module)
    ours = sorted(x.size for x in jax.tree.leaves(params))
    model = torch_models.build(config)
    assert sorted(p.numel() for p in model.parameters()) == ours
    with torch.no_grad():
        assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 1, 28, 28)
