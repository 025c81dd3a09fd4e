#!/usr/bin/env bash
# The paper's run on Flickr30k.
# Usage: bash scripts/viecap/train_flickr30k.sh [GPU] [FLAGS] [KEY VALUE ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/start.sh"
cd "$ROOT"
start scripts/viecap_run.py train --bs 80 --lr 0.00002 --epochs 30 --device "${1:-0}" \
  --random_mask --prob_of_random_mask 0.4 --clip_model ViT-B/32 --using_clip_features --language_model gpt2 \
  --using_hard_prompt --soft_prompt_first --use_amp \
  --path_of_datasets ./annotations/flickr30k/flickr30k_texts_features_ViT-B32.pickle \
  --out_dir checkpoints/train_flickr30k --log_dir logs/train_flickr30k "${@:2}"
