#!/usr/bin/env bash
# Captions the pictures of NoCaps, and scores them per domain.
# Usage: bash scripts/viecap/eval_nocaps.sh EXPERIMENT GPU 'OTHER FLAGS' EPOCH [KEY VALUE ...]   EPOCH counts from 0.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/start.sh"
cd "$ROOT"
# shellcheck disable=SC2086  (the flags of the third argument are split into words on purpose)
start scripts/viecap_run.py eval --device "$2" --clip_model ViT-B/32 --language_model gpt2 \
  --continuous_prompt_length 10 --clip_project_length 10 --top_k 3 --threshold 0.2 --using_image_features \
  --name_of_datasets nocaps --path_of_val_datasets ./annotations/nocaps/nocaps_corpus.json \
  --name_of_entities_text vinvl_vgoi_entities --image_folder ./annotations/nocaps/ \
  --prompt_ensemble --using_hard_prompt --soft_prompt_first \
  --weight_path "checkpoints/$1/coco_prefix-00$4.pt" --out_path "checkpoints/$1" --log_dir "logs/$1" $3 "${@:5}"
