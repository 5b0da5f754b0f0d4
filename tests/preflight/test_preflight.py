"""Checks before work: every fault in one message, nothing written, and for a sound set what would be trained."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

import preflight.resources as resources
import pretrain as pretrain_entry
import train as train_entry
import vocab
from data import image_library
from data.annotations import read_annotations
from data.headers import Header, read_header, read_headers
from data.images import decode
from layers.mcrn import McrnParameters
from option import load_options
from option.images import ImageRule
from preflight.findings import Findings
from preflight.resources import each_weight_alone
from runs.media import Media
from runtime.entry_point import run_entry_point
from tests.pretraining.test_pretrain import write_options as write_scenes
from tests.pretraining.test_unpaired import write_options as write_modalities
from tests.small_model import use_small_model
from tests.tiny import add_spectrograms, make_precomp, write_experiment
from utils import InputError

RULE = ImageRule(max_pixels=100_000)


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    return write_experiment(tmp_path, make_precomp(tmp_path / "data"))


def check(path: Path, *overrides: str, flags: tuple[str, ...] = ()) -> str:
    """The message of the faults that `--check` finds."""
    with pytest.raises(InputError) as caught:
        train_entry.main(["--path_opt", str(path), "--check", *flags, "--set", "optim.seed=0", *overrides])
    return str(caught.value)


def files(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


class TestHeaders:
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
    def test_a_cut_file_is_judged_as_decoding_judges_it(self, tmp_path: Path, kind: str) -> None:
        content = io.BytesIO()
        Image.effect_noise((40, 30), 60).convert("RGB").save(content, kind)
        whole, path = content.getvalue(), tmp_path / "image"
        refused = 0
        for kept in [*range(0, len(whole), len(whole) // 12), *range(len(whole) - 6, len(whole) + 1)]:
            path.write_bytes(whole[:kept])
            verdicts = []
            for read in (decode, read_header):
                try:
                    read(path, RULE)
                    verdicts.append("")
                except InputError as fault:
                    verdicts.append(str(fault))
            assert bool(verdicts[0]) == bool(verdicts[1]), (kept, verdicts)
            refused += bool(verdicts[1])
        assert refused >= 12
        assert read_header(path, RULE) == Header(40, 30, "RGB")

    def test_a_whole_file_is_not_decoded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("data.headers.decode", None)
        for kind, more in (("JPEG", b"\0" * 100), ("PNG", b""), ("TIFF", b"")):
            path = tmp_path / f"image.{kind}"
            Image.new("L", (20, 10)).save(path, kind)
            with path.open("ab") as file:
                file.write(more)  # what some cameras append
            assert read_header(path, RULE) == Header(20, 10, "L")

    def test_a_jpeg_of_several_images(self, tmp_path: Path) -> None:
        first, second = Image.new("RGB", (20, 10)), Image.new("RGB", (20, 10), "red")
        first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second])
        assert read_header(tmp_path / "a.jpg", RULE) == Header(20, 10, "RGB")

    def test_all_faults_of_many_files(self, tmp_path: Path) -> None:
        Image.new("RGB", (20, 10)).save(tmp_path / "sound.png")
        Image.new("F", (20, 10)).save(tmp_path / "floats.tif")
        Image.new("LAB", (20, 10)).save(tmp_path / "lab.tif")
        Image.new("RGB", (400, 300)).save(tmp_path / "large.png")
        names = ["sound.png", "floats.tif", "lab.tif", "large.png", "absent.png"]
        headers, faults = read_headers([tmp_path / name for name in names], RULE)
        assert headers == [Header(20, 10, "RGB"), Header(20, 10, "float32 x 1")]
        assert [fault.partition(": ")[0] for fault in faults] == [str(tmp_path / name) for name in names[2:]]
        assert "colours of a kind that is not read (Lab)" in faults[0]
        assert "400 x 300 pixels, at most 100000" in faults[1]


class TestFindings:
    def test_like_faults_are_one_with_a_count(self) -> None:
        found = Findings()
        found.add_alike("Images", [f"{number}.png: cut at byte {number}" for number in range(5)] + ["x.png: empty"])
        found.add("Weights", "no file\nmake one")
        found.add("Earlier runs", "no file\nmake one")
        with pytest.raises(InputError) as caught:
            found.refuse("x.yaml")
        assert str(caught.value).splitlines() == [
            "x.yaml: 7 faults found before any work",
            "",
            "Images",
            "  1. 0.png: cut at byte 0",
            "     1.png: cut at byte 1",
            "     2.png: cut at byte 2",
            "     ... and 2 more like these",
            "  2. x.png: empty",
            "",
            "Weights",
            "  3. no file",
            "     make one",
        ]

    def test_nothing_found_is_no_fault(self) -> None:
        found = Findings()
        assert found.attempt("x", lambda: 7) == 7
        found.refuse("x.yaml")


class TestTraining:
    def test_a_sound_experiment_is_described(self, experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
        before = files(experiment.parent)
        train_entry.main(["--path_opt", str(experiment), "--check", "--device", "cpu"])
        resolved, _, text = capsys.readouterr().out.strip().rpartition("\n\n")
        assert yaml.safe_load(resolved) == yaml.safe_load(experiment.read_text())
        assert len(text.splitlines()) == 1
        for part in (
            f"{experiment}: no faults. AMFMN with ",
            "2 folds on cpu, at most 2 epochs of 5 steps (batches of 8 pairs, loss triplet)",
            "A fold trains on 38 captions of 19 images and validates on 5 images.",
            "24 images with 48 captions in train, 12 images with 24 captions in test, 0 captions without a word",
            "; 3 scene classes.",
            "Images are 64 x 64 pixels (36 RGB).",
            # The stop words there, is, a, here of each first caption's six words, and a, that, is of each second's.
            "9 entries; 58.3 % of all words of the captions are unknown to it (5 of 13 different ones).",
            "kept in: ram (633 KiB)",
        ):
            assert part in text, part
        assert files(experiment.parent) == before

    def test_all_faults_at_once(self, experiment: Path) -> None:
        folder = experiment.parent
        images = folder / "data" / "images"
        for name in (folder / "data" / "train_filename.txt").read_text().split()[:5]:
            content = (images / name).read_bytes()
            (images / name).write_bytes(content[: len(content) // 2])
        (images / "field_test0.png").write_text("no image")
        (images / "roof_test1.png").unlink()
        (folder / "glove.txt").write_text("red 1 2 x\n")
        (folder / "blocked").touch()
        message = check(
            experiment,
            "model.backbone.pretrained=absent.pth",
            f"model.embed.glove={folder / 'glove.txt'}",
            "optim.resume=nothing.pth",
            f"logs.ckpt_save_path={folder / 'blocked'}",
        )
        assert "found before any work" in message
        assert [line for line in message.splitlines() if line and not line.startswith(" ")][1:] == [
            "Images",
            "Weights",
            "Output",
        ]
        for part in (
            "1 of 12 images can't be taken from",
            "the image is damaged or cut short",
            "... and 2 more like these",
            "field_test0.png: not an image of a kind that is read",
            "model.backbone.pretrained: no file absent.pth",
            "glove.txt:1: expected 16 numbers after 'red'",
            "no checkpoint nothing.pth",
            "can't be written (Not a directory)",
        ):
            assert part in message, part
        assert message.startswith(f"{experiment}: 11 faults")

    def test_weights_of_sets_and_what_losses_read(self, experiment: Path) -> None:
        message = check(experiment, "dataset.set_weights={other: 2}", "optim.loss=soft_targets")
        assert "dataset.set_weights: other: no image of " in message
        assert "optim.soft_targets.teacher_path: needed for optim.loss soft_targets" in message
        assert message.startswith(f"{experiment}: 2 faults")

    def test_lists_and_vocabulary(self, experiment: Path) -> None:
        data = experiment.parent / "data"
        (data / "train_filename.txt").write_text("../outside.png\n")
        (data / "train_caps.txt").write_bytes(b"a \xff\n")
        (data / "test_caps.txt").write_text("one too few\n")
        message = check(experiment, "dataset.vocab_path=absent.json")
        assert "leaves the image folder" in message
        assert "is not UTF-8" in message
        assert "test_caps.txt, line 1: the file ends after 1 captions" in message
        assert "no vocabulary absent.json" in message
        assert message.count("outside.png") == 1  # though every fold reads the list again

    def test_a_vocabulary_of_other_captions(self, experiment: Path) -> None:
        vocab.build(["harbour"], min_count=1).save(experiment.parent / "other.json")
        message = check(experiment, f"dataset.vocab_path={experiment.parent / 'other.json'}")
        assert "100.0 % of the captions' words are not in it" in message

    def test_an_earlier_run(self, experiment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        use_small_model(monkeypatch)
        given = ["--path_opt", str(experiment), "--folds", "0", "--set", "optim.epochs=1"]
        train_entry.main(given)
        assert "already holds a run" in check(experiment, flags=("--resume", "never"))
        train_entry.main([*given, "--check"])
        data = experiment.parent / "data" / "train_caps.txt"
        data.write_text(data.read_text().replace("field", "roof"))
        assert "whose train list is another" in check(experiment, "optim.epochs=1")
        train_entry.main([*given, "--check", "--force"])

    def test_room_on_disk_in_memory_and_for_the_workers(
        self, experiment: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        use_small_model(monkeypatch)
        monkeypatch.setattr(resources, "free_bytes", lambda path: 100)
        monkeypatch.setattr(resources, "available_memory", lambda: 2**19)
        message = check(experiment, "dataset.cache=ram")
        assert "dataset.cache: ram takes 633 KiB for images, 512 KiB are available" in message
        assert "0 KiB are free; free some space, or set logs.ckpt_save_path" in message
        monkeypatch.setattr(resources, "SHARED_MEMORY", experiment.parent)
        message = check(experiment, "dataset.cache=off", "dataset.workers=3")
        assert "3 workers hand over up to 689 KiB" in message  # 8 images of 70 pixels, two batches for each worker

    def test_the_cache_is_what_training_would_choose(
        self, experiment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        use_small_model(monkeypatch)
        for module in (resources, image_library):
            # Either size alone takes less than half of it, both together more than half of what the first one leaves.
            monkeypatch.setattr(module, "available_memory", lambda: 1_000_000)
        train_entry.main(["--path_opt", str(experiment), "--folds", "0", "--check"])
        assert "Decoded images are kept in: ram (288 KiB) and disk (345 KiB)." in capsys.readouterr().out
        options = load_options(experiment)
        images = Media.of(options, [read_annotations(options.dataset.folder, "train")], torch.device("cpu")).images
        assert [images.open([], size, "")[0].cache for size in (64, 70)] == ["ram", "disk"]

    def test_faults_end_with_status_2(self, experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
        given = ["--path_opt", str(experiment), "--check", "--set", "dataset.vocab_path=absent.json"]
        with pytest.raises(SystemExit) as caught:
            run_entry_point(lambda: train_entry.main(given))
        assert caught.value.code == 2
        assert "1 fault found before any work" in capsys.readouterr().err


class TestWeightsApart:
    def test_each_file_that_is_named_alone(self) -> None:
        given = {"name": "MCRN", "seq2vec": {"dir_st": "st"}, "init_from": "a.pth", "backbone": {"pretrained": "b.pth"}}
        alone = [
            (block.seq2vec.dir_st, block.init_from, block.backbone.pretrained)
            for block in map(
                McrnParameters.model_validate, map(dict, each_weight_alone(McrnParameters.model_validate(given)))
            )
        ]
        assert sorted(map(str, alone)) == sorted(
            map(str, [(Path("st"), None, "none"), (None, Path("a.pth"), "none"), (None, None, "b.pth")])
        )


class TestPretraining:
    def test_scenes(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        data = make_precomp(tmp_path / "data")
        path = write_scenes(tmp_path, data)
        pretrain_entry.main(["--path_opt", str(path), "--check", "--device", "cpu"])
        text = capsys.readouterr().out
        assert (
            "resnet18 learns 3 scene classes from 24 images of 64 x 64 pixels (24 RGB), 25 % of them held out" in text
        )
        assert not (tmp_path / "checkpoint").exists()
        name = (data / "train_filename.txt").read_text().split()[0]
        (data / "images" / name).write_bytes(b"")
        with pytest.raises(InputError) as caught:
            pretrain_entry.main(["--path_opt", str(path), "--check", "--set", "backbone.pretrained=absent.pth"])
        assert "2 faults found before any work" in str(caught.value)
        assert f"{name}: the image is empty (0 bytes)" in str(caught.value)
        assert "no file absent.pth" in str(caught.value)

    def test_modalities(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        data = make_precomp(tmp_path / "data", train=16)
        folder = add_spectrograms(data)
        words = vocab.build((data / "train_caps.txt").read_text().splitlines(), min_count=1)
        path = write_modalities(tmp_path, data, words)
        pretrain_entry.main(["--path_opt", str(path), "--check"])
        text = capsys.readouterr().out
        assert "16 images of 64 x 64 pixels (16 RGB), 24 spectrograms of 48 x 32 pixels (24 L), 32 captions." in text
        spoken = next(folder.glob("*.png"))
        spoken.write_bytes(spoken.read_bytes()[:200])
        with pytest.raises(InputError, match=r"(?s)1 fault found.*Spectrograms.*cut short"):
            pretrain_entry.main(["--path_opt", str(path), "--check"])
