"""Keys without effect: published ones that are no options of ours, and ours that other values keep from being read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import reduce

from pydantic.fields import FieldInfo

from option.parameters import Parameters, loss_blocks, model_blocks
from option.schema import Options
from utils import logger

ANOTHER_MODEL = "not part of {model}"

# What published files may hold beyond the keys declared here and by the selected model: block, keys, why a key has no
# effect. A key of the table that is declared takes effect; one that is not is accepted and reported.
PUBLISHED_KEYS = (
    ("model.multiscale", "multiscale_input_channel multiscale_output_channel", ANOTHER_MODEL),
    ("model.cross_attention", "att_type", ANOTHER_MODEL),
    ("model.seq2vec", "arch dir_st type dropout fixed_emb", ANOTHER_MODEL),
    ("model.embed", "embed_dim share_dropout", ANOTHER_MODEL),
    ("model.fusion", "correct_local_hidden_dim correct_local_hidden_drop", ANOTHER_MODEL),
    ("model.fusion", "supplement_global_hidden_dim supplement_global_hidden_drop", ANOTHER_MODEL),
    ("model.fusion", "dynamic_fusion_dim dynamic_fusion_drop", ANOTHER_MODEL),
    ("model.fusion", "mca_DROPOUT_R mca_HIDDEN_SIZE mca_FF_SIZE mca_MULTI_HEAD mca_HIDDEN_SIZE_HEAD", ANOTHER_MODEL),
    ("model.global_local_weight", "global local", ANOTHER_MODEL),
    ("model.share", "n_sa sa_drop", ANOTHER_MODEL),
    ("model.discriminator", "in_size mid_size out_size dropout_r", ANOTHER_MODEL),
    ("model", "num_modal word_dim num_layers use_bidirectional_rnn is_finetune resnet_ckpt", ANOTHER_MODEL),
    ("dataset", "data_split", "k_fold.strategy chooses the split"),
    ("optim", "lr_D lr_D_decay_param lr_D_update_epoch", "the discriminator belongs to pretrain.py"),
    ("optim", "resume_Discriminator", "pretrain.py carries on with both"),
    ("optim", "lr_finetune_decay_param lr_finetune_update_epoch", "optim.schedule lowers the rate"),
    ("logs", "logger_name", "the log lies in the run's folder"),
    ("k_fold", "current_num", "--folds chooses the folds"),
)

Unread = Iterator[tuple[str, str]]
"""Dotted keys, each with the reason why nothing reads it."""


def published_keys() -> dict[str, str]:
    """`PUBLISHED_KEYS` by dotted key: the reason why it has no effect (`{model}` stands for the model's name)."""
    return {f"{block}.{key}": reason for block, keys, reason in PUBLISHED_KEYS for key in keys.split()}


def published_without_effect(given: Iterable[str], known: Collection[str], model: str) -> Unread:
    """The published keys among those that were given a value that are no options of ours."""
    reasons = published_keys()
    yield from ((key, reasons[key].format(model=model)) for key in reasons if key in given and key not in known)


def unread(options: Parameters, known: Mapping[str, FieldInfo]) -> Unread:
    """Keys that hold something other than their default and have no effect, of all that are `known`."""
    for key, reason in _candidates(options, known):
        if key in known and reduce(getattr, key.split("."), options) != known[key].default:
            yield key, reason


def _candidates(options: Parameters, known: Iterable[str]) -> Unread:
    """Keys whose values have no effect, whatever they are."""
    if isinstance(options, Options):
        yield from model_blocks()[options.model.name].unread(options)
        for place, losses in _readers().items():
            if not options.optim.loss.keys() & set(losses):
                reason = f"optim.loss has no {' and no '.join(losses)}"
                yield from ((key, reason) for key in known if key == place or key.startswith(f"{place}."))
    for block in blocks_of(options):
        yield from block.without_effect().items()


def _readers() -> dict[str, list[str]]:
    """Keys of the losses, or blocks of them -> the losses that read them."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for name, block in loss_blocks().items():
        for key in block.reads if block.parameters is None else (name, *block.reads):
            found[f"optim.{key}"].append(name)
    return dict(sorted(found.items()))


def blocks_of(block: Parameters) -> Iterator[Parameters]:
    """A block and all blocks in it."""
    yield block
    for _, value in block:
        if isinstance(value, Parameters):
            yield from blocks_of(value)


def warn_of_unread(source: str, keys: Iterable[tuple[str, str]]) -> None:
    """Name the keys that were given a value and that nothing reads, by reason, in one warning."""
    by_reason = defaultdict(list)
    for key, reason in keys:
        by_reason[reason].append(key)
    if by_reason:
        text = "; ".join(f"{', '.join(keys)} ({reason})" for reason, keys in by_reason.items())
        logger.warning("%s: accepted without effect: %s", source, text)
