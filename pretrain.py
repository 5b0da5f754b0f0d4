"""Pretraining of what a retrieval model starts from.

python pretrain.py --path_opt option/AID_RESNET50.yaml trains a backbone on scene classes, or on views,
python pretrain.py --path_opt option/UCM_MCRN_PRETRAIN.yaml pretrains MCRN without pairs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from runtime.arguments import add_check, add_resume, entry_parser


def read_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """What was typed."""
    parser = entry_parser("Pretrain what a retrieval model starts from.")
    add_resume(parser)
    add_check(parser)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    read_arguments()  # before PyTorch is imported, so that --help and misspelt flags are answered at once

import option
from option import BackboneOptions
from preflight import check_pretraining
from pretraining.backbone import pretrain_backbone
from pretraining.modalities import pretrain_modalities
from pretraining.scenes import scene_task
from pretraining.views import view_task
from runs.trackers import require_trackers
from runtime.devices import choose_device
from runtime.distributed import refuse_torchrun
from runtime.entry_point import run_entry_point
from runtime.interruption import stopped_at_once
from utils import logger


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the pretraining that the YAML describes."""
    given = read_arguments(arguments)
    refuse_torchrun("pretrain.py")
    options = option.load_pretraining_options(given.path_opt, given.set)
    device, resume = choose_device(given.device), given.resume == "auto"
    if given.check:
        verdict = check_pretraining(given.path_opt, options, device, resume)
        print(f"{option.to_yaml(options, given=True)}\n{verdict}")
        return
    require_trackers(options.logs.trackers)
    with stopped_at_once():
        if isinstance(options, BackboneOptions):
            make_task = scene_task if options.optim.task == "scenes" else view_task
            start = f"model.backbone.pretrained={pretrain_backbone(options, make_task, device, resume)}"
        else:
            start = f"model.init_from={pretrain_modalities(options, device, resume)}"
    logger.info("Pretrained. Start a model from it: python train.py --path_opt ... --set %s", start)


if __name__ == "__main__":
    run_entry_point(main)
