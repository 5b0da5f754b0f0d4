"""The caption encoder: a plain GRU against a loop over words, GloVe files, and what reaches the projection."""

from __future__ import annotations

import tempfile
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from layers.skip_thoughts import SKIP_THOUGHTS
from layers.text import EmbedParameters, PlainGru, Seq2VecParameters, caption_encoder, load_glove
from utils import InputError

TOKENS = torch.tensor([[4, 1, 3, 0, 0], [2, 5, 1, 3, 4], [3, 0, 0, 0, 0], [5, 5, 5, 2, 0]])
LENGTHS = torch.tensor([3, 5, 1, 4])
WORDS = st.text("ab-./'c", min_size=1, max_size=5)
WORD_TO_ID = {"plane": 1, "airport": 2, "sea": 3, "river": 4, "<unk>": 5}


def plain_gru(dropout: float = 0.0) -> PlainGru:
    torch.manual_seed(0)
    return PlainGru(words=5, word_dim=6, hidden_dim=7, dropout=dropout, fixed_embedding=False)


def naive_gru(encoder: PlainGru) -> Tensor:
    """Last states, caption by caption and word by word."""
    weights = dict(encoder.rnn.named_parameters())
    states = []
    for tokens, length in zip(TOKENS.tolist(), LENGTHS.tolist(), strict=True):
        state = torch.zeros(encoder.output_dim)
        for token in tokens[:length]:
            from_word = weights["weight_ih_l0"] @ encoder.embedding.weight[token] + weights["bias_ih_l0"]
            from_state = weights["weight_hh_l0"] @ state + weights["bias_hh_l0"]
            (x_reset, x_update, x_new), (h_reset, h_update, h_new) = from_word.chunk(3), from_state.chunk(3)
            reset, update = torch.sigmoid(x_reset + h_reset), torch.sigmoid(x_update + h_update)
            state = (1 - update) * torch.tanh(x_new + reset * h_new) + update * state
        states.append(state)
    return torch.stack(states)


class TestPlainGru:
    def test_equals_a_loop_over_words(self) -> None:
        encoder = plain_gru().eval()
        torch.testing.assert_close(encoder(TOKENS, LENGTHS), naive_gru(encoder), atol=1e-6, rtol=0)

    def test_dropout_acts_on_word_vectors_in_training_only(self) -> None:
        encoder = plain_gru(dropout=0.5)
        seen: list[Tensor] = []
        encoder.dropout.register_forward_hook(lambda module, given, out: seen.extend([given[0], out]))
        assert not torch.equal(encoder.train()(TOKENS, LENGTHS), encoder.eval()(TOKENS, LENGTHS))
        words, dropped, words_in_evaluation, kept = seen
        assert torch.equal(words, encoder.embedding(TOKENS[[1, 3, 0, 2]]))
        assert torch.equal(dropped[dropped != 0], 2 * words[dropped != 0])
        assert torch.equal(words_in_evaluation, kept)

    def test_word_vectors_can_be_kept(self) -> None:
        encoder = PlainGru(5, 6, 7, 0.0, fixed_embedding=True)
        encoder(TOKENS, LENGTHS).sum().backward()
        assert {name for name, value in encoder.named_parameters() if value.grad is None} == {"embedding.weight"}

    def test_padding_row_stays_zero_in_training(self) -> None:
        encoder = plain_gru()
        optimizer = torch.optim.SGD(encoder.parameters(), lr=1.0)
        encoder(TOKENS, LENGTHS).square().sum().backward()
        optimizer.step()
        assert encoder.embedding.weight[0].eq(0).all()
        assert encoder.embedding.weight[1:].ne(0).all()


def write_glove(path: Path, **vectors: Sequence[float]) -> Path:
    path.write_text("".join(f"{word} {' '.join(map(str, numbers))}\n" for word, numbers in vectors.items()))
    return path


def filled(path: Path, word2idx: dict[str, int], numbers: int = 3) -> Tensor:
    """A table that was all ones, after loading."""
    embedding = nn.Embedding(max(word2idx.values()) + 1, numbers)
    nn.init.ones_(embedding.weight)
    load_glove(embedding, path, word2idx)
    return embedding.weight.detach()


