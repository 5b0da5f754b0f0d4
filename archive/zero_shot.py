"""Zero-shot: scene classes that a model was never trained on, told apart by sentences alone.

`python -m archive.zero_shot --data_path data/ucm_precomp` asks the ready model, or one of your own.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021, section 3.1: a
class is the mean of the embeddings of several prompts. Letters: N images, C classes, D embedding.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

import metrics
import option
from archive.arguments import TOP
from archive.encoder import Encoder, keyword_ids
from archive.nearest import refuse_pair_scores
from archive.searcher import Hit
from archive.sheet import check_sheet, write_sheet
from data.annotations import read_annotations
from data.images import load_square
from data.prompts import TEMPLATES, prompts_of
from data.scenes import scene_classes
from layers.base import l2norm
from runs.loaders import read_vocabulary
from runs.models import load_model
from runs.ranges import with_range
from runs.ready.folder import chosen
from runtime.arguments import add_model
from runtime.devices import choose_device
from runtime.entry_point import run_entry_point
from utils import InputError, as_json, markdown, named_by, write_text_atomic


def main(arguments: Sequence[str] | None = None) -> None:
    """Print accuracy and precision at 10 on the images of a list."""
    parser = argparse.ArgumentParser(
        prog="python -m archive.zero_shot", description="Tell scene classes apart by sentences alone (docs/search.md)."
    )
    add_model(parser)
    parser.add_argument("--data_path", type=Path, required=True, help="data set whose file names tell classes")
    parser.add_argument("--split", default="test", help="list of images (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here, too")
    parser.add_argument("--query", metavar="SENTENCE", help="also find the ten images that fit it best")
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="draw them: .png or .jpg")
    given = parser.parse_args(arguments)
    if (given.query is None) != (given.sheet is None):
        raise InputError("--query and --sheet belong together: the sentence, and the file to draw what it finds.")
    if given.sheet is not None:
        check_sheet(given.sheet)
    encoder = open_encoder(given)
    annotations = read_annotations(given.data_path, given.split)
    classes = scene_classes(annotations)
    prompts = {name: prompts_of(name) for name in sorted(set(classes))}
    folder, names = given.data_path / "images", annotations.image_names
    images = embed_images(encoder, [folder / name for name in names])
    result = zero_shot(encoder.model.score(images, embed_classes(encoder, prompts)).cpu(), classes, prompts)
    print(table(result))
    if given.json is not None:
        with named_by("--json", given.json):
            write_text_atomic(given.json, as_json(result))
    if given.query is not None:
        best = encoder.model.score(images, encoder.text(given.query))[:, 0].cpu().topk(min(TOP, len(names)))
        hits = [Hit(names[row], value, row) for value, row in zip(*map(Tensor.tolist, best), strict=True)]
        write_sheet(given.sheet, given.query, hits, folder, encoder.options.dataset.rule)
        print(f"\nDrawn in {given.sheet}: {', '.join(classes[hit.row] for hit in hits if hit.row is not None)}.")


def open_encoder(given: argparse.Namespace) -> Encoder:
    """The model of the command line.

    Raises:
        InputError: it can't be read, or does not score by the cosine, so that a mean of prompts means nothing to it.
    """
    path_opt, checkpoint = chosen(given.path_opt, given.checkpoint)
    options = option.load_options(path_opt, given.set)
    refuse_pair_scores(options.model.name, "prompts can't be averaged.")
    vocabulary, device = read_vocabulary(options), choose_device(given.device)
    words = keyword_ids(options, vocabulary)
    model, content = load_model(options, vocabulary, checkpoint, device)
    names = read_annotations(given.data_path, given.split).image_names
    options = with_range(options, [given.data_path / "images" / name for name in names], content)
    return Encoder(model, options, vocabulary, device, words)


def embed_images(encoder: Encoder, paths: Sequence[Path]) -> Tensor:
    """Embeddings of image files, [N, D].

    Raises:
        InputError: one can't be read.
    """
    dataset = encoder.options.dataset
    batches = [paths[start : start + dataset.batch_size_val] for start in range(0, len(paths), dataset.batch_size_val)]
    found = []
    for batch in batches:
        squares = [torch.from_numpy(load_square(path, dataset.image_size, dataset.rule)) for path in batch]
        found.append(encoder.images(torch.stack(squares), [path.name for path in batch]))
    return torch.cat(found)


def embed_classes(encoder: Encoder, prompts: Mapping[str, Sequence[str]]) -> Tensor:
    """The mean of the unit embeddings of each class's prompts, [C, D].

    Raises:
        InputError: the model knows no word of a prompt.
    """
    embedded = (torch.cat([encoder.text(text) for text in texts]) for texts in prompts.values())
    return torch.stack([l2norm(rows).mean(dim=0) for rows in embedded])


def zero_shot(scores: Tensor, classes: Sequence[str], prompts: Mapping[str, Sequence[str]]) -> dict[str, object]:
    """What scores of images and classes are worth; ties count against the model.

    Args:
        scores: [N, C].
        classes: of the N images.
        prompts: of the C classes, in the order of their columns.

    Returns:
        Of all: `images`, `accuracy` (share of images whose best class is their own), `precision@10` (share of a class's
        ten best images that show it, the mean over classes) and `best precision@10` (where classes have fewer than ten
        images, less than 100), in percent; under `classes` the same of each, with its prompts.

    Raises:
        InputError: there is one class alone.
    """
    names = list(prompts)
    if len(names) < 2:
        raise InputError(f"all images are of one class ({names[0]}): there is nothing to tell apart.")
    scenes = torch.tensor([names.index(name) for name in classes])
    first = torch.tensor([classes.index(name) for name in names])  # a class's sentence goes with an image of the class
    shares = metrics.scene_shares(lambda: [scores], first, scenes)
    hits, precision, counts = 100 * shares.image_to_text[:, 0], 100 * shares.text_to_image[:, 2], Counter(classes)
    rows = {
        name: {
            "images": counts[name],
            "accuracy": float(hits[scenes == place].mean()),
            "precision@10": float(precision[place]),
            "best precision@10": 10.0 * min(10, counts[name]),
            "prompts": list(prompts[name]),
        }
        for place, name in enumerate(names)
    }
    best = sum(10.0 * min(10, counts[name]) for name in names) / len(names)
    total = {"images": len(classes), "accuracy": float(hits.mean()), "precision@10": float(precision.mean())}
    return total | {"best precision@10": best, "templates": list(TEMPLATES), "classes": rows}


def table(result: Mapping[str, object]) -> str:
    """A result of `zero_shot` as Markdown, all classes first."""
    keys = ("images", "accuracy", "precision@10", "best precision@10")
    classes = result["classes"]
    assert isinstance(classes, dict)
    rows = {"all": result, **classes}
    cells = [[name, f"{row['images']}", *(f"{row[key]:.1f}" for key in keys[1:])] for name, row in rows.items()]
    prompts = "; ".join(f"{name}: {row['prompts'][0]}" for name, row in classes.items())
    return f"{markdown([['class', *keys], *cells])}\n\nTemplates: {' | '.join(TEMPLATES)}\nClasses in words: {prompts}."


if __name__ == "__main__":
    run_entry_point(main)
