"""Spectrogram images of spoken captions: `python -m data.audio wav`, `speak`."""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import vocab
from data.audio.sounds import read_sound
from data.audio.spectrogram import RATE, mel_power, save_image, to_image
from data.audio.speech import Speaker
from data.lists import read_lines, refuse_outside
from utils import InputError, write_text_atomic

SILENCE = "silence.png"
"""The image that all captions without a word share: a second of silence."""

SPEEDS = (80, 450)  # words per minute that espeak-ng takes as they are


def draw_wavs(folder: Path, out: Path, workers: int) -> str:
    """Draw every WAV file below a folder; an image that is not older than its sound is kept.

    Args:
        folder: the sounds.
        out: gets a PNG for each, in the same folders below it.
        workers: processes; 1 stays in this one.

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
    faults = _in_parallel(partial(_draw, hear=read_sound), jobs, workers, "sound")
    if faults:
        raise InputError(f"{len(faults)} of {len(wavs)} sounds have no image, the others are done:{_listed(faults)}")
    return f"{out}: {len(wavs)} images, {len(jobs)} of them new"


def speak(captions_files: Sequence[Path], out: Path, speaker: Speaker, workers: int) -> str:
    """Speak the captions of some lists and draw each different one once; images that are there are kept.

    The lists of images' names are written last, when all images are there.

    Args:
        captions_files: texts with a caption a line.
        out: gets the images and, for `train_caps.txt`, the list `train_audios.txt`, with one name per caption.
        speaker: the voice.
        workers: processes; 1 stays in this one.

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
    faults = _in_parallel(partial(_draw, hear=speaker.say), jobs, workers, "caption")
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


def _in_parallel(
    draw: Callable[[tuple[Any, Path]], str | None], jobs: Sequence[tuple[Any, Path]], workers: int, unit: str
) -> list[str]:
    """Do all jobs, whatever becomes of some; returns what is wrong with those that failed."""
    bar = partial(tqdm, total=len(jobs), desc="spectrograms", unit=unit, disable=None)
    if workers > 1 and len(jobs) > 1:
        # Not forked: a copy of a process in which torch has started its threads can hang.
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            results = list(bar(pool.map(draw, jobs, chunksize=8)))
    else:
        results = list(bar(map(draw, jobs)))
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


def run_wav(given: argparse.Namespace) -> None:
    """`wav FOLDER OUT`."""
    print(draw_wavs(given.folder, given.out, given.workers))


def run_speak(given: argparse.Namespace) -> None:
    """`speak --data_path FOLDER OUT`, `speak --captions FILE OUT` or `speak --play CAPTION OUT.wav`."""
    speaker = Speaker(given.voice, given.speed)
    if given.play is not None:
        speaker.save(given.play, given.out)
        print(given.out)
        return
    files = given.captions or sorted(given.data_path.glob("*_caps*.txt"))
    if not files:
        raise InputError(f"{given.data_path}: no train_caps.txt or other list of captions there")
    print(speak(files, given.out, speaker, given.workers))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one of the two commands."""
    parser = argparse.ArgumentParser(prog="python -m data.audio", description="Spectrogram images of spoken captions.")
    commands = parser.add_subparsers(required=True)

    def command(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.add_argument("--workers", type=int, default=os.cpu_count(), metavar="N", help="processes (all cores)")
        added.set_defaults(run=run)
        return added

    drawing = command("wav", run_wav, "draw every WAV file below a folder")
    drawing.add_argument("folder", type=Path, metavar="FOLDER")
    drawing.add_argument("out", type=Path, metavar="OUT", help="folder of the images")

    speaking = command("speak", run_speak, "speak captions with espeak-ng and draw each different one")
    source = speaking.add_mutually_exclusive_group(required=True)
    source.add_argument("--data_path", type=Path, metavar="FOLDER", help="speak every list of captions of a data set")
    source.add_argument("--captions", type=Path, action="append", metavar="FILE", help="speak this list; repeatable")
    source.add_argument("--play", metavar="CAPTION", help="write one caption as a sound to listen to")
    speaking.add_argument("out", type=Path, metavar="OUT", help="folder of images and lists; with --play a WAV file")
    speaking.add_argument("--voice", default=Speaker.voice, help="see `espeak-ng --voices=en` (en-us)")
    speaking.add_argument("--speed", type=int, default=Speaker.speed, help="words per minute, 80 to 450 (175)")
    given = parser.parse_args(arguments)
    if given.run is run_speak and not SPEEDS[0] <= given.speed <= SPEEDS[1]:
        raise InputError(f"--speed {given.speed}: expected {SPEEDS[0]} to {SPEEDS[1]} words per minute")
    given.run(given)
