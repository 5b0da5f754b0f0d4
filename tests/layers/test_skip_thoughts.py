"""Skip-thoughts encoders: released outputs, dropout against twins that loop over words, published weight files."""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from layers.released import translate
from layers.skip_thoughts import (
    RELEASED_GATES,
    SKIP_THOUGHTS,
    STATE_DIM,
    WORD_DIM,
    BayesianUniSkip,
    DropUniSkip,
    SkipThoughts,
    UniSkip,
    load_skip_thoughts,
)
from tests import reference_inputs
from utils import InputError

Array = NDArray[np.float32]
Arrays = dict[str, Array]
TOKENS = torch.tensor([[4, 1, 3, 0, 0], [2, 5, 1, 3, 4], [3, 0, 0, 0, 0]])
LENGTHS = torch.tensor([3, 5, 1])
WORD_TO_ID = {"plane": 1, "airport": 2, "naïve": 3, "river": 4, "<unk>": 5}
DICTIONARY = ["eos", "UNK", "the", "river", "plane", "naïve", "other"]
FILE_ROWS = {1: 4, 2: 1, 3: 5, 4: 3, 5: 1}
"""Row of the word table that each id takes; `airport` and `<unk>` are not in the dictionary."""


def random_encoder(kind: str, dropout: float = 0.25) -> SkipThoughts:
    torch.manual_seed(0)
    return SKIP_THOUGHTS[kind](5, dropout, False)


def assert_close_relatively(given: Tensor, expected: Tensor, bound: float = 1e-4) -> None:
    torch.testing.assert_close(given, expected, atol=bound * float(expected.abs().max()), rtol=0)


class TestReleased:
    """The released implementation's weights, inputs and outputs."""

    @pytest.mark.parametrize("kind", ["UniSkip", "BayesianUniSkip", "BiSkip"])
    def test_outputs(self, kind: str) -> None:
        encoder = SKIP_THOUGHTS[kind](len(reference_inputs.WORDS), 0.25, False).eval()
        encoder.load_state_dict(translate(RELEASED_GATES, reference_inputs.released_state(kind)))
        expected, batch = reference_inputs.outputs(kind), reference_inputs.batch()
        tokens, lengths = batch.need("tokens"), batch.need("lengths")
        holes = expected["interior_zero_in"]
        order = torch.tensor([4, 0, 6, 2, 1, 5, 3])
        with torch.inference_mode():
            out = encoder(tokens, lengths)
            assert_close_relatively(out, expected["out"])
            assert_close_relatively(out, expected["out_explicit_lengths"])
            assert_close_relatively(encoder(F.pad(tokens, (0, 33)), lengths), expected["out_pad47"])
            assert_close_relatively(encoder(holes, (holes != 0).sum(1)), expected["interior_zero_out"])
            assert_close_relatively(encoder(tokens[order], lengths[order]), expected["out"][order])


class Masks:
    """The dropout masks that an encoder drew, in its order."""

    def __init__(self, encoder: SkipThoughts, monkeypatch: pytest.MonkeyPatch) -> None:
        self.drawn: list[Tensor] = []
        draw = encoder.mask

        def keep(like: Tensor) -> Tensor:
            self.drawn.append(draw(like))
            return self.drawn[-1]

        monkeypatch.setattr(encoder, "mask", keep)

    def check(self, widths: list[int], captions: int, dropout: float) -> None:
        """One mask per caption and use; what is kept is scaled so that the mean stays."""
        assert [mask.shape for mask in self.drawn] == [(captions, width) for width in widths]
        for mask in self.drawn:
            kept = mask != 0
            torch.testing.assert_close(mask[kept], torch.full_like(mask[kept], 1 / (1 - dropout)))
            assert abs(kept.float().mean().item() - (1 - dropout)) < 0.05
        rows = [row for mask in self.drawn for row in mask]
        alike = [a for i, a in enumerate(rows) for b in rows[:i] if a.shape == b.shape and torch.equal(a, b)]
        assert alike == []


