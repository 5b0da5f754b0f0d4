"""Writes the toy data set: images, captions, spectrograms and lists, and what says whether all of it is there."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from data.lists import write_lines
from data.toy.classes import CLASSES, draw_scene
from data.toy.speech import caption_image
from runtime.progress import progress_bar
from runtime.untrusted import parse_json, read_bytes
from utils import InputError, write_atomic, write_text_atomic

MARKER = "toy.json"  # says which flags a folder was made with, and whether it is whole
AUDIO_LISTS = ("train_audios.txt", "test_audios.txt")
LISTS = ("train_caps.txt", "train_filename.txt", "test_caps.txt", "test_filename.txt", "classes.txt", *AUDIO_LISTS)
SIZES = (32, 1024)


@dataclass(frozen=True)
class _Flags:
    """What a toy data set follows from."""

    images_per_class: int
    size: int
    seed: int
    test_share: float
    classes: tuple[str, ...] = CLASSES

    def __post_init__(self) -> None:
        number = self.images_per_class
        self._check("images-per-class", "a whole number of at least 2", number, number >= 2)
        self._check("size", f"pixels from {SIZES[0]} to {SIZES[1]}", self.size, SIZES[0] <= self.size <= SIZES[1])
        self._check("seed", "a whole number of at least 0", self.seed, self.seed >= 0)
        self._check("test-share", "a share between 0 and 1, both excluded", self.test_share, 0 < self.test_share < 1)

    @staticmethod
    def _check(flag: str, wanted: str, given: float, good: bool) -> None:
        if not good:
            raise InputError(f"--{flag} must be {wanted}; {given} was given")

    def images(self, scene_class: str) -> list[str]:
        """File names of one class's images; the first is number 1."""
        return [f"{scene_class}_{number}.jpg" for number in range(1, self.images_per_class + 1)]

    def files(self) -> set[str]:
        """Every file of the data set but the marker and the spectrograms, relative to its folder."""
        return {f"images/{name}" for scene_class in self.classes for name in self.images(scene_class)} | set(LISTS)

    def all_files(self) -> set[str]:
        """The same with every spectrogram that may be there: one that shares its caption with an earlier one is not."""
        images = [name for scene_class in self.classes for name in self.images(scene_class)]
        return self.files() | {f"audios/{_audio_name(name, place)}" for name in images for place in range(1, 6)}


def _audio_name(image_name: str, place: int) -> str:
    """File name of the spectrogram of an image's caption; place 1 is its first."""
    return f"{image_name.removesuffix('.jpg')}_{place}.png"


def make_toy(
    folder: Path,
    images_per_class: int = 40,
    size: int = 128,
    seed: int = 0,
    test_share: float = 0.2,
    progress: bool = False,
    force: bool = False,
) -> bool:
    """Draw the toy data set; where it is already there, made with the same flags, nothing is done.

    An image depends on `seed`, its class, its number and `size` alone, so the same flags give the same bytes (with the
    same versions of NumPy and Pillow), and a larger set contains the images of a smaller one.

    Args:
        folder: an empty or new folder, or a toy data set.
        images_per_class: images of each class, at least 2.
        size: edge of the images, pixels.
        seed: root of the randomness.
        test_share: share of each class's images that goes into the test lists, at least one and not all.
        progress: show a progress bar.
        force: replace a toy data set that was made with other flags.

    Returns:
        Whether anything was drawn.

    Raises:
        InputError: a value out of its range, or a folder that must not be written into.
    """
    flags = _Flags(images_per_class, size, seed, test_share)
    if _is_whole(folder, flags):
        return False
    _clear(folder, flags, force)
    _mark(folder, flags, whole=False)
    _write(folder, flags, progress)
    _mark(folder, flags, whole=True)
    return True


