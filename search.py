"""Search an archive of images with a sentence, an image or a sound: python search.py index, query, serve, ..."""

from __future__ import annotations

from archive.arguments import check_index, check_numbers, check_query, read_arguments, share_processors

if __name__ == "__main__":
    share_processors(read_arguments())  # --help and misspelt flags are answered before PyTorch is loaded

import argparse
from collections.abc import Sequence
from functools import partial

import option
from archive.encoder import Encoder, keyword_ids
from archive.index_folder import IndexFolder
from archive.indexing import Share, Target, Upkeep, index_archive, local_device, with_known_range
from archive.measure import measure, read_queries
from archive.nearest import build_in, follow, is_built, refuse_pair_scores
from archive.places import write_places
from archive.question import Question
from archive.reranking import Reranker
from archive.results import as_table, question_in_words, remarks_on, result_csv, result_json
from archive.scenes import scenes_of
from archive.searcher import Searcher
from archive.sheet import check_sheet, write_sheet
from archive.store import check_url
from data.images import decode
from runs.loaders import read_vocabulary
from runs.models import load_model
from runs.ready.folder import chosen
from runtime.entry_point import run_entry_point
from utils import InputError, logger


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one of the commands."""
    given = read_arguments(arguments)
    check_numbers(given)
    run = {"index": index, "build": build, "query": query, "serve": serve_page, "measure": measure_indexes}
    run[given.command](given)


def index(given: argparse.Namespace) -> None:
    """Encode the images of a folder that the index lacks; `torchrun` shares them out."""
    share = Share.of_environment()
    check_url(given.store)
    check_index(given, share.world)
    path_opt, checkpoint = chosen(given.path_opt, given.checkpoint)
    options = option.load_options(path_opt, given.set)
    if given.kind is not None or given.store is not None:
        refuse_pair_scores(options.model.name, "leave out --kind and --store; its index is searched exactly.")
    vocabulary = read_vocabulary(options)
    words, device = keyword_ids(options, vocabulary), local_device(given.device)
    model, content = load_model(options, vocabulary, checkpoint, device)
    options = with_known_range(options, given.out, given.images, content)
    encoder = Encoder(model, options, vocabulary, device, words)
    target = Target(given.out, given.shard, given.dtype, given.store)
    upkeep = Upkeep(given.prune, given.verify, encode=not given.upkeep)
    manifest = index_archive(encoder, checkpoint, given.images, target, share, upkeep)
    by = ", by the ready model" if manifest.ready else ""
    print(f"{given.out}: {manifest.count} images, {manifest.dim} numbers each{by}.")
    if share.world > 1 or not manifest.count:
        return
    folder = IndexFolder.open(given.out)
    for told in follow(folder):
        print(told)
    if given.kind is not None and not is_built(folder, given.kind):
        print(build_in(folder, given.kind))


def build(given: argparse.Namespace) -> None:
    """Build a vector index of the embeddings."""
    print(build_in(IndexFolder.open(given.folder), given.kind))


def query(given: argparse.Namespace) -> None:
    """Print the images that fit a query best, and draw them."""
    check_query(given)
    if given.sheet is not None:
        check_sheet(given.sheet)
    searcher = open_searcher(given, given.index)
    rule = searcher.encoder.options.dataset.rule
    image = None if given.image is None else decode(given.image, rule)
    question = Question(tuple(given.text), image, given.audio, tuple(given.without), given.weight)
    asked_of: Searcher | Reranker = searcher
    if given.rerank_path_opt is not None:
        asked_of = Reranker.open(searcher, given.rerank_path_opt, given.rerank_checkpoint, given.rerank_top)
    answer = asked_of.ask(question, given.top, given.distinct, given.min_score)
    remarks = remarks_on(question, answer, searcher)
    for remark in remarks:
        logger.warning("%s", remark)
    asked = {"sentences": given.text, "image": given.image, "audio": given.audio, "without": given.without}
    if given.json:
        print(result_json(answer, searcher.images, asked, remarks), end="")
    elif given.csv:
        print(result_csv(answer, searcher.images), end="")
    else:
        print(as_table(answer.hits))
    if given.geojson is not None:
        write_places(given.geojson, question_in_words(asked), searcher.index, answer.hits)
    if given.sheet is not None:
        write_sheet(given.sheet, question_in_words(asked), answer.hits, searcher.images, rule, image, remarks)
        if not given.json and not given.csv:
            print(f"\nDrawn in {given.sheet}.")


def serve_page(given: argparse.Namespace) -> None:
    """Serve a page to search with, until it is ended."""
    try:
        from archive import page, serve
    except ImportError as fault:
        raise InputError(f"the page needs packages of an extra ({fault}): bash exec/environment.sh web") from fault
    hosts = serve.allowed_hosts(given.host, given.allow_host)
    with serve.open_socket(given.host, given.port) as listening:
        searcher = open_searcher(given, given.index)
        find_scenes = partial(scenes_of, file=given.scenes)
        app = page.make_app(searcher, find_scenes, hosts, given.max_upload * 2**20, given.rate)
        if not serve.is_loopback(given.host):
            logger.warning("there is no login: whoever reaches %s can search and see all images.", given.host)
        listening.listen()  # who comes before the server has started waits, and is answered
        announcement = f"{len(searcher)} images at {serve.url_of(listening)} (Ctrl-C ends it)"
        serve.run(app, listening, given.behind_proxy, announcement)
    print("Ended.")


def measure_indexes(given: argparse.Namespace) -> None:
    """Print latency and recall of exact search and of every vector index that is built."""
    sentences = None if given.captions is None else read_queries(given.captions)
    print(measure(open_searcher(given, "exact"), sentences, given.queries, given.top))


def open_searcher(given: argparse.Namespace, kind: str | None) -> Searcher:
    """The index of a command with its model, searched in this way; None: in the index's own."""
    return Searcher.open(given.folder, given.device, kind, given.checkpoint, given.images)


if __name__ == "__main__":
    run_entry_point(main)
