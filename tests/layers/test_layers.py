"""Every registered model passes the same tests; a new model is found by them without an edit here.

Letters: B batch, N images, M texts, D embedding.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import layers.backbone
from batches.batch import Batch
from layers import build_model
from layers.base import RetrievalModel, normalise_rows
from layers.folding import folded
from layers.installed import INSTALL, PACKAGES
from layers.registry import registered
from layers.released import load_released
from metrics.ranks import rank, recalls
from option import Options, dump, is_pretraining, load_options
from option.fields import leaves
from tests import ROOT, reference_inputs
from tests.criteria import triplet_criterion
from tests.tiny_bert import TINY_BERT
from vocab import Vocabulary

# The variants of a model that need a run of their own, as `changes` of `tiny_options`; the default where none is named.
# One of each model has the published backbone, most others the tiny one of `tiny_options`.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "AMFMN": [
        {"cross_attention.att_type": "soft_att", "backbone.architecture": "resnet18"},
        {"cross_attention.att_type": "fusion_att"},
        {"cross_attention.att_type": "similarity_att"},
        {"cross_attention.att_type": "similarity_att", "cross_attention.vgmf": True},
        {"keywords.mode": "both"},
        {"backbone.architecture": "timm/convnext_atto"},
    ],
    "SWAN": [{}, {"tcge.rounding": "none"}, {"is_finetune": True}],
    "GaLR": [
        {"fusion.dynamic_weights": "released", "backbone.architecture": "resnet18"},
        {"fusion.dynamic_weights": "paper"},
        {"dataset.local_path": None},
    ],
    "MCRN": [
        {"optim.methods": "all", "backbone.architecture": "resnet18"},
        {"optim.methods": "tpt", "backbone.architecture": "resnet18"},
        {"optim.methods": "tpt", "backbone.architecture": "timm/convnext_atto"},
    ],
    "DualEncoder": [
        {},
        {"head.kind": "linear", "text.encoder": TINY_BERT, "text.train": "all"},
        {"text.encoder": TINY_BERT, "text.train": {"last": 1}, "text.pooling": "cls", "image.train": {"last": 2}},
        {"image.train": "none", "text.encoder": TINY_BERT, "text.train": "none"},
        {"head.norm": "both"},
    ],
}


class Released(NamedTuple):
    """A released implementation whose outputs are in `tests/reference`: what it is here, and its names there."""

    model: str
    block: dict[str, Any]
    images: str
    texts: str
    scores: str = "sims"
    unscaled: bool = False  # an image embedding is defined but for a factor, which the cosine cancels


RELEASED = {
    f"AMFMN_{att_type}": Released("AMFMN", {"cross_attention": {"att_type": att_type}}, "mvsa_feature", "text_feature")
    for att_type in ("soft_att", "fusion_att", "similarity_att")
} | {
    "GaLR": Released("GaLR", {}, "visual_feature", "text_feature", unscaled=True),
    "SWAN": Released("SWAN", {}, "img_emb", "text_emb_unpadded", "sims_unpadded"),
    "MCRN_Finetune": Released("MCRN", {}, "gv", "gt", "i2t"),
}
CASES = [(model, variant) for model in registered() for variant in VARIANTS.get(model, [{}])]
# All but one that learns for hundreds of steps: its triplets weigh a thousandth of what brings all modalities together.
BY_HEART = [case for case in CASES if case[1].get("optim.methods") != "all"]
# MCRN evaluates every modality with running statistics that all of them share; few steps don't bring these together.
RECALL_BY_HEART = {"MCRN": 50}
SHIPPED = [path for path in sorted((ROOT / "option").glob("*.yaml")) if not is_pretraining(path)]
SIZE = 64
CRITERION = triplet_criterion(margin=0.2, hardest=False)

TinyOptions = Callable[..., Options]


def case_name(case: tuple[str, dict[str, Any]]) -> str:
    model, variant = case
    return "-".join([model, *(str(value) for value in variant.values())])


def random_batch(size: int, image_size: int = SIZE, seed: int = 0) -> Batch:
    """Matching items of every modality, captions of 1 to 9 words in no order of length."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 10, (size,), generator=draw)
    lengths[0], lengths[-1] = 4, 9
    tokens = torch.randint(1, 20, (size, 9), generator=draw)
    tokens[torch.arange(9) >= lengths[:, None]] = 0
    images = [torch.randn(size, 3, image_size, image_size, generator=draw) for _ in range(3)]
    return Batch(
        images=images[0],
        tokens=tokens,
        lengths=lengths,
        image_ids=torch.arange(size),
        caption_ids=torch.arange(size),
        second_view=images[1],
        audio=images[2],
        nodes=torch.randn(size, 20, 20, generator=draw),
        adjacency=torch.randn(size, 20, 20, generator=draw).softmax(dim=-1),
        keywords=random_keywords(size, draw),
    )


