"""Parts that encode and score: throughput, equality of scores on both devices, search.

Letters: N images, M captions, Q queries, D embedding.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from archive import exact
from bench.encode import HEAD, measure, row
from bench.gpu.setting import MODELS, Section, Setting, Skipped
from bench.machine import wait_for
from bench.search import Draw, K
from bench.subject import Experiment
from bench.variants import OURS
from data.image_store import ImageStore
from data.images import DEFAULT_RULE, image_names
from engine import encode, score_blocks
from metrics.ranks import rank_blocks, recalls
from runs.loaders import evaluation_loader
from utils import InputError, RunFault

CPU = torch.device("cpu")
TOLERANCE = 1e-4
"""Greatest difference of two scores in float32; a score is a cosine, or made of some."""
ROUNDING = 4.0
"""In bf16 and TF32 a score may differ by so many times what bf16 alone changes on the CPU."""
QUERIES, DIM = 64, 512


class Scorer:
    """A model with the first images of the test list on one device."""

    def __init__(self, model: str, setting: Setting, device: torch.device) -> None:
        """Build the model, with the weights of its epoch where that was run."""
        experiment = Experiment.of(MODELS[model], setting.overrides(model), "test", device, most=setting.sizes.compared)
        self.model = experiment.model(OURS).eval()
        weights = setting.weights(model)
        self.trained = weights.is_file()
        if self.trained:
            self.model.load_state_dict(torch.load(weights, map_location=device, weights_only=True))
        parts = (experiment.annotations, experiment.vocabulary, experiment.media, device)
        self.loader, self.device = evaluation_loader(experiment.options, *parts), device

    def scores(self, amp: str) -> Tensor:
        """[N, M], on the CPU."""
        images, texts = encode(self.model, self.loader, self.device, amp)
        return torch.cat(list(score_blocks(self.model, images, texts, self.loader.caption_row, len(images)))).cpu()

    def mean_recall(self, scores: Tensor) -> float:
        """MR of some scores; no number where one of them is none."""
        if not scores.isfinite().all():
            return float("nan")
        return recalls(rank_blocks(lambda: [scores], self.loader.text_image.cpu()))["mR"]


@contextmanager
def tensor_float(allowed: bool) -> Iterator[None]:
    """Let float32 convolutions and products of the GPU round their factors to 10 bits, or not."""
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = allowed
    try:
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value


def equality(setting: Setting, section: Section) -> None:
    """Scores of the device beside those of the CPU in float32.

    Raises:
        RunFault: some differ by more than they may.
    """
    table = section.table(
        ["model", "precision", "greatest difference", "allowed", "spread of scores", "mR, CPU float32", "mR"]
    )
    faults = []
    for model in MODELS:
        try:
            ours, theirs = (Scorer(model, setting, device) for device in (setting.device, CPU))
        except Skipped as reason:
            section.add(f"{model}: skipped, {reason}.")
            continue
        exact_scores = theirs.scores("off")
        rounded = TOLERANCE + ROUNDING * difference(theirs.scores("bf16"), exact_scores)
        for name, amp, tf32, allowed in (
            ("float32", "off", False, TOLERANCE),
            ("float32, TF32 allowed", "off", True, rounded),
            ("bf16", "bf16", True, rounded),
        ):
            with tensor_float(tf32):
                scores = ours.scores(amp)
            found = difference(scores, exact_scores)
            recall = f"{ours.mean_recall(exact_scores):.2f}", f"{ours.mean_recall(scores):.2f}"
            table.row(model, name, f"{found:.2e}", f"{allowed:.2e}", f"{exact_scores.std():.2e}", *recall)
            if not found <= allowed:  # also where it is no number
                faults.append(f"{model}, {name}: scores differ by {found:.2e}, allowed are {allowed:.2e}")
        if not ours.trained:
            section.add(f"{model}: random weights, as no epoch was trained.")
    if faults:
        raise RunFault("; ".join(faults) + ".")


def difference(first: Tensor, second: Tensor) -> float:
    """Greatest difference of two scores; no number where one of them is none."""
    return float((first - second).abs().max())


def encoding(setting: Setting, section: Section) -> None:
    """Images per second of some networks, see `bench.encode`.

    Raises:
        RunFault: none could be measured.
    """
    sizes, data = setting.sizes, setting.data()
    names = image_names(data / "images")[: sizes.encoded]
    names = names[: len(names) // sizes.encode_batch * sizes.encode_batch]
    paths = [data / "images" / name for name in names]
    store = ImageStore(paths, sizes.side, "off", None, setting.device, DEFAULT_RULE)
    workers = 0 if setting.small else min(16, os.cpu_count() or 1)
    table = section.table(HEAD)
    measured = 0
    for network in sizes.networks:
        try:
            rates = measure(
                network, store, sizes.encode_batch, workers, setting.device, "bf16", 1 if setting.small else 2
            )
        except InputError as fault:
            table.row(network, *[""] * (len(HEAD) - 2), f"skipped: {fault}")
            continue
        measured += 1
        table.row(*row(network, rates))
    section.add(
        f"Images per second, {len(names)} images of {sizes.side} pixels, {sizes.encode_batch} at a time, bf16, "
        f"{workers} processes that decode; bare: images are on the device already."
    )
    if not measured:
        raise RunFault("no network could be measured")


def search(setting: Setting, section: Section) -> None:
    """Exact search with its products on the device, beside the CPU: the same images are found.

    Raises:
        RunFault: they are not.
    """
    draw = Draw(DIM, 0, 1.0)
    vectors, queries = draw.vectors(setting.sizes.vectors), draw.vectors(QUERIES)
    table = section.table(["vectors on", "ms for all queries", f"same {K} best as the CPU"])
    expected = exact.search([vectors], queries, exact.cosine, K)
    shares = []
    for device in (CPU, setting.device):
        there, asked = vectors.to(device), queries.to(device)
        exact.search([there], asked, exact.cosine, K)  # the first call loads kernels
        wait_for(device)
        started = time.perf_counter()
        found = exact.search([there], asked, exact.cosine, K)
        seconds = time.perf_counter() - started
        same = [len(set(a[1].tolist()) & set(b[1].tolist())) for a, b in zip(found, expected, strict=True)]
        shares.append(sum(same) / (K * QUERIES))
        table.row(str(device), f"{1e3 * seconds:.1f}", f"{shares[-1]:.2%}")
    section.add(
        f"{len(vectors)} vectors of {DIM} numbers, {QUERIES} queries. Vector indexes (FAISS) work on the CPU only."
    )
    if min(shares) < 0.99:  # rounding may swap neighbours
        raise RunFault("the device finds other images than the CPU.")
