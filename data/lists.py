"""Texts that list one thing a line, the checks that they share, and how their faults are told."""

from __future__ import annotations

import codecs
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from runtime.untrusted import leads_outside, read_bytes
from utils import InputError, first_line, write_text_atomic

FAULTS_SHOWN = 5
LONGEST_LINE = 10_000  # characters; the longest published caption has a few hundred
LONGEST_NAME = 255  # bytes of one file or folder, as file systems have it
_NAME_CHARACTERS_SHOWN = 80


def read_lines(path: Path, given_by: str = "") -> list[str]:
    """The lines of a UTF-8 text, blank ones included, without a byte-order mark at its start.

    Only a line feed ends a line, with or without a carriage return before it: a caption may hold the other characters
    at which Python would cut.

    Raises:
        InputError: the file can't be read (the message names `given_by`, what says where it is, such as "--captions"),
            or some lines are not UTF-8, too long, or hold a NUL character, which it names.
    """
    rows = read_content(path, given_by).split(b"\n")
    if not rows[-1]:
        rows.pop()
    lines, faults = [], []
    for number, row in enumerate(rows, 1):
        try:
            lines.append(row.rstrip(b"\r").decode("utf-8"))
        except UnicodeDecodeError as error:
            faults.append(f"line {number}: byte {row[error.start]:#04x} at byte {error.start + 1} is not UTF-8")
            continue
        if fault := line_fault(lines[-1]):
            faults.append(f"line {number}: {fault}")
    refuse_faults(path, faults, "Save the file as text in the encoding UTF-8, one caption or name a line.")
    return lines


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a text that `read_lines` reads, atomically."""
    write_text_atomic(path, "".join(f"{line}\n" for line in lines))


def read_content(path: Path, given_by: str = "") -> bytes:
    """The bytes of a UTF-8 text without a byte-order mark at its start.

    An InputError says why it can't be read, and to check `given_by`, what says where it is.
    """
    try:
        return read_bytes(path).removeprefix(codecs.BOM_UTF8)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"{path}: can't be read ({reason})" + (f"; check {given_by}" if given_by else "")) from error


def read_names(path: Path, what: str = "image", given_by: str = "") -> list[str]:
    """`read_lines` of file names, each checked to stay in its folder; `what` they name, messages say.

    Blank lines at the end are passed over.
    """
    names = [line.strip() for line in read_lines(path, given_by)]
    while names and not names[-1]:
        names.pop()
    faults = [f"line {number}: {fault}" for number, name in enumerate(names, 1) if (fault := name_fault(name, what))]
    refuse_faults(path, faults, f"Each line is one {what}'s file name, relative to the {what} folder.")
    return names


def absent_files(names: Sequence[str], lines: Iterable[int], folder: Path) -> list[str]:
    """A fault for each name that is no file in a folder, or lies outside of it behind a symbolic link.

    It takes one listing of each folder. `lines` are the names' lines in their list, from 1.
    """
    root = folder.resolve()
    listings: dict[PurePosixPath, dict[str, bool]] = {}
    faults: list[str] = []
    for name, line in zip(names, lines, strict=True):
        place = PurePosixPath(name)
        if place.parent not in listings:
            listings[place.parent] = _list_files(folder / place.parent, root)
        inside = listings[place.parent].get(place.name)
        if inside is None:
            other = _in_other_letters(place.name, listings[place.parent]) if len(faults) < FAULTS_SHOWN else None
            but = f", but {shown(other)} is: capital letters count" if other else ""
            faults.append(f"line {line}: {shown(name)} is not there{but}")
        elif not inside:
            faults.append(f"line {line}: {shown(name)} leads outside of the folder by a symbolic link")
    return faults


def first_faults(faults: Sequence[str]) -> str:
    """The first five faults, each on an indented line of its own, and the number of those not shown."""
    lines = list(faults[:FAULTS_SHOWN])
    if len(faults) > FAULTS_SHOWN:
        lines.append(f"... and {len(faults) - FAULTS_SHOWN} more")
    return "".join(f"\n  {line}" for line in lines)


def first_names(names: Sequence[str]) -> str:
    """The first five names on one line, and the number of those not shown."""
    more = f" and {len(names) - FAULTS_SHOWN} more" if len(names) > FAULTS_SHOWN else ""
    return ", ".join(names[:FAULTS_SHOWN]) + more


def refuse_faults(path: Path, faults: Sequence[str], advice: str = "") -> None:
    """Raise an InputError if a file has faults."""
    if faults:
        count = f"{len(faults)} fault{'s' if len(faults) > 1 else ''}"
        raise InputError(f"{path}: {count}:{first_faults(faults)}\n{advice}".rstrip())


def repeated_names(names: Sequence[str], starts: Sequence[int]) -> list[str]:
    """A fault for each name that begins more than once at the given places."""
    first: dict[str, int] = {}
    return [
        f"line {start + 1}: {shown(names[start])} comes again, it was already on line {first[names[start]] + 1}"
        for start in starts
        if first.setdefault(names[start], start) != start
    ]


def line_fault(line: str) -> str | None:
    """What is wrong with a line of text, whatever it says, or None."""
    if len(line) > LONGEST_LINE:
        return f"{len(line):,} characters, at most {LONGEST_LINE:,} are read"
    return "holds a NUL character" if "\0" in line else None


def refuse_outside(paths: Iterable[Path], folder: Path) -> None:
    """Raise an InputError if files below a folder lie elsewhere, behind symbolic links; the folder may be one."""
    faults = [
        f"{shown(path.relative_to(folder).as_posix())} leads outside of the folder by a symbolic link"
        for path in paths
        if path.is_symlink() and leads_outside(path, folder)
    ]
    refuse_faults(folder, faults, "Put the files themselves there.")


def shown(name: str) -> str:
    """A file name for a message: quoted, unprintable characters escaped, not longer than a line."""
    return repr(name[:_NAME_CHARACTERS_SHOWN]) + ("..." if len(name) > _NAME_CHARACTERS_SHOWN else "")


def name_fault(name: str, what: str) -> str | None:
    """What is wrong with a file name, or None."""
    if not name:
        return "blank file name"
    if "\\" in name or "\0" in name:
        return f"{shown(name)} holds a backslash or a NUL character; folders are separated by /"
    if any(unicodedata.category(character) == "Cc" for character in name):
        return f"{shown(name)} holds a control character"
    if any(len(part.encode("utf-8", "surrogatepass")) > LONGEST_NAME for part in name.split("/")):
        return f"{shown(name)} is longer than {LONGEST_NAME} bytes"
    if name.startswith("/") or re.match("[A-Za-z]:", name) or ".." in name.split("/"):
        return f"{shown(name)} leaves the {what} folder"
    return None if PurePosixPath(name).name else f"{shown(name)} names no file"


def _in_other_letters(name: str, names: Iterable[str]) -> str | None:
    """One of the names that differs from a name in nothing but capital letters."""
    return next((other for other in names if other.lower() == name.lower()), None)


def _list_files(folder: Path, root: Path) -> dict[str, bool]:
    """The files of a folder, each with whether it lies below `root` once symbolic links are followed."""
    try:
        folder_inside = folder.resolve().is_relative_to(root)
        with os.scandir(folder) as entries:
            return {
                entry.name: folder_inside
                and (not entry.is_symlink() or Path(entry.path).resolve().is_relative_to(root))
                for entry in entries
                if entry.is_file()
            }
    except OSError:
        return {}
