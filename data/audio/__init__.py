"""Spoken captions and spectrograms."""
