"""Build a vocabulary file: `python -m vocab --data_path data/rsitmd_precomp [MORE ...] --data_name rsitmd`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from data.lists import read_lines
from utils import InputError
from vocab import count_tokens, from_counts

CAPTION_FILES = ("train_caps.txt", "test_caps.txt")


def build_file(folders: Sequence[Path], out: Path, min_count: int, stop_words: bool) -> str:
    """Build the vocabulary of the train and test captions of one or more data sets and write it to `out`.

    Returns:
        One line on the file: entries, captions, tokens, and the share of tokens that become `<unk>`.

    Raises:
        InputError: a caption file is missing or damaged, no caption has a token, or `out` can't be written.
    """
    files = [folder / name for folder in folders for name in CAPTION_FILES]
    captions = [caption for file in files for caption in read_lines(file, "--data_path")]
    counts = count_tokens(captions)
    tokens = counts.total()
    if tokens == 0:
        raise InputError(
            f"{', '.join(map(str, folders))}: {' and '.join(CAPTION_FILES)} hold no word at all, so there is nothing "
            "to count."
        )
    vocabulary = from_counts(counts, min_count, stop_words)
    try:
        vocabulary.save(out)
    except OSError as error:
        raise InputError(
            f"{out}: can't write the vocabulary ({error.strerror}). Name another file with --out."
        ) from error
    unknown = sum(count for token, count in counts.items() if token not in vocabulary.word2idx)
    share = 100 * unknown / tokens
    return (
        f"{out}: {len(vocabulary)} entries from {len(captions)} captions, {tokens} tokens, {share:.1f} % become <unk>"
    )


def next_command(folder: Path, name: str, vocabulary: Path) -> str:
    """What to type once a vocabulary is made."""
    options = [
        f"dataset.data_path={folder}",
        f"dataset.vocab_path={vocabulary}",
        f"k_fold.experiment_name={name}_amfmn",
    ]
    return shlex.join(["python", "train.py", "--path_opt", "option/UCM_AMFMN.yaml", "--set", *options])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status (0, or 2 for a fault in what was given)."""
    parser = argparse.ArgumentParser(prog="python -m vocab", description="Build a data set's vocabulary file.")
    parser.add_argument(
        "--data_path", type=Path, nargs="+", required=True, help="folders with train_caps.txt and test_caps.txt"
    )
    parser.add_argument("--data_name", required=True, help="name of the data set, such as rsitmd")
    parser.add_argument("--out", type=Path, help="file to write (default: vocab/<data_name>_splits_vocab.json)")
    parser.add_argument("--min_count", type=int, default=5, help="occurrences that make a word an entry (default: 5)")
    parser.add_argument("--keep_stop_words", action="store_true", help="keep English stop words as entries")
    given = parser.parse_args(arguments)
    if given.min_count < 1:
        parser.error(f"--min_count must be at least 1, got {given.min_count}")
    out = given.out or Path("vocab") / f"{given.data_name}_splits_vocab.json"
    try:
        print(build_file(given.data_path, out, given.min_count, stop_words=not given.keep_stop_words))
        print(f"\nnext: {next_command(given.data_path[0], given.data_name, out)}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
