#!/usr/bin/env bash
# AMFMN (three attentions), GaLR, SWAN and MCRN on RSICD as published: the options of each YAML, ImageNet weights, three folds;
# then one table with the published rows. For users who have the images and a GPU; all data and weights are checked first.
#
# Usage: [AID=FILE] bash exec/reproduce_rsicd.sh [arguments of exec/reproduce.sh]
# AID names SWAN's backbone, e.g. one of `python pretrain.py --path_opt option/AID_RESNET50.yaml`; without it: ImageNet.
source "$(dirname "${BASH_SOURCE[0]}")/reproduce.sh"

protocol=(k_fold.nums=3)
swan=(model.backbone.pretrained="${AID:-imagenet}")
all_models RSICD
run_rows rsicd reproduce_rsicd -m reports.reproduction --published rsicd
