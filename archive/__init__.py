"""An archive of images as embeddings in an index folder, and the search in it; `search.py` is its command line."""
