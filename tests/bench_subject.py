"""A subject of the bench that measures nothing; in a file of its own, so that its process imports little."""

from __future__ import annotations

import os

import torch

from utils import InputError


class EnvironmentSubject:
    """Answers with what its process was started with, the second time with a fault."""

    def __init__(self, fault: str) -> None:
        self.fault = fault
        self.runs = 0

    def run(self) -> dict[str, float]:
        self.runs += 1
        if self.runs > 1:
            raise InputError(self.fault)
        return {"threshold": float(os.environ.get("MALLOC_TRIM_THRESHOLD_", 0)), "threads": torch.get_num_threads()}
