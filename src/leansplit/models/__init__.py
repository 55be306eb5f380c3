"""Models and the cut: split a model at a layer, and the models that come with leansplit."""

from leansplit.models.auxiliary import AUXILIARY_KINDS as AUXILIARY_KINDS
from leansplit.models.auxiliary import AuxiliaryConfig as AuxiliaryConfig
from leansplit.models.auxiliary import LocalModel as LocalModel
from leansplit.models.auxiliary import build_auxiliary as build_auxiliary
from leansplit.models.chain import chain as chain
from leansplit.models.cnn import small_cnn as small_cnn
from leansplit.models.language.builder import adapter_config_of as adapter_config_of
from leansplit.models.language.builder import client_part as client_part
from leansplit.models.language.sources import is_pretrained as is_pretrained
from leansplit.models.registry import MODELS as MODELS
from leansplit.models.registry import ModelSpec as ModelSpec
from leansplit.models.registry import build_model as build_model
from leansplit.models.registry import register_model as register_model
from leansplit.models.resnet import FrozenBatchNorm2d as FrozenBatchNorm2d
from leansplit.models.resnet import resnet18 as resnet18
from leansplit.models.split import SplitModel as SplitModel
from leansplit.models.split import cut_layers as cut_layers
from leansplit.models.split import split_at as split_at
from leansplit.models.weights import load_weights_ as load_weights_
from leansplit.models.weights import weights_digest as weights_digest
