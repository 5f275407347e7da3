#!/bin/sh
# What ten silos reach on one GPU, within ten minutes:
#   OUT=folder experiments/gpu-check.sh --data-root FOLDER-THAT-HOLDS-MNIST    or, tiny, on any machine:
#   OUT=folder experiments/gpu-check.sh --quick
# Needs this repository installed (make install, or PYTHON=… of another environment that has it), and nothing of the
# network then. MNIST must be carried there: its four idx files in FOLDER/MNIST/raw, as torchvision has them.
# Writes gpu.md and gpu.json to OUT.
set -eu
cd "$(dirname "$0")/.."
: "${OUT:?name the folder for the results, such as OUT=gpu-results}"
PYTHON=${PYTHON:-.venv/bin/python}
[ -x "$PYTHON" ] || PYTHON=$(command -v python3)
PATH=$(dirname "$PYTHON"):$PATH PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} \
    exec "$PYTHON" -m experiments.gpu_check --output "$OUT" "$@"
