"""The token rule, and vocabularies against the published ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import ROOT
from utils import InputError
from vocab import DROPPED_TOKENS, Vocabulary, build, english_stop_words, tokenize
from vocab.__main__ import main

CAPTIONS = st.lists(st.text(alphabet="ab cé.!?,&'\"<>\t\n\u2028", max_size=25), max_size=12)


@pytest.fixture
def data() -> Path:
    if "RSR_DATA" not in os.environ:
        pytest.skip("RSR_DATA is not set")
    return Path(os.environ["RSR_DATA"]) / "data"


@pytest.fixture
def captions_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "small_precomp"
    folder.mkdir()
    (folder / "train_caps.txt").write_bytes("\ufeffthe plane is big .\n\nbig plane\u2028near a plane .\n".encode())
    (folder / "test_caps.txt").write_bytes(b"A big harbour")
    return folder


def file_content(words: list[str]) -> dict[str, Any]:
    ids = {word: index for index, word in enumerate(words, start=1)}
    return {"word2idx": ids, "idx2word": {str(index): word for word, index in ids.items()}, "idx": len(words) + 1}


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("Two Planes are parked.", ["two", "planes", "are", "parked"]),
        ("a lake .  many trees. it's big!is it", ["a", "lake", "many", "trees", "it", "'s", "big", "is", "it"]),
        (
            "a side-by-side (green) field, next to 20 houses; ok?",
            ["a", "side-by-side", "green", "field", "next", "to", "20", "houses", "ok"],
        ),
        ('they don\'t call it "port"', ["they", "do", "n't", "call", "it", "``", "port", "''"]),
        ("a b.c d", ["a", "b.c", "d"]),
        ("wait... no", ["wait", "...", "no"]),
        ("café\u2028port\x85end\r", ["café", "port", "end"]),
        (". , : ; ? ( ) [ ] & ! * @ # $ %", []),
        ("", []),
        (" \t ", []),
    ],
)
def test_tokenize(caption: str, tokens: list[str]) -> None:
    assert tokenize(caption) == tokens


@given(st.text() | CAPTIONS.map(" ".join))
def test_tokens_are_never_blank_or_dropped_ones(caption: str) -> None:
    for token in tokenize(caption):
        assert token not in DROPPED_TOKENS
        assert token.split() == [token]


def test_build_keeps_frequent_words_in_the_order_of_first_appearance() -> None:
    captions = ["the pond near the oak", "a dock by the oak", "oak pond", "dock dock rare"]
    assert build(captions, min_count=2).word2idx == {"pond": 1, "oak": 2, "dock": 3, "<unk>": 4}
    kept = build(captions, min_count=2, stop_words=False)
    assert list(kept.word2idx) == ["the", "pond", "oak", "dock", "<unk>"]
    assert build(captions).word2idx == {"<unk>": 1}
    assert build(["pond"] * 5 + ["oak"] * 4).word2idx == {"pond": 1, "<unk>": 2}


def test_build_needs_a_positive_count() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        build([], min_count=0)


def test_the_stop_words_are_the_classic_list() -> None:
    lines = (ROOT / "vocab" / "stop_words.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(english_stop_words()) == 179
    assert lines[0] == "i"
    assert lines[-1] == "wouldn't"
    assert english_stop_words() == set(lines)


def test_encode() -> None:
    vocabulary = Vocabulary({"big": 1, "plane": 2, "<unk>": 3})
    assert vocabulary.encode("A big, big plane.") == [3, 1, 1, 2]
    assert vocabulary.encode(" . ") == vocabulary.encode("") == [3]
    assert len(vocabulary) == 3


@given(CAPTIONS, CAPTIONS, st.integers(1, 3), st.booleans())
def test_build_and_encode(captions: list[str], others: list[str], min_count: int, stop_words: bool) -> None:
    vocabulary = build(captions, min_count, stop_words)
    words = vocabulary.word2idx
    assert list(words.values()) == list(range(1, len(vocabulary) + 1))
    counts = Counter(token for caption in captions for token in tokenize(caption))
    stopped = english_stop_words() if stop_words else set()
    assert set(words) - {"<unk>"} == {w for w, count in counts.items() if count >= min_count and w not in stopped}
    for caption in [*captions, *others]:
        ids = vocabulary.encode(caption)
        assert len(ids) == max(1, len(tokenize(caption)))
        assert set(ids) <= set(range(1, len(vocabulary) + 1))
        assert [index == words["<unk>"] for index in ids] == [t not in words for t in tokenize(caption) or [""]]


@given(captions=CAPTIONS)
def test_save_and_load_round_trip(captions: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    vocabulary = build(captions, min_count=1)
    path = tmp_path_factory.mktemp("vocab") / "new" / "words.json"
    vocabulary.save(path)
    loaded = Vocabulary.load(path)
    assert loaded == vocabulary
    assert loaded.digest == vocabulary.digest
    assert json.loads(path.read_text(encoding="utf-8")) == file_content(list(vocabulary.word2idx))


def test_digest_depends_on_words_and_ids_alone() -> None:
    digest = Vocabulary({"a": 1, "b": 2, "<unk>": 3}).digest
    # printf '["a", "b", "<unk>"]' | sha256sum
    assert digest == "e89a021d8dae3b44290f3464831c06698cc032859576a5d30e3dfd1dc781ab1e"
    assert Vocabulary({"<unk>": 3, "b": 2, "a": 1}).digest == digest
    assert Vocabulary({"a": 2, "b": 1, "<unk>": 3}).digest != digest
    assert Vocabulary({"a": 1, "c": 2, "<unk>": 3}).digest != digest


def test_a_vocabulary_with_wrong_ids_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="id of 'a' must be a whole number from 1 to 2, found 0"):
        Vocabulary({"a": 0, "<unk>": 1})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"word2idx": None}, "'word2idx' must be a JSON object, found NoneType"),
        ({"idx2word": ["a"]}, "'idx2word' must be a JSON object, found list"),
        ({"word2idx": {"a": 1, "b": 2}}, "the entry '<unk>', which stands for all other words, is missing"),
        ({"word2idx": {"a": 1, "b": 1, "<unk>": 3}}, "id 1 is given to both 'a' and 'b'"),
        ({"word2idx": {"a": 1, "b": 4, "<unk>": 3}}, "id of 'b' must be a whole number from 1 to 3, found 4"),
        ({"word2idx": {"a": True, "b": 2, "<unk>": 3}}, "id of 'a' must be a whole number from 1 to 3, found True"),
        ({"word2idx": {"a": "1", "b": 2, "<unk>": 3}}, "found '1'"),
        ({"word2idx": {"a": 1.0, "b": 2, "<unk>": 3}}, "found 1.0"),
        ({"idx2word": {"1": "a", "2": "c", "3": "<unk>"}}, "word2idx gives 'b' the id 2, idx2word has 'c' there"),
        ({"idx2word": {"1": "a", "3": "<unk>"}}, "idx2word has None there"),
        ({"idx2word": {"1": "a", "2": "b", "3": "<unk>", "4": "c"}}, "word2idx has 3 entries, idx2word has 4"),
        ({"idx": 3}, "'idx', the next free id, must be 4, found 3"),
    ],
)
def test_a_file_that_contradicts_itself(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "words.json"
    path.write_text(json.dumps(file_content(["a", "b", "<unk>"])), encoding="utf-8")
    assert len(Vocabulary.load(path)) == 3
    path.write_text(json.dumps(file_content(["a", "b", "<unk>"]) | change), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        Vocabulary.load(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "python -m vocab" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe{", b"[" * 200_000, b'{"idx": ' + b"9" * 5000])
def test_a_file_that_is_no_vocabulary(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "words.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"words\.json: not a vocabulary file: .*python -m vocab"):
        Vocabulary.load(path)


def test_a_missing_file_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.json: can't read the vocabulary \(No such file.*python -m vocab"):
        Vocabulary.load(tmp_path / "none.json")


def test_the_command_writes_the_file_and_tells_its_numbers(
    captions_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(captions_folder.iterdir())
    assert main(["--data_path", str(captions_folder), "--data_name", "small", "--min_count", "2"]) == 0
    path = Path("vocab/small_splits_vocab.json")
    assert list(Vocabulary.load(path).word2idx) == ["plane", "big", "<unk>"]
    # the, is, near, a, a, harbour of the 12 tokens
    first, blank, command = capsys.readouterr().out.splitlines()
    assert (first, blank) == (f"{path}: 3 entries from 4 captions, 12 tokens, 50.0 % become <unk>", "")
    assert command == (
        f"next: python train.py --path_opt option/UCM_AMFMN.yaml --set dataset.data_path={captions_folder} "
        f"dataset.vocab_path={path} k_fold.experiment_name=small_amfmn"
    )
    options = ["--min_count", "1", "--keep_stop_words", "--out", "other.json"]
    assert main(["--data_path", str(captions_folder), "--data_name", "small", *options]) == 0
    words = ["the", "plane", "is", "big", "near", "a", "harbour", "<unk>"]
    assert list(Vocabulary.load("other.json").word2idx) == words
    assert sorted(captions_folder.iterdir()) == before
    capsys.readouterr()
    assert main(["--data_path", *[str(captions_folder)] * 2, "--data_name", "both", "--out", "both.json"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("both.json: 3 entries from 8 captions, 24 tokens, 50.0 % become <unk>\n\nnext: ")


def test_faults_of_the_command(captions_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data_path", str(captions_folder), "--data_name", "small"]
    assert main([*arguments, "--out", str(captions_folder)]) == 2
    assert "can't write the vocabulary" in capsys.readouterr().err
    (captions_folder / "test_caps.txt").write_bytes("fine\na caf\u00e9".encode("latin-1"))
    assert main(arguments) == 2
    assert "test_caps.txt: 1 fault:\n  line 2: byte 0xe9 at byte 6 is not UTF-8" in capsys.readouterr().err
    for name in ("train_caps.txt", "test_caps.txt"):
        (captions_folder / name).write_bytes(b"\n .\n")
    assert main(arguments) == 2
    assert "hold no word at all" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--min_count", "0"])
    assert caught.value.code == 2


def test_a_missing_caption_file_ends_with_status_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vocab", "--data_path", str(tmp_path), "--data_name", "none"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {tmp_path / 'train_caps.txt'}: can't be read (No such file")
    assert result.stderr.endswith("; check --data_path\n")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(("name", "entries", "unknown_share"), [("rsitmd", 1349, 46.1), ("rsicd", 1225, 42.7)])
def test_the_shipped_files_are_what_the_command_builds(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, entries: int, unknown_share: float
) -> None:
    out = tmp_path / "built.json"
    assert main(["--data_path", str(data / f"{name}_precomp"), "--data_name", name, "--out", str(out)]) == 0
    file_name = f"{name}_splits_vocab.json"
    assert out.read_bytes() == (ROOT / "vocab" / file_name).read_bytes()
    printed = capsys.readouterr().out
    assert f"{entries} entries" in printed
    assert f"{unknown_share} % become <unk>" in printed


def test_the_shipped_rsitmd_vocabulary_is_the_published_one(data: Path) -> None:
    published = data / "vocab" / "rsitmd_splits_vocab.json"
    shipped = ROOT / "vocab" / "rsitmd_splits_vocab.json"
    assert shipped.read_bytes().rstrip() == published.read_bytes().rstrip()
    assert Vocabulary.load(published) == Vocabulary.load(shipped)
