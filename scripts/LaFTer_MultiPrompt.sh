#!/usr/bin/env bash
# LaFTer with prompts of their own for every transformer stage. Usage: bash scripts/LaFTer_MultiPrompt.sh [data set] [config] [KEY VALUE ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
launch MultiLayerLaFTer multilayer_lafter MultiLayerLaFTer "" "$@"
