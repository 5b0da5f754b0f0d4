"""Draws the spectrograms of many sounds or captions, each different one once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import vocab
from data.audio.sounds import read_sound
from data.audio.spectrogram import RATE, mel_power, save_image, to_image
from data.audio.speech import Speaker
from data.lists import read_lines, refuse_outside
from data.workers import in_parallel
from utils import InputError, write_text_atomic

SILENCE = "silence.png"
"""The image that all captions without a word share: a second of silence."""


def draw_wavs(folder: Path, out: Path, workers: int) -> str:
    """Draw every WAV file below a folder as a PNG in the same folders below `out`.

    An image that is not older than its sound is kept. One `worker` stays in this process.

    Returns:
        One line on what was done.

    Raises:
        InputError: there is no sound, two would share an image, or some can't be read (the others are drawn).
    """
    wavs = sorted(path for path in folder.rglob("*") if path.suffix.lower() == ".wav" and path.is_file())
    if not wavs:
        raise InputError(f"{folder}: no .wav file there")
    refuse_outside(wavs, folder)
    images: dict[Path, Path] = {}
    for wav in wavs:
        image = out / wav.relative_to(folder).with_suffix(".png")
        other = images.setdefault(image, wav)
        if other != wav:
            raise InputError(f"{other} and {wav} differ in their ending alone: both would become {image}")
    jobs = [(wav, image) for image, wav in images.items() if not _up_to_date(image, wav)]
    faults = _draw_all(read_sound, jobs, workers, "sound")
    if faults:
        raise InputError(f"{len(faults)} of {len(wavs)} sounds have no image, the others are done:{_listed(faults)}")
    return f"{out}: {len(wavs)} images, {len(jobs)} of them new"


def speak(captions_files: Sequence[Path], out: Path, speaker: Speaker, workers: int) -> str:
    """Speak the captions of some lists and draw each different one once; images that are there are kept.

    The lists of the images' names are written last, when all images are there: one name per caption, in
    `train_audios.txt` for `train_caps.txt`.

    Returns:
        One line on what was done.

    Raises:
        InputError: a text can't be read, a list is there already with other names, or some captions can't be spoken
            (the others are done).
    """
    names: dict[Path, list[str]] = {}
    captions: dict[str, str] = {}
    for file in captions_files:
        lines = read_lines(file, "--captions or --data_path")
        target = out / audio_list_name(file)
        if target in names:
            raise InputError(f"{file}: a second text whose images would be listed in {target}; speak it elsewhere")
        names[target] = [speaker.image_name(line) if vocab.tokenize(line) else SILENCE for line in lines]
        captions |= zip(names[target], lines, strict=True)
    contents = {target: "".join(f"{name}\n" for name in listed) for target, listed in names.items()}
    _refuse_other_lists(contents)
    blank = sum(listed.count(SILENCE) for listed in names.values())
    if captions.pop(SILENCE, None) is not None and not (out / SILENCE).is_file():
        save_image(out / SILENCE, to_image(mel_power(np.zeros(RATE))))
    jobs = [(caption, out / name) for name, caption in captions.items() if not (out / name).is_file()]
    if jobs:
        speaker.say("hello")  # a fault that all captions would share is told once
    faults = _draw_all(speaker.say, jobs, workers, "caption")
    if faults:
        raise InputError(
            f"{len(faults)} of {len(captions)} captions have no image, the others are done; no list was written:"
            f"{_listed(faults)}"
        )
    for target, content in contents.items():
        write_text_atomic(target, content)
    return (
        f"{out}: {len(captions)} images, {len(jobs)} of them new, for {sum(map(len, names.values()))} captions"
        + (f" ({blank} blank ones share {SILENCE})" if blank else "")
        + f"; lists: {', '.join(target.name for target in contents)}"
    )


def audio_list_name(captions_file: Path) -> str:
    """What to call the list of a text's images: `train_audios.txt` for `train_caps.txt`, also with `_verify`."""
    stem = captions_file.stem
    return f"{stem.replace('_caps', '_audios') if '_caps' in stem else stem + '_audios'}.txt"


def _refuse_other_lists(contents: dict[Path, str]) -> None:
    """Raise an InputError if a list would replace one that names other images: it may be a published one."""
    for target, content in contents.items():
        if target.is_file() and target.read_bytes() != content.encode():
            raise InputError(
                f"{target} is there and names other images than these captions, voice and speed give. Delete it, or "
                "name another folder"
            )


def _up_to_date(image: Path, wav: Path) -> bool:
    return image.is_file() and image.stat().st_mtime_ns >= wav.stat().st_mtime_ns


def _draw_all(
    hear: Callable[[Any], np.ndarray], jobs: Sequence[tuple[Any, Path]], workers: int, unit: str
) -> list[str]:
    """Do all jobs, whatever becomes of some; returns what is wrong with those that failed."""
    results = in_parallel(partial(_draw, hear=hear), jobs, workers, "spectrograms", unit)
    return [result for result in results if result is not None]


def _draw(job: tuple[Any, Path], hear: Callable[[Any], np.ndarray]) -> str | None:
    """Draw the image of one sound; returns what is wrong with it, or None."""
    source, image = job
    try:
        save_image(image, to_image(mel_power(hear(source))))
    except InputError as error:
        return str(error)
    return None


def _listed(faults: Sequence[str]) -> str:
    return "".join(f"\n  {fault}" for fault in faults)
