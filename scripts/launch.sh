# Sourced, not run: defines launch, which the launchers of single trainers share.
# DATA is the data root (default: data), SEED the seed (default: 1), PYTHON the interpreter when there is no .venv.

source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

# launch TRAINER CONFIG_FOLDER RUN_NAME SETTINGS [DATA SET YAML NAME] [CONFIG NAME] [KEY VALUE ...]
# SETTINGS is the launcher's own KEY VALUE pairs in one word, possibly empty; the user's come after them and win.
launch() {
  local trainer="$1" folder="$2" name="$3" settings="$4" dataset="${5:-emotion6}" config="${6:-vit_b32}"
  local seed="${SEED:-1}" python
  shift $(($# < 6 ? $# : 6))
  python="$(venv_python)"
  cd "$ROOT"
  # shellcheck disable=SC2086  (settings is split into words on purpose)
  exec "${python:-${PYTHON:-python3}}" train.py \
    --trainer "$trainer" \
    --dataset-config-file "configs/datasets/$dataset.yaml" \
    --config-file "configs/trainers/$folder/$config.yaml" \
    --root "${DATA:-data}" \
    --output-dir "output/$dataset/$name/$config/seed$seed" \
    --seed "$seed" \
    $settings "$@"
}
