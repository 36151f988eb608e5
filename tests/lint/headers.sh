#!/usr/bin/env bash
# headers.sh BUILD-DIRECTORY: every header compiles by itself, except those that say of which other header they are a
# part; the public one also as plain C99 and as C++.
set -euo pipefail
source tests/lint/common.sh
build=$1

# All include directories and definitions that any room is built with.
mapfile -t flags < <(grep -ohE -- '-(I|isystem )[^ "\\]+' "$build/compile_commands.json" |
  sort -u | sed 's/^-isystem /-isystem\n/; s/\\//g')
flags+=(-I. -D_GNU_SOURCE -march=x86-64-v3 -fopenmp -Wall -Wextra -Werror -fsyntax-only)
if [[ $(uname -m) != x86_64 ]]; then flags=("${flags[@]/-march=x86-64-v3/-O0}"); fi

failed=0 count=0
check() {
  count=$((count + 1))
  echo "#include \"$1\"" | "${@:2}" "${flags[@]}" - || {
    echo "$1 does not compile alone" >&2
    failed=$((failed + 1))
  }
}
while IFS= read -r header; do
  # A header that says it is a part of another one is compiled with that one.
  if grep -q 'Included by .* alone\.' "$header"; then continue; fi
  case $header in
    infer/hvla.h)
      check "$header" gcc -std=c99 -pedantic -x c
      check "$header" g++ -std=c++11 -pedantic -x c++
      ;;
    cuda/* | tests/cuda/*) # C++ unless a C source includes it
      if git grep -qF "#include \"$header\"" -- '*.c'; then
        check "$header" gcc -std=gnu17 -x c
      else
        check "$header" g++ -std=c++17 -x c++
      fi
      ;;
    *) check "$header" gcc -std=gnu17 -x c ;;
  esac
done < <(tracked '*.h')
((failed == 0)) || fail "$failed of $count checks failed"
echo "$count checks passed"
