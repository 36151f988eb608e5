#!/usr/bin/env bash
# scripts/setup.sh installs what is missing and asks for nothing where all is there; with stand-ins for the package
# manager.
set -euo pipefail
source tests/programs/stand_ins.sh

# dpkg-query: all packages but $MISSING are installed, for two architectures, as libraries can be.
stand_in dpkg-query << 'TEXT'
#!/usr/bin/env bash
[[ $3 != "$MISSING" ]] || exit 1
for _ in amd64 i386; do printf "${2#-f=}"; done | sed 's/${db:Status-Status}/installed/g'
TEXT
printf '#!/bin/sh\necho "$*" >> "$FOLDER/asked"\n' | stand_in apt-get
printf '#!/bin/sh\nexit 1\n' | stand_in apt-cache
printf '#!/bin/sh\nexec "$@"\n' | stand_in sudo

# setup MISSING ARGUMENT…: says what it says where this package is missing.
setup() {
  local missing=$1
  shift
  rm -f "$folder/asked"
  MISSING=$missing bash scripts/setup.sh "$@" > "$folder/log" 2>&1
}

for argument in '' --tests; do
  setup none $argument || fail "setup.sh $argument: $(cat "$folder/log")"
  grep -qE '^setup: all [0-9]+ packages are installed$' "$folder/log" || fail "setup.sh $argument: $(cat "$folder/log")"
  [[ ! -e $folder/asked ]] || fail "setup.sh $argument, nothing missing: it asked for $(cat "$folder/asked")"
done
setup zlib1g-dev || fail "setup.sh: $(cat "$folder/log")"
asked_lines=$(grep -oE '(update|install) .*|update$' "$folder/asked" | tr '\n' ' ')
[[ $asked_lines == 'update install -y --no-install-recommends zlib1g-dev ' ]] || fail "it asked for $asked_lines"
setup libcmocka-dev || fail "setup.sh: $(cat "$folder/log")"
[[ ! -e $folder/asked ]] || fail "setup.sh without --tests asked for $(cat "$folder/asked")"

code=0
setup none --nonsense || code=$?
[[ $code == 2 ]] || fail "an unknown option ends it with $code"
echo "what is missing is installed, and nothing else"
