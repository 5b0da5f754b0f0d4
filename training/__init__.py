"""The state of a training and its step."""
