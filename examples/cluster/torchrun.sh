#!/usr/bin/env bash
# Two machines of eight GPUs each, which see the same files. Run it on both, with the same first machine:
#     FIRST=host-1 bash torchrun.sh recipe.yaml
set -eu
: "${FIRST:?give FIRST, the name of the first of the two machines}"

torchrun --nnodes 2 --nproc-per-node 8 --rdzv-id whelp --rdzv-backend c10d --rdzv-endpoint "$FIRST:29500" \
    -m whelp run "${1:?give a recipe}" --resume
