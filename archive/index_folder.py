"""The folder of an index: what it was made with, the names of its images, and their embeddings.

index.json            `Manifest`
vocabulary.json       the words of the model, unless they come with it
shards/<id>.npy       embeddings [n, D] of some thousand images (none where a vector store holds them)
shards/<id>.json      their names and files, see `archive.records`; written last
shards/<id>.out       the shard counts no more: one without the images that were taken out is there instead
hnsw.faiss, ...       what `archive.nearest` builds
"""

from __future__ import annotations

import hashlib
import json
import math
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError, model_validator
from torch import Tensor

import option
from archive.records import Record, free_id, read_records, write_records
from archive.shards import AGAIN, Dtype, IndexFault, Shards, write_shard
from data.lists import shown
from data.rasters.places import Bounds
from layers.registry import registered
from option import Options
from option.parameters import Parameters
from runs.checkpoints import typed_options
from runtime.untrusted import file_crc32, parse_json, read_bytes
from utils import InputError, first_line, write_text_atomic
from vocab import Vocabulary

FORMAT = "rsretrieval-index-1"
_ABSENT = "nothing"
OPEN_PARTS = 256
"""Shards whose names and places are in memory at once."""
NOWHERE = (math.nan,) * 4


class Manifest(Parameters):
    """What an index was made with, and what it holds.

    Attributes:
        format: of the folder.
        created: date and time of the start.
        options: of the experiment, as `option.dump` gives them.
        checkpoint: file of the weights.
        checkpoint_sha256: of its bytes.
        vocabulary_sha256: digest of the vocabulary.
        ready: whether that is the model that comes with the project, wherever the project lies.
        images: folder of the images.
        dtype: of the stored embeddings.
        dim: length of an embedding, D.
        store: None: the folder holds the embeddings; else where they are, see `archive.store`.
        collection: its name in the vector store; indexes of earlier versions have none.
        keyword_ids: see `archive.encoder.keyword_ids`.
        decoding: `data.images.DECODING_RULES` that the images were read by.
        count: images in the index.
        shards: id of each finished shard -> images in it.
        crc32: id -> checksum of its embeddings, 0 where a vector store holds those; indexes of earlier versions have
            none.
    """

    format: Literal["rsretrieval-index-1"] = "rsretrieval-index-1"
    created: str
    options: dict[str, Any]
    checkpoint: Path
    checkpoint_sha256: str
    vocabulary_sha256: str
    ready: bool = False
    images: Path
    dtype: Dtype
    dim: int
    store: str | None = None
    collection: str | None = None
    keyword_ids: list[int] | None = None
    decoding: int = 1  # of indexes that do not say it
    count: int = 0
    shards: dict[str, int] = {}  # noqa: RUF012 (pydantic copies it)
    crc32: dict[str, int] = {}  # noqa: RUF012

    @model_validator(mode="after")
    def _adds_up(self) -> Manifest:
        if self.count != sum(self.shards.values()):
            raise ValueError(f"count is {self.count}, but the shards hold {sum(self.shards.values())} images")
        return self

    def recipe(self) -> dict[str, Any]:
        """What embeddings of the same index must agree in, by the name that a message uses."""
        dataset = self.options["dataset"]
        return {
            **_dotted("model", option.dump(self.typed_options())["model"]),  # with keys that came later
            "dataset.image_size": dataset["image_size"],
            "dataset.local_path": dataset["local_path"],
            "dataset.missing_regions": dataset["missing_regions"],
            "dataset.test_views": dataset.get("test_views", "one"),  # absent where there was no choice
            "dataset.bands": dataset.get("bands"),
            "dataset.range": dataset.get("range", "auto"),
            "dataset.nodata": dataset.get("nodata", "auto"),
            "the rules of docs/images.md": self.decoding,
            "optim.amp": self.options["optim"]["amp"],
            "SHA-256 of the checkpoint": self.checkpoint_sha256,
            "SHA-256 of the vocabulary": self.vocabulary_sha256,
            "--images": str(self.images),
            "--dtype": self.dtype,
            "--store": self.store,
        }

    @property
    def shards_sha256(self) -> str:
        """Digest of the list of shards: equal for equal rows in equal order."""
        return hashlib.sha256(json.dumps(self.shards).encode()).hexdigest()

    def typed_options(self) -> Options:
        """The options as they were when the index was made.

        Raises:
            InputError: a later version can't read them.
        """
        return typed_options(self.options, "index.json", "index again")


def _dotted(key: str, value: Any) -> dict[str, Any]:
    """The leaves of nested options by their dotted keys."""
    if not isinstance(value, dict) or not value:
        return {key: value}
    return {dotted: leaf for name, inner in value.items() for dotted, leaf in _dotted(f"{key}.{name}", inner).items()}


