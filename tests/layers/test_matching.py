"""The matching head: against loops over single tokens, its negatives and loss by hand, and a task that needs tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from batches.batch import Batch
from layers import build_model
from layers.base import Encodings
from layers.dual_encoder import DualEncoder, Matcher
from layers.matching import (
    MatchingHead,
    MatchingParameters,
    TokenEncodings,
    hard_negatives,
    matches_of,
    matching_loss,
)
from option import Options
from tests.criteria import triplet_criterion
from tests.tiny_bert import TINY_BERT
from utils import InputError
from vocab import Vocabulary

ON = {"matching.layers": 1, "matching.width": 16, "matching.heads": 2, "matching.dropout": 0.0}
FROZEN = {"image.train": "none", "text.encoder": TINY_BERT, "text.train": "none"}


def head_of(image: int, text: int, **numbers: Any) -> MatchingHead:
    torch.manual_seed(0)
    return MatchingHead(
        image, text, MatchingParameters(**{"layers": 2, "width": 8, "heads": 2, "dropout": 0} | numbers)
    )


def attended(attention: nn.MultiheadAttention, queries: list[Tensor], keys: list[Tensor]) -> list[Tensor]:
    """Attention of single tokens, head by head."""
    width, size = attention.embed_dim, attention.head_dim
    weights, biases = attention.in_proj_weight.split(width), attention.in_proj_bias.split(width)
    result = []
    for query in queries:
        parts = []
        for head in range(attention.num_heads):
            own = slice(head * size, (head + 1) * size)
            q = (weights[0] @ query + biases[0])[own]
            shares = [math.exp(float(q @ (weights[1] @ key + biases[1])[own]) / math.sqrt(size)) for key in keys]
            values = [(weights[2] @ key + biases[2])[own] for key in keys]
            parts.append(sum(s * v for s, v in zip(shares, values, strict=True)) / sum(shares))
        result.append(attention.out_proj(torch.cat(parts)))
    return result


def naive_logit(head: MatchingHead, image: list[Tensor], caption: list[Tensor]) -> float:
    """One pair, token by token: what attends to itself, then to the image, then passes two linear maps."""
    image, states = [head.from_image(token) for token in image], [head.from_text(token) for token in caption]
    for layer in head.layers:
        assert isinstance(layer, nn.TransformerDecoderLayer)
        normed = [layer.norm1(state) for state in states]
        states = [s + a for s, a in zip(states, attended(layer.self_attn, normed, normed), strict=True)]
        normed = [layer.norm2(state) for state in states]
        states = [s + a for s, a in zip(states, attended(layer.multihead_attn, normed, image), strict=True)]
        states = [s + layer.linear2(F.gelu(layer.linear1(layer.norm3(s)))) for s in states]
    return float(head.decide(sum(states) / len(states)))


@torch.no_grad()
def test_scores_equal_the_naive_loops() -> None:
    head = head_of(5, 3).eval()
    images, captions = torch.randn(2, 4, 5), torch.randn(3, 6, 3)
    lengths = [6, 2, 1]
    ids = torch.tensor([[1] * length + [0] * (6 - length) for length in lengths])
    found = head.scores(head.image_tokens(images), head.text_tokens(captions, ids))
    for image, caption in product(range(2), range(3)):
        logit = naive_logit(head, list(images[image]), list(captions[caption, : lengths[caption]]))
        assert float(found[image, caption]) == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-6)


def test_gradients_are_those_of_differences() -> None:
    head = head_of(3, 2, layers=1, width=4, heads=1).double()
    ids = torch.tensor([[1, 1], [1, 0]])

    def logits(images: Tensor, captions: Tensor, weight: Tensor) -> Tensor:
        texts = head.text_tokens(captions, ids)
        return torch.func.functional_call(head, {"decide.1.weight": weight}, (head.image_tokens(images), texts))

    given = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3, 3), (2, 2, 2), (1, 4))]
    assert torch.autograd.gradcheck(logits, given)


def test_matches_are_own_captions_and_equal_ones() -> None:
    tokens = torch.tensor([[1, 2], [3, 0], [1, 2], [4, 4], [3, 0]])
    rows = torch.tensor([0, 0, 1, 2, 2])
    found = matches_of(tokens, rows, 3)
    for image, text in product(range(3), range(5)):
        own = [caption for caption in range(5) if rows[caption] == image]
        assert found[image, text] == any(torch.equal(tokens[text], tokens[caption]) for caption in own)


def test_negatives_are_drawn_by_their_scores_and_never_match() -> None:
    torch.manual_seed(0)
    scores, rows = torch.tensor([[0.9, 0.2, 0.5, 0.1], [0.3, 0.8, 0.4, 0.6]]), torch.tensor([0, 1, 0, 1])
    matches = matches_of(torch.arange(4)[:, None], rows, 2)
    drawn = [hard_negatives(scores, matches, rows, 0.5) for _ in range(2000)]
    images, texts = (torch.stack(each) for each in zip(*drawn, strict=True))
    assert images.unique(dim=0).tolist() == [[1, 0, 1, 0]]  # the only other image
    shares = [float((texts[:, 0] == text).double().mean()) for text in range(4)]
    odds = math.exp((0.2 - 0.1) / 0.5)
    assert shares == pytest.approx([0, odds / (1 + odds), 0, 1 / (1 + odds)], abs=0.04)
    assert hard_negatives(scores, matches, rows, 1e-4)[1].tolist() == [1, 2, 1, 2]


def test_the_loss_by_hand() -> None:
    own, wrong = torch.tensor([0.0, 2.0]), torch.tensor([[0.0, -1.0], [3.0, 5.0]])
    found = torch.tensor([[True, True], [True, False]])
    first = (math.log(2) + math.log(2) + math.log(1 + math.exp(3))) / 3
    second = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))) / 2  # no other caption
    assert float(matching_loss(own, wrong, found)) == pytest.approx(first + second)


def test_its_weight_counts() -> None:
    losses = []
    for weight in (1.0, 2.5):
        head = head_of(5, 3, weight=weight)
        torch.manual_seed(1)
        batch = TokenEncodings(
            images=torch.randn(3, 4),
            texts=torch.randn(3, 4),
            image_tokens=torch.randn(3, 2, 8),
            text_tokens=torch.randn(3, 4, 8),
            tokens=torch.arange(12).view(3, 4) + 1,
        )
        losses.append(head.loss(batch, torch.randn(3, 3)).item())
    assert losses[1] == pytest.approx(2.5 * losses[0])


def test_it_learns_what_only_tokens_tell() -> None:
    # Three scenes of two tokens that cancel each other, so that the means of all images and captions are equal
    images = (torch.eye(3)[:, None] * torch.tensor([1.0, -1.0])[:, None]).repeat(4, 1, 1)
    captions = images @ torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]])
    ids = torch.tensor([[5, 6], [6, 7], [7, 8]]).repeat(4, 1)
    assert images.mean(dim=1).abs().max() == captions.mean(dim=1).abs().max() == 0
    head = head_of(3, 3, layers=1, width=16, heads=2)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=60)
    for _ in range(60):
        seen = TokenEncodings(
            torch.zeros(12, 1),
            torch.zeros(12, 1),
            image_tokens=head.image_tokens(images),
            text_tokens=head.text_tokens(captions, ids),
            tokens=ids,
        )
        optimizer.zero_grad()
        head.loss(seen, torch.zeros(12, 12)).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        found = head.scores(head.image_tokens(images[:3]), head.text_tokens(captions[:3], ids[:3]))
    assert float(found.diagonal().min()) > 0.9
    assert float((found - found.diagonal().diag()).max()) < 0.1


@pytest.fixture
def dual(tiny_options: Callable[..., Options], vocabulary: Vocabulary) -> Callable[..., DualEncoder]:
    def build(**changes: Any) -> DualEncoder:
        torch.manual_seed(0)
        changes = {key.replace("__", "."): value for key, value in changes.items()}
        model = build_model(tiny_options("DualEncoder", FROZEN | ON | changes), vocabulary)
        assert isinstance(model, DualEncoder)
        return model

    return build


def pairs() -> Batch:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.tensor([[1, 5, 3, 2], [1, 4, 2, 0], [1, 6, 2, 0]])
    images = torch.randn(3, 3, 64, 64, generator=generator)
    return Batch(images=images, tokens=tokens, lengths=torch.tensor([4, 3, 3]))


def test_one_pass_serves_both_stages(dual: Callable[..., DualEncoder]) -> None:
    model, batch = dual(image__train="all").eval(), pairs()
    torch.manual_seed(1)
    losses = model.training_loss(batch, criterion := triplet_criterion(0.2, hardest=False))
    plain = dual(image__train="all", matching__layers=0)
    assert plain.reranker() is plain
    assert not any(name.startswith("matching") for name in plain.state_dict())
    plain.load_state_dict({n: v for n, v in model.state_dict().items() if not n.startswith("matching")})
    expected = plain.eval().training_loss(batch, criterion)
    torch.testing.assert_close(losses["loss"] - losses["matching"], expected["loss"])
    # At the start the head knows nothing: a coin for each of three captions, about
    assert 0.5 < float(losses["matching"].detach()) / 3 < 1.0
    losses["matching"].backward()
    gradients = [weight.grad for weight in model.image_tower.parameters() if weight.grad is not None]
    assert torch.cat([gradient.flatten() for gradient in gradients]).abs().sum() > 0


@torch.no_grad()
def test_what_is_kept_of_frozen_towers_gives_the_same(dual: Callable[..., DualEncoder]) -> None:
    model, batch = dual().eval(), pairs()
    matcher = model.reranker()
    assert isinstance(matcher, Matcher)
    assert not matcher.scores_by_cosine()
    image, text = matcher.frozen_image(), matcher.frozen_text()
    assert image is not None
    assert text is not None
    maps, states = image.eval()(batch.need("images")), text.eval()(batch.need("tokens"))
    assert (maps.ndim, states.ndim) == (4, 3)
    kept = Batch(image_features=maps, text_features=states, tokens=batch.tokens, lengths=batch.lengths)
    for given, reader in product(("encode_image", "encode_text"), (model, matcher)):
        one, other = getattr(reader, given)(kept), getattr(reader, given)(batch)
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    tokens = matcher.encode_text(batch)
    assert tokens[1, 3].tolist() == [0.0] * 16
    torch.testing.assert_close(tokens[1:2, :3], matcher.encode_text(Batch(tokens=batch.need("tokens")[1:2, :3])))


def test_what_cant_match_says_so(dual: Callable[..., DualEncoder]) -> None:
    with pytest.raises(InputError, match=r"model\.matching: this tower pools while it reads and has no tokens"):
        dual(text__encoder="gru", text__train="all")
    with pytest.raises(ValueError, match=r"heads \(3\) must divide width \(16\)"):
        dual(matching__heads=3)
    model = dual()
    gathered = Encodings(torch.randn(2, 128), torch.randn(2, 128))
    with pytest.raises(InputError, match="hard negatives come from the batch of one process; train with python"):
        model.loss_of(gathered, triplet_criterion(0.2, hardest=False))
