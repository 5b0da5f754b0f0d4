"""Spectrograms, WAV files of all kinds, and captions spoken by espeak-ng or by a stand-in for it."""

from __future__ import annotations

import os
import shutil
import struct
import sys
import wave
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import wavfile

from data.annotations import read_annotations
from data.audio.__main__ import main
from data.audio.drawing import SILENCE, audio_list_name, draw_wavs, speak
from data.audio.sounds import read_sound
from data.audio.spectrogram import (
    BANDS,
    RATE,
    hertz_to_mel,
    mel_filters,
    mel_power,
    mel_to_hertz,
    save_image,
    to_image,
)
from data.audio.speech import Speaker
from data.images import decode
from runtime.entry_point import run_entry_point
from utils import InputError


def tone(hertz: float, seconds: float = 1.0, rate: int = RATE) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def snapshot(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


class TestSpectrogram:
    def test_filters_are_those_of_a_slow_twin(self) -> None:
        def to_mel(hertz: float) -> float:
            return 3 * hertz / 200 if hertz < 1000 else 15 + np.log(hertz / 1000) / (np.log(6.4) / 27)

        step = to_mel(8000) / 129
        for band in (0, 1, 20, 42, 100, 127):
            for number in range(513):
                hertz = number * 16000 / 1024
                low, centre, high = (float(mel_to_hertz(np.array(step * (band + i)))) for i in range(3))
                triangle = 0.0
                if low < hertz <= centre:
                    triangle = (hertz - low) / (centre - low)
                elif centre < hertz < high:
                    triangle = (high - hertz) / (high - centre)
                assert mel_filters()[band, number] == pytest.approx(triangle * 2 / (high - low), abs=1e-12)
        assert mel_filters().sum(axis=1) * 16000 / 1024 == pytest.approx(np.ones(BANDS), abs=0.12)  # equal areas

    def test_slaneys_scale(self) -> None:
        assert [hertz_to_mel(hertz) for hertz in (0, 500, 1000, 6400)] == pytest.approx([0, 7.5, 15, 42])
        assert mel_to_hertz(np.array([0, 7.5, 15, 42])) == pytest.approx([0, 500, 1000, 6400])
        # from the documentation of librosa.mel_frequencies(n_mels=40)
        forty = mel_to_hertz(np.linspace(0, hertz_to_mel(11025), 40))
        assert forty[[1, 11, 12, 24, 38]] == pytest.approx([85.317, 938.49, 1024.856, 2945.799, 10096.408], abs=1e-3)

    @pytest.mark.parametrize(("hertz", "row"), [(200, 119), (500, 107), (1000, 85), (4000, 28), (7500, 2)])
    def test_a_tone_lies_in_its_row(self, hertz: float, row: int) -> None:
        # 8 kHz are 45.24 mel, so bands are 45.24 / 129 = 0.3507 mel apart, and the first is centred there.
        assert row == 127 - round(hertz_to_mel(hertz) / 0.3507 - 1)
        image = to_image(mel_power(tone(hertz)))
        assert (np.abs(image.argmax(axis=0) - row) <= 1).all()
        distance = np.abs(np.arange(BANDS) - row)
        assert image[distance <= 1].max(axis=0).min() > 250
        assert image[distance > 9].max() < 80

    @pytest.mark.parametrize(
        ("samples", "frames"), [(1, 1), (400, 1), (559, 1), (560, 2), (16000, 98), (16160, 99), (320000, 1998)]
    )
    def test_frames(self, samples: int, frames: int) -> None:
        assert mel_power(np.zeros(samples)).shape == (128, frames)

    def test_power_frame_by_frame(self) -> None:
        sound = np.random.default_rng(0).normal(size=1003 * 160 + 400)
        power = mel_power(sound)
        window = np.sin(np.pi * np.arange(400) / 400) ** 2
        basis = np.exp(-2j * np.pi * np.arange(513)[:, None] * np.arange(400) / 1024)
        for frame in (0, 1, 500, 999, 1000, 1003):
            spectrum = np.abs(basis @ (sound[160 * frame : 160 * frame + 400] * window)) ** 2
            assert power[:, frame] == pytest.approx(mel_filters() @ spectrum, rel=1e-9)

    def test_decibels_as_brightness(self) -> None:
        # 0 and -20 dB, -40 and -120 dB, of which 80 are drawn; low bands at the bottom
        assert to_image(np.array([[1, 1e-2], [1e-4, 1e-12]])).tolist() == [[128, 0], [255, 191]]
        # stretched to the whole range where the sound has no 80 dB
        assert to_image(np.array([[5, 0.5], [0.05, 0.5]])).tolist() == [[0, 128], [255, 128]]

    @pytest.mark.parametrize("level", [0, 1, 1e-300])
    def test_where_nothing_differs_the_image_is_black(self, level: float) -> None:
        assert not to_image(np.full((128, 3), level)).any()

    def test_loudness_does_not_matter(self) -> None:
        sound = np.random.default_rng(0).normal(size=4000)
        np.testing.assert_array_equal(to_image(mel_power(sound)), to_image(mel_power(sound / 1024)))

    def test_a_saved_image_is_read_as_grey_rgb(self, tmp_path: Path) -> None:
        image = to_image(mel_power(tone(1000, 0.1)))
        save_image(tmp_path / "a/b.png", image)
        read = np.asarray(decode(tmp_path / "a/b.png"))
        np.testing.assert_array_equal(read, np.repeat(image[..., None], 3, axis=2))
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match=r"file/b\.png: can't be written"):
            save_image(tmp_path / "file/b.png", image)


