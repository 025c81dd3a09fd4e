#!/usr/bin/env bash
# LLaVA with a background/object split. Usage: bash scripts/bgobj_llava.sh [RECIPE] [KEY VALUE ...]
# RECIPE is a file name in configs/trainers/bgobj_llava (default: tiny), DATASET one in configs/datasets (default: mini_scenes).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
launch BgObjLLaVA bgobj_llava BgObjLLaVA "" "${DATASET:-mini_scenes}" "${@:-tiny}"
