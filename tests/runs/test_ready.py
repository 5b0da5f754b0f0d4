"""Packing a tuned dual encoder and reading it back: numbers, sizes, refusals."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import option
from layers import build_model
from option import Options
from runs.checkpoints import load_weights, save_checkpoint
from runs.loaders import read_vocabulary
from runs.models import load_model
from runs.ready import DIGESTS, OPTIONS, WEIGHTS
from runs.ready.__main__ import main
from runs.ready.coding import Coding, decode, encode, factors
from runs.ready.folder import chosen, ready_weights
from runs.ready.packing import pack
from tests.ready import MODULE, Tuned, embeddings, make_tuned, tiny_packages
from utils import InputError

CPU = torch.device("cpu")
FULL = 10**6
HALF = Coding(FULL, int8=False)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, tiny_options: Callable[..., Options]) -> Iterator[Tuned]:
    with tiny_packages(tmp_path_factory.mktemp("packages")):
        yield make_tuned(tmp_path_factory.mktemp("tuned"), tiny_options)


@pytest.fixture
def packed(tuned: Tuned, tmp_path: Path) -> Path:
    pack(tuned.checkpoint, tmp_path / "packed", FULL, ())
    return tmp_path / "packed"


def cosines(tuned: Tuned, folder: Path) -> Tensor:
    """Of the embeddings before and after packing: the lowest of images, then of sentences."""
    options = option.load_options(folder / OPTIONS)
    model, _ = load_model(options, read_vocabulary(options), folder / WEIGHTS, CPU)
    model.eval()
    pairs = zip(embeddings(tuned.model, tuned.vocabulary), embeddings(model, tuned.vocabulary), strict=True)
    return torch.stack([F.cosine_similarity(before, after).min() for before, after in pairs])


def stored(folder: Path) -> dict[str, Tensor]:
    safetensors = pytest.importorskip("safetensors.torch")
    found: dict[str, Tensor] = safetensors.load_file(folder / WEIGHTS)
    return found


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_adapters_are_packed_as_the_difference(
    kind: str, tuned: Tuned, tmp_path: Path, tiny_options: Callable[..., Options]
) -> None:
    """They start at random, so that nothing of theirs is at hand where the folder is read."""
    pytest.importorskip("peft", reason="the extra adapters is not installed")
    made = make_tuned(tmp_path, tiny_options, {"adapter.kind": kind, "adapter.rank": 2, "adapter.targets": "all"})
    table = pack(made.checkpoint, tmp_path / "packed", FULL, ())
    torch.manual_seed(7)
    assert cosines(made, tmp_path / "packed").min() > 0.9999
    towers = {name.rpartition("|")[0] for name in stored(tmp_path / "packed") if "_tower." in name}
    assert towers
    assert all("lora_" in name for name in towers)
    assert "text" in table


class TestCoding:
    def test_int8_by_hand(self) -> None:
        wanted = torch.tensor([[127.0, -63.0], [0.0, 0.254]])
        parts = encode(wanted, None, Coding(1, int8=True))
        assert parts["int8"].tolist() == [[127, -63], [0, 127]]
        torch.testing.assert_close(parts["scale"], torch.tensor([1.0, 0.002]))
        torch.testing.assert_close(decode(parts, None), wanted)

    @settings(max_examples=50, deadline=None)
    @given(st.integers(0, 10**6), st.integers(1, 6), st.booleans())
    def test_int8_is_off_by_half_a_step_at_most(self, seed: int, channels: int, started: bool) -> None:
        draw = torch.Generator().manual_seed(seed)
        wanted = torch.randn(channels, 3, 2, 2, generator=draw)
        start = torch.randn(channels, 3, 2, 2, generator=draw) if started else None
        found = decode(encode(wanted, start, Coding(2, int8=True)), start)
        change = wanted - (0 if start is None else start)
        step = change.flatten(1).abs().amax(dim=1) / 127
        assert ((found - wanted).flatten(1).abs().amax(dim=1) <= 0.5 * step + 1e-6).all()

    def test_the_factors_are_the_nearest_product(self) -> None:
        matrix = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
        left, right = factors(matrix, 2)
        assert left.shape == (3, 2)
        torch.testing.assert_close(left @ right, torch.diag(torch.tensor([3.0, 2.0, 0.0])))
        torch.testing.assert_close(left.norm(dim=0), right.norm(dim=1))

    @pytest.mark.parametrize("int8", [False, True])
    def test_a_difference_of_low_rank(self, int8: bool) -> None:
        torch.manual_seed(0)
        start, change = torch.randn(40, 30), torch.randn(40, 2) @ torch.randn(2, 30)
        parts = encode(start + change, start, Coding(2, int8))
        numbers = sum(part.numel() for name, part in parts.items() if not name.endswith("scale"))
        assert numbers == 2 * (40 + 30)
        assert ("left.int8" in parts) == ("right.int8" in parts) == int8
        error = (decode(parts, start) - start - change).norm() / change.norm()
        assert error < (0.01 if int8 else 0.001)
        worse = decode(encode(start + change, start, Coding(1, int8)), start)
        assert (worse - start - change).norm() / change.norm() > 0.1

    def test_rows_that_hardly_moved_stay(self) -> None:
        start = torch.ones(6, 4)
        wanted = start.clone()
        wanted[1] *= 1.005
        wanted[2:4] += torch.tensor([[0.5], [-0.25]])
        parts = encode(wanted, start, HALF, table=True)
        assert parts["rows"].tolist() == [2, 3]
        expected = start.clone()
        expected[2:4] = wanted[2:4]
        torch.testing.assert_close(decode(parts, start), expected)
        assert encode(wanted[:2], start[:2], HALF, table=True) == {}
        assert encode(wanted[:2], start[:2], HALF).keys() == {"half"}

    @pytest.mark.parametrize(
        "parts",
        [
            {"left.half": torch.zeros(1, 10**6), "right.half": torch.zeros(1, 10**6)},
            {"int8": torch.zeros(1, 10**6, dtype=torch.int8), "scale": torch.zeros(10**6)},
        ],
    )
    def test_few_bytes_claim_no_memory(self, parts: dict[str, Tensor]) -> None:
        with pytest.raises(ValueError, match=r"numbers of shape \[1000000.*\], expected"):  # a terabyte, were it made
            decode(parts, torch.zeros(4, 4))

    def test_a_change_of_another_shape_is_not_spread_over_the_rows(self) -> None:
        with pytest.raises(ValueError, match=r"numbers of shape \[1, 4\], expected \[3, 4\]"):
            decode({"half": torch.ones(1, 4)}, torch.zeros(3, 4))

    def test_equal_tensors_take_nothing_and_whole_numbers_are_exact(self) -> None:
        counts = torch.tensor([2**40 + 1])
        assert encode(counts, counts.clone(), HALF) == {}
        assert decode(encode(counts, torch.tensor([0]), HALF), torch.tensor([0])).equal(counts)


class TestPacking:
    def test_full_rank_and_half_precision_change_nothing_that_counts(self, tuned: Tuned, packed: Path) -> None:
        assert cosines(tuned, packed).min() > 0.99999
        untuned = build_model(tuned.options, tuned.vocabulary, load_weights=False)
        untuned.load_state_dict(tuned.model.state_dict() | tuned.start())
        apart = zip(
            embeddings(tuned.model, tuned.vocabulary), embeddings(untuned.eval(), tuned.vocabulary), strict=True
        )
        assert max(float(F.cosine_similarity(*pair).min()) for pair in apart) < 0.98  # so the towers' changes count

    def test_what_did_not_change_is_left_out(self, tuned: Tuned, packed: Path) -> None:
        names = {name.partition("|")[0] for name in stored(packed)}
        start, state = tuned.start(), tuned.model.state_dict()
        assert names == {name for name, value in state.items() if name not in start or not value.equal(start[name])}
        assert not any(name.startswith("image_tower.network.conv_stem") for name in names)
        words = "text_tower.network.embeddings.word_embeddings.weight"
        assert stored(packed)[f"{words}|rows"].tolist() == [5, 6, 7, 8]

    def test_low_rank_and_bytes_take_less_room(self, tuned: Tuned, packed: Path, tmp_path: Path) -> None:
        sizes = {"full": (packed / WEIGHTS).stat().st_size}
        for rank, int8 in ((2, ()), (2, ("heads", "image", "text")), (1, ())):
            folder = tmp_path / f"{rank}{len(int8)}"
            pack(tuned.checkpoint, folder, rank, int8)
            sizes[folder.name] = (folder / WEIGHTS).stat().st_size
        assert sizes["full"] > sizes["20"] > sizes["23"]
        assert cosines(tuned, tmp_path / "20").min() > 0.9999  # what the tower learned is of rank 2
        assert cosines(tuned, tmp_path / "23").min() > 0.999
        assert cosines(tuned, tmp_path / "10")[1] < 0.999
        assert cosines(tuned, tmp_path / "10")[0] > 0.9999  # an image tower has no matrices

    def test_the_average_is_packed_where_validation_scored_it(self, tuned: Tuned, tmp_path: Path) -> None:
        state = tuned.model.state_dict()
        raw = {name: torch.zeros_like(value) for name, value in state.items()}
        average = {f"module.{name}": value for name, value in state.items()}
        content = {"model": raw, "average": average, "vocabulary": tuned.vocabulary.digest}
        save_checkpoint(tmp_path / "last.pth", content, tuned.options)
        pack(tmp_path / "last.pth", tmp_path / "packed", FULL, ())
        assert cosines(tuned, tmp_path / "packed").min() > 0.99999

    def test_the_command_says_bytes_and_errors(
        self, tuned: Tuned, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        main([str(tuned.checkpoint), "--out", str(tmp_path / "packed"), "--rank", "1", "--int8", "heads"])
        lines = capsys.readouterr().out.splitlines()
        rows = {cells[0]: cells[1:] for line in lines if (cells := [cell.strip() for cell in line.split("|")[1:-1]])}
        sizes = {part: int(rows[part][1].replace(",", "")) for part in ("heads", "image", "text")}
        kept = stored(tmp_path / "packed").values()
        assert sum(sizes.values()) == sum(value.numel() * value.element_size() for value in kept)
        assert 0.1 < float(rows["heads"][2]) < 1  # a byte
        assert float(rows["image"][3]) < 0.1  # half precision
        assert float(rows["text"][3]) > 10  # rank 1 of 2
        total = sum(path.stat().st_size for path in (tmp_path / "packed").iterdir())
        assert lines[-1] == f"{tmp_path / 'packed'}: {total:,} bytes."

    def test_by_itself_the_command_takes_bytes_and_rank_128(self, tuned: Tuned, tmp_path: Path) -> None:
        main([str(tuned.checkpoint), "--out", str(tmp_path / "given")])
        pack(tuned.checkpoint, tmp_path / "named", 128, ("heads", "image", "text"))
        main([str(tuned.checkpoint), "--out", str(tmp_path / "half"), "--int8"])
        digests = [(tmp_path / name / DIGESTS).read_text() for name in ("given", "named", "half")]
        assert digests[0] == digests[1] != digests[2]

    def test_too_much_is_refused_before_anything_is_written(
        self, tuned: Tuned, packed: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = {path.name: path.read_bytes() for path in packed.iterdir()}
        (packed / "README.md").write_text("a" * 10_000)
        size = len(before[WEIGHTS]) + len(before[OPTIONS]) + 10_000
        monkeypatch.setattr("runs.ready.packing.MOST_BYTES", size)
        pack(tuned.checkpoint, packed, FULL, ())
        monkeypatch.setattr("runs.ready.packing.MOST_BYTES", size - 1)
        with pytest.raises(InputError, match=r"would take .* bytes, at most .* Lower --rank"):
            pack(tuned.checkpoint, packed, FULL, ())
        assert {name: (packed / name).read_bytes() for name in before} == before

    def test_no_path_of_the_machine_goes_along(
        self, tuned: Tuned, tmp_path: Path, tiny_options: Callable[..., Options]
    ) -> None:
        changes = tuned.options.model.model_dump()
        options = tuned.options.model_copy(
            update={"logs": tuned.options.logs.model_copy(update={"ckpt_save_path": Path("/somewhere/runs")})}
        )
        content = {"model": tuned.model.state_dict(), "vocabulary": tuned.vocabulary.digest}
        save_checkpoint(tmp_path / "best.pth", content, options)
        pack(tmp_path / "best.pth", tmp_path / "packed", FULL, ())
        for path in (tmp_path / "packed").iterdir():
            assert b"/somewhere" not in path.read_bytes()
        data = options.dataset.model_copy(update={"data_path": Path("/somewhere/data")})
        save_checkpoint(tmp_path / "best.pth", content, options.model_copy(update={"dataset": data}))
        with pytest.raises(InputError, match=r"dataset\.data_path: /somewhere/data is a path of this machine"):
            pack(tmp_path / "best.pth", tmp_path / "other", FULL, ())
        assert changes == tuned.options.model.model_dump()

    def test_a_published_checkpoint_is_refused(self, tmp_path: Path) -> None:
        torch.save({"weight": torch.zeros(2)}, tmp_path / "theirs.pth")
        with pytest.raises(InputError, match="only those of train"):
            pack(tmp_path / "theirs.pth", tmp_path / "packed", 2, ())


def load(tuned: Tuned, path: Path) -> dict[str, Any]:
    model = build_model(tuned.options, tuned.vocabulary, load_weights=False)
    return load_weights(model, path, tuned.options, tuned.vocabulary)


class TestReading:
    def test_it_knows_what_its_checkpoint_knew(self, tuned: Tuned, packed: Path) -> None:
        content = load(tuned, packed / WEIGHTS)
        assert (content["epoch"], content["fold"], content["vocabulary"]) == (3, 0, tuned.vocabulary.digest)
        assert content["options"] == option.dump(option.load_options(packed / OPTIONS))

    @pytest.mark.parametrize("name", [WEIGHTS, OPTIONS])
    def test_another_file_is_refused(self, tuned: Tuned, packed: Path, name: str) -> None:
        content = bytearray((packed / name).read_bytes())
        content[-1] ^= 1
        (packed / name).write_bytes(bytes(content))
        with pytest.raises(InputError, match=rf"{name}: its SHA-256 is not that of SHA256SUMS; .*git checkout"):
            load(tuned, packed / WEIGHTS)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            (WEIGHTS, rf"no checkpoint .*{WEIGHTS}\."),
            *((name, rf"{name} of the packed model is missing\. Get the folder again") for name in (OPTIONS, DIGESTS)),
        ],
    )
    def test_a_missing_file_is_named(self, tuned: Tuned, packed: Path, name: str, message: str) -> None:
        (packed / name).unlink()
        with pytest.raises(InputError, match=message):
            load(tuned, packed / WEIGHTS)

    @pytest.mark.parametrize(
        "damage",
        [
            {"text_tower.network.encoder.layer.0.output.dense.weight|half": torch.zeros(3, 3)},
            {"image_head.0.weight|int8": torch.zeros(3, 3, dtype=torch.int8)},
            {"text_tower.network.embeddings.word_embeddings.weight|rows": torch.tensor([10**6])},
        ],
    )
    def test_parts_that_do_not_fit(self, tuned: Tuned, packed: Path, damage: dict[str, Tensor]) -> None:
        safe = pytest.importorskip("safetensors")
        torch_file = pytest.importorskip("safetensors.torch")
        with safe.safe_open(packed / WEIGHTS, framework="pt") as file:
            facts = file.metadata()
        torch_file.save_file(stored(packed) | damage, packed / WEIGHTS, metadata=facts)
        sign(packed)
        with pytest.raises(InputError, match=r"no packed model, or not one of these options"):
            load(tuned, packed / WEIGHTS)

    @pytest.mark.parametrize("content", [b"", b"no safetensors", json.dumps({"a": 1}).encode()])
    def test_other_files(self, tuned: Tuned, packed: Path, content: bytes) -> None:
        (packed / WEIGHTS).write_bytes(content)
        sign(packed)
        with pytest.raises(InputError, match="no packed model"):
            load(tuned, packed / WEIGHTS)


def sign(folder: Path) -> None:
    """Bring the digests up to the files."""
    from runs.ready.folder import digest_line

    (folder / DIGESTS).write_text("".join(f"{digest_line(folder, name)}\n" for name in (WEIGHTS, OPTIONS)))


class TestChosen:
    def test_both_or_none(self) -> None:
        assert chosen("a.yaml", Path("b.pth")) == ("a.yaml", Path("b.pth"))
        for one in (("a.yaml", None), (None, Path("b.pth"))):
            with pytest.raises(InputError, match="--path_opt and --checkpoint belong together"):
                chosen(*one)

    def test_none_is_the_ready_model(self, tuned: Tuned, packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("runs.ready.folder.READY", packed)
        assert chosen(None, None) == (str(packed / OPTIONS), packed / WEIGHTS)
        (packed / OPTIONS).write_text("model: {name: AMFMN}\n")
        with pytest.raises(InputError, match=rf"{OPTIONS}: its SHA-256 is not that of {DIGESTS}"):
            chosen(None, None)

    def test_a_project_without_weights_says_so(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("runs.ready.folder.READY", tmp_path)
        with pytest.raises(InputError, match=r"has no weights of the ready model\. .* --path_opt .* --checkpoint"):
            chosen(None, None)

    def test_missing_packages_are_named_at_once(
        self, tuned: Tuned, packed: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("runs.ready.folder.READY", packed)
        real = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in (MODULE, "timm") else real(name))
        with pytest.raises(InputError) as fault:
            ready_weights()
        expected = "the ready model needs the extra `weights` (missing: timm, tiny-text-weights): "
        assert str(fault.value) == f"{expected}bash exec/environment.sh weights"
