#!/usr/bin/env bash
# What made option/UCM_BEST.yaml: one change at a time, from AMFMN with random weights, then one table of all rows.
#
# Usage: bash exec/run_recipe_ucm.sh [arguments of exec/reproduce.sh]
# Besides data/ucm_precomp it needs data/rsicd150_precomp (RSICD's images at 150 pixels), of which only train images are seen.
source "$(dirname "${BASH_SOURCE[0]}")/recipe_ucm.sh"

beforehand() {
  learn_scenes rsicd150_resnet18
  learn_captions rsicd150_best_64 dataset.image_size=64
  learn_captions rsicd150_best_8
}

base+=(k_fold.nums=2)
larger=(dataset.image_size=128 optim.resume=checkpoint/rsicd150_best_8/0/AMFMN_best.pth.tar)

row contrastive option/UCM_AMFMN.yaml "${base[@]}" "${contrastive[@]}"
row overhead option/UCM_AMFMN.yaml "${base[@]}" "${contrastive[@]}" "${overhead[@]}"
row scenes option/UCM_AMFMN.yaml "${base[@]}" "${contrastive[@]}" "${overhead[@]}" "${scenes[@]}"
row captions option/UCM_AMFMN.yaml "${base[@]}" "${contrastive[@]}" "${overhead[@]}" "${captions[@]}"
row larger option/UCM_AMFMN.yaml "${base[@]}" "${contrastive[@]}" "${overhead[@]}" "${captions[@]}" "${larger[@]}"
run_rows ucm recipe_ucm -m reports.experiments
