"""Search an archive of images with a sentence, an image or a sound: python search.py index, query, serve, ..."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

import option
from archive import nearest
from archive.encoder import Encoder, keyword_ids
from archive.index_folder import IndexFolder
from archive.indexing import Share, Target, index_archive
from archive.measure import measure, read_queries
from archive.scenes import Scenes, find_scenes, no_scenes, read_scenes
from archive.searcher import Hit, Searcher
from archive.sheet import check_sheet, write_sheet
from archive.store import EMBEDDED, check_url
from data.images import decode
from layers.registry import registered
from runs.loaders import read_vocabulary
from runtime.arguments import add_device, add_experiment
from runtime.devices import choose_device
from runtime.distributed import environment_number
from runtime.entry_point import run_entry_point
from utils import InputError, logger

SHARD = 4096  # images
TOP = 10


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(description="Search an archive of images (docs/search.md).")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_index(commands.add_parser("index", help="encode the images of a folder; go on where it was stopped"))
    build = commands.add_parser("build", help="build a vector index of FAISS")
    build.add_argument("folder", type=Path, metavar="INDEX")
    build.add_argument("--kind", required=True, choices=nearest.KINDS)
    _add_query(commands.add_parser("query", help="find images"))
    _add_serve(commands.add_parser("serve", help="a page to search with in a browser"))
    _add_measure(commands.add_parser("measure", help="latency and recall of every vector index that is built"))
    given = parser.parse_args(arguments)
    run = {"index": _index, "build": _build, "query": _query, "serve": _serve, "measure": _measure}
    run[given.command](given)


def _add_index(parser: argparse.ArgumentParser) -> None:
    add_experiment(parser)
    parser.add_argument("--checkpoint", required=True, type=Path, help="ours, or one published by the authors")
    parser.add_argument("--images", required=True, type=Path, help="folder of the images, with all folders in it")
    parser.add_argument("--out", required=True, type=Path, metavar="INDEX", help="folder of the index")
    parser.add_argument("--shard", type=int, default=SHARD, help="images written at a time (default %(default)s)")
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="of the stored embeddings")
    parser.add_argument("--kind", choices=nearest.KINDS, help="build this vector index, too")
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
    query = parser.add_mutually_exclusive_group(required=True)
    query.add_argument("text", nargs="?", help="a sentence")
    query.add_argument("--image", type=Path, metavar="FILE", help="an image in place of it")
    query.add_argument("--audio", type=Path, metavar="FILE.wav", help="a sound in place of it (MCRN)")
    parser.add_argument("--top", type=int, default=TOP, help="images to show (default %(default)s)")
    _add_kind(parser)
    parser.add_argument("--sheet", type=Path, metavar="FILE.png", help="draw the images that were found")


def _add_kind(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--index", choices=("exact", *nearest.KINDS), help="how to search; default: exact")


def _add_serve(parser: argparse.ArgumentParser) -> None:
    _add_searcher(parser)
    _add_kind(parser)
    parser.add_argument("--scenes", type=Path, metavar="FILE", help="scene classes: a name, a tab, its class a line")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free (default %(default)s)")
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="a name under which the page is asked for"
    )
    parser.add_argument("--behind-proxy", action="store_true", help="a reverse proxy on this machine tells who asks")
    parser.add_argument("--max-upload", type=int, default=10, help="MiB of an uploaded file (default %(default)s)")
    parser.add_argument("--rate", type=int, default=60, help="searches of a client per minute (default %(default)s)")


def _add_measure(parser: argparse.ArgumentParser) -> None:
    _add_searcher(parser)
    parser.add_argument("--captions", type=Path, metavar="FILE", help="queries, one a line; default: images as queries")
    parser.add_argument("--top", type=int, default=TOP, help="images that recall is counted in (default %(default)s)")
    parser.add_argument("--queries", type=int, default=100, help="how many queries (default %(default)s)")


def _index(given: argparse.Namespace) -> None:
    share = Share.of_environment()
    _at_least_one(given.shard, "--shard")
    if given.store is not None:
        check_url(given.store)
    _refuse_combinations(given, share)
    options = option.load_options(given.path_opt, given.set)
    vocabulary = read_vocabulary(options)
    words = keyword_ids(options, vocabulary)
    encoder = Encoder.load(options, vocabulary, given.checkpoint, _device_of(given.device), words)
    if not encoder.model.scores_by_cosine() and (given.kind is not None or given.store is not None):
        raise InputError(
            f"{options.model.name} scores each pair by more than a cosine: leave out --kind and --store; its index is "
            "searched exactly."
        )
    target = Target(given.out, given.shard, given.dtype, given.store)
    manifest = index_archive(encoder, given.checkpoint, given.images, target, share)
    print(f"{given.out}: {manifest.count} images, {manifest.dim} numbers each.")
    if given.kind is not None:
        print(nearest.build_in(IndexFolder.open(given.out), given.kind))


def _refuse_combinations(given: argparse.Namespace, share: Share) -> None:
    """Raise for arguments that can't be had together."""
    if given.store is not None and (given.kind is not None or given.dtype != "float32"):
        raise InputError("--store: Milvus has an index and a type of its own; leave out --kind and --dtype.")
    if share.world > 1 and given.kind is not None:
        raise InputError(f"--kind: build it when all processes are done: python search.py build {given.out}")
    if share.world > 1 and given.store == EMBEDDED:
        raise InputError(
            "--store without an address is Milvus Lite, which serves one process: give a server's address."
        )


