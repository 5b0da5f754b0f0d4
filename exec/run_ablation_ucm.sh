#!/usr/bin/env bash
# Which objective suits AMFMN on UCM-Captions: loss x mask x stop words, all else equal, then one table of all twelve.
# bash exec/run_ablation_ucm.sh [--set optim.epochs=12 ...]
# About a minute per epoch and fold on one CPU core: 12 experiments x 2 folds x 6 epochs. Run it again after an interruption.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

option=option/UCM_AMFMN.yaml
all_words=vocab/ucm_all_words_vocab.json
extra=("$@")
if [[ "${1:-}" == "--set" ]]; then extra=("${@:2}"); fi

folders=()
for words in dropped kept; do
  if [[ "$words" == kept ]]; then vocabulary="$all_words"; else vocabulary=vocab/ucm_splits_vocab.json; fi
  for mask in none caption; do
    for loss in triplet dynamic contrastive; do
      name="ucm_ablation_${loss}_${mask}_${words}"
      settings=(model.backbone.pretrained=none model.seq2vec.arch=gru dataset.image_size=64 "dataset.vocab_path=$vocabulary"
        optim.amp=bf16 optim.epochs=6 optim.schedule=cosine "optim.loss=$loss" "optim.mask=$mask"
        k_fold.nums=2 "k_fold.experiment_name=$name" "${extra[@]}")
      step "train $name" "$python" train.py --path_opt "$option" --set "${settings[@]}"
      step "test $name" "$python" test.py --path_opt "$option" --set "${settings[@]}"
      folders+=("checkpoint/$name")
    done
  done
done
step "table" "$python" experiment_table.py "${folders[@]}" --out checkpoint/ucm_ablation.md
