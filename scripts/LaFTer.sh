#!/usr/bin/env bash
# Label-free tuning of prompts, LayerNorms and a text-trained classifier. Usage: bash scripts/LaFTer.sh [data set] [config] [KEY VALUE ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
launch LaFTer lafter LaFTer "" "$@"
