#!/usr/bin/env bash
# LaFTer learns labels and emotion distributions of the data set. Usage: bash scripts/LaFTer_DualTask.sh [data set] [config] [KEY VALUE ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
launch LaFTer lafter LaFTer_DualTask "TRAINER.LAFTER.MODE supervised TRAINER.LAFTER.DUAL.ENABLED True TEST.EVALUATOR LabelDistribution" "$@"