def random_keywords(size: int, draw: torch.Generator) -> Tensor:
    """1 to 3 keywords of 1 or 2 words for each item, [size, 6]; none for the second item."""
    keywords = torch.randint(1, 20, (size, 3, 2), generator=draw)
    keywords[..., 0] *= torch.randint(0, 2, (size, 3), generator=draw)
    counts = torch.randint(1, 4, (size, 1), generator=draw)
    counts[1:2] = 0
    return (keywords * (torch.arange(3) < counts)[..., None]).flatten(1)


def rows(batch: Batch, ids: list[int], padding: int = 0) -> Batch:
    """Some items of a batch in some order, captions padded to the longest of them and `padding` further."""
    lengths = batch.need("lengths")[ids]
    tokens = batch.need("tokens")[ids, : int(lengths.max())]
    chosen = {name: value[ids] for name, value in vars(batch).items() if value is not None}
    return replace(batch, **chosen | {"tokens": F.pad(tokens, (0, padding)), "lengths": lengths})


def settle(model: RetrievalModel, batch: Batch) -> None:
    """Bring the running statistics to where many more steps on this batch would bring them."""
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None  # the mean over what passes through it, of each modality where they share it
    with torch.no_grad():
        model.training_loss(batch, CRITERION)


def distance(given: Tensor, expected: Tensor) -> float:
    """Greatest difference, as a share of the greatest expected entry."""
    return float((given - expected).abs().max() / expected.abs().max())


@pytest.fixture(params=CASES, ids=case_name, scope="module")
def options(request: pytest.FixtureRequest, tiny_options: TinyOptions) -> Options:
    """Small options of one variant of one model."""
    model, variant = request.param
    return tiny_options(model, variant)


@pytest.fixture(scope="module")
def built(options: Options, vocabulary: Vocabulary) -> RetrievalModel:
    """The small model that they choose; tests get copies, since some take longer to build than to test."""
    torch.manual_seed(0)
    return build_model(options, vocabulary)


@pytest.fixture(scope="module")
def stepped(built: RetrievalModel) -> RetrievalModel:
    """The same, its running statistics and weights moved off their first values."""
    model = copy.deepcopy(built)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    model.training_loss(random_batch(6, seed=9), CRITERION)["loss"].backward()
    optimizer.step()
    return model


@pytest.fixture
def model(built: RetrievalModel) -> RetrievalModel:
    """A copy of the small model in training mode, always with the same weights."""
    torch.manual_seed(0)
    return copy.deepcopy(built)


@pytest.fixture
def trained(stepped: RetrievalModel) -> Iterator[RetrievalModel]:
    """A copy of the stepped model in evaluation mode."""
    torch.manual_seed(0)
    model = copy.deepcopy(stepped).eval()
    with torch.inference_mode():
        yield model


def encodings(model: RetrievalModel, batch: Batch) -> dict[str, Tensor]:
    """Embeddings of every modality that a model has."""
    spoken = {"audio": model.encode_audio(batch)} if model.uses_audio else {}
    return {"image": model.encode_image(batch), "text": model.encode_text(batch), **spoken}


def test_encodes_finite_vectors_of_one_width(trained: RetrievalModel) -> None:
    settle(trained.train(), random_batch(6, seed=9))
    images, *others = encodings(trained.eval(), random_batch(5)).values()
    for other in others:
        assert images.shape == other.shape == (5, 128)
        assert images.isfinite().all()
        assert other.isfinite().all()
        scores = trained.score(images, other)
        assert scores.shape == (5, 5)
        assert scores.abs().max() <= 1 + 1e-6
        assert scores.std() > 1e-4


