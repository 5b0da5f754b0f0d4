"""Pretraining: python pretrain.py --path_opt option/AID_RESNET50.yaml trains a backbone on scene classes."""

from __future__ import annotations

from collections.abc import Sequence

import option
from experiment import entry_parser
from scene_pretraining import pretrain_scenes
from utils import InputError, choose_device, logger, run_entry_point


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the pretraining that the YAML describes."""
    parser = entry_parser("Pretrain what a retrieval model starts from.")
    parser.add_argument("--resume", action="store_true", help="go on where the run stopped")
    given = parser.parse_args(arguments)
    device = choose_device(given.device)
    if not option.trains_backbone(given.path_opt):
        raise InputError(
            f"{given.path_opt}: trains a retrieval model: python train.py --path_opt {given.path_opt}. pretrain.py "
            "takes a YAML with a block `backbone`, such as option/AID_RESNET50.yaml."
        )
    result = pretrain_scenes(option.load_scene_options(given.path_opt, given.set), device, given.resume)
    logger.info("Pretrained. Start a model from it: --set model.backbone.pretrained=%s", result)


if __name__ == "__main__":
    run_entry_point(main)
