"""Spectrogram images of spoken captions: `python -m data.audio wav`, `speak`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from data.audio.drawing import draw_wavs, speak
from data.audio.speech import SPEEDS, Speaker
from runtime.entry_point import run_entry_point
from utils import InputError


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


if __name__ == "__main__":
    run_entry_point(main)