def test_folded_batch_norms_change_no_score(trained: RetrievalModel) -> None:
    batch = random_batch(6, seed=9)
    settle(trained.train(), batch)
    kinds = ("image", "text") if not trained.uses_audio else ("image", "text", "audio")
    trained.eval()
    given = random_batch(5)
    expected, found = encodings(trained, given), {}
    for kind in kinds:
        quick = folded(trained, lambda model, kind=kind: getattr(model, f"encode_{kind}")(given))  # type: ignore[misc]
        found[kind] = getattr(quick, f"encode_{kind}")(given)
        norms = [sum(isinstance(part, nn.BatchNorm2d) for part in model.modules()) for model in (trained, quick)]
        assert norms[1] < norms[0] or norms[0] <= 1, "nothing was folded"
    for kind in kinds[1:]:
        scores = trained.score(expected["image"], expected[kind])
        torch.testing.assert_close(trained.score(found["image"], found[kind]), scores, atol=1e-5, rtol=0)


def test_only_a_model_of_audio_encodes_audio(model: RetrievalModel) -> None:
    if not model.uses_audio:
        with pytest.raises(NotImplementedError):
            model.encode_audio(random_batch(2))


def test_gradient_reaches_every_live_parameter(model: RetrievalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "score", model.pair_scores)  # which does not round to float32
    batch = random_batch(6)
    exact = {name: v.double() for name, v in vars(batch).items() if v is not None and v.is_floating_point()}
    model.double().train().training_loss(replace(batch, **exact), CRITERION)["loss"].backward()
    live = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    greatest = {name: 0.0 if p.grad is None else float(p.grad.abs().max()) for name, p in live.items()}
    assert all(p.grad is None or p.grad.isfinite().all() for p in live.values())
    # What cancels in exact arithmetic still leaves rounding errors, in float64 about 1e-16 of the others.
    floor = 1e-10 * max(greatest.values())
    assert {name: value for name, value in greatest.items() if value <= floor} == {}


def test_an_embedding_does_not_depend_on_its_batch(trained: RetrievalModel) -> None:
    batch = random_batch(5)
    whole = encodings(trained, batch)
    for chosen in ([3, 0, 4, 2, 1], [0], [1], [2], [3], [4]):
        for padding in (0, 7):
            for modality, embeddings in encodings(trained, rows(batch, chosen, padding)).items():
                assert distance(embeddings, whole[modality][chosen]) < 1e-5


@pytest.mark.parametrize("name", registered())
def test_the_learning_rate_is_named_as_one_without_effect_where_it_has_none(
    name: str, tiny_options: TinyOptions, vocabulary: Vocabulary
) -> None:
    slow, fast = (tiny_options(name, {"optim.lr": rate}) for rate in (1e-5, 1e-3))
    model = build_model(slow, vocabulary)
    rates = [[group["lr"] for group in model.parameter_groups(options)] for options in (slow, fast)]
    assert (rates[0] == rates[1]) == ("optim.lr" in dict(type(model).unread(fast)))


def test_scores_in_blocks_of_any_split_equal_the_whole(trained: RetrievalModel) -> None:
    images, texts = trained.encode_image(random_batch(5)), trained.encode_text(random_batch(7, seed=1))
    whole = trained.score(images, texts)
    assert whole.shape == (5, 7)
    for height in (1, 2, 5):
        for width in (1, 3, 7):
            blocks = [[trained.score(i, t) for t in texts.split(width)] for i in images.split(height)]
            joined = torch.cat([torch.cat(row, dim=1) for row in blocks])
            torch.testing.assert_close(joined, whole, atol=1e-6, rtol=0)


def test_a_saved_model_scores_the_same_to_the_last_bit(
    trained: RetrievalModel, options: Options, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    batch = random_batch(4)
    torch.save(trained.state_dict(), tmp_path / "model.pth")
    torch.manual_seed(1)
    other = build_model(options, vocabulary, load_weights=False).eval()
    scores = trained.score(trained.encode_image(batch), trained.encode_text(batch))
    assert not torch.equal(other.score(other.encode_image(batch), other.encode_text(batch)), scores)
    other.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True))
    assert torch.equal(other.score(other.encode_image(batch), other.encode_text(batch)), scores)