class IndexFolder:
    """An index that is open for reading."""

    def __init__(self, folder: Path, manifest: Manifest, written: tuple[int, int, int] | None) -> None:
        """See `open`."""
        self.folder = folder
        self.manifest = manifest
        self.embeddings: Shards | None = None
        if manifest.store is None:
            self.embeddings = Shards(folder / "shards", manifest.shards, manifest.dim, manifest.dtype, manifest.crc32)
        for shard in manifest.shards:
            if not (folder / "shards" / f"{shard}.json").is_file():
                raise InputError(f"{folder / 'shards' / shard}.json: this part of the index is missing; {AGAIN}")
        self._starts = list(accumulate(manifest.shards.values(), initial=0))
        self._ids = list(manifest.shards)
        self._parts = lru_cache(maxsize=OPEN_PARTS)(self._read_part)
        if manifest.crc32.keys() != manifest.shards.keys():  # of an earlier version, whose runs could meet
            refuse_repeated(folder, self.names())
        self._opened = self._written = written

    @classmethod
    def open(cls, folder: Path) -> IndexFolder:
        """Read what an index holds; embeddings and names stay where they are.

        Raises:
            InputError: no index, none of this version, an empty or a damaged one.
        """
        written = _stamp(folder)  # first: what is written meanwhile counts as a change
        manifest = read_manifest(folder)
        if manifest is None:
            raise InputError(f"{folder}: no index there (no index.json). Make one: python search.py index ...")
        if not manifest.count:
            raise InputError(f"{folder}: the index holds no image yet; run the command that makes it to its end.")
        return cls(folder, manifest, written)

    def __len__(self) -> int:
        """Images, N."""
        return self.manifest.count

    def changed(self) -> bool:
        """Whether the folder was written to since it was opened."""
        return _stamp(self.folder) != self._opened

    def check(self) -> None:
        """Find out whether the folder is still an index of this model; which images it holds by now is no matter.

        Raises:
            IndexFault: it is gone, or was made anew in another way.
        """
        if (written := _stamp(self.folder)) == self._written:
            return
        try:
            now = read_manifest(self.folder)
        except InputError as fault:
            raise IndexFault(str(fault)) from fault
        if now is None:
            raise IndexFault(f"{self.folder}: the index was deleted while it was open.")
        if now.recipe() | {"--images": ""} != self.manifest.recipe() | {"--images": ""}:
            raise IndexFault(f"{self.folder}: the index was made anew while it was open; open it again.")
        self._written = written

    def name(self, row: int) -> str:
        """The image of a row, relative to the folder of the images."""
        names, _, place = self._part_of(row)
        return names[place]

    def bounds(self, row: int) -> Bounds | None:
        """Where the image of a row lies, see `archive.records.Record`."""
        _, bounds, place = self._part_of(row)
        if bounds is None or math.isnan(bounds[place, 0]):
            return None
        west, south, east, north = bounds[place].tolist()
        return west, south, east, north

    def names(self) -> list[str]:
        """All images in the order of their rows."""
        return [name for place in range(len(self._ids)) for name in self._parts(place)[0]]

    def vocabulary(self) -> Vocabulary:
        """The words of the model.

        Raises:
            InputError: the file is missing, damaged or another one.
        """
        path = self.folder / "vocabulary.json"
        options = self.manifest.typed_options()
        own = registered()[options.model.name].model.own_vocabulary(options.model)
        vocabulary = own or Vocabulary.load(path)
        if vocabulary.digest != self.manifest.vocabulary_sha256:
            raise InputError(f"{path}: not the vocabulary that the index was made with; index again.")
        return vocabulary

    def _part_of(self, row: int) -> tuple[list[str], NDArray[np.float64] | None, int]:
        """The shard of a row, see `_read_part`, and the image's place in it."""
        part = bisect_right(self._starts, row) - 1
        return *self._parts(part), row - self._starts[part]

    def _read_part(self, part: int) -> tuple[list[str], NDArray[np.float64] | None]:
        """Names of the n images of a shard, and their bounds [n, 4]; None: none of them has a place."""
        count = self._starts[part + 1] - self._starts[part]
        records = read_records(self.folder / "shards" / f"{self._ids[part]}.json", count)
        placed = any(record.bounds is not None for record in records)
        bounds = np.array([record.bounds or NOWHERE for record in records]) if placed else None
        return [record.name for record in records], bounds


