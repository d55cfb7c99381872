"""Encoders, decoders, and the operations they are made of."""

from afterimage.models.autoencoder import Autoencoder as Autoencoder
from afterimage.models.autoencoder import build_autoencoder as build_autoencoder
from afterimage.models.config import FeatureInfo as FeatureInfo
from afterimage.models.config import ModelConfig as ModelConfig
from afterimage.models.config import models as models
from afterimage.models.encoders import Encoder as Encoder
from afterimage.models.encoders import abstract_encoder as abstract_encoder
from afterimage.models.encoders import build_encoder as build_encoder
from afterimage.models.heads import Head as Head
from afterimage.models.heads import pool_features as pool_features
from afterimage.models.network import Network as Network
