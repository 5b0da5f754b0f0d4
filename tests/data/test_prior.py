"""The prior similarity against NLTK, pair by pair, and the commands and files around it."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.stem.porter import PorterStemmer
from nltk.translate.bleu_score import sentence_bleu

import vocab
from data.annotations import Annotations, read_annotations
from data.similarity import summary
from data.similarity.__main__ import main
from data.similarity.prior import PriorSimilarity, captions_digest, content_stems, stems
from tests.tiny import make_precomp
from utils import InputError


def listed(captions: Sequence[str], per_image: int) -> Annotations:
    """Captions as one list, `per_image` of them for each image."""
    count = len(captions) // per_image
    return Annotations(
        folder=Path("absent"),
        name="train",
        image_names=tuple(f"{image}.png" for image in range(count)),
        captions=tuple(captions),
        caption_image=np.repeat(np.arange(count, dtype=np.int64), per_image),
        names_file=Path("absent"),
        image_lines=np.arange(count, dtype=np.int64) + 1,
    )


def naive(text: str, captions: Sequence[str]) -> float:
    """S of one caption and one image's captions, with NLTK's own functions."""
    stop_words = {*vocab.english_stop_words(), ",", "."}

    def stemmed(caption: str) -> list[str]:
        return [PorterStemmer().stem(token) for token in vocab.tokenize(caption, punctuation=True)]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NLTK warns of n-grams without a match
        bleu = 1.0 if text in captions else sentence_bleu([stemmed(caption) for caption in captions], stemmed(text))
    own = {stem for stem in stemmed(text) if stem not in stop_words}
    shares = []
    for caption in captions:
        kept = [stem for stem in stemmed(caption) if stem not in stop_words]
        if kept:
            shares.append(len(own & set(kept)) / len(kept))
    return (float(bleu) + (sum(shares) / len(shares) if shares else 0.0)) / 2


def agree(annotations: Annotations, images: np.ndarray, captions: np.ndarray) -> None:
    found = PriorSimilarity.build(annotations).between(images, captions)
    assert found.shape == (len(images), len(captions))
    for row, image in enumerate(images):
        own = [annotations.captions[c] for c in np.flatnonzero(annotations.caption_image == image)]
        for column, caption in enumerate(captions):
            assert found[row, column] == pytest.approx(naive(annotations.captions[caption], own), abs=1e-12)


WORDS = ["planes", "plane", "the", "was", "green", "trees", "many", "."]
CAPTION = st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join)


@settings(max_examples=60)
@given(own=st.lists(st.lists(CAPTION, min_size=1, max_size=4), min_size=1, max_size=4))
def test_equals_nltk_pair_by_pair(own: list[list[str]]) -> None:
    captions = [caption for captions in own for caption in captions]
    of_image = np.repeat(np.arange(len(own)), [len(captions) for captions in own])
    annotations = replace(listed(captions, 1).subset(range(len(own))), captions=tuple(captions), caption_image=of_image)
    agree(annotations, np.arange(len(own)), np.arange(len(captions)))


def test_some_pairs_in_any_order_are_those_of_the_whole() -> None:
    captions = [
        f"{a} {b} are near a {c} ." for a in ("many", "two") for b in ("trees", "cars") for c in ("road", "sea")
    ]
    prior = PriorSimilarity.build(listed(captions, 2))
    whole = prior.between(np.arange(4), np.arange(8))
    images, chosen = np.array([3, 0, 3]), np.array([7, 1, 1, 4])
    np.testing.assert_array_equal(prior.between(images, chosen), whole[np.ix_(images, chosen)])
    blocks = list(prior.blocks())
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks], axis=1), whole)


def test_a_case_by_hand() -> None:
    # Stems of image 0: [two plane park here], [plane]; content stems: two plane park | plane.
    prior = PriorSimilarity.build(listed(["two planes parked here", "planes", "two planes parked there", "the"], 2))
    found = prior.between(np.array([0]), np.arange(4))[0]
    # Caption 2 shares 3 of 4 stems, 2 of 3 pairs, 1 of 2 triples, no quadruple: BLEU 0.
    # Its content stems two, plane, park are all of both captions of image 0.
    assert found.tolist() == pytest.approx([(1 + 1) / 2, (1 + (1 / 3 + 1) / 2) / 2, (0 + 1) / 2, 0], abs=1e-12)


def test_words_are_stemmed_before_stop_words_are_left_out() -> None:
    assert stems("This was the plane's Runway, it has trees.") == [
        *("thi", "wa", "the", "plane", "'s", "runway", ",", "it", "ha", "tree", "."),
    ]
    assert content_stems(["thi", "wa", "the", ",", "it", "ha", "."]) == ["thi", "wa", "ha"]


def test_kept_counts_are_taken_again_for_the_same_captions_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    annotations = listed(["two planes are here now .", "a plane", "trees", "many trees near a plane"], 2)
    built = PriorSimilarity.cached(annotations, tmp_path)
    (kept,) = tmp_path.glob("*.npz")
    assert captions_digest(annotations)[:16] in kept.name
    with monkeypatch.context() as patch:
        patch.setattr(PriorSimilarity, "build", None)
        loaded = PriorSimilarity.cached(annotations, tmp_path)
    everything = np.arange(2), np.arange(4)
    np.testing.assert_array_equal(loaded.between(*everything), built.between(*everything))
    PriorSimilarity.cached(listed(annotations.captions, 1), tmp_path)
    assert len(list(tmp_path.glob("*.npz"))) == 2
    kept.write_bytes(kept.read_bytes()[:100])
    with pytest.raises(InputError, match="Delete it"):
        PriorSimilarity.cached(annotations, tmp_path)


def test_the_command_shows_and_draws_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_precomp(tmp_path / "data", train=12)
    main([str(data), "--out", str(tmp_path / "s.png"), "--matrix", str(tmp_path / "s.npy")])
    printed = capsys.readouterr().out
    assert "| pairs | 24 | 264 |" in " ".join(printed.split())
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    annotations = read_annotations(data, "train")
    expected = PriorSimilarity.build(annotations).between(np.arange(12), np.arange(24))
    np.testing.assert_array_equal(np.load(tmp_path / "s.npy"), expected.T.astype(np.float16))
    name = annotations.image_names[3]
    main([str(data), "--show", name])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 2 + summary.NEIGHBOURS
    assert all(name in line and annotations.captions[6 + n] in line for n, line in enumerate(lines[2:4]))
    assert f"{expected[3, 6]:.3f}" in lines[2]
    with pytest.raises(InputError, match="no such image"):
        main([str(data), "--show", "absent.png"])
    with pytest.raises(InputError, match="--beta above 0"):
        main([str(data), "--beta", "0"])


@pytest.mark.skipif("RSR_DATA" not in os.environ, reason="needs the real data sets (RSR_DATA)")
class TestPublished:
    def test_reference_pairs(self) -> None:
        cases = json.loads((Path(os.environ["RSR_DATA"]) / "reference" / "func_calc_sim.json").read_text())
        assert len(cases) == 15
        for case in cases:
            assert stems(case["text"]) == case["stems"]
            assert content_stems(case["stems"]) == case["stems_no_stop"]
            captions = case["visual"] + [case["text"]] * len(case["visual"])
            found = PriorSimilarity.build(listed(captions, len(case["visual"])))
            score = found.between(np.array([0]), np.array([len(case["visual"])]))[0, 0]
            assert score == pytest.approx(case["score"], abs=1e-12)

    @pytest.mark.parametrize("name", ["rsitmd_precomp", "ucm_precomp"])
    def test_pairs_of_a_real_set(self, name: str) -> None:
        whole = read_annotations(Path(os.environ["RSR_DATA"]) / "data" / name, "test")
        draw = np.random.default_rng(0)
        annotations = whole.subset(np.sort(draw.choice(len(whole.image_names), 60, replace=False)))
        agree(annotations, draw.choice(60, 12, replace=False), draw.choice(300, 25, replace=False))
