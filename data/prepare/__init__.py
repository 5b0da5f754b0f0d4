"""Published data sets and one's own, brought into the precomp format."""
