"""Speaks captions with espeak-ng."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from data.audio.sounds import read_sound
from utils import InputError, write_atomic

PROGRAM = "espeak-ng"
SPEEDS = (80, 450)  # words per minute that it takes as they are

_SECONDS_TO_SPEAK = 60
_LETTERS_IN_NAME = 40
_FORM = 1  # raised when another way of speaking or drawing makes earlier images outdated


@dataclass(frozen=True)
class Speaker:
    """A voice of espeak-ng.

    Attributes:
        voice: its name, as `espeak-ng --voices` lists them.
        speed: words per minute.
    """

    voice: str = "en-us"
    speed: int = 175

    def image_name(self, caption: str) -> str:
        """The file name of a caption's image, the same for the same words, voice and speed."""
        text = plain(caption)
        content = f"{_FORM}\n{self.voice}\n{self.speed}\n{text}"
        digest = hashlib.sha256(content.encode()).hexdigest()[:16]
        words = re.sub("[^a-z0-9]+", "_", text.lower())[:_LETTERS_IN_NAME].strip("_")
        return f"{words}_{digest}.png" if words else f"{digest}.png"

    def say(self, caption: str) -> np.ndarray:
        """Speak a caption; returns [n] float64 at `data.audio.spectrogram.RATE`.

        Raises:
            InputError: espeak-ng is missing, refuses the voice or fails, or what it wrote can't be read.
        """
        with self._spoken(caption) as wav:
            return read_sound(wav)

    def save(self, caption: str, path: Path) -> None:
        """Speak a caption into a WAV file, as espeak-ng writes it.

        Raises:
            InputError: as `say`, or the file can't be written.
        """
        with self._spoken(caption) as wav:
            content = wav.read_bytes()
        try:
            write_atomic(path, lambda file: file.write(content))
        except OSError as error:
            raise InputError(f"{path}: can't be written ({error.strerror})") from error

    @contextmanager
    def _spoken(self, caption: str) -> Iterator[Path]:
        """A WAV file of a caption, as long as the context lasts."""
        if shutil.which(PROGRAM) is None:
            raise InputError(
                f"{PROGRAM}, which speaks the captions, is not installed: apt install {PROGRAM} (Debian, Ubuntu), "
                f"dnf install {PROGRAM} (Fedora) or brew install {PROGRAM} (macOS)"
            )
        with TemporaryDirectory(prefix="speech") as folder:
            wav = Path(folder) / "spoken.wav"
            # Through standard input, since a caption may begin with a dash. -b 1: UTF-8; -z: no pause at the end.
            flags = ["-v", self.voice, "-s", str(self.speed), "-b", "1", "-z", "--stdin", "-w", str(wav)]
            try:
                done = subprocess.run(
                    [PROGRAM, *flags], input=plain(caption).encode(), capture_output=True, timeout=_SECONDS_TO_SPEAK
                )
            except subprocess.TimeoutExpired as error:
                raise InputError(f"{PROGRAM} took more than {_SECONDS_TO_SPEAK} s for {caption[:80]!r}") from error
            if done.returncode or not wav.is_file():
                said = " ".join(done.stderr.decode(errors="replace").split()) or f"exit status {done.returncode}"
                raise InputError(f"{PROGRAM} can't speak {caption[:80]!r} with the voice {self.voice!r}: {said}")
            yield wav


def plain(caption: str) -> str:
    """A caption without doubled blanks and blanks at its ends, which can't be heard."""
    return " ".join(caption.split())
