#!/usr/bin/env bash
# What made option/UCM_BEST.yaml: one change at a time, from AMFMN with random weights, then one table of all rows.
# bash exec/run_recipe_ucm.sh [--name NAME] [--list] [--set KEY=VALUE ...]      (what they mean: exec/reproduce.sh)
# Besides data/ucm_precomp it needs data/rsicd150_precomp (RSICD's pictures at 150 pixels), of which only train pictures are seen.
source "$(dirname "${BASH_SOURCE[0]}")/reproduce.sh"

small=(dataset.image_size=64 k_fold.experiment_name=rsicd150_best_64)
beforehand() {
  step "scene classes" "$python" pretrain.py --path_opt option/RSICD150_RESNET18.yaml
  step "captions of RSICD, small pictures" "$python" train.py --path_opt option/RSICD150_BEST.yaml --folds 0 --set "${small[@]}"
  step "captions of RSICD" "$python" train.py --path_opt option/RSICD150_BEST.yaml --folds 0
}

base=(model.backbone.pretrained=none model.seq2vec.arch=gru model.seq2vec.hidden_dim=512 dataset.image_size=64 dataset.workers=0
  dataset.batching=images dataset.batch_size=20 optim.amp=bf16 optim.schedule=cosine optim.epochs=15 k_fold.nums=2)
contrastive=(optim.loss=contrastive optim.mask=caption dataset.vocab_path=vocab/ucm_all_words_vocab.json)
overhead=(dataset.augmentation=overhead)
scenes=(model.backbone.pretrained=checkpoint/rsicd150_resnet18/backbone.pth)
captions=(dataset.vocab_path=vocab/rsicd_ucm_all_words_vocab.json optim.resume=checkpoint/rsicd150_best_64/0/AMFMN_best.pth.tar)
larger=(dataset.image_size=128 optim.resume=checkpoint/rsicd150_best/0/AMFMN_best.pth.tar)

row contrastive option/UCM_AMFMN.yaml "${base[@]}" "${contrastive[@]}"
row overhead option/UCM_AMFMN.yaml "${base[@]}" "${contrastive[@]}" "${overhead[@]}"
row scenes option/UCM_AMFMN.yaml "${base[@]}" "${contrastive[@]}" "${overhead[@]}" "${scenes[@]}"
row captions option/UCM_AMFMN.yaml "${base[@]}" "${contrastive[@]}" "${overhead[@]}" "${captions[@]}"
row larger option/UCM_AMFMN.yaml "${base[@]}" "${contrastive[@]}" "${overhead[@]}" "${captions[@]}" "${larger[@]}"
run_rows ucm recipe_ucm experiment_table.py
