"""What several test files share: a small vocabulary, small models of every kind, and a log that tests can read."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from layers.registry import registered
from option import Options
from option.dataset import Dataset
from option.fields import leaves
from option.optim import Optim
from option.schema import KFold
from tests import ROOT
from tests.reference_inputs import WORDS
from tests.tiny_bert import TINY_BERT, write_bert
from utils import logger
from vocab import Vocabulary

SMALL = {
    "seq2vec.arch": "gru",
    "seq2vec.word_dim": 16,
    "seq2vec.hidden_dim": 32,
    "embed.embed_dim": 128,
    "fusion.mca_HIDDEN_SIZE": 128,
    "fusion.mca_HIDDEN_SIZE_HEAD": 16,
    "discriminator.in_size": 128,
    "backbone.pretrained": "none",
    "backbone.architecture": "timm/test_efficientnet",
    "architecture": str(Path(__file__).with_name("clip_tiny.json")),
    "image.architecture": "timm/test_efficientnet",
    "image.pretrained": "none",
    "image.train": "all",
    "text.encoder": "gru",
    "text.word_dim": 16,
    "text.hidden_dim": 32,
    "embed_dim": 128,
}


def pytest_configure(config: pytest.Config) -> None:
    """Threads and warnings.

    One thread, here and in the commands that tests start: on small tensors and a busy machine more cost time. A warning
    that our own lines cause is a fault to mend; one from inside a library is not ours.
    """
    ours = sorted({path.relative_to(ROOT).parts[0] for path in (*ROOT.glob("*.py"), *ROOT.glob("*/__init__.py"))})
    config.addinivalue_line("filterwarnings", rf"error:::({'|'.join(Path(name).stem for name in ours)})(\.|$)")
    torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))
    settings.register_profile("suite", deadline=None)  # how long an example takes is the busy machine's matter
    settings.load_profile("suite")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave out what is marked for CUDA where there is none."""
    if item.get_closest_marker("cuda") is not None and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """Undo what an entry point that runs inside a test does to the log: caplog would see nothing from then on."""
    handlers, level, propagate = list(logger.handlers), logger.level, logger.propagate
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)
    logger.propagate = propagate


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    """Twenty words."""
    return Vocabulary({word: index for index, word in enumerate(WORDS, start=1)})


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], str]:
    """`tiny_bert()`: the folder of a small sentence encoder; without transformers it skips the test that asks."""

    @cache
    def written() -> str:
        return str(write_bert(tmp_path_factory.mktemp("bert")))

    return written


@pytest.fixture(scope="session")
def tiny_options(tiny_bert: Callable[[], str]) -> Callable[..., Options]:
    """`tiny_options(model, changes)`: options of a model that builds in no time.

    `changes` are dotted keys of the `model` block, or of another one with `dataset.` or `optim.` before them; the value
    `TINY_BERT` becomes the folder of `tiny_bert`.
    """

    def build(model: str, changes: Mapping[str, Any] | None = None) -> Options:
        parameters = registered()[model].parameters
        known = leaves(parameters, "model")
        block: dict[str, Any] = {"name": model}
        others: dict[str, dict[str, Any]] = {
            "dataset": {
                "data_path": "absent",
                "vocab_path": "absent",
                "local_path": "absent",
                "image_size": 64,
            },
            "optim": {},
        }
        for key, value in ({key: SMALL[key] for key in SMALL if f"model.{key}" in known} | dict(changes or {})).items():
            value = tiny_bert() if value == TINY_BERT else value
            block_name, _, name = key.partition(".")
            if block_name in others:
                others[block_name][name] = value
                continue
            *path, last = key.split(".")
            inner = block
            for part in path:
                inner = inner.setdefault(part, {})
            inner[last] = value
        return Options(
            model=parameters.model_validate(block),
            dataset=Dataset.model_validate(others["dataset"]),
            optim=Optim.whole().model_validate(others["optim"]),
            k_fold=KFold(experiment_name="tiny"),
        )

    return build


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape what a test logged that is no UTF-8, such as odd file names: several processes can't pass it on."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report
