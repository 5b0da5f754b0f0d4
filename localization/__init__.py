"""Semantic localization: windows, map, its metrics, large images."""
