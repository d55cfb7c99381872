"""Pretraining and bulk features on a Ray cluster; needs the [ray] extra.

pip install 'afterimage[ray]'
"""

from afterimage.ray.train import pretrain

__all__ = ["pretrain"]