def bayesian_twin(encoder: BayesianUniSkip, words: Tensor, masks: list[Tensor]) -> Tensor:
    """One caption word by word: words [L, E], three masks [E] for the input, three [H] for the state -> [H]."""
    x_reset, x_update, x_new, h_reset, h_update, h_new = masks
    state = torch.zeros(STATE_DIM)
    for word in words:
        reset = torch.sigmoid(encoder.input_reset(word * x_reset) + encoder.state_reset(state * h_reset))
        update = torch.sigmoid(encoder.input_update(word * x_update) + encoder.state_update(state * h_update))
        new = torch.tanh(encoder.input_new(word * x_new) + reset * encoder.state_new(state * h_new))
        state = (1 - update) * new + update * state
    return state


def cell_twin(encoder: DropUniSkip, words: Tensor, masks: list[Tensor]) -> Tensor:
    """One caption word by word: a mask [E] for the word and one [H] for the state that is carried on -> [H]."""
    cell, (state_mask, word_mask) = encoder.rnn, masks
    state = torch.zeros(1, STATE_DIM)
    for word in words:
        state = cell((word * word_mask)[None], state * state_mask)
    return state[0]


def by_caption(encoder: SkipThoughts, one: Callable[[Tensor, int], Tensor]) -> Tensor:
    return torch.stack(
        [one(encoder.embedding(TOKENS[row, :length]), row) for row, length in enumerate(LENGTHS.tolist())]
    )


class TestDropout:
    """Masks are drawn per caption, held over its words, and absent in evaluation."""

    # The encoder works on captions of falling length: rows 1, 0, 2.
    place = (1, 0, 2)

    def test_bayesian_in_training(self, monkeypatch: pytest.MonkeyPatch) -> None:
        encoder = random_encoder("BayesianUniSkip", dropout=0.3).train()
        assert isinstance(encoder, BayesianUniSkip)
        masks = Masks(encoder, monkeypatch)
        with torch.inference_mode():
            out = encoder(TOKENS, LENGTHS)
            masks.check([WORD_DIM] * 3 + [STATE_DIM] * 3, captions=3, dropout=0.3)
            expected = by_caption(
                encoder,
                lambda words, row: bayesian_twin(encoder, words, [mask[self.place[row]] for mask in masks.drawn]),
            )
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)

    def test_bayesian_in_evaluation(self) -> None:
        encoder = random_encoder("BayesianUniSkip").eval()
        assert isinstance(encoder, BayesianUniSkip)
        ones = [torch.ones(())] * 6
        with torch.inference_mode():
            expected = by_caption(encoder, lambda words, _: bayesian_twin(encoder, words, ones))
            torch.testing.assert_close(encoder(TOKENS, LENGTHS), expected, atol=1e-5, rtol=0)

    def test_drop_in_training(self, monkeypatch: pytest.MonkeyPatch) -> None:
        encoder = random_encoder("DropUniSkip", dropout=0.3).train()
        assert isinstance(encoder, DropUniSkip)
        masks = Masks(encoder, monkeypatch)
        with torch.inference_mode():
            out = encoder(TOKENS, LENGTHS)
            masks.check([STATE_DIM, WORD_DIM], captions=3, dropout=0.3)
            expected = by_caption(
                encoder, lambda words, row: cell_twin(encoder, words, [mask[self.place[row]] for mask in masks.drawn])
            )
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)

    def test_drop_in_evaluation(self) -> None:
        encoder = random_encoder("DropUniSkip").eval()
        assert isinstance(encoder, DropUniSkip)
        with torch.inference_mode():
            expected = by_caption(encoder, lambda words, _: cell_twin(encoder, words, [torch.ones(()), torch.ones(())]))
            torch.testing.assert_close(encoder(TOKENS, LENGTHS), expected, atol=1e-5, rtol=0)

    @pytest.mark.parametrize("kind", ["BayesianUniSkip", "DropUniSkip"])
    def test_masks_are_drawn_anew_and_follow_the_seed(self, kind: str) -> None:
        encoder = random_encoder(kind).train()
        with torch.inference_mode():
            torch.manual_seed(1)
            first, second = encoder(TOKENS, LENGTHS), encoder(TOKENS, LENGTHS)
            torch.manual_seed(1)
            assert torch.equal(encoder(TOKENS, LENGTHS), first)
        assert not torch.equal(first, second)

    @pytest.mark.parametrize("kind", ["UniSkip", "BiSkip"])
    def test_released_encoders_of_one_layer_have_none(self, kind: str) -> None:
        encoder = random_encoder(kind, dropout=0.9)
        with torch.inference_mode():
            assert torch.equal(encoder.train()(TOKENS, LENGTHS), encoder.eval()(TOKENS, LENGTHS))

    @pytest.mark.parametrize("kind", ["BayesianUniSkip", "DropUniSkip"])
    def test_dropout_of_zero_is_evaluation(self, kind: str) -> None:
        encoder = random_encoder(kind, dropout=0.0)
        with torch.inference_mode():
            assert torch.equal(encoder.train()(TOKENS, LENGTHS), encoder.eval()(TOKENS, LENGTHS))


