#!/usr/bin/env bash
# Which objective suits AMFMN on UCM-Captions: loss x mask x stop words, all else equal, then one table of all twelve.
#
# Usage: bash exec/run_ablation_ucm.sh [arguments of exec/reproduce.sh]
# About a minute per epoch and fold on one CPU core: 12 experiments x 2 folds x 6 epochs.
source "$(dirname "${BASH_SOURCE[0]}")/reproduce.sh"

for words in dropped kept; do
  if [[ "$words" == kept ]]; then vocabulary=vocab/ucm_all_words_vocab.json; else vocabulary=vocab/ucm_splits_vocab.json; fi
  for mask in none caption; do
    for loss in triplet dynamic contrastive; do
      row "${loss}_${mask}_${words}" option/UCM_AMFMN.yaml model.backbone.pretrained=none model.seq2vec.arch=gru \
        dataset.image_size=64 "dataset.vocab_path=$vocabulary" dataset.workers=0 optim.amp=bf16 optim.epochs=6 \
        optim.schedule=cosine "optim.loss=$loss" "optim.mask=$mask" k_fold.nums=2
    done
  done
done
run_rows ucm ucm_ablation -m reports.experiments
