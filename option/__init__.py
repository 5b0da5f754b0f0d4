"""Typed options: `load_options` reads one YAML per experiment, `dump` and `to_yaml` write the resolved options back."""

from option.load import load_options, load_scene_options, trains_backbone
from option.scenes import SceneOptions
from option.schema import Options, dump, to_yaml

__all__ = ["Options", "SceneOptions", "dump", "load_options", "load_scene_options", "to_yaml", "trains_backbone"]
