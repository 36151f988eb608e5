# Sourced by the tests of scripts that start ranks: a folder with stand-ins for others' commands, which are found before
# those. A stand-in writes what it is asked for to $FOLDER/asked.
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

# stand_in NAME: a command of this name is the script on standard input.
stand_in() {
  cat > "$folder/bin/$1"
  chmod +x "$folder/bin/$1"
}

# asked WORDS: what a stand-in was last asked for holds them, between words; asked_not: it does not.
asked() {
  [[ " $(cat "$folder/asked") " == *" $1 "* ]] || fail "nobody was asked for '$1': $(cat "$folder/asked")"
}
asked_not() {
  [[ " $(cat "$folder/asked") " != *" $1 "* ]] || fail "somebody was asked for '$1': $(cat "$folder/asked")"
}
