"""Batches without pairs: order, views, and what the options of a pretraining open."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

import option
import vocab
from batches.augmentation import audio_margin_size, margin_size
from batches.batch import Captions
from batches.sampling import batches_of
from data.annotations import read_annotations
from option import ModalityOptions
from pretraining.unpaired import CaptionLoader, ImageLoader, Schedule, SpectrogramLoader
from pretraining.unpaired_sources import Sources, open_sources
from tests.tiny import add_spectrograms, make_precomp
from utils import InputError
from vocab import Vocabulary

CPU = torch.device("cpu")
SIZE = 64


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 train images with two captions each, and the spectrograms of the captions."""
    folder = make_precomp(tmp_path_factory.mktemp("data") / "tiny_precomp")
    add_spectrograms(folder)
    return folder


@pytest.fixture(scope="module")
def words(data: Path) -> Vocabulary:
    return vocab.build((data / "train_caps.txt").read_text().splitlines(), min_count=1)


def write_options(folder: Path, data: Path, words: Vocabulary, **dataset: object) -> Path:
    """Write a YAML of a small MCRN's pretraining; returns its path."""
    words.save(folder / "vocab.json")
    content = {
        "model": {
            "name": "MCRN",
            "seq2vec": {"arch": "gru", "word_dim": 16, "hidden_dim": 32},
            "embed": {"embed_dim": 64},
            "discriminator": {"in_size": 64, "mid_size": 16},
            "backbone": {"architecture": "timm/test_resnet", "pretrained": "none"},
        },
        "dataset": {
            "data_path": str(data),
            "audio_path": str(data / "audios"),
            "vocab_path": str(folder / "vocab.json"),
            "batch_size": 8,
            "image_size": SIZE,
            "workers": 0,
            "val_share": 0.25,
            **dataset,
        },
        "optim": {"epochs": 2, "lr": 1e-3, "generator_every": 2},
        "logs": {"ckpt_save_path": str(folder / "checkpoint"), "experiment_name": "pretraining"},
    }
    path = folder / "pretraining.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def read_options(path: Path, *overrides: str) -> ModalityOptions:
    options = option.load_pretraining_options(path, overrides)
    assert isinstance(options, ModalityOptions)
    return options


def opened(folder: Path, data: Path, words: Vocabulary, **dataset: object) -> Sources:
    return open_sources(read_options(write_options(folder, data, words, **dataset)), words, folder / "cache", CPU)


@pytest.mark.parametrize(
    ("count", "sizes"), [(1, [1]), (8, [8]), (9, [9]), (10, [8, 2]), (16, [8, 8]), (17, [8, 9]), (20, [8, 8, 4])]
)
def test_no_batch_is_left_with_a_single_item(count: int, sizes: list[int]) -> None:
    chunks = batches_of(torch.arange(count), 8)
    assert [len(chunk) for chunk in chunks] == sizes
    assert torch.cat(chunks).tolist() == list(range(count))
    assert len(Schedule(count, 8, 0)) == len(sizes)


