"""Checks before work: `--check` reads all that a run needs and lists every fault at once; nothing is trained."""

from preflight.pretraining import check_pretraining
from preflight.training import check_training

__all__ = ["check_pretraining", "check_training"]
