"""Typed options: `load_options` reads one YAML per experiment, `dump` and `to_yaml` write the resolved options back."""

from option.load import is_pretraining, load_image_rule, load_options, load_pretraining_options
from option.pretraining import AdversarialTraining, BackboneOptions, ModalityOptions
from option.schema import Options, dump, to_yaml

__all__ = [
    "AdversarialTraining",
    "BackboneOptions",
    "ModalityOptions",
    "Options",
    "dump",
    "is_pretraining",
    "load_image_rule",
    "load_options",
    "load_pretraining_options",
    "to_yaml",
]
