"""Log-mel images of sounds. Letters: n samples, T frames, F frequencies, M mel bands."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path

import numpy as np
from PIL import Image

from utils import InputError, write_atomic

RATE = 16_000  # samples per second
WINDOW = 400  # 25 ms
HOP = 160  # 10 ms
BANDS = 128
RANGE = 80.0  # dB below a sound's loudest point that are drawn: without an end, digital silence would take the contrast

_FFT = 1024  # zero-padded: with 512 points the lowest bands would fall between two frequencies
_FRAMES_AT_ONCE = 1000


@cache
def mel_filters() -> np.ndarray:
    """The mel filter bank: triangles of equal area between 0 Hz and half the rate, on Slaney's mel scale.

    Equal to `librosa.filters.mel(sr=16000, n_fft=1024, n_mels=128)`.

    Returns:
        [M, F] float64.
    """
    edges = mel_to_hertz(np.linspace(0, hertz_to_mel(RATE / 2), BANDS + 2))
    frequencies = np.fft.rfftfreq(_FFT, 1 / RATE)
    rising = (frequencies - edges[:-2, None]) / np.diff(edges)[:-1, None]  # [M, F]
    falling = (edges[2:, None] - frequencies) / np.diff(edges)[1:, None]
    triangles = np.minimum(rising, falling).clip(min=0)
    return triangles * (2 / (edges[2:] - edges[:-2]))[:, None]


def hertz_to_mel(hertz: float) -> float:
    """Slaney's mel scale: 3 mel per 200 Hz up to 1 kHz, then 27 mel per factor of 6.4."""
    return hertz * 3 / 200 if hertz < 1000 else 15 + 27 * float(np.log(hertz / 1000) / np.log(6.4))


def mel_to_hertz(mel: np.ndarray) -> np.ndarray:
    """The inverse of `hertz_to_mel`."""
    return np.where(mel < 15, mel * 200 / 3, 1000 * 6.4 ** ((mel - 15) / 27))


def mel_power(sound: np.ndarray) -> np.ndarray:
    """Power in each mel band, frame by frame.

    Args:
        sound: [n] float, at `RATE`; one shorter than a window is filled up with silence.

    Returns:
        [M, T] float64 with T = 1 + (n - 400) // 160, the lowest band first.
    """
    padded = np.pad(sound, (0, max(WINDOW - len(sound), 0)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]  # [T, 400]
    hann = np.hanning(WINDOW + 1)[:-1]
    blocks = [
        mel_filters() @ np.abs(np.fft.rfft(frames[start : start + _FRAMES_AT_ONCE] * hann, _FFT)).T ** 2
        for start in range(0, len(frames), _FRAMES_AT_ONCE)
    ]
    return np.concatenate(blocks, axis=1)


def to_image(power: np.ndarray) -> np.ndarray:
    """Power [M, T] as brightness: decibels down to 80 below the loudest point, stretched to 0..255.

    Returns:
        [M, T] uint8, the lowest band in the last row; all 0 where nothing differs, as in silence.
    """
    loudest = power.max()
    if loudest <= 0:
        return np.zeros(power.shape, dtype=np.uint8)
    decibels = 10 * np.log10(np.maximum(power / loudest, 10 ** (-RANGE / 10)))
    lowest = decibels.min()
    stretched = 255 * (1 - decibels / lowest) if lowest < 0 else np.zeros(power.shape)
    return np.rint(stretched[::-1]).astype(np.uint8)


def save_image(path: Path, image: np.ndarray) -> None:
    """Write an image [M, T] uint8 as a grey PNG.

    Raises:
        InputError: it can't be written.
    """
    try:
        write_atomic(path, partial(Image.fromarray(image).save, format="PNG"))
    except OSError as error:
        raise InputError(f"{path}: can't be written ({error.strerror})") from error
