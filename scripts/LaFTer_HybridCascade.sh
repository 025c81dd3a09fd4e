#!/usr/bin/env bash
# LaFTer on features of three transformer stages. Usage: bash scripts/LaFTer_HybridCascade.sh [data set] [config] [KEY VALUE ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
launch HybridCascadeLaFTer hybrid_cascade_lafter HybridCascadeLaFTer "" "$@"
