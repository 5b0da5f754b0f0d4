#!/usr/bin/env bash
# Linter, formatter, types and tests, in the environment of exec/environment.sh with its extra `test`.
# All four are run, so that one run shows every fault. Arguments go to pytest: bash exec/run_tests.sh -k metrics
# JOBS processes run the tests: by default as many as there are processors, at most 4.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

step "environment" bash exec/environment.sh test
python=.venv/bin/python

failed=""
# In a subshell, because step ends its shell at a failure.
check() { (step "$@") || failed="$failed${failed:+, }$1"; }
check "ruff check" "$python" -m ruff check .
check "ruff format" "$python" -m ruff format --check .
check "mypy" "$python" -m mypy
# A file's tests stay together, since they share what is slow to make; one thread each leaves the processors to the processes.
processors="$(env -u OMP_NUM_THREADS nproc)" # nproc heeds the variable
export OMP_NUM_THREADS=1
check "pytest" "$python" -m pytest -n "${JOBS:-$((processors < 4 ? processors : 4))}" --dist loadfile "$@"

if [[ -n "$failed" ]]; then
  printf '\nFailed: %s. What to do next: ruff mends most of its own findings\n' "$failed" >&2
  printf '(%s -m ruff check --fix . && %s -m ruff format .); the others name file and line above.\n' "$python" "$python" >&2
  exit 1
fi
printf '\nLinter, formatter, types and tests passed. What to do next: bash exec/quickstart.sh trains and tests a first model.\n'
