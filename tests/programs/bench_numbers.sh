#!/usr/bin/env bash
# Scripts in scripts/bench read and write numbers with a decimal point, also in a locale with a decimal comma. Small
# scripts take the place of the programs.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

fail() {
  echo "$*" >&2
  exit 1
}

# The locale is compiled here, since few machines have one with a comma.
if ! localedef -i de_DE -f UTF-8 "$folder/de_DE.UTF-8" >/dev/null 2>&1; then
  echo "skipped: localedef cannot make a locale (package locales)"
  exit 77
fi
commas=(env LOCPATH="$folder" LC_ALL=de_DE.UTF-8)
[[ $("${commas[@]}" bash -c 'printf %.1f 1') == 1,0 ]] || fail "the locale has no comma"

export BUILD=$folder PYTHON=$folder/none
mkdir "$folder/train" "$folder/infer"
cat >"$folder/train/hvla-train" <<'TEXT'
#!/usr/bin/env bash
if [[ $1 == bench ]]; then
  echo '{"samples_per_s": 5.25}'
else # works in proportion to the steps: train.steps=N
  for ((i = 0; i < 2000 * ${9##*=}; i++)); do :; done
fi
TEXT
printf '#!/bin/sh\necho %s\n' "'{\"hz\": 12.5}'" >"$folder/infer/hvla-infer"
chmod +x "$folder/train/hvla-train" "$folder/infer/hvla-infer"

"${commas[@]}" scripts/bench/cpu_train.sh 1 >"$folder/said"
grep -q '^training.* 5\.250 ' "$folder/said" || fail "cpu_train.sh printed: $(cat "$folder/said")"
grep -q '^prediction.* 12\.500 ' "$folder/said" || fail "cpu_train.sh printed: $(cat "$folder/said")"
mkdir "$folder/tmp"
TMPDIR=$folder/tmp "${commas[@]}" scripts/bench/checkpoint_cost.sh 1 >"$folder/said"
grep -qE '^median +0\.0*[1-9]' "$folder/said" ||
  fail "checkpoint_cost.sh printed: $(cat "$folder/said")"
[[ -z $(ls "$folder/tmp") ]] || fail "checkpoint_cost.sh leaves $(ls "$folder/tmp")"
echo "numbers have a decimal point"
