#!/usr/bin/env bash
# Scores a file of generated captions.
# Usage: bash scripts/viecap/language_eval.sh FILE
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/start.sh"
start scripts/caption_score.py --result_file_path "$@"