def write_wav(path: Path, samples: np.ndarray, rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    wavfile.write(path, rate, samples)
    return path


def write_24_bit(path: Path, sound: np.ndarray) -> Path:
    values = np.rint(sound * (2**23 - 1)).astype("<i4")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(3)
        file.setframerate(RATE)
        file.writeframes(values.view(np.uint8).reshape(-1, 4)[:, :3].tobytes())
    return path


class TestSounds:
    @pytest.mark.parametrize(
        ("kind", "exact"),
        [("u1", 2**-7), ("i2", 2**-15), ("24", 2**-23), ("i4", 2**-30), ("f4", 1e-7), ("f8", 1e-15)],
    )
    def test_every_depth_gives_the_same_sound(self, tmp_path: Path, kind: str, exact: float) -> None:
        sound = tone(440, 0.1)
        scaled = {
            "u1": lambda: np.rint(sound * 127 + 128).astype(np.uint8),
            "i2": lambda: np.rint(sound * (2**15 - 1)).astype(np.int16),
            "i4": lambda: np.rint(sound * (2**31 - 1)).astype(np.int32),
            "f4": lambda: sound.astype(np.float32),
            "f8": lambda: sound,
        }
        path = tmp_path / "x.wav"
        write_24_bit(path, sound) if kind == "24" else write_wav(path, scaled[kind]())
        assert read_sound(path) == pytest.approx(sound, abs=exact)

    def test_channels_are_averaged(self, tmp_path: Path) -> None:
        left, right = tone(300, 0.1), tone(3000, 0.1)
        path = write_wav(tmp_path / "x.wav", np.stack([left, right], axis=1))
        assert read_sound(path) == pytest.approx((left + right) / 2)

    @pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
    def test_other_rates_are_resampled(self, tmp_path: Path, rate: int) -> None:
        sound = read_sound(write_wav(tmp_path / "x.wav", tone(440, 0.5, rate), rate))
        assert len(sound) == 8000
        inner = slice(200, -200)
        assert sound[inner] == pytest.approx(tone(440, 0.5)[inner], abs=2e-3)

    def test_what_lies_above_half_the_rate_is_filtered_out(self, tmp_path: Path) -> None:
        sound = read_sound(write_wav(tmp_path / "x.wav", tone(11_000, 0.5, 48_000), 48_000))
        assert np.abs(sound[200:-200]).max() < 0.01

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (lambda wav: b"", "not a readable WAV file"),
            (lambda wav: b"ID3 an MP3", "not a readable WAV file"),
            (lambda wav: wav[:20], "not a readable WAV file"),
            (lambda wav: wav[:1000], "ends before the sound that its header announces"),
            (lambda wav: wav[:4] + struct.pack("<I", 36) + wav[8:40] + struct.pack("<I", 0), "no sample"),
            (lambda wav: wav[:24] + struct.pack("<II", 1, 2) + wav[32:], "1 samples per second; expected 4000 to 384"),
        ],
    )
    def test_damaged_files(self, tmp_path: Path, content: Callable[[bytes], bytes], said: str) -> None:
        path = write_wav(tmp_path / "x.wav", np.ones(1000, np.int16))
        path.write_bytes(content(path.read_bytes()))
        with pytest.raises(InputError, match=said) as caught:
            read_sound(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("value", [np.nan, np.inf, 1e200])
    def test_numbers_that_are_no_sound(self, tmp_path: Path, value: float) -> None:
        with pytest.raises(InputError, match="not a finite number near -1 to 1"):
            read_sound(write_wav(tmp_path / "x.wav", np.array([0, value])))

    def test_too_long(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="625 s long; a spoken caption has at most 600 s"):
            read_sound(write_wav(tmp_path / "x.wav", np.zeros(2_500_000, np.uint8), 4000))

    def test_no_such_file(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"x\.wav: can't be read \(No such file"):
            read_sound(tmp_path / "x.wav")

    def test_without_scipy_the_message_says_how_to_get_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "scipy.signal", None)
        with pytest.raises(InputError, match=r"bash exec/environment\.sh audio"):
            read_sound(tmp_path / "x.wav")

    @settings(max_examples=150, deadline=None)
    @given(
        length=st.integers(0, 60),
        changes=st.lists(st.tuples(st.integers(0, 59), st.integers(0, 255)), max_size=4),
    )
    def test_any_bytes_give_a_sound_or_an_input_error(self, length: int, changes: list[tuple[int, int]]) -> None:
        with TemporaryDirectory() as folder:
            path = write_wav(Path(folder) / "x.wav", np.arange(8, dtype=np.int16))
            content = bytearray(path.read_bytes()[:length])
            for place, value in changes:
                if place < len(content):
                    content[place] = value
            path.write_bytes(content)
            try:
                sound = read_sound(path)
            except InputError:
                return
        assert sound.ndim == 1
        assert len(sound) >= 1
        assert np.isfinite(sound).all()