@pytest.mark.parametrize("case", BY_HEART, ids=case_name)
def test_learns_eight_pairs_by_heart(
    case: tuple[str, dict[str, Any]], tiny_options: TinyOptions, vocabulary: Vocabulary
) -> None:
    name, variant = case
    dropouts = [key for key in leaves(registered()[name].parameters, "model") if "drop" in key.lower()]
    torch.manual_seed(0)
    model = build_model(tiny_options(name, {key.removeprefix("model."): 0.0 for key in dropouts} | variant), vocabulary)
    batch = random_batch(8)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    history = [float("inf")]
    while history[-1] > 0.05 and len(history) <= 60:
        loss = model.training_loss(batch, CRITERION)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[1] > 15  # 112 wrong pairs, each near the margin of 0.2
    assert history[-1] <= 0.05
    settle(model, batch)
    model.eval()
    with torch.inference_mode():
        scores = model.score(model.encode_image(batch), model.encode_text(batch))
    found = recalls(rank(scores, torch.arange(8)))
    assert min(found["i2t_R@1"], found["t2i_R@1"]) >= RECALL_BY_HEART.get(name, 100)


def test_mixed_precision_stays_close(trained: RetrievalModel) -> None:
    batch = random_batch(6)
    exact = encodings(trained, batch)
    images, texts = exact["image"], exact["text"]
    scores = trained.score(images, texts)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = encodings(trained, batch)
        rough_scores = trained.score(rough["image"], rough["text"])
        scores_under_autocast = trained.score(images, texts)
    for modality, embeddings in rough.items():
        assert 0 < distance(embeddings, exact[modality]) < 0.03
    assert rough_scores.dtype == torch.float32
    torch.testing.assert_close(rough_scores, scores, atol=0.02, rtol=0)
    assert torch.equal(scores_under_autocast, scores)


def skip_without_packages(options: Options) -> None:
    """Skip the test where options ask for installed weights that are not there: they are read in any case."""
    for name in PACKAGES.keys() & set(re.findall(r"[\w/]+", str(dump(options)["model"]))):
        for module in (PACKAGES[name].module, "timm", "transformers"):
            pytest.importorskip(module, reason=f"it needs the extra weights: {INSTALL}")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_options_build_without_weight_files(
    path: Path, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers.backbone, "_download", lambda *_: pytest.fail("a download was tried"))
    options = load_options(path)
    skip_without_packages(options)
    model = build_model(options, vocabulary, load_weights=False).eval()
    assert type(model) is registered()[options.model.name].model
    batch = random_batch(2, options.dataset.image_size)
    with torch.inference_mode():
        images, texts = model.encode_image(batch), model.encode_text(batch)
        scores = model.score(images, texts)
    assert images.shape == texts.shape == (2, 512)
    assert scores.isfinite().all()


@pytest.mark.parametrize("name", RELEASED)
def test_released_checkpoint_gives_the_released_outputs(name: str, vocabulary: Vocabulary) -> None:
    released = RELEASED[name]
    registration = registered()[released.model]
    parameters = registration.parameters.model_validate({"name": released.model, **released.block})
    model = registration.model.from_parameters(parameters, 256, vocabulary, load_weights=False).eval()
    load_released(model, reference_inputs.released_state(name))
    expected, batch = reference_inputs.outputs(name), reference_inputs.batch()
    with torch.inference_mode():
        images, texts = model.encode_image(batch), model.encode_text(batch)
        scores = model.score(images, texts)
    expected_images = expected[released.images]
    if released.unscaled:
        images, expected_images = F.normalize(images), F.normalize(expected_images)
    assert distance(images, expected_images) < 1e-4
    assert distance(texts, expected[released.texts]) < 1e-4
    torch.testing.assert_close(scores, expected[released.scores], atol=1e-5, rtol=0)


def test_a_single_row_is_normalised_by_the_running_statistics() -> None:
    norm = torch.nn.BatchNorm1d(2)
    norm.running_mean, norm.running_var = torch.tensor([1.0, 2.0]), torch.tensor([4.0, 9.0])
    torch.testing.assert_close(normalise_rows(norm, torch.tensor([[5.0, -1.0]])), torch.tensor([[2.0, -1.0]]))
    assert norm.running_mean.tolist() == [1.0, 2.0]  # which it does not change
    several = normalise_rows(norm, torch.tensor([[5.0, -1.0], [1.0, 1.0]]))
    torch.testing.assert_close(several, torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
    torch.testing.assert_close(norm.running_mean, torch.tensor([1.2, 1.8]))
