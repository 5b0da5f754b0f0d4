"""A run on disk: folder, checkpoint, record, and what is built for it."""
