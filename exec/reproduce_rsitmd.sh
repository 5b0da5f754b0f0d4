#!/usr/bin/env bash
# AMFMN (three attentions), GaLR, SWAN and MCRN on RSITMD as published: the options of each YAML, ImageNet weights (SWAN: AID's
# classes, see below), three folds; then one table with the published rows. For users who have the pictures and a GPU.
# bash exec/reproduce_rsitmd.sh [--name NAME] [--set KEY=VALUE ...]      (what they mean: exec/reproduce.sh)
# AID=FILE names SWAN's backbone, e.g. made by `python pretrain.py --path_opt option/AID_RESNET50.yaml`; without it SWAN
# starts from ImageNet. All data and weights are checked before anything is trained.
source "$(dirname "${BASH_SOURCE[0]}")/reproduce.sh"

backbone=(model.backbone.pretrained="${AID:-imagenet}")
row amfmn_soft option/RSITMD_AMFMN.yaml k_fold.nums=3 model.cross_attention.att_type=soft_att
row amfmn_fusion option/RSITMD_AMFMN.yaml k_fold.nums=3 model.cross_attention.att_type=fusion_att
row amfmn_similarity option/RSITMD_AMFMN.yaml k_fold.nums=3 model.cross_attention.att_type=similarity_att
row galr option/RSITMD_GALR.yaml k_fold.nums=3
row swan option/RSITMD_SWAN.yaml k_fold.nums=3 "${backbone[@]}"
row mcrn option/RSITMD_MCRN.yaml k_fold.nums=3
reproduce rsitmd "$@"
