"""Regions of images, for GaLR."""
