#!/usr/bin/env bash
# finetune.sh BUILD [full]: trains and fine-tunes on the shipped demonstrations with the configurations of
# docs/training.md, from two cameras and seven dimensions to the wrist camera and x, y, z and gripper. Held-out figures
# must fall, below those of a model trained from scratch for as many steps, and an export must predict the same as the
# trained directory. Without `full`, a smaller model is trained for fewer steps, and only then compared with one from
# scratch.
set -euo pipefail
export LC_ALL=C.UTF-8
build=$1 kind=${2:-short}
if ! command -v jq >/dev/null; then
  echo "skipped: jq is not installed"
  exit 77
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

fail() {
  echo "$*" >&2
  exit 1
}

small=() narrow=() falling=(held_out_loss error_diffusion error_autoregressive error_ensemble)
if [[ $kind == short ]]; then
  small=(--set train.steps=80 --set train.branches=2 --set optimizer.learning_rate=2e-3
    --set validation.interval=0 --set validation.samples=20 --set threads=1)
  falling=(held_out_loss error_diffusion error_ensemble) # too few steps to learn the action tokens
  narrow=(--set model.llm.hidden_size=64 --set model.llm.intermediate_size=128 --set model.llm.num_hidden_layers=2
    --set model.llm.num_attention_heads=2 --set model.llm.num_key_value_heads=2 --set model.vision.0.width=48
    --set model.vision.0.depth=3 --set model.vision.0.mlp_width=96 --set model.vision.0.image_size=28
    --set tokenizer=tests/fixtures/tokenizer/small.model --set model.llm.vocab_size=1024
    --set 'model.action_tokens={base: 1000, bins: 256}'
    --set 'model.special_tokens={bos: 1, eos: 2, pad: 1000, bod: 1001, eod: 1002, empty: 924}')
fi

# train NAME CONFIG SETTING…: runs a training in $folder/NAME.
train() {
  local name=$1 config=$2
  shift 2
  "$build/train/hvla-train" run --config "configs/$config.yaml" --set "output=$folder/$name" "$@" \
    >"$folder/$name.log" 2>&1 || fail "$(<"$folder/$name.log")"
}

# held_out NAME first|last KEY: prints the first or last held-out figure KEY of a run.
held_out() {
  jq -s --arg key "$3" "map(select(.held_out_loss != null)) | $2 | .[\$key]" "$folder/$1/metrics.jsonl"
}

# below KEY A B: fails unless the figure A is less than B.
below() {
  echo "$1: $2 fine-tuned, $3 before or from scratch"
  jq -ne --argjson a "$2" --argjson b "$3" '$a < $b' >/dev/null || fail "$1 is $2 after fine-tuning, not less than $3"
}

train first lift-tiny "${small[@]}" "${narrow[@]}"
train second finetune-lift --set "init_from=$folder/first/model" "${small[@]}"
for key in "${falling[@]}"; do
  below $key "$(held_out second last $key)" "$(held_out second first $key)"
done
if [[ $kind == short ]]; then
  train fresh lift-tiny --set model.action_dim=4 --set 'model.cameras=[wrist]' --set 'data.action_dims=[0, 1, 2, 6]' \
    --set 'data.cameras={wrist: robot0_eye_in_hand_image}' --set train.ema_decay=0.98 "${small[@]}" "${narrow[@]}"
  below held_out_loss "$(held_out second last held_out_loss)" "$(held_out fresh last held_out_loss)"
fi
for words in "3 continues 6; not continued: 3, 4, 5" "cameras: wrist instead of front, wrist"; do
  grep -qF "$words" "$folder/second.log" || fail "the log does not say: $words"
done
if grep -qx "" "$folder/second.log"; then fail "the log has an empty line"; fi
jq -e 'keys == ["lift", "lift_wrist"]' "$folder/second/model/dataset_statistics.json" >/dev/null ||
  fail "the statistics are not those of both data sets"

# The predictions of both directories for a held-out frame.
frame=(data/demos/lift.hdf5 --episode demo_10 --frame 5)
"$build/data/hvla-data" frame "${frame[@]}" --camera robot0_eye_in_hand_image --out "$folder/wrist.png" >/dev/null
state=$("$build/data/hvla-data" frame "${frame[@]}" --json \
  --state-keys robot0_eef_pos,robot0_eef_quat,robot0_gripper_qpos | jq -r '.state | join(",")')
"$build/infer/hvla-infer" export --model "$folder/second/model" --out "$folder/exported" --dtype fp32 --verify
predict() {
  "$build/infer/hvla-infer" predict --model "$1" --image "wrist=$folder/wrist.png" --instruction "lift the cube" \
    --state="$state" --unnorm-key lift_wrist --seed 7 --json | jq -cS 'del(.timing_ms)'
}
trained=$(predict "$folder/second/model")
[[ $(jq '.action[0] | length' <<<"$trained") == 4 ]] || fail "no action of four dimensions: $trained"
[[ $trained == "$(predict "$folder/exported")" ]] || fail "the export predicts something else"
echo "both predict $trained"
