#!/usr/bin/env bash
# Draws the curves of a run from its metrics.jsonl: both losses, and the held-out action errors.
set -euo pipefail
export LC_ALL=C.UTF-8 # a point in numbers, whatever the user's language

usage() {
  cat <<'TEXT'
Usage: scripts/plot_curves.sh RUN [--out FILE.png] [--dims I,J,…]

Reads RUN/metrics.jsonl and writes RUN/curves.png (or FILE.png): the noise head's loss, the action tokens' loss, and
the mean absolute errors of held-out actions beside that of always predicting the mean action, over all action
dimensions or those of --dims (counted from 0).
TEXT
}

fail() {
  printf 'plot_curves: %s\n' "$*" >&2
  exit 2
}

run='' out='' dims=''
while (($#)); do
  case $1 in
    -h | --help) usage && exit 0 ;;
    --out | --dims)
      (($# > 1)) || fail "$1 needs a value"
      if [[ $1 == --out ]]; then out=$2; else dims=$2; fi
      shift
      ;;
    -*) fail "unknown option $1; see --help" ;;
    *)
      [[ -z $run ]] || fail "unexpected argument $1; see --help"
      run=$1
      ;;
  esac
  shift
done
[[ -n $run ]] || { usage >&2 && exit 2; }
[[ -z $dims || $dims =~ ^[0-9]+(,[0-9]+)*$ ]] || fail "--dims is $dims, not numbers from 0 on with commas between"
metrics=$run/metrics.jsonl
out=${out:-$run/curves.png}
[[ -r $metrics ]] || fail "cannot read $metrics: is $run the directory of a run?"
for program in jq gnuplot; do
  command -v $program >/dev/null || fail "$program is not installed (scripts/setup.sh installs it)"
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# step, both losses, and the running means of both over a tenth of the run.
jq -r '[.step, .loss_diffusion // "nan", .loss_ce // "nan"] | @tsv' "$metrics" |
  awk '{ step[NR] = $1; a[NR] = $2; b[NR] = $3 }
    END {
      half = int(NR / 20)
      for (i = 1; i <= NR; i++) {
        n = sum_a = sum_b = 0
        reach = half; if (reach > i - 1) reach = i - 1; if (reach > NR - i) reach = NR - i
        for (j = i - reach; j <= i + reach; j++) { n++; sum_a += a[j]; sum_b += b[j] }
        print step[i], a[i], b[i], sum_a / n, sum_b / n
      }
    }' >"$work/train"
jq -r --argjson dims "[$dims]" '
  def error_of(name): (.["error_" + name + "_dims"]) as $all
    | if $all == null then .["error_" + name] // "nan"
      elif $dims == [] then ($all | add / length)
      elif ($dims | max) >= ($all | length) then
        error("--dims names \($dims | max), actions have dimensions 0 to \($all | length - 1)")
      else ([$all[$dims[]]] | add / length) end;
  select(.held_out_loss != null)
  | [.step, .held_out_loss_diffusion // "nan", .held_out_loss_ce // "nan", error_of("diffusion"),
     error_of("autoregressive"), error_of("ensemble"), error_of("mean_action")] | @tsv' \
  "$metrics" >"$work/held_out" 2>"$work/messages" || fail "$(head -n 1 "$work/messages")"
[[ -s $work/train ]] || fail "$metrics holds no step yet"

# gnuplot runs in $work: its script names the files without their path, which may hold a quote.
# has COLUMN: whether a curve of the held-out split can be drawn.
has() { awk -v column="$1" '$column != "nan" { found = 1 } END { exit !found }' "$work/held_out"; }
# losses COLUMN COLOUR: the plot command of one loss, training with its running mean, held-out with points.
losses() {
  echo -n "plot 'train' using 1:$1 with lines lw 1 lc rgb '#99$2' title 'training', "
  echo -n "'train' using 1:$(($1 + 2)) with lines lw 2.5 lc rgb '#$2' title 'running mean'"
  if has "$1"; then
    echo -n ", 'held_out' using 1:$1 with linespoints lw 2 pt 7 ps 0.9 lc rgb '#222222' title 'held out'"
  fi
  echo
}
errors=()
add_error() {
  if has "$1"; then errors+=("'held_out' using 1:$1 with linespoints $2 title '$3'"); fi
}
add_error 7 "lw 2.5 lc rgb '#777777' dt 2 pt 0" 'always the mean action'
add_error 6 "lw 6 lc rgb '#9cc3f0' pt 0" 'ensemble'
add_error 4 "lw 2.5 lc rgb '#d9730d' pt 7 ps 0.9" 'diffusion'
add_error 5 "lw 2.5 lc rgb '#2b8a3e' pt 5 ps 0.9" 'autoregressive'
panels=2
if ((${#errors[@]})); then panels=3; fi

mkdir -p "$(dirname "$out")"
{
  cat <<GNUPLOT
set terminal pngcairo size $((panels * 520)),460 enhanced font 'DejaVu Sans,11' background rgb 'white'
set output 'curves.png'
set multiplot layout 1,$panels margins 0.045,0.985,0.13,0.9 spacing 0.055,0.1
set grid lc rgb '#cccccc' lw 1 dt 1
set border 3 lc rgb '#555555'
set tics nomirror
set xlabel 'step'
set xrange [0:*]
set yrange [0:*]
set key top right samplen 2 spacing 1.15
set title 'noise head: squared error of the noise'
$(losses 2 d9730d)
set title 'vocabulary head: cross-entropy of the action tokens'
$(losses 3 2b8a3e)
GNUPLOT
  if ((panels == 3)); then
    echo "set title 'held-out actions: mean absolute error${dims:+, dimensions $dims}'"
    echo "set key bottom left"
    echo "plot $(printf '%s, ' "${errors[@]}" | sed 's/, $//')"
  fi
  echo "unset multiplot"
} >"$work/plot"
(cd "$work" && gnuplot plot) 2>"$work/messages" || fail "gnuplot: $(tail -n 3 "$work/messages")"
mv "$work/curves.png" "$out"
echo "$out"