class TestGlove:
    def test_words_take_their_vectors_and_others_keep_theirs(self, tmp_path: Path) -> None:
        path = write_glove(tmp_path / "glove.txt", sea=[1, 2, 3], lake=[7, 7, 7], river=[-0.5, 1e-3, 4])
        table = filled(path, {"river": 1, "plane": 2, "sea": 3})
        assert table.tolist() == [[1, 1, 1], [-0.5, pytest.approx(1e-3), 4], [1, 1, 1], [1, 2, 3]]

    @pytest.mark.parametrize(
        ("word", "lines", "expected"),
        [
            ("u-shaped", ["ushaped 1 1 1"], 1),
            ("u-shaped", ["ushaped 1 1 1", "u-shaped 2 2 2"], 2),
            ("u-shaped", ["u-shaped 2 2 2", "ushaped 1 1 1"], 2),
            ("e.g.", ["eg 3 3 3"], 3),
            ("'s", ["s 4 4 4"], 4),
            ("road/rail-way", ["road 5 5 5", "railway 6 6 6"], 5),
            ("road/rail", ["road 5 5 5", "road/rail 6 6 6"], 6),
            ("ro-ad/rail/sea", ["ro 7 7 7", "road 5 5 5", "road/rail 6 6 6"], 5),
            ("u-shaped", ["u 7 7 7", "shaped 8 8 8", "U-shaped 9 9 9"], 0),
            ("-", ["", " 7 7 7"], 0),
        ],
    )
    def test_order_of_spellings(self, word: str, lines: list[str], expected: int, tmp_path: Path) -> None:
        (tmp_path / "glove.txt").write_text("\n".join(lines) + "\n")
        table = filled(tmp_path / "glove.txt", {word: 1})
        assert table[1].tolist() == [expected or 1] * 3
        assert table[0].tolist() == [1] * 3

    def test_two_words_can_share_a_vector(self, tmp_path: Path) -> None:
        path = write_glove(tmp_path / "glove.txt", baseball=[1, 2, 3])
        assert filled(path, {"base-ball": 1, "baseball": 2, "baseball/": 3})[1:].tolist() == [[1, 2, 3]] * 3

    def test_the_first_line_of_a_word_counts(self, tmp_path: Path) -> None:
        (tmp_path / "glove.txt").write_text("sea 1 2 3\nsea name@example.com 4 5 6\nsea 7 8 9\n")
        assert filled(tmp_path / "glove.txt", {"sea": 1})[1].tolist() == [1, 2, 3]

    @pytest.mark.parametrize(
        "numbers",
        ["", "1 2", "1 2 3 4", "1  2 3", "1\t2 3", "1 2 x", "1 2 3 x", "1 2 nan", "1 2 -inf", "1 " * 99 + "1"],
    )
    def test_a_malformed_line_counts_only_where_it_is_needed(self, numbers: str, tmp_path: Path) -> None:
        path = tmp_path / "glove.txt"
        path.write_text(f"lake 1 2 3\nsea {numbers}\nriver 1 2 3\n")
        assert filled(path, {"river": 1})[1].tolist() == [1, 2, 3]
        with pytest.raises(InputError) as caught:
            filled(path, {"sea": 1})
        assert str(caught.value) == f"{path}:2: expected 3 numbers after 'sea', found {numbers[:60]!r}."

    def test_only_wanted_words_are_held(self, tmp_path: Path) -> None:
        path = tmp_path / "glove.txt"
        with path.open("w") as file:
            file.writelines(f"word{number} {number} 0 0\n" for number in range(20_000))
        tracemalloc.start()
        table = filled(path, {"word7": 1, "word19999": 2})
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert table[:, 0].tolist() == [1, 7, 19999]
        assert peak < path.stat().st_size / 2

    def test_bytes_that_are_no_text_harm_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "glove.txt").write_bytes(b"\xff\xfe 1 2 3\nsea 1 2 3\n")
        assert filled(tmp_path / "glove.txt", {"sea": 1})[1].tolist() == [1, 2, 3]

    def test_an_absent_file_is_one_line(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        assert filled(tmp_path / "absent.txt", {"sea": 1}).eq(1).all()
        (line,) = caplog.messages
        assert line == f"Word vectors start random: no file {tmp_path / 'absent.txt'} (model.embed.glove)."

    def test_no_file_wanted_is_no_line(self, caplog: pytest.LogCaptureFixture) -> None:
        embedding = nn.Embedding(2, 3)
        before = embedding.weight.clone()
        load_glove(embedding, None, {"sea": 1})
        assert torch.equal(embedding.weight, before)
        assert caplog.messages == []

    @given(st.dictionaries(WORDS, st.integers(1, 99), max_size=8), st.lists(WORDS, min_size=1, max_size=5, unique=True))
    def test_equals_the_rule_written_out(self, file: dict[str, int], words: list[str]) -> None:
        expected = []
        for word in words:
            bare = "".join(letter for letter in word if letter not in "-.'")
            first = next((file[s] for s in (word, bare, bare[: (bare + "/").index("/")]) if s in file), 1)
            expected.append([first])
        with tempfile.TemporaryDirectory() as folder:
            path = write_glove(Path(folder) / "glove.txt", **{word: [number] for word, number in file.items()})
            assert filled(path, {word: row for row, word in enumerate(words)}, numbers=1).tolist() == expected


class TestCaptionEncoder:
    @pytest.mark.parametrize("load", [True, False])
    def test_gru_reads_glove_when_asked(self, load: bool, tmp_path: Path) -> None:
        path = write_glove(tmp_path / "glove.txt", sea=[1, 2, 3])
        block = Seq2VecParameters(arch="gru", word_dim=3, hidden_dim=4, fixed_emb=True)
        encoder = caption_encoder(block, EmbedParameters(embed_dim=5, glove=path), WORD_TO_ID, load)
        assert isinstance(encoder.sequence, PlainGru)
        assert encoder.sequence.embedding.weight.shape == (6, 3)
        assert not encoder.sequence.embedding.weight.requires_grad
        assert (encoder.sequence.embedding.weight[3].tolist() == [1, 2, 3]) is load

    @pytest.mark.parametrize("kind", sorted(SKIP_THOUGHTS))
    def test_type_chooses_the_skip_thoughts_encoder(self, kind: str, caplog: pytest.LogCaptureFixture) -> None:
        with torch.device("meta"):
            block = Seq2VecParameters.model_validate({"type": kind, "dropout": 0.1, "fixed_emb": True})
            encoder = caption_encoder(block, EmbedParameters(embed_dim=5), WORD_TO_ID, False)
        assert type(encoder.sequence) is SKIP_THOUGHTS[kind]
        assert encoder.sequence.dropout == 0.1
        assert encoder.sequence.get_parameter("embedding.weight").shape == (6, 620)
        assert not encoder.sequence.get_parameter("embedding.weight").requires_grad
        assert encoder.projection.weight.shape == (5, 2400)
        assert caplog.messages == []

    def test_absent_skip_thoughts_are_named(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        with torch.device("meta"):
            caption_encoder(Seq2VecParameters(dir_st=tmp_path / "absent"), EmbedParameters(), WORD_TO_ID, True)
        assert [line for line in caplog.messages if str(tmp_path / "absent") in line] == caplog.messages != []

    def test_equal_captions_are_encoded_once_and_share_their_dropout(self) -> None:
        tokens, lengths = TOKENS[[0, 2, 0, 1, 2, 0]], LENGTHS[[0, 2, 0, 1, 2, 0]]
        found = []
        for equal in ("once", "each"):
            torch.manual_seed(0)
            block = Seq2VecParameters(arch="gru", word_dim=6, hidden_dim=7, dropout=0, equal_captions=equal)
            encoder = caption_encoder(block, EmbedParameters(embed_dim=32), WORD_TO_ID, False).train()
            seen: list[int] = []
            encoder.sequence.register_forward_hook(lambda module, given, out, seen=seen: seen.append(len(out)))
            made = encoder(tokens, lengths)
            made.square().sum().backward()
            found.append((seen, made, [parameter.grad for parameter in encoder.parameters()]))
        (once, made, gradients), (each, expected, wanted) = found
        assert (once, each) == ([3], [6])
        torch.testing.assert_close(made, expected)
        for one, other in zip(gradients, wanted, strict=True):
            torch.testing.assert_close(one, other)
        block = Seq2VecParameters(arch="gru", word_dim=6, hidden_dim=7, dropout=0.5, equal_captions="once")
        encoder = caption_encoder(block, EmbedParameters(embed_dim=32), WORD_TO_ID, False).train()
        made = encoder(tokens, lengths)
        assert torch.equal(made[[0, 1]], made[[2, 4]])
        assert not torch.equal(made, encoder(tokens, lengths))
        encoder.eval()
        encoder.sequence.register_forward_hook(lambda module, given, out: each.append(len(out)))
        encoder(tokens, lengths)
        assert each == [6, 6]

    def test_projects_the_state_and_cuts_at_zero(self) -> None:
        torch.manual_seed(0)
        block = Seq2VecParameters(arch="gru", word_dim=6, hidden_dim=7, dropout=0.0)
        encoder = caption_encoder(block, EmbedParameters(embed_dim=32), WORD_TO_ID, False).eval()
        assert isinstance(encoder.sequence, PlainGru)
        states = naive_gru(encoder.sequence)
        expected = (states @ encoder.projection.weight.T + encoder.projection.bias).clamp(min=0)
        out = encoder(TOKENS, LENGTHS)
        torch.testing.assert_close(out, expected, atol=1e-6, rtol=0)
        assert (out == 0).any()
        assert (out > 0).any()
