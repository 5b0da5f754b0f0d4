"""The toy set: overhead scenes drawn on the spot."""