@pytest.mark.parametrize("kind", sorted(SKIP_THOUGHTS))
def test_padding_row_is_zero_and_word_vectors_can_be_kept(kind: str) -> None:
    encoder = SKIP_THOUGHTS[kind](5, 0.25, True)
    assert encoder.embedding.weight[0].eq(0).all()
    assert {name for name, value in encoder.named_parameters() if not value.requires_grad} == {"embedding.weight"}
    assert all(value.requires_grad for value in random_encoder(kind).parameters())


def published_arrays(prefix: str, units: int, random: np.random.Generator) -> Arrays:
    def normal(*shape: int) -> Array:
        return random.standard_normal(shape, dtype=np.float32) / np.float32(shape[0] ** 0.5)

    return {
        f"{prefix}_W": normal(WORD_DIM, 2 * units),
        f"{prefix}_Wx": normal(WORD_DIM, units),
        f"{prefix}_b": normal(2 * units),
        f"{prefix}_bx": normal(units),
        f"{prefix}_U": normal(units, 2 * units),
        f"{prefix}_Ux": normal(units, units),
    }


@pytest.fixture(scope="module")
def tables() -> Arrays:
    random = np.random.default_rng(0)
    return {name: random.standard_normal((7, WORD_DIM)).astype(np.float32) for name in ("utable", "btable")}


@pytest.fixture(scope="module")
def arrays() -> dict[str, Arrays]:
    """The contents of both weight files, in the published shapes."""
    random = np.random.default_rng(1)
    half = STATE_DIM // 2
    return {
        "uni_skip": published_arrays("encoder", STATE_DIM, random),
        "bi_skip": published_arrays("encoder", half, random) | published_arrays("encoder_r", half, random),
    }