class TestWav:
    def test_every_sound_gets_its_image_and_damaged_ones_are_named(self, tmp_path: Path) -> None:
        sounds, out = tmp_path / "sounds", tmp_path / "out"
        write_wav(sounds / "a.wav", tone(1000))
        write_wav(sounds / "deep/b.WAV", tone(300))
        (sounds / "bad.wav").write_bytes(b"RIFF")
        (sounds / "empty.wav").write_bytes(b"")
        (sounds / "notes.txt").write_text("no sound")
        with pytest.raises(InputError) as caught:
            draw_wavs(sounds, out, workers=1)
        first, bad, empty = str(caught.value).split("\n")
        assert first == "2 of 4 sounds have no image, the others are done:"
        assert bad.startswith(f"  {sounds}/bad.wav: not a readable WAV file")
        assert empty.startswith(f"  {sounds}/empty.wav: not a readable WAV file")
        assert set(snapshot(out)) == {"a.png", "deep/b.png"}
        image = np.asarray(decode(out / "a.png"))
        assert image.shape == (128, 98, 3)
        assert (image[..., 0].argmax(axis=0) == 85).all()

    def test_images_are_kept_unless_their_sound_is_newer(self, tmp_path: Path) -> None:
        write_wav(tmp_path / "in/a.wav", tone(300, 0.1))
        write_wav(tmp_path / "in/b.wav", tone(300, 0.1))
        assert draw_wavs(tmp_path / "in", tmp_path / "out", 1).endswith("2 images, 2 of them new")
        before = snapshot(tmp_path / "out")
        assert draw_wavs(tmp_path / "in", tmp_path / "out", 1).endswith("2 images, 0 of them new")
        assert snapshot(tmp_path / "out") == before
        newer = before["a.png"] + 10**9
        os.utime(tmp_path / "in/a.wav", ns=(newer, newer))
        assert draw_wavs(tmp_path / "in", tmp_path / "out", 1).endswith("2 images, 1 of them new")
        assert snapshot(tmp_path / "out")["b.png"] == before["b.png"]

    def test_processes_draw_the_same(self, tmp_path: Path) -> None:
        for number in range(3):
            write_wav(tmp_path / f"in/{number}.wav", tone(300 * (number + 1), 0.1))
        (tmp_path / "in/bad.wav").write_bytes(b"bad")
        faults = []
        for workers in (1, 2):
            with pytest.raises(InputError) as caught:
                draw_wavs(tmp_path / "in", tmp_path / str(workers), workers)
            faults.append(str(caught.value))
        assert faults[0] == faults[1]
        for number in range(3):
            one, two = ((tmp_path / str(workers) / f"{number}.png").read_bytes() for workers in (1, 2))
            assert one == two

    def test_what_can_not_be_done(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"no \.wav file there"):
            draw_wavs(tmp_path / "absent", tmp_path / "out", 1)
        write_wav(tmp_path / "in/a.wav", tone(300, 0.1))
        write_wav(tmp_path / "in/a.WAV", tone(300, 0.1))
        if len(list((tmp_path / "in").iterdir())) == 2:  # not on a file system that takes them for one
            with pytest.raises(InputError, match=r"a\.WAV and .*a\.wav differ in their ending alone"):
                draw_wavs(tmp_path / "in", tmp_path / "out", 1)

    def test_a_fault_ends_with_status_2(self, tmp_path: Path) -> None:
        with pytest.raises(SystemExit) as caught:
            run_entry_point(lambda: main(["wav", str(tmp_path), str(tmp_path / "out")]))
        assert caught.value.code == 2


