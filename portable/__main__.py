"""Write a model as a folder that stands alone: `python -m portable --out FOLDER`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from portable import CARD, SCORES
from runtime.arguments import add_model
from runtime.entry_point import run_entry_point
from utils import as_json, write_text_atomic


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the folder, and score it where that is asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m portable", description="Write a trained model as a folder that stands alone (docs/portable.md)."
    )
    add_model(parser)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="is made; a model that lies in it is replaced"
    )
    parser.add_argument("--int8", action="store_true", help="write the graphs with weights of 8 bits, too")
    parser.add_argument("--test", action="store_true", help="score model and graphs on the test list of the options")
    parser.add_argument(
        "--push", metavar="OWNER/NAME", help="upload the folder to the Hugging Face hub, private if new"
    )
    given = parser.parse_args(arguments)
    import option  # what follows imports PyTorch, which takes seconds; --help should not
    from portable.card import card
    from portable.folder import of_checkpoint, refuse_others, write_folder
    from portable.hub import PREFIX, push
    from portable.scoring import CPU, quantise, score_folder
    from runs.ready.folder import chosen
    from runs.scoring import open_test_set

    refuse_others(given.out)
    path_opt, checkpoint = chosen(given.path_opt, given.checkpoint)
    options = option.load_options(path_opt, given.set)
    test_set = open_test_set(options, CPU) if given.test else None
    source = of_checkpoint(options, checkpoint)
    graphs = write_folder(source, given.out)
    if given.int8:
        quantise(given.out)
    scores = None
    if test_set is not None:
        annotations = test_set.annotations
        scores = {
            "data": options.dataset.title,
            "images": len(annotations.image_names),
            "captions": len(annotations.captions),
            "ties": "random",
            "rows": score_folder(source.model, given.out, test_set, options.dataset.test_views),
        }
        write_text_atomic(given.out / SCORES, as_json(scores))
    write_text_atomic(given.out / CARD, card(source, graphs, scores, given.int8))
    print(f"{given.out}: {', '.join(sorted(path.name for path in given.out.iterdir()))}")
    if given.push is not None:
        commit = push(given.out, given.push)
        print(f'Retriever.load("{PREFIX}{given.push}", revision="{commit}")')


if __name__ == "__main__":
    run_entry_point(main)
