#!/bin/sh
# What a CUDA device gives, in one command: sh benchmarks/gpu.sh --help
#
#   sh benchmarks/gpu.sh --output runs/gpu                    # all parts, under 9 minutes
#   sh benchmarks/gpu.sh --pack wheels                        # on a machine with network: fetch what a bare one lacks
#   sh benchmarks/gpu.sh --wheels wheels --output runs/gpu    # on the bare machine: take packages from there
#
# PYTHON names the interpreter that has torch; default python3.
set -eu
PYTHON=${PYTHON:-python3}
# What l2c needs beside torch and numpy to run these parts, and the packages that it is compared with.
PACKAGES="omegaconf==2.3.1 antlr4-python3-runtime==4.9.3 hydra-core==1.3.8 timm safetensors tqdm diffusers cache-dit"

if [ "${1:-}" = "--pack" ]; then
    exec "$PYTHON" -m pip wheel --no-deps --wheel-dir "${2:?--pack needs a folder for the wheels}" $PACKAGES
fi
if [ "${1:-}" = "--wheels" ]; then
    wheels=${2:?--wheels needs the folder that --pack has filled}
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    # Only what is missing: the versions that belong to the installed torch stay.
    for wheel in "$wheels"/*.whl; do
        name=$(basename "$wheel" | cut -d- -f1)
        "$PYTHON" -m pip show --quiet "$name" 2>/dev/null ||
            "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$wheel"
    done
    PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
    shift 2
fi
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} "$PYTHON" -m benchmarks.gpu "$@"
