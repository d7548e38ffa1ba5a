#!/usr/bin/env bash
# Checks the Spin models of docs/model/. Each planted mistake (MUTANT_*) must be found, for the
# right reason.
#   model.sh [--big] [--keep] [NAME ...]     NAME: a run of the table below, or its beginning
# --big: the larger runs of docs/model/BIG.txt instead (minutes, gigabytes). --keep: leaves
# build/model/NAME, with the checker (pan), and the steps to an error (steps.txt). Prints a line for
# each run: expected result, states stored, seconds, MB. Ends with `N passed, N failed`.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 2
big= keep=
while [ $# -gt 0 ]; do
	case $1 in
	--big) big=1; shift ;;
	--keep) keep=1; shift ;;
	-*) echo "model.sh: unknown option $1" >&2; exit 2 ;;
	*) break ;;
	esac
done
. docs/model/runs.sh

# Prints the reason why a search stopped, by the text of the
# assertion: the guarantees of docs/model/README.md.
verdict() { # OUT
	local text
	if ! grep -q 'State-vector' "$1" ||
		grep -qE 'out of memory|max search depth|VECTORSZ|error: max' "$1"; then
		echo broken
	elif grep -q 'errors: 0' "$1"; then
		echo ok
	elif grep -q 'acceptance cycle' "$1"; then
		echo cycle
	else
		text=$(grep -m 1 -E 'assertion violated|invalid end state' "$1" | tr -d ' ')
		case $text in
		*'assertionviolatedfaulty'*) echo S4 ;;
		*'slot==(f_id[(reading'*) echo S1 ;;
		*'held>>r_f'*'ost[f_id[r_f]]'*) echo S2 ;;
		*'slot==0)||(ost['*) echo S2 ;;
		*'held>>r_f'*'f_dest[r_f]==y'*) echo S3 ;;
		*'(ost[0]==0)&&(ost[1]==0)'*) echo END ;;
		*invalidendstate*) echo deadlock ;;
		*) echo "$text" | sed -n 's/.*assertionviolated(*\([a-z_0-9]*\).*/\1/p' ;;
		esac
	fi
}

build=build/model
mkdir -p $build
ticker=
trap '[ -n "$ticker" ] && kill "$ticker" 2>/dev/null' EXIT
passed=0 failed=0 total=0
run() { # NAME MODEL WANT SPIN-FLAGS CC-FLAGS PAN-FLAGS
	local name=$1 model=$2 want=$3 dir=$build/$1 got start states mb secs
	rm -rf "$dir" && mkdir -p "$dir" && cp docs/model/*.pml "$dir" || exit 2
	start=$(date +%s%N)
	while sleep 10 && kill -0 $$ 2>/dev/null; do
		echo "   ... $name, $((($(date +%s%N) - start) / 1000000000)) s"
	done &
	ticker=$!
	(
		cd "$dir" || exit 2
		spin -a $4 "$model.pml" >spin.txt 2>&1 || { cat spin.txt >&2; exit 2; }
		gcc -w ${5:--O2} -DMEMLIM=${MEMLIM:-3000} -o pan pan.c || exit 2
		./pan ${6:--m10000} >out.txt 2>&1
	)
	[ -f "$dir/$model.pml.trail" ] && (cd "$dir" && spin -t $4 "$model.pml" >steps.txt 2>&1)
	kill "$ticker" 2>/dev/null
	wait "$ticker" 2>/dev/null
	ticker=
	secs=$((($(date +%s%N) - start) / 100000000))
	got=$(verdict "$dir/out.txt" 2>/dev/null)
	states=$(sed -n 's/^ *\([0-9.e+]*\) states, stored.*/\1/p' "$dir/out.txt" 2>/dev/null)
	mb=$(sed -n 's/^ *\([0-9]*\).*total actual memory usage.*/\1/p' "$dir/out.txt" 2>/dev/null)
	total=$((total + $(printf '%.0f' "${states:-0}")))
	if [ "$got" = "$want" ]; then
		passed=$((passed + 1))
		printf 'ok     %-34s %-8s %12s states %4d.%d s %6s MB\n' "$name" "$got" \
			"${states:-?}" $((secs / 10)) $((secs % 10)) "${mb:-?}"
		[ -n "$keep" ] || rm -rf "$dir"
	else
		failed=$((failed + 1))
		printf 'FAILED %-34s wanted %s, found %s; the way there: %s\n' "$name" "$want" \
			"${got:-nothing}" "$dir/steps.txt"
		sed 's/^/    | /' "$dir/out.txt" 2>/dev/null | head -n 40
	fi
}

while IFS='|' read -r name model want flags cflags pan; do
	name=${name//[[:space:]]/} model=${model//[[:space:]]/} want=${want//[[:space:]]/}
	[ -z "$name" ] && continue
	if [ $# -gt 0 ]; then
		for n in "$@"; do [[ $name == "$n"* ]] && break; done
		[[ $name == "$n"* ]] || continue
	fi
	run "$name" "$model" "$want" "$flags" "$cflags" "$pan"
done < <(if [ -n "$big" ]; then big_runs; else runs; fi)
echo "$total states, $SECONDS s"
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
