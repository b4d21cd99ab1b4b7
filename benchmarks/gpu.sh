#!/bin/sh
# What a CUDA device gives, in one command: sh benchmarks/gpu.sh --help
#
#   sh benchmarks/gpu.sh --output runs/gpu                    # all parts, under 9 minutes; again: what is missing
#   sh benchmarks/gpu.sh --pack wheels                        # on a machine with the packages or with a network
#   sh benchmarks/gpu.sh --wheels wheels --output runs/gpu    # on one that has torch alone: take packages from there
#
# PYTHON names the interpreter that has torch; default python3.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH
exec "${PYTHON:-python3}" -m benchmarks.gpu "$@"
