#!/bin/sh
# device_code.sh CUOBJDUMP MODULE: checks the machine code that nvcc made of the kernels, which the emulator cannot see.
# A kernel that may begin before earlier launches are over must not access device memory except by asynchronous copies
# until it waits for them (ACQBULK). And no kernel may spill registers to memory, except the sinusoid's, where a
# function that reduces angles in double does. Skipped (77) without cuobjdump.
set -eu

tool=$1 module=$2
if [ ! -x "$tool" ]; then
  echo "skipped: cuobjdump is not installed"
  exit 77
fi
listing=$(mktemp)
trap 'rm -f "$listing"' EXIT

"$tool" -sass "$module" >"$listing"
awk '
  /code for sm_/ { arch = substr($3, 4) + 0 }
  /Function : / { kernel = $3; kernels++; waits = 0; touched = "" }
  /^[ \t]+\/\*[0-9a-f]+\*\/ / {
    operation = $2 ~ /^@/ ? $3 : $2
    sub(/[.;].*/, "", operation)
    if (operation ~ /^(LD|ST|LDG|STG|ATOM|ATOMG|RED)$/ && !waits && touched == "") touched = operation
    if (operation != "ACQBULK" || waits++) next
    waiting++
    if (touched == "") next
    print kernel " for " arch ": " touched " before it waits for earlier launches"
    failed = 1
  }
  END {
    if (kernels == 0) print "the module contains no kernel"
    if (arch >= 90 && waiting == 0) print "no kernel waits for earlier launches"
    exit failed || kernels == 0 || (arch >= 90 && waiting == 0)
  }' "$listing"

"$tool" --dump-resource-usage "$module" >"$listing" 2>/dev/null
awk '
  /Function / { kernel = $2 }
  / REG:[0-9]+ / {
    kernels++
    if ($0 ~ / STACK:0 / || kernel ~ /sinusoid_kernel/) next
    print kernel " spills registers to memory: " $0
    failed = 1
  }
  END { exit failed || kernels == 0 }' "$listing"
