"""Measures speed, memory and what the parsers withstand; its commands are never run by the tests."""
