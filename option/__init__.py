"""Typed options: `load_options` reads one YAML per experiment, `dump` and `to_yaml` write the resolved options back."""

from option.load import load_options
from option.schema import Options, dump, to_yaml

__all__ = ["Options", "dump", "load_options", "to_yaml"]
