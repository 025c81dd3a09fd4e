#!/usr/bin/env bash
# As LaFTer_DualTask, from a random classifier: no text phase. Usage: bash scripts/LaFTer_DirectDualTask.sh [data set] [config] [KEY VALUE ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
launch LaFTer lafter LaFTer_DirectDualTask "TRAINER.LAFTER.MODE direct TRAINER.LAFTER.DUAL.TEMPERATURE 12.0 TEST.EVALUATOR LabelDistribution" "$@"
