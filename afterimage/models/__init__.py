"""Encoders, decoders, and the operations they are made of."""

from afterimage.models.decoders import Autoencoder as Autoencoder
from afterimage.models.decoders import build_autoencoder as build_autoencoder
from afterimage.models.encoder import EncoderNetwork as EncoderNetwork
from afterimage.models.encoder import FeatureInfo as FeatureInfo
from afterimage.models.encoder import ModelConfig as ModelConfig
from afterimage.models.encoder import Network as Network
from afterimage.models.encoder import abstract_encoder as abstract_encoder
from afterimage.models.encoder import build_encoder as build_encoder
from afterimage.models.encoder import models as models
from afterimage.models.heads import Head as Head
from afterimage.models.heads import pool_features as pool_features
