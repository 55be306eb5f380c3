"""How well inputs can be rebuilt from the smashed data of a model and cut."""

from leansplit.inversion.decoder import DecoderConfig, train_decoder
from leansplit.inversion.observation import Observer
from leansplit.inversion.pixels import PixelRange
from leansplit.inversion.search import SearchConfig, chosen_smoothness, search_inputs
from leansplit.inversion.similarity import Similarity, nearest, similarity

__all__ = [
    "DecoderConfig",
    "Observer",
    "PixelRange",
    "SearchConfig",
    "Similarity",
    "chosen_smoothness",
    "nearest",
    "search_inputs",
    "similarity",
    "train_decoder",
]
