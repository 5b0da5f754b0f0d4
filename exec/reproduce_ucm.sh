#!/usr/bin/env bash
# AMFMN (three attentions), GaLR, SWAN and MCRN on UCM-Captions, from random weights, under one protocol; then one table.
# bash exec/reproduce_ucm.sh [--full] [--name NAME] [--set KEY=VALUE ...]      (what they mean: exec/reproduce.sh)
# Short: pictures of 64 pixels, 6 epochs; two CPU cores need about two hours. --full: 256 pixels, 50 epochs, for a GPU.
# Both: batches of 100 pairs, triplet loss, the same three random 80/20 splits and seeds, a cosine schedule, bf16.
source "$(dirname "${BASH_SOURCE[0]}")/reproduce.sh"

protocol=(model.backbone.pretrained=none dataset.batch_size=100 optim.amp=bf16 optim.schedule=cosine
  k_fold.nums=3 k_fold.strategy=random)
if [[ $size == full ]]; then
  protocol+=(dataset.workers=8 dataset.image_size=256 optim.epochs=50)
else
  protocol+=(dataset.workers=0 dataset.image_size=64 optim.epochs=6)
fi
words=(model.seq2vec.arch=gru)        # published: skip-thoughts, whose weights are a download; SWAN has a GRU anyway
tuned=(model.is_finetune=true)        # published: a frozen backbone, which must not be random
triplets=(optim.methods=tpt)          # published: with alignment, which does not start from random weights

row amfmn_soft option/UCM_AMFMN.yaml "${protocol[@]}" "${words[@]}" model.cross_attention.att_type=soft_att
row amfmn_fusion option/UCM_AMFMN.yaml "${protocol[@]}" "${words[@]}" model.cross_attention.att_type=fusion_att
row amfmn_similarity option/UCM_AMFMN.yaml "${protocol[@]}" "${words[@]}" model.cross_attention.att_type=similarity_att
row galr option/UCM_GALR.yaml "${protocol[@]}" "${words[@]}"
row swan option/UCM_SWAN.yaml "${protocol[@]}" "${tuned[@]}"
row mcrn option/UCM_MCRN.yaml "${protocol[@]}" "${words[@]}" "${triplets[@]}"
reproduce ucm "$@"
