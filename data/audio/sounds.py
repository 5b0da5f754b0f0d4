"""Reads WAV files of any depth and rate as one channel at the rate of the spectrograms."""

from __future__ import annotations

import io
import math
import warnings
from pathlib import Path

import numpy as np

from data.audio.spectrogram import RATE
from runtime.untrusted import read_bytes
from utils import InputError, import_extra

LONGEST = 600  # seconds
_RATES = (4_000, 384_000)
_MAX_BYTES = 2**28
_LOUDEST = 1e6  # times full scale: far beyond any sound, far below where its power would overflow


def read_sound(path: Path) -> np.ndarray:
    """Read a WAV file: whole numbers of 8 to 64 bits or floats, channels averaged, resampled.

    Returns:
        [n] float64 at `RATE`, n at least 1, full scale being 1.

    Raises:
        InputError: no WAV file, cut short, without a sample, or out of bounds; or SciPy (extra `audio`) is missing.
    """
    signal = import_extra("scipy.signal", "sounds are read with SciPy", "audio")
    rate, samples = _read(path)
    if not _RATES[0] <= rate <= _RATES[1]:
        raise InputError(f"{path}: {rate} samples per second; expected {_RATES[0]} to {_RATES[1]}")
    if len(samples) > LONGEST * rate:
        raise InputError(f"{path}: {len(samples) / rate:.0f} s long; a spoken caption has at most {LONGEST} s")
    sound = _as_float(samples).mean(axis=1)  # [n]
    if not np.abs(sound).max() < _LOUDEST:
        raise InputError(f"{path}: a sample is not a finite number near -1 to 1; write the sound anew")
    if rate == RATE:
        return sound
    common = math.gcd(rate, RATE)
    return np.asarray(signal.resample_poly(sound, RATE // common, rate // common))


def _read(path: Path) -> tuple[int, np.ndarray]:
    """Rate and samples [n, channels] of a WAV file, as stored."""
    from scipy.io import wavfile

    try:
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise InputError(f"{path}: {size >> 20} MiB are far more than one spoken caption takes; cut it up")
        content = io.BytesIO(read_bytes(path))  # of a file, SciPy makes room for as much as its header announces
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # chunks that hold no sound
            warnings.filterwarnings("error", "Reached EOF", wavfile.WavFileWarning)
            rate, samples = wavfile.read(content)
    except InputError:
        raise
    except wavfile.WavFileWarning as error:
        raise InputError(
            f"{path}: the file ends before the sound that its header announces; copy it again (or, if a program wrote "
            "it into a pipe, let it write a file)"
        ) from error
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from error
    except Exception as error:  # on damaged bytes the reader raises errors of nearly any class
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not a readable WAV file ({reason}); convert it to 16-bit PCM") from error
    if not samples.size:
        raise InputError(f"{path}: the WAV file holds no sample; record it again")
    return rate, samples.reshape(len(samples), -1)


def _as_float(samples: np.ndarray) -> np.ndarray:
    """Samples with full scale 1; 8 bits are unsigned, 24 bits come as the upper ones of 32."""
    if samples.dtype.kind == "f":
        return samples.astype(np.float64)
    bits = 8 * samples.dtype.itemsize
    centre = 2 ** (bits - 1) if samples.dtype.kind == "u" else 0
    return (samples.astype(np.float64) - centre) / 2 ** (bits - 1)
