# Sourced by run_recipe_ucm.sh and run_candidates_ucm.sh: the steps of the recipe for UCM-Captions, as settings of UCM_AMFMN.yaml.
# Usage: bash exec/run_recipe_ucm.sh [arguments of exec/reproduce.sh]
# shellcheck shell=bash disable=SC2034
source "$(dirname "${BASH_SOURCE[0]}")/reproduce.sh"

base=(model.backbone.pretrained=none model.seq2vec.arch=gru model.seq2vec.hidden_dim=512 dataset.image_size=64 dataset.workers=0
  dataset.batching=images dataset.batch_size=20 optim.amp=bf16 optim.schedule=cosine optim.epochs=15)
contrastive=(optim.loss=contrastive optim.mask=caption dataset.vocab_path=vocab/ucm_all_words_vocab.json)
overhead=(dataset.augmentation=overhead)
scenes=(model.backbone.pretrained=checkpoint/rsicd150_resnet18/backbone.pth)
captions=(dataset.vocab_path=vocab/rsicd_ucm_all_words_vocab.json optim.resume=checkpoint/rsicd150_best_64/0/AMFMN_best.pth.tar)

# What the steps start from; of RSICD's images only those of train are seen.
learn_scenes() { # NAME [KEY=VALUE ...]
  step "pretraining, $1" "$python" pretrain.py --path_opt option/RSICD150_RESNET18.yaml --set "logs.experiment_name=$1" "${@:2}"
}
learn_captions() { # NAME [KEY=VALUE ...]; for 8 epochs, as the rows do. UCM_BEST.yaml starts from the 30 of RSICD150_BEST.yaml
  step "captions of RSICD, $1" "$python" train.py --path_opt option/RSICD150_BEST.yaml --folds 0 \
    --set "k_fold.experiment_name=$1" dataset.batch_size=20 optim.lr=0.0002 optim.epochs=8 "${@:2}"
}
