"""Searching the values of options by trainings, scored on val."""