STAND_IN = """#!{python}
import math, struct, sys, wave
text = sys.stdin.buffer.read().decode("utf-8")
flags = sys.argv[1:]
with open({log!r}, "a", encoding="utf-8") as log:
    log.write(text + "\\n")
if "unspeakable" in text or flags[flags.index("-v") + 1] == "nobody":
    sys.exit("Error: it failed")
with wave.open(flags[flags.index("-w") + 1], "wb") as file:
    file.setnchannels(1), file.setsampwidth(2), file.setframerate(22050)
    hertz = 200 + 100 * (sum(text.encode()) % 50)
    file.writeframes(b"".join(struct.pack("<h", int(9999 * math.sin(hertz * i / 3509))) for i in range(4410)))
"""


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Puts a stand-in for espeak-ng, a fifth of a second of a tone, on PATH; returns what it was asked to say."""
    log = tmp_path / "said.txt"
    log.touch()
    program = tmp_path / "bin/espeak-ng"
    program.parent.mkdir()
    program.write_text(STAND_IN.format(python=sys.executable, log=str(log)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    return lambda: log.read_text(encoding="utf-8").splitlines()


CAPTIONS = ["A river .", "a  river .", "-v de", "A river .", "", " . ", "zwei Bäume"]


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    """A data set of one image."""
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train_caps.txt").write_text("".join(f"{caption}\n" for caption in CAPTIONS), encoding="utf-8")
    (folder / "train_filename.txt").write_text("x.png\n")
    return folder


class TestSpeak:
    def test_each_different_caption_is_spoken_once(
        self, tmp_path: Path, captions: Path, said: Callable[[], list[str]], capsys: pytest.CaptureFixture[str]
    ) -> None:
        before, out = snapshot(captions), tmp_path / "out"
        main(["speak", "--data_path", str(captions), str(out), "--workers", "1"])
        assert said() == ["hello", "A river .", "a river .", "-v de", "zwei Bäume"]
        names = (out / "train_audios.txt").read_text().splitlines()
        assert [names.index(name) for name in names] == [0, 1, 2, 0, 4, 4, 6]
        assert names[4] == SILENCE
        assert {path.name for path in out.iterdir()} == {*names, "train_audios.txt"}
        assert names[0].startswith("a_river_")
        assert (
            capsys.readouterr().out == f"{out}: 4 images, 4 of them new, for 7 captions (2 blank ones share {SILENCE}"
            "); lists: train_audios.txt\n"
        )
        images = {name: np.asarray(decode(out / name)) for name in names}
        assert images[SILENCE].shape == (128, 98, 3)
        assert not images[SILENCE].any()
        assert images[names[0]].shape == (128, 18, 3)
        assert len({image.tobytes() for image in images.values()}) == len(images)
        assert snapshot(captions) == before
        assert read_annotations(captions, "train", out).audio_names == tuple(names)

    def test_images_that_are_there_are_kept(
        self, tmp_path: Path, captions: Path, said: Callable[[], list[str]]
    ) -> None:
        files, out = [captions / "train_caps.txt"], tmp_path / "out"
        speak(files, out, Speaker(), 1)
        before = snapshot(out)
        line = speak(files, out, Speaker(), 1)
        assert "4 images, 0 of them new" in line
        assert len(said()) == 5
        lost = (out / "train_audios.txt").read_text().splitlines()[2]
        (out / lost).unlink()
        assert "4 images, 1 of them new" in speak(files, out, Speaker(), 1)
        assert said()[5:] == ["hello", "-v de"]
        after = snapshot(out)
        for changed in (lost, "train_audios.txt"):
            after.pop(changed), before.pop(changed)
        assert after == before

    def test_one_image_for_equal_captions_of_several_lists(self, tmp_path: Path, said: Callable[[], list[str]]) -> None:
        for name, text in (("train_caps.txt", "one\ntwo\n"), ("test_caps.txt", "two\n"), ("other.txt", "one\n")):
            (tmp_path / name).write_text(text)
        files = [tmp_path / "train_caps.txt", tmp_path / "test_caps.txt", tmp_path / "other.txt"]
        out = tmp_path / "out"
        main(["speak", *[part for file in files for part in ("--captions", str(file))], str(out), "--workers", "1"])
        one, two = (out / "train_audios.txt").read_text().split()
        assert (out / "test_audios.txt").read_text().split() == [two]
        assert (out / "other_audios.txt").read_text().split() == [one]
        assert len(list(out.glob("*.png"))) == 2
        assert sorted(said()) == ["hello", "one", "two"]

    def test_a_caption_that_fails_is_named_and_the_others_are_done(
        self, tmp_path: Path, said: Callable[[], list[str]]
    ) -> None:
        (tmp_path / "train_caps.txt").write_text("one\nunspeakable\ntwo\n")
        with pytest.raises(InputError) as caught:
            speak([tmp_path / "train_caps.txt"], tmp_path / "out", Speaker(), 1)
        assert str(caught.value) == (
            "1 of 3 captions have no image, the others are done; no list was written:\n"
            "  espeak-ng can't speak 'unspeakable' with the voice 'en-us': Error: it failed"
        )
        assert len(list((tmp_path / "out").iterdir())) == 2

    def test_a_fault_of_all_captions_is_told_once(
        self, tmp_path: Path, captions: Path, said: Callable[[], list[str]]
    ) -> None:
        with pytest.raises(InputError, match="can't speak 'hello' with the voice 'nobody': Error: it failed"):
            main(["speak", "--data_path", str(captions), str(tmp_path / "out"), "--voice", "nobody"])
        assert said() == ["hello"]

    def test_without_espeak_the_message_says_how_to_install_it(
        self, tmp_path: Path, captions: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(InputError, match="apt install espeak-ng"):
            speak([captions / "train_caps.txt"], tmp_path / "out", Speaker(), 1)

    def test_a_list_of_other_names_is_not_replaced(
        self, tmp_path: Path, captions: Path, said: Callable[[], list[str]]
    ) -> None:
        (captions / "train_audios.txt").write_text("published.png\n")
        before = snapshot(captions)
        with pytest.raises(InputError, match=r"train_audios\.txt is there and names other images"):
            speak([captions / "train_caps.txt"], captions, Speaker(), 1)
        assert snapshot(captions) == before
        assert said() == []

    def test_what_can_not_be_done(self, tmp_path: Path, said: Callable[[], list[str]]) -> None:
        for folder in ("a", "b"):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "x_caps.txt").write_text("one\n")
        with pytest.raises(InputError, match="a second text whose images would be listed in"):
            speak([tmp_path / "a/x_caps.txt", tmp_path / "b/x_caps.txt"], tmp_path / "out", Speaker(), 1)
        with pytest.raises(InputError, match=r"no train_caps\.txt or other list"):
            main(["speak", "--data_path", str(tmp_path / "absent"), str(tmp_path / "out")])
        with pytest.raises(InputError, match="--speed 20: expected 80 to 450 words per minute"):
            main(["speak", "--data_path", str(tmp_path / "a"), str(tmp_path / "out"), "--speed", "20"])
        assert not (tmp_path / "out").exists()

    def test_a_caption_to_listen_to(
        self, tmp_path: Path, said: Callable[[], list[str]], capsys: pytest.CaptureFixture[str]
    ) -> None:
        main(["speak", "--play", "-v  de", str(tmp_path / "play/x.wav")])
        assert said() == ["-v de"]
        assert capsys.readouterr().out == f"{tmp_path}/play/x.wav\n"
        assert len(read_sound(tmp_path / "play/x.wav")) == 3200

    @pytest.mark.parametrize(
        ("text", "name"),
        [
            ("train_caps.txt", "train_audios.txt"),
            ("val_caps_verify.txt", "val_audios_verify.txt"),
            ("mine.txt", "mine_audios.txt"),
        ],
    )
    def test_names_of_lists(self, text: str, name: str) -> None:
        assert audio_list_name(Path("a_caps/b") / text) == name

    @given(one=st.text(max_size=60), two=st.text(max_size=60))
    def test_names_of_images(self, one: str, two: str) -> None:
        names = [Speaker().image_name(text) for text in (one, two)]
        assert (names[0] == names[1]) == (one.split() == two.split())
        assert all(name.isascii() and len(name) < 70 and "/" not in name for name in names)
        assert Speaker("en-gb").image_name(one) != names[0] != Speaker(speed=170).image_name(one)

    @pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
    def test_espeak_speaks(self, tmp_path: Path) -> None:
        sound = Speaker().say("There is a red airplane .")
        assert 0.8 < len(sound) / RATE < 3
        assert np.abs(sound).max() > 0.05
        np.testing.assert_array_equal(sound, Speaker().say(" There is a  red airplane . "))
        assert len(Speaker(speed=350).say("There is a red airplane .")) < 0.8 * len(sound)
        with pytest.raises(InputError, match=r"with the voice 'nobody': .*voice does not exist"):
            Speaker("nobody").say("hello")
