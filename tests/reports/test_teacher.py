"""A teacher's stored embeddings are those that its model gives, and serve the training of another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import torch

from data.annotations import read_annotations
from data.embeddings import read_embeddings
from engine import encode
from layers.base import l2norm
from layers.losses.objective import build_objective
from option import Options, to_yaml
from option.optim import Optim
from reports.teacher import main, open_teacher
from runs.loaders import evaluation_loader
from runs.media import Media
from tests.tiny import make_precomp
from vocab import Vocabulary

CPU = torch.device("cpu")


def test_the_embeddings_of_the_train_list_are_stored_and_read_back(
    tmp_path: Path, tiny_options: Callable[..., Options], vocabulary: Vocabulary
) -> None:
    data, words = make_precomp(tmp_path / "data", train=4, test=2), tmp_path / "words.json"
    vocabulary.save(words)
    given = {"data_path": data, "vocab_path": words, "workers": 0, "feature_path": tmp_path / "cache"}
    torch.manual_seed(0)
    options = tiny_options("DualEncoder", {f"dataset.{key}": value for key, value in given.items()})
    (tmp_path / "teacher.yaml").write_text(to_yaml(options))
    weights = tmp_path / "weights.pth"
    model = open_teacher(options, vocabulary, None, CPU)
    torch.save(model.state_dict(), weights)
    out = tmp_path / "teacher.h5"
    main(["--path_opt", str(tmp_path / "teacher.yaml"), "--checkpoint", str(weights), "--out", str(out)])

    annotations = read_annotations(data, "train")
    loader = evaluation_loader(options, annotations, vocabulary, Media.of(options, [annotations], CPU), CPU)
    images, texts = encode(model, loader, CPU)
    found = read_embeddings(out, annotations.subset([2, 0]))
    torch.testing.assert_close(found[0], l2norm(images)[[2, 0]])
    torch.testing.assert_close(found[1], l2norm(texts)[loader.caption_row][[4, 5, 0, 1]])
    with h5py.File(out) as archive:
        assert archive.attrs["list"] == "train"
    other = open_teacher(options, vocabulary, None, CPU)
    torch.save(other.state_dict(), tmp_path / "other.pth")
    several = ["--checkpoint", str(weights), str(tmp_path / "other.pth"), "--out", str(tmp_path / "both.h5")]
    main(["--path_opt", str(tmp_path / "teacher.yaml"), *several])
    both = [l2norm(part) for part in read_embeddings(tmp_path / "both.h5", annotations)]
    one, two = (
        l2norm(images) @ l2norm(texts[loader.caption_row]).T
        for images, texts in (encode(teacher, loader, CPU) for teacher in (model, other))
    )
    assert not torch.allclose(one, two, atol=1e-3)
    torch.testing.assert_close(both[0] @ both[1].T, (one + two) / 2)
    optim = {"loss": "soft_targets", "soft_targets": {"teacher_path": out}}
    build_objective(Optim.whole().model_validate(optim)).prepare(annotations)  # which refuses what it can't read