@pytest.fixture(scope="module")
def published(tables: Arrays, arrays: dict[str, Arrays], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with all files as published."""
    folder = tmp_path_factory.mktemp("published")
    (folder / "dictionary.txt").write_text("\n".join(DICTIONARY) + "\n", encoding="utf-8")
    for name, table in tables.items():
        np.save(folder / f"{name}.npy", table)
    for name, content in arrays.items():
        np.savez(folder / f"{name}.npz", **content)  # type: ignore[arg-type]
    yield folder
    shutil.rmtree(folder)  # 120 MB


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    """The published files, each of which a test can replace."""
    for file in published.iterdir():
        (tmp_path / file.name).symlink_to(file)
    return tmp_path


def replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def naive_gru(arrays: Arrays, prefix: str, words: list[Array]) -> Array:
    """Last state of a GRU straight from the published arrays, columns of W and U being reset | update."""
    state = np.zeros_like(arrays[f"{prefix}_bx"])
    for word in words:
        gates = word @ arrays[f"{prefix}_W"] + arrays[f"{prefix}_b"] + state @ arrays[f"{prefix}_U"]
        reset, update = np.split(1 / (1 + np.exp(-gates)), 2)
        new = np.tanh(word @ arrays[f"{prefix}_Wx"] + arrays[f"{prefix}_bx"] + reset * (state @ arrays[f"{prefix}_Ux"]))
        state = (1 - update) * new + update * state
    return state


def expected_states(kind: str, tables: Arrays, arrays: dict[str, Arrays]) -> Tensor:
    table = tables["btable" if kind == "BiSkip" else "utable"]
    captions = [[table[FILE_ROWS[index]] for index in caption if index] for caption in TOKENS.tolist()]
    if kind != "BiSkip":
        return torch.from_numpy(np.stack([naive_gru(arrays["uni_skip"], "encoder", words) for words in captions]))
    there = [naive_gru(arrays["bi_skip"], "encoder", words) for words in captions]
    back = [naive_gru(arrays["bi_skip"], "encoder_r", words[::-1]) for words in captions]
    return torch.from_numpy(np.concatenate([np.stack(there), np.stack(back)], axis=1))


class TestPublishedFiles:
    """Files in the published format, with random content."""

    @pytest.mark.parametrize("kind", sorted(SKIP_THOUGHTS))
    def test_encoder_equals_the_gru_of_the_arrays(
        self, kind: str, published: Path, tables: Arrays, arrays: dict[str, Arrays], caplog: pytest.LogCaptureFixture
    ) -> None:
        encoder = random_encoder(kind).eval()
        with caplog.at_level("INFO", logger="rsretrieval"), torch.inference_mode():
            load_skip_thoughts(encoder, published, WORD_TO_ID)
            out = encoder(TOKENS, LENGTHS)
        assert_close_relatively(out, expected_states(kind, tables, arrays), 1e-5)
        assert caplog.messages == [f"{kind} starts from the published weights in {published}."]

    def test_rows_of_the_word_table(self, published: Path, tables: Arrays) -> None:
        encoder = random_encoder("UniSkip")
        load_skip_thoughts(encoder, published, WORD_TO_ID)
        held = encoder.embedding.weight.detach().numpy()
        assert (held[0] == 0).all()
        for index, row in FILE_ROWS.items():
            np.testing.assert_array_equal(held[index], tables["utable"][row])

    def test_fixed_word_vectors_are_read_too(self, published: Path, tables: Arrays) -> None:
        encoder = UniSkip(5, 0.25, True)
        load_skip_thoughts(encoder, published, WORD_TO_ID)
        assert not encoder.embedding.weight.requires_grad
        np.testing.assert_array_equal(encoder.embedding.weight[4].numpy(), tables["utable"][3])

    @pytest.mark.parametrize("given", ["none", "absent"])
    def test_absent_folder_is_one_line_and_random_weights(
        self, given: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        folder = None if given == "none" else tmp_path / "absent"
        encoder = random_encoder("UniSkip")
        before = {name: value.clone() for name, value in encoder.state_dict().items()}
        load_skip_thoughts(encoder, folder, WORD_TO_ID)
        (line,) = caplog.messages  # a warning
        assert line.startswith("UniSkip starts from random weights: ")
        assert "\n" not in line
        assert "model.seq2vec.dir_st" in line
        assert folder is None or str(folder) in line
        assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (Path.touch, (self.path,))


def npy(array: NDArray[np.generic]) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def npz(arrays: Mapping[str, NDArray[np.generic]]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def endless(shape: tuple[int, ...]) -> bytes:
    """A header that promises far more than follows."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file.getvalue() + b"0" * 100


def zipped(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, content)
    return file.getvalue()


def damaged_zip() -> bytes:
    """A compressed archive whose data don't match their checksum."""
    file = io.BytesIO()
    np.savez_compressed(file, encoder_W=np.arange(1000.0))
    content = bytearray(file.getvalue())
    content[120:160] = bytes(40)
    return bytes(content)


class TestDamagedFiles:
    """A folder that is there has to be right: every fault is one message that names the file."""

    def fault(self, folder: Path, kind: str = "UniSkip") -> str:
        with pytest.raises(InputError) as caught:
            load_skip_thoughts(random_encoder(kind), folder, WORD_TO_ID)
        return str(caught.value)

    @pytest.mark.parametrize(
        ("kind", "name"),
        [
            *[("UniSkip", name) for name in ("dictionary.txt", "utable.npy", "uni_skip.npz")],
            *[("BiSkip", name) for name in ("dictionary.txt", "btable.npy", "bi_skip.npz")],
        ],
    )
    def test_missing_file(self, kind: str, name: str, folder: Path) -> None:
        (folder / name).unlink()
        assert self.fault(folder, kind).startswith(f"{folder / name}: ")

    def test_objects_are_refused_unread(self, folder: Path, arrays: dict[str, Arrays]) -> None:
        mark = folder / "code_ran"
        bomb = np.array([[Bomb(mark)]], dtype=object)
        replace(folder / "uni_skip.npz", npz({**arrays["uni_skip"], "encoder_bx": bomb}))
        assert "object arrays are refused" in self.fault(folder)
        replace(folder / "utable.npy", npy(bomb))
        message = self.fault(folder)
        assert message.startswith(f"{folder / 'utable.npy'}: ")
        assert "object arrays are refused" in message
        assert not mark.exists()
        np.load(folder / "utable.npy", allow_pickle=True)
        assert mark.exists()  # the bomb was live

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"not an array",
            b"PK\x03\x04 not an archive",
            npy(np.zeros((7, WORD_DIM), np.float32))[:3000],
            npy(np.zeros((7, 619), np.float32)),
            npy(np.zeros(WORD_DIM, np.float32)),
            npy(np.full((7, WORD_DIM), "word")),
            npz({"utable": np.zeros((7, WORD_DIM), np.float32)}),
            endless((10**10, WORD_DIM)),
        ],
        ids=["empty", "text", "magic", "cut", "width", "flat", "strings", "archive", "endless"],
    )
    def test_wrong_word_table(self, content: bytes, folder: Path) -> None:
        replace(folder / "utable.npy", content)
        assert self.fault(folder).startswith(f"{folder / 'utable.npy'}: ")

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"not an array",
            b"PK\x03\x04 not an archive",
            damaged_zip(),
            zipped("encoder_W.npy", endless((10**10, WORD_DIM))),
            npy(np.zeros(3)),
            npz({}),
        ],
        ids=["empty", "text", "magic", "damaged", "endless", "array", "nothing"],
    )
    def test_wrong_weight_file(self, content: bytes, folder: Path) -> None:
        replace(folder / "uni_skip.npz", content)
        assert self.fault(folder).startswith(f"{folder / 'uni_skip.npz'}: ")

    @pytest.mark.parametrize(
        ("kind", "name", "value"),
        [
            ("UniSkip", "encoder_W", np.zeros((WORD_DIM, STATE_DIM), np.float32)),
            ("UniSkip", "encoder_bx", np.full(STATE_DIM, "word")),
            ("BayesianUniSkip", "encoder_b", np.zeros(2 * STATE_DIM + 1, np.float32)),
            ("BayesianUniSkip", "encoder_b", np.array(0.0)),
        ],
        ids=["narrow", "strings", "odd", "scalar"],
    )
    def test_wrong_weight(
        self, kind: str, name: str, value: NDArray[np.generic], folder: Path, arrays: dict[str, Arrays]
    ) -> None:
        replace(folder / "uni_skip.npz", npz({**arrays["uni_skip"], name: value}))
        assert self.fault(folder, kind).startswith(f"{folder / 'uni_skip.npz'}: not a published skip-thoughts file")

    def test_files_of_the_other_kind(self, folder: Path) -> None:
        (folder / "bi_skip.npz").unlink()
        (folder / "bi_skip.npz").symlink_to((folder / "uni_skip.npz").resolve())
        message = self.fault(folder, "BiSkip")
        assert "encoder_r_" in message

    def test_dictionary_without_the_unknown_word(self, folder: Path) -> None:
        replace(folder / "dictionary.txt", b"eos\nthe\nplane\nriver\n")
        assert self.fault(folder) == f"{folder / 'dictionary.txt'}: the line UNK, which unknown words need, is missing."

    def test_dictionary_longer_than_the_word_table(self, folder: Path) -> None:
        replace(folder / "dictionary.txt", "\n".join([*DICTIONARY, "airport"]).encode())
        message = self.fault(folder)
        assert message.startswith(f"{folder / 'dictionary.txt'}: has 8 words")
        assert "only 7 rows" in message

    def test_dictionary_in_another_encoding(self, folder: Path) -> None:
        replace(folder / "dictionary.txt", "UNK\nnaïve\n".encode("latin1"))
        assert self.fault(folder).startswith(f"{folder / 'dictionary.txt'}: ")
