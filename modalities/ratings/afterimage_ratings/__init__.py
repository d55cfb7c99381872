"""Recommendations for Afterimage: autoencoders on the rows of users' ratings."""

from typing import TYPE_CHECKING

from afterimage.lazy import exports

if TYPE_CHECKING:
    from afterimage_ratings.config import RatingsConfig as RatingsConfig
    from afterimage_ratings.recommender import Recommender as Recommender
    from afterimage_ratings.recommender import load_recommender as load_recommender
    from afterimage_ratings.training import train as train

__getattr__, __dir__ = exports(__name__, __file__)
