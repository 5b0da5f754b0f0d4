#!/usr/bin/env bash
# What might better the recipe for UCM-Captions, each by itself at 64 pixels: rates, batches, views and the mean of weights after the
# captions of RSICD; before them, the image encoder and what it has learned. Val is made of blocks: other places than train, as test is.
#
# Usage: bash exec/run_candidates_ucm.sh [arguments of exec/reproduce.sh]
# It needs what run_recipe_ucm.sh needs, and timm: bash exec/environment.sh timm
# One CPU core takes five minutes per row and fold, and two hours for what must be learned first.
source "$(dirname "${BASH_SOURCE[0]}")/recipe_ucm.sh"

beforehand() {
  learn_scenes rsicd150_resnet18
  learn_scenes rsicd150_resnet34 backbone.architecture=resnet34
  learn_scenes rsicd150_resnet18_views optim.task=views dataset.augmentation=overhead dataset.smallest_part=0.3 dataset.colour_jitter=0.4
  learn_captions rsicd150_best_64 dataset.image_size=64
}

base+=("${contrastive[@]}" "${overhead[@]}" k_fold.strategy=blocks k_fold.nums=2)
candidate() { row "$1" option/UCM_AMFMN.yaml "${base[@]}" "${@:2}"; }
candidate captions "${captions[@]}"
candidate batch50 "${captions[@]}" dataset.batch_size=50
candidate ema "${captions[@]}" optim.ema=0.99
candidate constant "${captions[@]}" optim.schedule=step
candidate longer "${captions[@]}" optim.epochs=30
candidate lr05 "${captions[@]}" optim.lr=0.00005
candidate lr5 "${captions[@]}" optim.lr=0.0005
candidate backbone01 "${captions[@]}" optim.lr_backbone=0.1
candidate temperature003 "${captions[@]}" optim.contrastive.temperature=0.03
candidate temperature2 "${captions[@]}" optim.contrastive.temperature=0.2
candidate smooth "${captions[@]}" optim.contrastive.label_smoothing=0.2
candidate colour "${captions[@]}" dataset.colour_jitter=0.3
candidate part "${captions[@]}" dataset.smallest_part=0.5
candidate scenes "${scenes[@]}"
candidate scenes34 model.backbone.architecture=resnet34 model.backbone.pretrained=checkpoint/rsicd150_resnet34/backbone.pth
candidate views model.backbone.pretrained=checkpoint/rsicd150_resnet18_views/backbone.pth
candidate random
candidate random34 model.backbone.architecture=resnet34
candidate convnext model.backbone.architecture=timm/convnext_atto
run_rows ucm candidates_ucm -m reports.experiments
