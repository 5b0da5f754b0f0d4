"""Holds the data sets and the commands that make them."""
