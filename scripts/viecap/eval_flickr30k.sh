#!/usr/bin/env bash
# Captions Flickr30k's test pictures, and scores them.
# Usage: bash scripts/viecap/eval_flickr30k.sh EXPERIMENT GPU 'OTHER FLAGS' EPOCH [KEY VALUE ...]   EPOCH counts from 0.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/start.sh"
cd "$ROOT"
# shellcheck disable=SC2086  (the flags of the third argument are split into words on purpose)
start scripts/viecap_run.py eval --device "$2" --clip_model ViT-B/32 --language_model gpt2 \
  --continuous_prompt_length 10 --clip_project_length 10 --top_k 3 --threshold 0.3 --using_image_features \
  --name_of_datasets flickr30k --path_of_val_datasets ./annotations/flickr30k/test_captions.json \
  --name_of_entities_text vinvl_vgoi_entities --image_folder ./annotations/flickr30k/flickr30k-images/ \
  --prompt_ensemble --using_hard_prompt --soft_prompt_first --using_greedy_search \
  --weight_path "checkpoints/$1/coco_prefix-00$4.pt" --out_path "checkpoints/$1" --log_dir "logs/$1" $3 "${@:5}"
