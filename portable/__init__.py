"""A trained model as a folder that stands alone: weights, options, tokenizer, ONNX graphs, card and an example."""

WEIGHTS = "model.safetensors"
CONFIG = "config.yaml"
CARD = "README.md"
VOCABULARY = "vocabulary.json"
TOKENIZER = "tokenizer"
"""Folder of an encoder's own tokenizer and configuration, or `tokenizer.json` of byte pairs in it."""
PREPROCESSING = "preprocessing.json"
SCORES = "scores.json"
EXAMPLE = "example.py"
OPSET = 18
"""Of the ONNX graphs: the first in which GRU and Resize have their present form; onnxruntime reads it from 1.14 on."""
