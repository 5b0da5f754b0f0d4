"""Measures speed and memory, beside a path that computes as the published code does, and what the parsers withstand."""
