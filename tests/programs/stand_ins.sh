# Sourced by the tests of scripts that start ranks: makes a folder for scripts that take the place of other commands,
# and puts it first in PATH. Such a script writes its arguments to $FOLDER/asked.
# shellcheck shell=bash
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/bin"
export FOLDER=$folder PATH="$folder/bin:$PATH"
unset OMP_NUM_THREADS

fail() {
  echo "$*" >&2
  exit 1
}

# stand_in NAME: the script on standard input becomes the command of this name.
stand_in() {
  cat > "$folder/bin/$1"
  chmod +x "$folder/bin/$1"
}

# asked WORDS: fails unless the last arguments contain these whole words; asked_not: fails if they do.
asked() {
  [[ " $(cat "$folder/asked") " == *" $1 "* ]] || fail "nobody was asked for '$1': $(cat "$folder/asked")"
}
asked_not() {
  [[ " $(cat "$folder/asked") " != *" $1 "* ]] || fail "somebody was asked for '$1': $(cat "$folder/asked")"
}
