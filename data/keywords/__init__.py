"""Keywords of images, taken from their captions."""
