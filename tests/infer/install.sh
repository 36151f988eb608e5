#!/usr/bin/env bash
# install.sh BUILD-DIRECTORY CC SANITIZERS: what `cmake --install` installs is enough to build and run a program with
# the library, shared and static; and the library depends on nothing and exports no symbol that it should not.
set -euo pipefail
build=$1 compiler=$2 sanitizers=$3
work=$(mktemp -d "${TMPDIR:-/tmp}/hvla-install-XXXXXX")
trap 'rm -rf "$work"' EXIT

fail() {
  echo "$*" >&2
  exit 1
}

if grep ' /' "$build/infer/archive.mri"; then fail "the build fails where the path of its folder has a space"; fi
cmake --install "$build" --prefix "$work/root" >"$work/install.log"
mv "$work/root" "$work/moved" # it must also work after it was moved
pc=$(find "$work/moved" -name hvla.pc)
lib=$(dirname "$(dirname "$pc")")
[[ -n $pc ]] || fail "hvla.pc is not installed"
PKG_CONFIG_PATH=$(dirname "$pc")
export PKG_CONFIG_PATH
export LD_LIBRARY_PATH=$lib
export OMP_NUM_THREADS=1

flags=(-std=c99 -Wall -Wextra -Werror)
[[ -z $sanitizers ]] || flags+=("-fsanitize=$sanitizers")
# pkg-config quotes its words for a shell: a prefix may have spaces.
cflags=() libs=() static=()
eval "cflags=($(pkg-config --cflags hvla)) libs=($(pkg-config --libs hvla))"
eval "static=($(pkg-config --static --libs-only-l hvla | sed 's/-lhvla//'))"
eval "static+=($(pkg-config --static --libs-only-other hvla))"
"$compiler" "${flags[@]}" "${cflags[@]}" -o "$work/shared" tests/infer/embed.c "${libs[@]}" \
  -Wl,-rpath,"$lib"
"$compiler" "${flags[@]}" "${cflags[@]}" -o "$work/static" tests/infer/embed.c -L"$lib" -l:libhvla.a "${static[@]}"

"$build/tests/infer/make_tiny_directory" "$work/model"
"$work/shared" "$work/model" >"$work/shared.txt"
"$work/static" "$work/model" >"$work/static.txt"
[[ $(wc -l <"$work/shared.txt") == 14 ]] || fail "14 numbers were expected, not: $(cat "$work/shared.txt")"
cmp "$work/shared.txt" "$work/static.txt"
# With the library's folder alone, as docs/inference.md has it, the library also finds the devices beside it. (Under
# sanitizers it is they that call dlopen, so the library's own path does not count.)
without=()
[[ -n $sanitizers ]] || without=(env -u LD_LIBRARY_PATH)
"${without[@]}" "$work/shared" "$work/model" emu >"$work/emu.txt" ||
  fail "a program of another folder opens no device"
[[ $(wc -l <"$work/emu.txt") == 14 ]] || fail "14 numbers were expected of emu, not: $(cat "$work/emu.txt")"
readelf -d "$work/shared" | grep -q 'NEEDED.*libhvla\.so\.' || fail "the shared program does not use libhvla.so"
if readelf -d "$work/static" | grep -q libhvla; then fail "the static program uses libhvla.so"; fi

wrong=$(nm -D --defined-only "$lib/libhvla.so" | awk '{print $3}' | grep -v '^hvla_' || true)
[[ -z $wrong ]] || fail "libhvla.so exports other symbols than hvla_*: $wrong"
heavy=$(ldd "$lib/libhvla.so" "$work/moved/bin/hvla-infer" | grep -iE 'hdf5|libmpi|libpython|libtorch' || true)
[[ -z $heavy ]] || fail "libhvla.so or hvla-infer depends on libraries that only training needs: $heavy"

"$work/moved/bin/hvla-infer" --version | grep -q '^hvla-infer [0-9]' || fail "hvla-infer does not start"
count=$(find "$work/moved/include" -type f | wc -l)
[[ $count == 1 ]] || fail "one header was expected, not $count"
echo "the installed library serves a program, shared and static"
