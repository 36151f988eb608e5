#!/usr/bin/env bash
# Installs what the project needs from the distribution's packages: Debian 12 and Ubuntu 24.04.
set -euo pipefail

packages=(
  gcc g++ cmake ninja-build pkg-config
  libopenblas-openmp-dev                # matrix products of the CPU device
  libhdf5-dev zlib1g-dev                # demonstrations
  libturbojpeg0-dev libspng-dev         # pictures
  libsentencepiece-dev libunistring-dev # text
  libyaml-dev libjansson-dev            # configurations, model directories
  gnuplot-nox jq                        # the quick start's picture and table
)
packages_of_tests=(
  git libcmocka-dev
  libopenmpi-dev openmpi-bin                  # training with several ranks
  clang-format-14 clang-tidy-14 libomp-14-dev # how the code is written; other versions judge differently
)

usage() {
  cat <<'TEXT'
Usage: scripts/setup.sh [--tests]

Installs the packages that building and the quick start need (Debian 12, Ubuntu 24.04); with --tests also
those of the tests. Packages that are there already are left alone; nothing else is changed.
TEXT
}

fail() {
  printf 'setup: %s\n' "$*" >&2
  exit 2
}

for argument in "$@"; do
  case $argument in
    --tests) packages+=("${packages_of_tests[@]}") ;;
    -h | --help) usage && exit 0 ;;
    *) fail "unknown option '$argument'; see scripts/setup.sh --help" ;;
  esac
done

if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
  fail "this script knows apt (Debian 12, Ubuntu 24.04); elsewhere install the equivalents of: ${packages[*]}"
fi

missing=()
for package in "${packages[@]}"; do
  state=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
  if [[ $state != installed ]]; then missing+=("$package"); fi
done
if ((${#missing[@]} == 0)); then
  echo "setup: all ${#packages[@]} packages are installed"
  exit 0
fi

as_root=()
if ((EUID != 0)); then
  command -v sudo >/dev/null || fail "not root and no sudo; ask an administrator to install: ${missing[*]}"
  as_root=(sudo)
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT

# run_apt_get HINT ARGUMENT…: quiet when all goes well; the end of its output, and HINT, when not.
run_apt_get() {
  local hint=$1
  shift
  if ! "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 "$@" \
    </dev/null >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    fail "apt-get $1 failed; $hint"
  fi
}

echo "setup: installing ${missing[*]}"
run_apt_get "is the network there, and may this user use sudo?" update
run_apt_get "the packages' names are those of Debian 12 and Ubuntu 24.04" install -y --no-install-recommends "${missing[@]}"
echo "setup: ${#missing[@]} packages installed, $((${#packages[@]} - ${#missing[@]})) were there"
