"""Finding satellite and aerial images with sentences, in Python: `Retriever` (docs/python.md)."""

from archive.searcher import Hit
from rsretrieval.retriever import ImageLike, Retriever
from utils import InputError

__all__ = ["Hit", "ImageLike", "InputError", "Retriever"]
