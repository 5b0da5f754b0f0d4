#!/usr/bin/env bash
# MCRN on one data set, all folds, then the test: bash exec/run_mcrn.sh ucm|rsitmd|rsicd|toy [--pretrain] [arguments]
# Spectrograms of the spoken captions are made where data/<name>_audios is missing. --pretrain pretrains without pairs first
# and trains from that, as the experiment <name>_mcrn_pretrained; without it, training starts from what the YAML says.
# Further arguments (--set, --device, --folds) are handed to train.py and test.py, not to the pretraining: for another one run
# python pretrain.py --path_opt option/UCM_MCRN_PRETRAIN.yaml --set ... before, which is then left as it is.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

if (($# < 1)) || [[ ! -f "option/${1^^}_MCRN.yaml" ]]; then
  echo "Usage: bash exec/run_mcrn.sh ucm|rsitmd|rsicd|toy [--pretrain] [arguments for train.py and test.py]" >&2
  exit 2
fi
name="$1"
shift
pretrain=no
if [[ "${1:-}" == --pretrain ]]; then pretrain=yes && shift; fi
if [[ -n "${CARD:-}" ]]; then export CUDA_VISIBLE_DEVICES="$CARD"; fi

need_environment
if [[ "$name" == toy ]]; then
  step "toy data set" "$python" -m data.toy
else
  make_spectrograms "data/${name}_precomp" "data/${name}_audios"
fi
make_vocabulary "data/${name}_precomp" "$name"
start=()
if [[ $pretrain == yes ]]; then
  step "pretraining" "$python" pretrain.py --path_opt "option/${name^^}_MCRN_PRETRAIN.yaml"
  start=(--set "k_fold.experiment_name=${name}_mcrn_pretrained"
    "model.init_from=checkpoint/${name}_mcrn_pretrain/pretrained.pth.tar")
fi
exec bash exec/run_experiment.sh "option/${name^^}_MCRN.yaml" "$name" "${start[@]}" "$@"
