"""Which of the images that were found have lost their file."""

from __future__ import annotations

import os
import time
from pathlib import Path

REMEMBERED_SECONDS = 60


class Presence:
    """Looks for files of a folder, and remembers for a minute which are gone; threads may share it."""

    def __init__(self, folder: Path) -> None:
        """Look for nothing yet."""
        self.folder = folder
        self._gone: set[int | str] = set()
        self._until = 0.0

    def known(self) -> bool:
        """Whether the folder itself is there; else nothing can be said of its files."""
        return self.folder.is_dir()

    def gone(self) -> set[int | str]:
        """Images that were found to be gone, by their rows or, in a vector store, their names."""
        if time.monotonic() > self._until:
            self._gone, self._until = set(), time.monotonic() + REMEMBERED_SECONDS
        return self._gone

    def there(self, key: int | str, name: str) -> bool:
        """Whether a file is there."""
        found = os.path.isfile(os.path.join(self.folder, name))
        if not found:
            self._gone.add(key)
        return found
