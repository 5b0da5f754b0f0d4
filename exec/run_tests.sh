#!/usr/bin/env bash
# Linter, formatter, types and tests, in the environment of exec/environment.sh with its extra `test`.
# All four are run, so that one run shows every fault.
#
# Usage: bash exec/run_tests.sh [arguments of pytest]
# Example: bash exec/run_tests.sh -k metrics
# Every argument but -h and --help goes to pytest, whose own help is: .venv/bin/python -m pytest --help
# JOBS=2 chooses how many processes run the tests: by default as many as there are processors, at most 4.
# PYTHON=python3.12 chooses the interpreter of a new environment (exec/environment.sh).
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
# In the order of their names: by their number of tests, files of one slow test would come last, and one process would wait.
export OMP_NUM_THREADS=1
check "pytest" "$python" -m pytest -n "$(cpu_jobs)" --dist loadfile --no-loadscope-reorder "$@"

if [[ -n "$failed" ]]; then
  printf '\nFailed: %s. What to do next: ruff mends most of its own findings\n' "$failed" >&2
  printf '(%s -m ruff check --fix . && %s -m ruff format .); the others name file and line above.\n' "$python" "$python" >&2
  exit 1
fi
printf '\nLinter, formatter, types and tests passed. What to do next: bash exec/quickstart.sh trains and tests a first model.\n'
