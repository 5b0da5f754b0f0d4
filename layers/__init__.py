"""The models: a registry that every module of this folder fills when it is imported."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

from layers.registry import registered

if TYPE_CHECKING:
    from layers.base import RetrievalModel
    from option import Options
    from vocab import Vocabulary

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def build_model(options: Options, vocabulary: Vocabulary, load_weights: bool = True) -> RetrievalModel:
    """Build the model that `options.model.name` chooses, with the weights that it starts from.

    Args:
        options: a loaded experiment.
        vocabulary: the words whose ids the captions hold.
        load_weights: read the weight files that the options name; False where a checkpoint is loaded next.

    Raises:
        InputError: weights that the options name can't be had or don't fit.
    """
    return registered()[options.model.name].model.from_options(options, vocabulary, load_weights)
