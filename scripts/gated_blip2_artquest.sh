#!/usr/bin/env bash
# BLIP-2 with style gates on art questions. Usage: bash scripts/gated_blip2_artquest.sh [RECIPE] [KEY VALUE ...]
# RECIPE is a file name in configs/trainers/gated_blip2 (default: artquest), DATASET one in configs/datasets (default: artquest).
# A style encoder is named by TRAINER.GATEDBLIP2.STYLE.CHECKPOINT FILE. Without any data: DATASET=mini_scenes and RECIPE tiny.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
launch GatedBLIP2 gated_blip2 GatedBLIP2 "" "${DATASET:-artquest}" "${@:-artquest}"
