"""Speech-like sounds for the toy captions: equal syllables, and so equal words, sound alike."""

from __future__ import annotations

import re
from functools import cache

import numpy as np

from data.audio.spectrogram import HOP, RATE, WINDOW, hertz_to_mel, mel_power, mel_to_hertz, to_image
from utils import derive_seed

PITCH = 100  # Hz: a period is a hop long, so that a held sound looks the same in every frame
SYLLABLE, PAUSE = 4 * HOP, 2 * HOP  # samples; a pause stands before each word

_FORMANTS = 3
_LOWEST, _HIGHEST = hertz_to_mel(200), hertz_to_mel(7000)


def caption_image(caption: str) -> np.ndarray:
    """The spectrogram [M, T] uint8 of a caption, spoken in syllables of our own.

    It equals that of the words' sounds one after the other, but each different word is transformed only once: the
    last frame of a word ends within the pause before the next.
    """
    words = re.findall("[a-z]+", caption.lower())
    return to_image(np.concatenate([word_power(word) for word in words], axis=1))


@cache
def word_power(word: str) -> np.ndarray:
    """Power [M, T] in each mel band of a word and the pause before it, frame by frame."""
    sound = word_sound(word)
    return mel_power(np.append(sound, np.zeros(WINDOW - HOP)))


def word_sound(word: str) -> np.ndarray:
    """The sound [n] of a word and the pause before it, n a multiple of the hop: a syllable for every three letters."""
    return np.concatenate([np.zeros(PAUSE), *map(syllable_sound, re.findall(".{1,3}", word))])


def syllable_sound(letters: str) -> np.ndarray:
    """The sound [n] of a syllable: harmonics of the pitch, loud where they are near to one of its formants."""
    random = np.random.default_rng(derive_seed(0, letters))
    formants = mel_to_hertz(random.uniform(_LOWEST, _HIGHEST, _FORMANTS))
    harmonics = np.arange(PITCH, RATE / 2, PITCH)
    distances = (harmonics[:, None] - formants) / (50 + formants / 20)
    loudness = np.exp(-(distances**2) / 2).sum(axis=1)  # [harmonics]
    waves = np.sin(2 * np.pi * harmonics[:, None] * np.arange(SYLLABLE) / RATE)
    return (loudness @ waves) * np.hanning(SYLLABLE)
