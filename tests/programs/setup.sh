#!/usr/bin/env bash
# scripts/setup.sh installs the packages that are missing, and calls no package manager if none is. Scripts take the
# place of the package manager.
set -euo pipefail
source tests/programs/stand_ins.sh

# For this dpkg-query, all packages but $MISSING are installed, for two architectures, as libraries can be.
stand_in dpkg-query << 'TEXT'
#!/usr/bin/env bash
[[ $3 != "$MISSING" ]] || exit 1
for _ in amd64 i386; do printf "${2#-f=}"; done | sed 's/${db:Status-Status}/installed/g'
TEXT
printf '#!/bin/sh\necho "$*" >> "$FOLDER/asked"\n' | stand_in apt-get
printf '#!/bin/sh\nexit 1\n' | stand_in apt-cache
printf '#!/bin/sh\nexec "$@"\n' | stand_in sudo

# setup MISSING ARGUMENT…: runs setup.sh while this package is missing.
setup() {
  local missing=$1
  shift
  rm -f "$folder/asked"
  MISSING=$missing bash scripts/setup.sh "$@" > "$folder/log" 2>&1
}

for argument in '' --tests; do
  setup none $argument || fail "setup.sh $argument: $(cat "$folder/log")"
  grep -qE '^setup: all [0-9]+ packages are installed$' "$folder/log" || fail "setup.sh $argument: $(cat "$folder/log")"
  [[ ! -e $folder/asked ]] || fail "setup.sh $argument: nothing is missing, but it called apt-get $(cat "$folder/asked")"
done
setup zlib1g-dev || fail "setup.sh: $(cat "$folder/log")"
asked_lines=$(grep -oE '(update|install) .*|update$' "$folder/asked" | tr '\n' ' ')
[[ $asked_lines == 'update install -y --no-install-recommends zlib1g-dev ' ]] || fail "it called apt-get $asked_lines"
setup libcmocka-dev || fail "setup.sh: $(cat "$folder/log")"
[[ ! -e $folder/asked ]] || fail "setup.sh without --tests called apt-get $(cat "$folder/asked")"

code=0
setup none --nonsense || code=$?
[[ $code == 2 ]] || fail "with an unknown option, setup.sh ends with $code, not 2"
echo "what is missing is installed, and nothing else"
