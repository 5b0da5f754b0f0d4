"""The page docs/options.md, made from the schema: every key with what it may hold, its default, unit and source."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from option.fields import allowed, leaves
from option.parameters import model_blocks
from option.pretraining import BackboneOptions, ModalityOptions
from option.schema import Options
from option.unread import PUBLISHED_KEYS

INTRODUCTION = """\
# Options

Every key of the option files, with its default and meaning. Made from the schema by
`python -m option --out docs/options.md`; not edited by hand.

Any key can be given in the YAML, in one that it [extends](recipes.md#a-variant-of-a-file), or on the command line:
`--set optim.lr=1e-4`. An unknown key or a value out of range
ends the run before it starts, and all faults are named at once. "needed" stands where there is no default. The source
says where a key or its default comes from; where it is empty, it is ours.

- [Experiments](#experiments): `train.py`, `test.py`
- Models: {models}
- [Backbone pretraining](#backbone-pretraining), [pretraining without pairs](#pretraining-without-pairs): `pretrain.py`
- [Published keys without effect](#published-keys-without-effect)
"""

# Where the keys of experiments come from; the longest prefix of a dotted key counts.
SOURCES_OF_KEYS = {
    "published YAML files": "dataset.batch_size_val dataset.datatype dataset.data_path dataset.image_path "
    "dataset.vocab_path optim.grad_clip optim.resume logs.eval_step logs.print_freq logs.ckpt_save_path "
    "k_fold.experiment_name k_fold.nums model.seq2vec",
    "AMFMN, GaLR, SWAN": "dataset.batch_size optim.lr optim.lr_decay_param optim.lr_update_epoch optim.margin",
    "the four models": "dataset.image_size model.embed.embed_dim",
    "AMFMN": "optim.epochs model.keywords",
    "AMFMN, eq. 1-8": "model.multiscale",
    "AMFMN, eq. 12-14": "model.cross_attention.att_type",
    "AMFMN, eq. 15-17": "model.cross_attention.vgmf",
    "AMFMN, eq. 29-30": "optim.dynamic",
    "GaLR": "dataset.local_path rerank model.fusion",
    "MCRN": "dataset.audio_path optim.methods optim.lr_finetune model.embed.share_dropout model.share model.num_modal "
    "model.discriminator",
    "MCRN: 20": "optim.schedule_epochs",
    "SWAN": "model.word_dim model.num_layers model.use_bidirectional_rnn model.is_finetune model.resnet_ckpt",
    "SWAN's released code": "model.tcge model.dropout",
    "step: AMFMN, GaLR, SWAN; cosine: MCRN": "optim.schedule",
    "random: AMFMN; stratified: SWAN": "k_fold.strategy",
    "triplet, dynamic: AMFMN; contrastive: CLIP (Radford et al., 2021); sigmoid: SigLIP (Zhai et al., 2023); "
    "affiliation: PIR (Pan et al., 2023)": "optim.loss",
    "SigLIP (Zhai et al., 2023)": "optim.sigmoid",
    "CLIP (Radford et al., 2021)": "optim.contrastive.temperature",
    "Radenovic et al., 2023": "optim.contrastive.hard_weight",
    "VSE++ (Faghri et al., 2018)": "optim.max_violation",
    "": "model.seq2vec.word_dim model.seq2vec.hidden_dim",
}
SOURCES = {key: source for source, keys in SOURCES_OF_KEYS.items() for key in keys.split()}
PRETRAINING_SOURCES = {"optim.generator_every": "MCRN's released code"}

HEADER = "| key | allowed | default | unit | what it does | source |\n| --- | --- | --- | --- | --- | --- |"


def page() -> str:
    """The text of docs/options.md."""
    models = ", ".join(f"[{name}](#{name.lower()})" for name in model_blocks())
    parts = [INTRODUCTION.format(models=models), "## Experiments", *_blocks(Options, "", SOURCES)]
    for name, registration in model_blocks().items():
        rows = {key: field for key, field in leaves(registration.parameters, "model").items() if key != "model.name"}
        parts += [f"## {name}", f"Block `model` with `name: {name}`.", _table(rows, SOURCES)]
    parts += [
        "## Backbone pretraining",
        "A backbone learns scene classes, or which views are of one image: [models.md](models.md#scene-pretraining).",
        *_blocks(BackboneOptions, ", backbone pretraining", PRETRAINING_SOURCES),
        "## Pretraining without pairs",
        "A model learns several modalities without pairs: [models.md](models.md#pretraining-without-pairs). Its block "
        "`model` is that of experiments.",
        *_blocks(ModalityOptions, ", pretraining without pairs", PRETRAINING_SOURCES),
        "## Published keys without effect",
        "Files of the published projects load unchanged. One warning names what nothing reads: keys of another model, "
        "and:",
        _without_effect(),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _blocks(kind: type[BaseModel], which: str, sources: Mapping[str, str]) -> Iterator[str]:
    """Title, purpose and table of each block but `model`."""
    for name, field in kind.model_fields.items():
        if name != "model" and isinstance(field.annotation, type):
            yield f"### `{name}`{which}"
            purpose = field.description or ""
            yield f"{purpose[:1].upper()}{purpose[1:]}."
            yield _table(leaves(field.annotation, name), sources)


def _table(fields: Mapping[str, FieldInfo], sources: Mapping[str, str]) -> str:
    return "\n".join([HEADER, *(_row(key, field, source(key, sources)) for key, field in fields.items())])


def _row(key: str, field: FieldInfo, origin: str) -> str:
    purpose, unit = split_unit(field.description or "")
    cells = [f"`{key}`", _plain(allowed(field)), _default(field), unit, _plain(purpose), origin]
    return f"| {' | '.join(cells)} |"


def split_unit(description: str) -> tuple[str, str]:
    """A description and the unit in brackets at its end: "side of the images [pixels]"."""
    found = re.fullmatch(r"(.*?)(?: \[([^\]]+)\])?", description, re.DOTALL)
    return (found.group(1), found.group(2) or "") if found else (description, "")


def source(key: str, sources: Mapping[str, str]) -> str:
    """Where a key or its default comes from; empty where it is ours."""
    parts = key.split(".")
    prefixes = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((sources[prefix] for prefix in prefixes if prefix in sources), "")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "needed"
    value: Any = field.get_default(call_default_factory=True)
    return f"`{value if isinstance(value, (str, Path)) else json.dumps(value)}`"


def _without_effect() -> str:
    """The published keys that no model has, or that no block of experiments has."""
    known = {key for registration in model_blocks().values() for key in leaves(registration.parameters, "model")}
    rows = [
        (", ".join(f"`{block}.{key}`" for key in keys.split() if f"{block}.{key}" not in known), reason)
        for block, keys, reason in PUBLISHED_KEYS
    ]
    lines = [f"| {keys} | {reason.format(model='any model')} |" for keys, reason in rows if keys]
    return "\n".join(["| keys | why |", "| --- | --- |", *lines])


def _plain(text: str) -> str:
    """Text whose characters Markdown would take for its own are escaped, but for those of code in backticks."""
    return re.sub(r"(?<!\\)([|<*])", r"\\\1", text)
