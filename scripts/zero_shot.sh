#!/usr/bin/env bash
# The baseline: class texts against image features. Usage: bash scripts/zero_shot.sh [data set] [config] [KEY VALUE ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
launch ZeroshotCLIP zeroshot_clip ZeroshotCLIP "" "$@"
