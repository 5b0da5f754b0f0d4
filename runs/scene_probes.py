"""Scene classes told by a retrieval model that no class has trained: by prompts, by neighbours, by a linear probe.

Letters: N images of the test list, T of the train list, C classes, D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from batches.batch import Captions
from data.annotations import Annotations, read_annotations
from data.prompts import prompts_of
from data.scenes import UNNAMED_SCENE, scene_classes
from dataloader import EvaluationLoader
from engine import embed, encode_images
from layers.base import RetrievalModel, l2norm
from metrics.probes import confusion, nearest_classes, probed_classes
from option import Options
from runs.features import list_features, test_views
from runs.loaders import evaluation_loader, typed_queries_of
from runs.media import Media
from runs.scoring import TestSet
from utils import InputError

METHODS = ("zero-shot", "nearest", "linear probe")


@dataclass(frozen=True)
class SceneTask:
    """What scene classes are told from; images without a named class are left out.

    Attributes:
        names: of the C classes of both lists.
        test_classes: [N] int64, -1 for none.
        train: the train list.
        train_classes: [T] int64, -1 for none.
        loader: of the train list.
        prompts: queries, as many for each class, in the order of the classes.
    """

    names: tuple[str, ...]
    test_classes: Tensor
    train: Annotations
    train_classes: Tensor
    loader: EvaluationLoader
    prompts: Captions


def open_scene_task(test_set: TestSet, device: torch.device) -> SceneTask:
    """Read the classes of both lists.

    Raises:
        InputError: the images of a list are of fewer than two named classes, or the train list can't be read.
    """
    options = test_set.options
    train = read_annotations(options.dataset.folder, "train")
    found = {each.name: scene_classes(each) for each in (train, test_set.annotations)}
    for side, scenes in found.items():
        if len(set(scenes) - {UNNAMED_SCENE}) < 2:
            raise InputError(
                f"--scenes: the {side} images of {train.folder} are not of two named scene classes; name them in "
                "scenes.txt (data/README.md)."
            )
    names = tuple(sorted({scene for scenes in found.values() for scene in scenes} - {UNNAMED_SCENE}))
    number = {name: place for place, name in enumerate(names)}
    train_classes, test_classes = (
        torch.tensor([number.get(scene, -1) for scene in scenes], device=device) for scenes in found.values()
    )
    sentences = [sentence for name in names for sentence in prompts_of(name)]
    prompts = typed_queries_of(options, sentences, test_set.vocabulary)
    media = Media.of(options, [train], device)
    loader = evaluation_loader(options, train, test_set.vocabulary, media, device, load=False)
    return SceneTask(names, test_classes, train, train_classes, loader, prompts)


def scene_confusions(
    model: RetrievalModel, task: SceneTask, test_set: TestSet, images: Tensor, device: torch.device
) -> dict[str, Tensor]:
    """What each of `METHODS` takes the test images for.

    Args:
        model: on the device.
        task: the classes.
        test_set: what the images are of.
        images: [N, D] the embedded test images.
        device: where the model is.

    Returns:
        Confusions [C, C] by method, on the CPU; rows are true classes.
    """
    options = test_set.options
    features = list_features(model, options, task.train, test_set.vocabulary, test_views(options), device)
    reading = task.loader.reading(features)
    known = encode_images(model, reading, device, options.optim.amp, options.dataset.test_views)
    named, learned = task.test_classes >= 0, task.train_classes >= 0
    truth, count = task.test_classes[named], len(task.names)
    given = known[learned], task.train_classes[learned], images[named], count
    prompted = prompt_scores(model, task, options, images[named], device).argmax(dim=1)
    found = (prompted, nearest_classes(*given), probed_classes(*given))
    return {name: confusion(truth, taken, count).cpu() for name, taken in zip(METHODS, found, strict=True)}


def prompt_scores(
    model: RetrievalModel, task: SceneTask, options: Options, images: Tensor, device: torch.device
) -> Tensor:
    """Scores of images [N, D] and classes, [N, C].

    Where the score is a cosine, a class is the mean of the unit embeddings of its prompts (CLIP, section 3.1.4);
    elsewhere its score is the mean of its prompts'.
    """
    distinct, row_of = task.prompts.distinct()
    chunks = torch.arange(len(distinct.lengths)).split(options.dataset.batch_size_val)
    batches = (distinct.batch(rows).to(device) for rows in chunks)
    prompts = embed(model, model.encode_text, batches, "prompt", device, options.optim.amp)[row_of.to(device)]
    count = len(task.names)
    with torch.no_grad():
        if model.scores_by_cosine():
            return model.score(images, l2norm(prompts).unflatten(0, (count, -1)).mean(dim=1))
        return model.score(images, prompts).unflatten(1, (count, -1)).mean(dim=2)