def _device_of(name: str | None) -> torch.device:
    """The device of this process: under torchrun each of a machine has a GPU of its own."""
    local_rank = environment_number("LOCAL_RANK")
    if name is None and torch.cuda.is_available() and local_rank is not None:
        return torch.device("cuda", local_rank % torch.cuda.device_count())
    return choose_device(name)


def _build(given: argparse.Namespace) -> None:
    folder = IndexFolder.open(given.folder)
    model = folder.manifest.typed_options().model.name
    if not registered()[model].model.scores_by_cosine():
        raise InputError(f"{model} scores each pair by more than a cosine: its index is searched exactly.")
    print(nearest.build_in(folder, given.kind))


def _query(given: argparse.Namespace) -> None:
    _at_least_one(given.top, "--top")
    if given.sheet is not None:
        check_sheet(given.sheet)
    searcher = Searcher.open(given.folder, given.device, given.index, given.checkpoint, given.images)
    max_pixels = searcher.encoder.options.dataset.max_pixels
    image: Image.Image | None = None
    if given.image is not None:
        image = decode(given.image, max_pixels)
        if not searcher.encoder.model.scores_by_cosine():
            logger.info("Images are compared by the cosine of their embeddings, not by the model's score.")
        hits = searcher.image(image, given.top)
        caption = f"like {given.image.name}"
    elif given.audio is not None:
        hits = searcher.audio(given.audio, given.top)
        caption = f"heard in {given.audio.name}"
    else:
        if unknown := searcher.unknown_words(given.text):
            logger.warning("words that the model does not know: %s", ", ".join(unknown))
        hits = searcher.text(given.text, given.top)
        caption = given.text
    _print_hits(hits)
    if given.sheet is not None:
        write_sheet(given.sheet, caption, hits, searcher.images, max_pixels, image)
        print(f"\nDrawn in {given.sheet}.")


def _print_hits(hits: Sequence[Hit]) -> None:
    print("rank   score  file")
    for rank, hit in enumerate(hits, start=1):
        print(f"{rank:4}  {hit.score:6.4f}  {hit.label}")


def _serve(given: argparse.Namespace) -> None:
    try:
        from archive import page, serve
    except ImportError as fault:
        raise InputError(f"the page needs packages of an extra ({fault}): bash exec/environment.sh web") from fault
    _at_least_one(given.max_upload, "--max-upload")
    _at_least_one(given.rate, "--rate")
    hosts = serve.allowed_hosts(given.host, given.allow_host)
    with serve.open_socket(given.host, given.port) as listening:
        searcher = Searcher.open(given.folder, given.device, given.index, given.checkpoint, given.images)
        scenes = _scenes(searcher, given.scenes)
        app = page.make_app(searcher, scenes, hosts, given.max_upload * 2**20, given.rate)
        if not serve.is_loopback(given.host):
            logger.warning("there is no login: whoever reaches %s can search and see all images.", given.host)
        print(f"{len(searcher)} images at {serve.url_of(listening)} (Ctrl-C ends it)", flush=True)
        serve.run(app, listening, given.behind_proxy)
    print("Ended.")


def _scenes(searcher: Searcher, file: Path | None) -> Scenes:
    if searcher.kind == "store":
        if file is not None:
            raise InputError("--scenes: an index in a vector store can't be searched in part; leave it out.")
        return no_scenes(len(searcher))
    names = searcher.index.names()
    return find_scenes(names, searcher.images) if file is None else read_scenes(file, names)


def _measure(given: argparse.Namespace) -> None:
    _at_least_one(given.top, "--top")
    _at_least_one(given.queries, "--queries")
    sentences = read_queries(given.captions) if given.captions is not None else None
    searcher = Searcher.open(given.folder, given.device, "exact", given.checkpoint, given.images)
    print(measure(searcher, sentences, given.queries, given.top))


def _at_least_one(number: int, flag: str) -> None:
    if number < 1:
        raise InputError(f"{flag} {number}: expected 1 or more.")


if __name__ == "__main__":
    run_entry_point(main)