def _stamp(folder: Path) -> tuple[int, int, int] | None:
    """What changes when `index.json` is written; None: it is gone."""
    try:
        found = (folder / "index.json").stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def read_manifest(folder: Path) -> Manifest | None:
    """What an index was made with; None where there is none yet.

    Raises:
        InputError: the file is damaged, or of another version.
    """
    path = folder / "index.json"
    if not path.exists():
        return None
    try:
        content = parse_json(read_bytes(path))
        found = content.get("format") if isinstance(content, dict) else None
        if found != FORMAT and str(found).startswith("rsretrieval-index-"):
            raise InputError(f"{path}: an index of the format {found}, expected {FORMAT}; index again.")
        return Manifest.model_validate(content)
    except (OSError, ValueError) as fault:  # pydantic's ValidationError is a ValueError
        reason = _reason(fault) if isinstance(fault, ValidationError) else first_line(fault)
        raise InputError(f"{path}: damaged, or no index of this program ({reason}); index again.") from fault


def _reason(fault: ValidationError) -> str:
    first = fault.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'content'}: {first['msg']}"


def refuse_repeated(folder: Path, names: Sequence[str]) -> None:
    """Raise an InputError if an index holds an image more than once."""
    if repeated := len(names) - len(set(names)):
        raise InputError(f"{folder}: {repeated} of {len(names)} images are in the index more than once; {AGAIN}")


def check_recipe(present: Manifest, manifest: Manifest, folder: Path) -> None:
    """Refuse to add to an index what was made in another way; images in another folder are no matter.

    Raises:
        InputError: the folder holds an index with another model or checkpoint; names the keys that differ.
    """
    before, now = present.recipe(), manifest.recipe()
    differing = [
        f"\n  {key}: {shown(str(before.get(key, _ABSENT)))} there, {shown(str(now.get(key, _ABSENT)))} now"
        for key in {**before, **now}
        if key != "--images" and before.get(key, _ABSENT) != now.get(key, _ABSENT)
    ]
    if differing:
        raise InputError(
            f"{folder} is an index that was made otherwise:{''.join(differing)}\n"
            "Give the same as then, or another --out."
        )


def finished_shards(folder: Path, store: str | None) -> list[str]:
    """Ids of the shards that have all their files and were not retired, sorted."""
    found = {
        ending: {path.stem for path in (folder / "shards").glob(f"*.{ending}")} for ending in ("json", "npy", "out")
    }
    return sorted((found["json"] if store is not None else found["json"] & found["npy"]) - found["out"])


def add_shard(folder: Path, records: Sequence[Record], embeddings: Tensor | None, dtype: Dtype) -> None:
    """Write a shard; its list of images, which makes it count, comes last.

    Args:
        folder: of the index.
        records: n images.
        embeddings: [n, D]; None where a vector store has taken them.
        dtype: of the file.
    """
    shard = free_id(folder / "shards", records)
    if embeddings is not None:
        write_shard(folder / "shards" / f"{shard}.npy", embeddings, dtype)
    write_records(folder / "shards" / f"{shard}.json", records)


def retire_shard(folder: Path, shard: str) -> None:
    """Let a shard count no more; its files stay for those who have the index open, until `remove_retired`."""
    write_text_atomic(folder / "shards" / f"{shard}.out", "")


def remove_retired(folder: Path) -> None:
    """Remove the files of retired shards, and embeddings whose list was never written. No other run may be writing."""
    shards = folder / "shards"
    for path in shards.glob("*.npy"):
        if path.with_suffix(".out").exists() or not path.with_suffix(".json").exists():
            path.unlink()
    for path in shards.glob("*.out"):
        path.with_suffix(".json").unlink(missing_ok=True)
        path.unlink()


def update_manifest(folder: Path, recipe: Manifest, renamed: bool = False) -> Manifest:
    """Bring `index.json` up to the shards that are finished; those that it names already keep their order.

    It is not written where nothing changed, since a server takes the index for new then; it must where images were
    `renamed` inside of a shard.

    Several processes may do so at once without a lock: each looks again after it has written, so that the last one to
    write has seen all.
    """
    while True:
        present, finished = read_manifest(folder), finished_shards(folder, recipe.store)
        known = present or recipe
        order = [shard for shard in known.shards if shard in set(finished)]
        order += [shard for shard in finished if shard not in known.shards]
        counts = {shard: known.shards.get(shard) or len(read_records(_file(folder, shard, "json"))) for shard in order}
        checksums = {shard: _checksum(folder, known, shard) for shard in order}
        found = {"shards": counts, "count": sum(counts.values()), "crc32": checksums, "created": known.created}
        manifest = recipe.model_copy(update=found)
        same = manifest == known and list(manifest.shards) == list(known.shards)
        if present is None or renamed or not same:
            write_text_atomic(folder / "index.json", json.dumps(manifest.model_dump(mode="json"), indent=2) + "\n")
        if finished_shards(folder, recipe.store) == finished:
            return manifest


def _checksum(folder: Path, known: Manifest, shard: str) -> int:
    if known.store is not None:
        return 0
    return known.crc32[shard] if shard in known.crc32 else file_crc32(_file(folder, shard, "npy"))


def _file(folder: Path, shard: str, ending: str) -> Path:
    return folder / "shards" / f"{shard}.{ending}"
