#!/usr/bin/env bash
# On a Ray cluster whose machines see the same files and have whelp[ray] installed:
#     RAY_API_SERVER_ADDRESS=http://head:8265 bash ray_job.sh recipe.yaml
set -eu

ray job submit --working-dir . -- \
    whelp run "${1:?give a recipe}" engine=ray ray.learners=8 ray.samplers=8 --resume
