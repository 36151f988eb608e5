#!/usr/bin/env bash
# The sources of a room include only what the arrows between rooms allow, which docs/architecture.md draws.
set -euo pipefail
source tests/lint/common.sh

declare -A may_include=(
  [core/base]=""
  [core/tensor]="core/base"
  [core/cpu]="core/base core/tensor"
  [core/nn]="core/base core/tensor"
  [core/hybridvla]="core/base core/tensor core/nn"
  [core/image]="core/base core/hybridvla"
  [core/text]="core/base core/hybridvla"
  [core/io]="core/base core/tensor core/nn core/hybridvla"
  [cuda]="core/base core/tensor"
  [data]="core/base core/tensor core/hybridvla core/image core/text core/io"
  [train]="core/base core/tensor core/nn core/hybridvla core/image core/text core/io data"
  [infer]="core/base core/tensor core/nn core/hybridvla core/image core/text core/io"
)
# The header that opens the CPU device may only be included by one file of each program.
names_a_device="train/device.c infer/device.c"

room_of() {
  if [[ $1 == core/* ]]; then cut -d/ -f1-2 <<<"$1"; else cut -d/ -f1 <<<"$1"; fi
}

wrong=0 count=0
while IFS=: read -r file line text; do
  [[ $file == tests/* || $file == scripts/* ]] && continue
  included=${text#*\"}
  included=${included%%\"*}
  from=$(room_of "$file")
  to=$(room_of "$included")
  count=$((count + 1))
  if [[ -z ${may_include[$from]+known} ]]; then
    echo "$file: the room $from is unknown; add it to tests/lint/includes.sh and docs/architecture.md" >&2
    wrong=$((wrong + 1))
  elif [[ $from != "$to" && " ${may_include[$from]} " != *" $to "* ]]; then
    if [[ $included == core/cpu/cpu.h && " $names_a_device " == *" $file "* ]]; then continue; fi
    echo "$file:$line: the room $from may not include $included (it may include: ${may_include[$from]:-nothing})" >&2
    wrong=$((wrong + 1))
  fi
done < <(tracked_sources | xargs grep -nE '^ *# *include "')
((wrong == 0)) || fail "$wrong of $count includes cross a wall"
((count > 0)) || fail "no includes were found: this test is broken"
echo "$count includes keep to the arrows"