class TestViews:
    def test_images_and_spectrograms_come_once_in_two_views(
        self, data: Path, words: Vocabulary, tmp_path: Path
    ) -> None:
        sources = opened(tmp_path, data, words)
        images = sources.train["image"]
        assert isinstance(images, ImageLoader)
        seen = []
        for first, second in images.views(0, 0):
            assert torch.equal(first.need("image_ids"), second.need("image_ids"))
            assert first.need("images").shape == second.need("images").shape == (len(first), 3, SIZE, SIZE)
            assert not (first.need("images") == second.need("images")).flatten(1).all(dim=1).any()
            seen += first.need("image_ids").tolist()
        assert sorted(seen) == list(range(18))
        assert [len(batch) for batch in images.epoch(0)] == [8, 8, 2]
        spectrograms = sources.train["audio"]
        assert isinstance(spectrograms, SpectrogramLoader)
        assert spectrograms.store.size == audio_margin_size(SIZE)
        assert images.store.size == margin_size(SIZE)
        for first, second in spectrograms.views(0, 0):
            assert first.need("audio").shape == second.need("audio").shape == (len(first), 3, SIZE, SIZE)
            assert not torch.equal(first.need("audio"), second.need("audio"))

    def test_order_and_views_follow_from_seed_epoch_and_round(
        self, data: Path, words: Vocabulary, tmp_path: Path
    ) -> None:
        sources = opened(tmp_path, data, words)
        for modality, field in (("image", "images"), ("audio", "audio"), ("text", "tokens")):
            loader = sources.train[modality]  # type: ignore[index]
            first, again, other_epoch, other_round = (
                next(iter(loader.views(*numbers)))[1].need(field) for numbers in ((3, 1), (3, 1), (4, 1), (3, 2))
            )
            assert torch.equal(first, again)
            for other in (other_epoch, other_round):
                assert first.shape != other.shape or not torch.equal(first, other)

    def test_views_of_captions_are_two_captions_of_an_image(self, data: Path, words: Vocabulary) -> None:
        annotations = read_annotations(data, "train")
        captions = Captions.encode(annotations.captions, words)
        images = [torch.tensor([0, 1]), torch.tensor([2]), torch.tensor([4, 5])]
        loader = CaptionLoader(Schedule(3, 8, 0), captions, images, word_dropout=0.0, unknown=99, device=CPU)
        pairs = set()
        for number in range(8):
            ((first, second),) = loader.views(number)
            pairs |= set(zip(first.need("caption_ids").tolist(), second.need("caption_ids").tolist(), strict=True))
            for view in (first, second):
                expected = captions.batch(view.need("caption_ids"))
                assert torch.equal(view.need("tokens"), expected.need("tokens"))
                assert torch.equal(view.need("lengths"), expected.need("lengths"))
        assert pairs == {(0, 1), (1, 0), (2, 2), (4, 5), (5, 4)}

    def test_hidden_words_are_a_share_and_never_padding(self, data: Path, words: Vocabulary) -> None:
        captions = Captions.encode(read_annotations(data, "train").captions, words)
        images = [torch.tensor([caption]) for caption in range(48)]
        loader = CaptionLoader(Schedule(48, 48, 0), captions, images, word_dropout=0.3, unknown=99, device=CPU)
        hidden = total = 0
        for number in range(20):
            ((first, second),) = loader.views(number)
            for view in (first, second):
                plain = captions.batch(view.need("caption_ids")).need("tokens")
                tokens = view.need("tokens")
                assert torch.equal(tokens == 0, plain == 0)
                assert torch.equal(tokens[tokens != 99], plain[tokens != 99])
                hidden += int((tokens == 99).sum())
                total += int((plain != 0).sum())
        assert hidden / total == pytest.approx(0.3, abs=0.02)


class TestSources:
    def test_all_modalities_of_a_data_set(self, data: Path, words: Vocabulary, tmp_path: Path) -> None:
        sources = opened(tmp_path, data, words)
        assert list(sources.train) == list(sources.val) == ["image", "text", "audio"]
        # 24 images, 24 groups of captions, 24 different captions; a quarter of each is held out
        assert {name: len(loader) for name, loader in sources.train.items()} == {"image": 3, "text": 3, "audio": 3}
        assert sources.steps == 9
        for modality in ("image", "text", "audio"):
            sides = [loaders[modality] for loaders in (sources.train, sources.val)]
            assert [loader.schedule.items for loader in sides] == [18, 6]
        images = [loaders["image"].rows.tolist() for loaders in (sources.train, sources.val)]  # type: ignore[attr-defined]
        assert sorted(images[0] + images[1]) == list(range(24))

    def test_a_folder_of_images_alone_will_do(
        self, data: Path, words: Vocabulary, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        sources = opened(tmp_path, data, words, data_path=None, audio_path=None, image_path=str(data / "images"))
        assert list(sources.train) == ["image"]
        assert sources.train["image"].schedule.items == 27
        assert "Only one modality (image)" in caplog.text

    def test_blank_captions_are_left_out(self, data: Path, words: Vocabulary, tmp_path: Path) -> None:
        other = make_precomp(tmp_path / "other")
        captions = (other / "train_caps.txt").read_text().splitlines()
        captions[0] = captions[1] = captions[4] = "."
        (other / "train_caps.txt").write_text("\n".join(captions) + "\n")
        sources = opened(tmp_path, other, words, audio_path=None)
        loaders = (sources.train["text"], sources.val["text"])
        groups = [ids.tolist() for loader in loaders for ids in loader.images]  # type: ignore[attr-defined]
        assert len(groups) == 23
        assert [5] in groups
        assert not {0, 1, 4} & {caption for group in groups for caption in group}

    def test_too_few_items_are_named(self, data: Path, words: Vocabulary, tmp_path: Path) -> None:
        few = make_precomp(tmp_path / "few", train=3)
        with pytest.raises(InputError, match="image: 3 items are too few to pretrain with, at least 4"):
            opened(tmp_path, few, words, audio_path=None)

    def test_no_source_at_all(self, data: Path, words: Vocabulary, tmp_path: Path) -> None:
        path = write_options(tmp_path, data, words)
        with pytest.raises(InputError, match=r"one of dataset\.data_path, dataset\.image_path and dataset\.audio_path"):
            read_options(path, "dataset.data_path=null", "dataset.audio_path=null")
