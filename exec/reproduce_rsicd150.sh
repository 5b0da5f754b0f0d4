#!/usr/bin/env bash
# AMFMN (three attentions), GaLR, SWAN and MCRN on RSICD's captions with its images at 150 pixels (data/rsicd150_precomp),
# from random weights, under one protocol; then one table. The published rows are of 224-pixel images, 1,093 of them test.
#
# Usage: bash exec/reproduce_rsicd150.sh [arguments of exec/reproduce.sh]
# Short: images of 64 pixels, 4 epochs of batches of 20 images with all their captions, for two CPU cores: each image is
# encoded once an epoch, not five times, which SWAN's ResNet-50 would need hours for.
# --full: images of 160 pixels (a multiple of 32), 50 epochs of batches of 100 pairs, for a GPU.
# Both: triplet loss, the same three random 80/20 splits and seeds, a cosine schedule, bf16.
source "$(dirname "${BASH_SOURCE[0]}")/reproduce.sh"

protocol=(dataset.data_path=data/rsicd150_precomp model.backbone.pretrained=none optim.amp=bf16 optim.schedule=cosine
  k_fold.nums=3 k_fold.strategy=random)
if [[ $size == full ]]; then
  protocol+=(dataset.workers=8 dataset.image_size=160 dataset.batch_size=100 optim.epochs=50)
else
  protocol+=(dataset.workers=0 dataset.image_size=64 dataset.batching=images dataset.batch_size=20 optim.epochs=4)
fi
# What differs from the published models, and why: exec/reproduce_ucm.sh
words=(model.seq2vec.arch=gru model.seq2vec.hidden_dim=512)
galr=(dataset.local_path=data/rsicd150_regions.h5)
swan=(model.is_finetune=true)
mcrn=(dataset.audio_path=data/rsicd150_audios optim.methods=tpt)
all_models RSICD
run_rows rsicd150 reproduce_rsicd150 -m reports.reproduction --published rsicd