def _write(folder: Path, flags: _Flags, progress: bool) -> None:
    """Draw all images, then speak the captions and write the lists."""
    captions: dict[str, list[str]] = {"train": [], "test": []}
    names: dict[str, list[str]] = {"train": [], "test": []}
    audio_names: dict[str, str] = {}
    tests = min(max(round(flags.images_per_class * flags.test_share), 1), flags.images_per_class - 1)
    count = len(flags.classes) * flags.images_per_class
    with progress_bar(total=count, desc="images", unit="image", quiet=not progress) as bar:
        for scene_class in flags.classes:
            for number, name in enumerate(flags.images(scene_class), start=1):
                image, five = draw_scene(scene_class, number, flags.size, flags.seed)
                write_atomic(folder / "images" / name, partial(image.save, format="JPEG", quality=92))
                split = "test" if number > flags.images_per_class - tests else "train"
                captions[split] += five
                names[split].append(name)
                for place, caption in enumerate(five, start=1):
                    audio_names.setdefault(caption, _audio_name(name, place))
                bar.update()
    _speak(folder / "audios", audio_names, progress)
    for split in ("train", "test"):
        write_lines(folder / f"{split}_audios.txt", [audio_names[caption] for caption in captions[split]])
        write_lines(folder / f"{split}_caps.txt", captions[split])
        write_lines(folder / f"{split}_filename.txt", names[split])
    write_lines(folder / "classes.txt", flags.classes)


def _speak(folder: Path, audio_names: Mapping[str, str], progress: bool) -> None:
    """Draw the spectrogram of each different caption."""
    folder.mkdir(exist_ok=True)
    for caption, name in progress_bar(
        audio_names.items(), desc="spectrograms", unit="spectrogram", total=len(audio_names), quiet=not progress
    ):
        # Not one by one to the disk, which would take longer than all else: the marker says whether the set is whole.
        Image.fromarray(caption_image(caption)).save(folder / name)


def _mark(folder: Path, flags: _Flags, whole: bool) -> None:
    """Write the marker: once before anything else, so that a broken-off set is known as ours, and once at the end."""
    marker = {"made_by": "data.toy", "whole": whole, **asdict(flags)}
    write_text_atomic(folder / MARKER, json.dumps(marker, indent=2) + "\n")


def _read_marker(folder: Path) -> tuple[_Flags, bool] | None:
    """The flags that a folder was made with and whether it is whole; nothing where the folder isn't a toy data set."""
    try:
        marker = parse_json(read_bytes(folder / MARKER))
        images_per_class, size, seed = (int(marker[name]) for name in ("images_per_class", "size", "seed"))
        flags = _Flags(images_per_class, size, seed, float(marker["test_share"]), tuple(map(str, marker["classes"])))
        # The names below become paths to be deleted, so none of them may lead out of the folder.
        ours = marker["made_by"] == "data.toy" and all(re.fullmatch("[a-z]+", name) for name in flags.classes)
        return (flags, bool(marker["whole"])) if ours else None
    except (OSError, ValueError, KeyError, TypeError, InputError):
        return None


def _is_whole(folder: Path, flags: _Flags) -> bool:
    """Whether a folder holds the data set of these flags, complete."""
    if _read_marker(folder) != (flags, True) or not all((folder / name).is_file() for name in flags.files()):
        return False
    spoken = {name for text in AUDIO_LISTS for name in (folder / text).read_text(encoding="utf-8").splitlines()}
    return all((folder / "audios" / name).is_file() for name in spoken)


def _clear(folder: Path, flags: _Flags, force: bool) -> None:
    """Make room for a data set, or say why its folder can't take it. Removes only what an earlier run made."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not folder.is_dir():
        raise InputError(f"{folder} is a file, not a folder; choose another --out")
    made = _read_marker(folder)
    if made is None:
        raise InputError(f"{folder} holds files but is no toy data set (no valid {MARKER}); choose another --out")
    earlier, _ = made
    if earlier != flags and not force:
        raise InputError(
            f"{folder} was made with other flags ({_difference(earlier, flags)}); "
            "choose another --out, or pass --force to replace it"
        )
    foreign = sorted(name for name in flags.all_files() - earlier.all_files() if (folder / name).exists())
    if foreign:
        raise InputError(f"{folder / foreign[0]} wasn't made by this command; choose another --out")
    _mark(folder, earlier, whole=False)
    for name in sorted(earlier.all_files()):
        (folder / name).unlink(missing_ok=True)


def _difference(earlier: _Flags, flags: _Flags) -> str:
    """The flags in which two sets differ, as "size 64, now 128"."""
    new = asdict(flags)
    return ", ".join(
        "classes of another version" if key == "classes" else f"{key.replace('_', '-')} {old}, now {new[key]}"
        for key, old in asdict(earlier).items()
        if old != new[key]
    )
