"""The model card of a portable folder, in the Markdown form of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

import option
from option import Options
from portable import CONFIG, EXAMPLE, OPSET, PREPROCESSING, SCORES, VOCABULARY, WEIGHTS
from portable.folder import STARTS, Portable, standing
from portable.graphs import Graph
from utils import markdown

TEXT = """\
# {title}

A model that finds satellite and aerial images with an English sentence, trained with RSRetrieval.

```python
from rsretrieval import Retriever

retriever = Retriever.load("PATH OF THIS FOLDER")
texts = retriever.text(["a river beside a road"])
images = retriever.image(["a.tif", "b.png"])
print(retriever.score(images, texts))
```

Without PyTorch, on packages `{packages}` alone:

```bash
python {example} FOLDER_OF_IMAGES "a river beside a road"
```

## Files

{files}

Images are read as RGB, squeezed to {side} x {side} pixels (bilinear, as Pillow does it) and given as bytes 0 to 255;
the graphs normalise them. `{example}` reads plain 8-bit images; `Retriever` also those that are deeper, turned,
masked or of more bands.

## Training

{training}

## Scores

{scores}

mR is the mean of recall@1, 5 and 10 in both directions, in percent. Equal captions tie, and count by the expectation
over their orders.

## Intended use

Searching an archive of overhead images of the kind that it was trained on, and comparison in research. A score orders
the images of one query; it is no probability. It was not tested for decisions about people, their homes or targets.

## Licences

To be settled by whoever passes this model on, since the code's MIT licence says nothing about weights:

- May images and captions of `{data}` be used for what this model is to be used for? Many sets of remote-sensing images
  are given for research only, or come from map services with terms of their own.
- Which weights did the training start from ({starts}), and under which licence?
"""
STARTING = {*STARTS, "encoder"}
"""Keys of `model` that name weights to start from."""
TAGS = ["remote-sensing", "image-text-retrieval", "cross-modal-retrieval", "onnx"]


def card(source: Portable, graphs: Sequence[Graph], scores: Mapping[str, Any] | None, int8: bool) -> str:
    """The text of the card.

    Args:
        source: the model with the options that it was trained with.
        graphs: of the folder.
        scores: content of `scores.json`; None: nobody tested it.
        int8: whether the graphs are there in 8 bits, too.
    """
    options, kept = source.options, standing(source.options)
    data = options.dataset.datatype or kept.dataset.title
    head = {"library_name": "rsretrieval", "license": "other", "language": "en", "tags": TAGS, "datasets": [data]}
    pieces = "onnxruntime numpy pillow"
    body = TEXT.format(
        title=f"{options.model.name} on {data}",
        packages=pieces if _reads_words(source) else f"{pieces} tokenizers",
        example=EXAMPLE,
        files=_files(graphs, int8),
        side=options.dataset.image_size,
        training=_training(source, data),
        scores=_scores(scores),
        data=data,
        starts=_starts(options),
    )
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n{body}"


def _reads_words(source: Portable) -> bool:
    return not hasattr(source.vocabulary, "tokenizer")


def _files(graphs: Sequence[Graph], int8: bool) -> str:
    rows = [["file", "what it is"]]
    for graph in graphs:
        inputs = ", ".join(f"{name} [{_shape(graph, name)}]" for name in graph.inputs)
        rows.append([f"`{graph.file}`", f"{inputs} -> {graph.output}; ONNX opset {OPSET}"])
    if int8:
        rows.append(["`*_int8.onnx`", "the same with weights of 8 bits; what that costs: Scores"])
    rows += [
        [f"`{WEIGHTS}`, `{CONFIG}`", "all weights, and the options of the training"],
        [f"`{PREPROCESSING}`, `{VOCABULARY}`", "how images and sentences become inputs"],
        [f"`{EXAMPLE}`", "a search without PyTorch"],
        [f"`{SCORES}`", "the scores below at full precision, where it was tested"],
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], ["---", "---"], *rows[1:]])


def _shape(graph: Graph, name: str) -> str:
    """The dimensions of an input, by number or name."""
    free = graph.dimensions()[name]
    return ", ".join(str(free.get(place, size)) for place, size in enumerate(graph.inputs[name].shape))


def _training(source: Portable, data: str) -> str:
    options, facts = source.options, source.facts
    reached = f", after epoch {facts['epoch']}" if "epoch" in facts else ""
    fold = f" Fold {facts['fold']} of" if "fold" in facts else ""
    return (
        f"On the train list of `{data}`.{fold} {options.k_fold.nums} by the strategy `{options.k_fold.strategy}`"
        f"{reached}, seed {options.optim.seed}. Loss: {' + '.join(options.optim.loss)}. All options: `{CONFIG}`. "
        f"SHA-256 of the checkpoint: `{facts.get('source_sha256', 'unknown')}`."
    )


def _scores(scores: Mapping[str, Any] | None) -> str:
    if scores is None:
        return "Not tested on this machine: `python -m portable --test` scores the test list."
    names = [name for name in next(iter(scores["rows"].values())) if "R" in name]
    rows = [["computed by", *names]]
    rows += [[label, *(f"{row[name]:.2f}" for name in names)] for label, row in scores["rows"].items()]
    images, captions = scores["images"], scores["captions"]
    return f"Test list of `{scores['data']}`: {images:,} images, {captions:,} captions.\n\n{markdown(rows)}"


def _starts(options: Options) -> str:
    """The weights that the training started from, without the folders of files."""
    names = {str(value).rpartition("/")[2] for key, value in _leaves(option.dump(options.model)) if key in STARTING}
    return ", ".join(f"`{name}`" for name in sorted(names - {"None", "none", "gru"})) or "none"


def _leaves(block: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in block.items():
        if isinstance(value, dict):
            yield from _leaves(value)
        else:
            yield key, value
