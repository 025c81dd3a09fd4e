# Sourced, not run: defines launch, which the launchers of single trainers share.
# DATA is the data root (default: data), SEED the seed (default: 1), PYTHON the interpreter when there is no .venv.

source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

# launch TRAINER CONFIG_FOLDER [DATA SET YAML NAME] [CONFIG NAME] [KEY VALUE ...]
launch() {
  local trainer="$1" folder="$2" dataset="${3:-handwritten_digits}" config="${4:-tiny12}" seed="${SEED:-1}" python
  shift $(($# < 4 ? $# : 4))
  python="$(venv_python)"
  cd "$ROOT"
  exec "${python:-${PYTHON:-python3}}" train.py \
    --trainer "$trainer" \
    --dataset-config-file "configs/datasets/$dataset.yaml" \
    --config-file "configs/trainers/$folder/$config.yaml" \
    --root "${DATA:-data}" \
    --output-dir "output/$dataset/$trainer/$config/seed$seed" \
    --seed "$seed" \
    "$@"
}
