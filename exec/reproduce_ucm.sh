#!/usr/bin/env bash
# AMFMN (three attentions), GaLR, SWAN and MCRN on UCM-Captions, from random weights, under one protocol; then one table.
#
# Usage: bash exec/reproduce_ucm.sh [arguments of exec/reproduce.sh]
# Short: images of 64 pixels, 6 epochs, for two CPU cores.
# --full: images of 256 pixels, 50 epochs, for a GPU.
# Both: triplet loss, batches of 100 pairs, the same three random 80/20 splits and seeds, a cosine schedule, bf16.
source "$(dirname "${BASH_SOURCE[0]}")/reproduce.sh"

protocol=(model.backbone.pretrained=none optim.amp=bf16 optim.schedule=cosine k_fold.nums=3 k_fold.strategy=random
  dataset.batch_size=100)
if [[ $size == full ]]; then
  protocol+=(dataset.workers=8 dataset.image_size=256 optim.epochs=50)
else
  protocol+=(dataset.workers=0 dataset.image_size=64 optim.epochs=6)
fi
# What is published starts from downloads: skip-thoughts for the words of three models (SWAN has a GRU anyway), a backbone
# that stays as it is in SWAN, and in MCRN a pretraining before the modalities are aligned.
words=(model.seq2vec.arch=gru model.seq2vec.hidden_dim=512)
swan=(model.is_finetune=true)
mcrn=(optim.methods=tpt)
all_models UCM
run_rows ucm reproduce_ucm -m reports.reproduction --published ucm
