#!/usr/bin/env bash
# Installs what the project needs from the distribution's packages: Debian 12 and 13, Ubuntu 24.04.
set -euo pipefail

packages=(
  gcc g++ cmake ninja-build pkg-config
  libopenblas-openmp-dev                # matrix products of the CPU device
  libhdf5-dev zlib1g-dev                # demonstrations
  libturbojpeg0-dev libspng-dev         # pictures
  libsentencepiece-dev libunistring-dev # text
  libyaml-dev libjansson-dev            # configurations, model directories
  libprotobuf-c-dev protobuf-c-compiler # TensorBoard's event files
  libzip-dev                            # exports for PyTorch
  libxxhash-dev                         # checksums of checkpoints
  gnuplot-nox jq                        # the quick start's picture and table
)
packages_of_tests=(
  git libcmocka-dev
  libopenmpi-dev openmpi-bin # training with several ranks
)
# Lints. Other versions judge differently, so these tests are skipped if a distribution does not have version 14.
packages_of_lints=(clang-format-14 clang-tidy-14 libomp-14-dev)

usage() {
  cat <<'TEXT'
Usage: scripts/setup.sh [--tests] [--python]

Installs the packages that building and the quick start need (Debian 12 and 13, Ubuntu 24.04); with --tests also
those of the tests. Packages that are there already are left alone; nothing else is changed.
--python makes .venv-fixtures in the source tree, with the Python packages that some tests compare with (PyTorch,
TensorBoard, …: some GB); without it those tests are skipped.
TEXT
}

fail() {
  printf 'setup: %s\n' "$*" >&2
  exit 2
}

python=false lints=()
for argument in "$@"; do
  case $argument in
    --tests)
      packages+=("${packages_of_tests[@]}")
      lints=("${packages_of_lints[@]}")
      ;;
    --python)
      python=true
      packages+=(python3-venv)
      ;;
    -h | --help) usage && exit 0 ;;
    *) fail "unknown option '$argument'; see scripts/setup.sh --help" ;;
  esac
done

if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
  fail "this script needs apt (Debian 12 and 13, Ubuntu 24.04); elsewhere install the equivalents of: ${packages[*]}"
fi

# What the tests compare with; nothing of it is needed to run the programs.
install_python_packages() {
  local root requirements=scripts/fixtures/requirements.txt
  root=$(dirname "${BASH_SOURCE[0]}")/..
  CDPATH='' cd "$root"
  if cmp -s "$requirements" .venv-fixtures/installed.txt; then
    echo "setup: .venv-fixtures is up to date"
    return
  fi
  echo "setup: installing Python packages into .venv-fixtures"
  python3 -m venv .venv-fixtures
  .venv-fixtures/bin/pip install --quiet --disable-pip-version-check -r "$requirements" ||
    fail "pip failed; is there a network connection?"
  cp "$requirements" .venv-fixtures/installed.txt
}

# not_installed PACKAGE…: those that are not, one a line.
not_installed() {
  local package states
  for package in "$@"; do
    # A line for each architecture that the package is there for.
    states=$(dpkg-query -W -f='${db:Status-Status}\n' "$package" 2>/dev/null || true)
    if ! grep -qx installed <<<"$states"; then echo "$package"; fi
  done
}

# offered PACKAGE…: those that apt's lists know, one a line.
offered() {
  local package
  for package in "$@"; do
    if apt-cache show "$package" >/dev/null 2>&1; then echo "$package"; fi
  done
}

# run_apt_get HINT ARGUMENT…: quiet on success; on failure prints the end of its output, and HINT.
run_apt_get() {
  local hint=$1 as_root=()
  shift
  if ((EUID != 0)); then
    command -v sudo >/dev/null || fail "not root and no sudo; ask an administrator to install: ${missing[*]}"
    as_root=(sudo)
  fi
  if ! "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 "$@" \
    </dev/null >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    fail "apt-get $1 failed; $hint"
  fi
}

log=$(mktemp)
trap 'rm -f "$log"' EXIT

mapfile -t missing < <(not_installed "${packages[@]}")
mapfile -t missing_lints < <(not_installed "${lints[@]}")
if ((${#missing[@]} == 0)) && [[ -z $(offered "${missing_lints[@]}") ]]; then
  echo "setup: all ${#packages[@]} packages are installed"
else
  run_apt_get "is there a network connection, and may this user use sudo?" update
  mapfile -t offered_lints < <(offered "${missing_lints[@]}") # a fresh system knows only now
  missing+=("${offered_lints[@]}")
  echo "setup: installing ${missing[*]}"
  run_apt_get "the packages' names are those of Debian 12 and 13 and Ubuntu 24.04" \
    install -y --no-install-recommends "${missing[@]}"
  echo "setup: ${#missing[@]} packages installed"
fi
mapfile -t missing_lints < <(not_installed "${lints[@]}")
if ((${#missing_lints[@]} > 0)); then
  echo "setup: apt knows no ${missing_lints[*]} here; the lint tests that need them are skipped"
fi
if $python; then install_python_packages; fi
