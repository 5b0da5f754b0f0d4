"""The command line of `search.py`. Nothing heavy is imported here, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from runtime.arguments import add_device, add_model
from utils import InputError

Kind = Literal["flat", "hnsw", "ivfpq"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""The vector indexes of `archive.nearest`."""
EMBEDDED = "embedded"
"""What `--store` means without an address: Milvus Lite in the index folder."""
SHARD = 4096  # images
TOP = 10
_FROM_ONE = ("shard", "top", "queries", "max_upload", "rate", "rerank_top")


def read_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command and its arguments."""
    parser = argparse.ArgumentParser(description="Search an archive of images (docs/search.md).")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Command)
    _add_index(commands.add_parser("index", help="encode the images of a folder; go on where it was stopped"))
    build = commands.add_parser("build", help="build a vector index of FAISS")
    build.add_argument("folder", type=Path, metavar="INDEX")
    build.add_argument("--kind", required=True, choices=KINDS)
    _add_query(commands.add_parser("query", help="find images"))
    _add_serve(commands.add_parser("serve", help="a page to search with in a browser"))
    _add_measure(commands.add_parser("measure", help="latency and recall of every vector index that is built"))
    return parser.parse_args(arguments)


class _Command(argparse.ArgumentParser):
    """Takes sentences after flags, too, which argparse takes for none of its own."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """See `argparse`."""
        given, rest = super().parse_known_args(args, namespace)
        if hasattr(given, "text") and not any(word.startswith("-") for word in rest):
            given.text, rest = [*given.text, *rest], []
        return given, rest


def _add_index(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--images", required=True, type=Path, help="folder of the images, with all folders in it")
    parser.add_argument("--out", required=True, type=Path, metavar="INDEX", help="folder of the index")
    parser.add_argument("--shard", type=int, default=SHARD, help="images written at a time (default %(default)s)")
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="of the stored embeddings")
    parser.add_argument("--prune", action="store_true", help="take out images that are no longer in the folder")
    parser.add_argument("--verify", action="store_true", help="compare contents, not only sizes and times")
    parser.add_argument("--upkeep", action="store_true", help="follow the folder, but encode nothing")
    parser.add_argument("--kind", choices=KINDS, help="build this vector index, too")
    parser.add_argument(
        "--store", nargs="?", const=EMBEDDED, metavar="URL", help="keep embeddings in Milvus; without URL: Milvus Lite"
    )


def _add_searcher(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="INDEX")
    parser.add_argument("--checkpoint", type=Path, help="where the weights are now, if not where they were")
    parser.add_argument("--images", type=Path, help="where the images are now, if not where they were")
    add_device(parser)


def _add_query(parser: argparse.ArgumentParser) -> None:
    _add_searcher(parser)
    parser.add_argument("text", nargs="*", help="a sentence, or several that all describe what is looked for")
    parser.add_argument("--image", type=Path, metavar="FILE", help="an image in place of it, or beside it")
    parser.add_argument("--audio", type=Path, metavar="FILE.wav", help="a sound in place of it (MCRN)")
    parser.add_argument(
        "--weight", type=float, default=0.5, help="of the image beside sentences, 0 to 1 (default %(default)s)"
    )
    parser.add_argument(
        "--without", action="append", default=[], metavar="TEXT", help="what the images should not show; repeatable"
    )
    parser.add_argument("--top", type=int, default=TOP, help="images to show (default %(default)s)")
    parser.add_argument("--min-score", type=float, metavar="SCORE", help="show only images of this score or more")
    parser.add_argument(
        "--distinct", type=float, metavar="COSINE", help="of images that are this alike show the best alone: 0.95"
    )
    _add_kind(parser)
    parser.add_argument(
        "--rerank-path_opt", metavar="YAML", help="options of a second model, which puts the first images in order"
    )
    parser.add_argument("--rerank-checkpoint", type=Path, metavar="FILE", help="its weights")
    parser.add_argument("--rerank-top", type=int, default=50, metavar="K", help="images that it orders (default 50)")
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="draw the images that were found: .png or .jpg")
    parser.add_argument("--geojson", type=Path, metavar="FILE", help="write where the images that were found lie")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON in place of a table")
    form.add_argument("--csv", action="store_true", help="print CSV in place of a table")


def _add_kind(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--index", choices=("exact", *KINDS), help="how to search; default: exact")


def _add_serve(parser: argparse.ArgumentParser) -> None:
    _add_searcher(parser)
    _add_kind(parser)
    parser.add_argument("--scenes", type=Path, metavar="FILE", help="scene classes: a name, a tab, its class a line")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free (default %(default)s)")
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="a name under which others open the page"
    )
    parser.add_argument(
        "--behind-proxy", action="store_true", help="believe the client addresses of a reverse proxy here"
    )
    parser.add_argument("--max-upload", type=int, default=10, help="MiB of an uploaded file (default %(default)s)")
    parser.add_argument("--rate", type=int, help="searches of a client per minute (default: no limit)")


def _add_measure(parser: argparse.ArgumentParser) -> None:
    _add_searcher(parser)
    parser.add_argument("--captions", type=Path, metavar="FILE", help="queries, one a line; default: images as queries")
    parser.add_argument("--top", type=int, default=TOP, help="images that recall is counted in (default %(default)s)")
    parser.add_argument("--queries", type=int, default=100, help="how many queries (default %(default)s)")


def share_processors(given: argparse.Namespace) -> None:
    """Let the threads of `serve` sleep while they wait for work; to be called before PyTorch is imported.

    OpenMP's threads spin for a while, which is quickest for one computation at a time. A server has several, and what
    one of them spins the others wait: ten times the processor time for a sentence on two cores under load.
    """
    if given.command == "serve":
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def check_numbers(given: argparse.Namespace) -> None:
    """Raise an InputError for a number of any command that is below 1."""
    for name in _FROM_ONE:
        number = getattr(given, name, None)
        if number is not None and number < 1:
            raise InputError(f"--{name.replace('_', '-')} {number}: expected 1 or more.")


def check_query(given: argparse.Namespace) -> None:
    """Raise an InputError for a query of nothing, or with numbers that mean nothing."""
    if not given.text and given.image is None and given.audio is None:
        raise InputError("nothing to search with: give a sentence, --image FILE or --audio FILE.wav.")
    if given.audio is not None and (given.text or given.image is not None):
        raise InputError("--audio: a sound is a query of its own; leave out sentences and --image.")
    if (given.rerank_path_opt is None) != (given.rerank_checkpoint is None):
        raise InputError("--rerank-path_opt and --rerank-checkpoint belong together: options and weights of a model.")
    if given.rerank_path_opt is not None and (given.image is not None or given.audio is not None):
        raise InputError("--rerank-path_opt: the second stage reads sentences; leave out --image and --audio.")
    if given.rerank_path_opt is not None and given.rerank_top < given.top:
        raise InputError(f"--rerank-top {given.rerank_top}: expected --top ({given.top}) or more.")
    if not 0 <= given.weight <= 1:
        raise InputError(f"--weight {given.weight:g}: expected 0 to 1.")
    if given.distinct is not None and not -1 <= given.distinct <= 1:
        raise InputError(f"--distinct {given.distinct:g}: expected a cosine, such as 0.95.")
    if given.min_score is not None and math.isnan(given.min_score):
        raise InputError("--min-score nan: expected a number.")


def check_index(given: argparse.Namespace, processes: int) -> None:
    """Raise an InputError for arguments of `index` that exclude each other when so many processes share the work."""
    if given.store is not None and (given.kind is not None or given.dtype != "float32"):
        raise InputError("--store: Milvus has an index and a type of its own; leave out --kind and --dtype.")
    if processes > 1 and (given.prune or given.verify or given.upkeep):
        raise InputError("--prune, --verify and --upkeep: once without torchrun.")
    if processes > 1 and given.kind is not None:
        raise InputError(f"--kind: build it when all processes are done: python search.py build {given.out}")
    if processes > 1 and given.store == EMBEDDED:
        raise InputError(
            "--store without an address is Milvus Lite, which serves one process: give a server's address."
        )
