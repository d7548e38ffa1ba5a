#!/usr/bin/env bash
# rref-perf. Every operation runs over the device and prints what it must, and each line of JSON
# is valid. The counted figures are right; bad options are refused. No time is judged here.
#   perf.sh [BUILD_DIR]
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
. test/tools/check.sh
perf=${1:-build}/bin/rref-perf device=${RREF_TEST_DEVICE:-shm}
rows=$(mktemp) words=$(mktemp) dir=$(mktemp -d)
trap 'rm -rf "$rows" "$words" "$dir"' EXIT

field() { # KEY: prints the key's value in the last line
	tail -n 1 "$rows" | sed -n "s/.*\"$1\":\([^,}]*\).*/\1/p"
}
one() { # OPERATION OPTIONS...: runs the operation, and checks the fields of each size's line
	local op=$1 key
	shift
	"$perf" "$op" --device "$device" --json --seconds 0.2 --rounds 2 "$@" >"$rows" 2>"$words" ||
		{ cat "$words"; return 1; }
	for key in op device bytes iters p50_ns p99_ns p999_ns cpu_ns_per_op; do
		[ "$(grep -c "\"$key\":" "$rows")" -eq "$(wc -l <"$rows")" ] ||
			{ echo "no $key"; return 1; }
	done
	grep -q "\"op\":\"$op\",\"device\":\"${shown:-$device}\"" "$rows"
}
check "lat" one lat --sizes 8,4k
check "a line for each size" [ "$(wc -l <"$rows")" -eq 2 ]
check "the raw side is measured beside it" grep -q \
	'"raw_p50_ns":.*"raw_p99_ns":.*"ratio_p50":' "$rows"
check "one READ each" [ "$(field reads_per_op)" = 1 ]
check "bw" one bw --sizes 64k --window 4
check "rate" one rate --window 8
check "batch" one batch --batch 320
# One READ brings several adjacent values over a NIC.
[ "$device" != shm ] || check "each of a batch is a READ" [ "$(field reads_per_op)" = 1 ]
[ "$device" = shm ] || check "several of a batch with a READ" awk \
	"BEGIN {exit !($(field reads_per_op) <= 0.5)}"
[ "$device" = shm ] || check "READs of a batch share doorbells" awk \
	"BEGIN {exit !($(field doorbells_per_op) <= 0.125)}"
check "async" one async
check "it posts a READ each" [ "$(field reads_per_op)" = 1 ]
check "view" one view --sizes 64k,1m
check "threads" one threads
check "a line for each call and number of threads" [ "$(wc -l <"$rows")" -eq 8 ]
check "each way with each number" [ "$(sed -n \
	's/.*"way":"\([^"]*\)","threads":\([0-9]*\),.*/\1 \2/p' "$rows" | sort -u | wc -l)" -eq 8 ]
check "one thread reads as fast as one" [ "$(grep -c \
	'"threads":1,"of_one_thread":1,"of_one_thread_low":1,' "$rows")" -eq 2 ]
check "the threads of one value" one threads --same
for op in call+bulk read+bulk; do
	check "$op" one $op
	check "the tails are told beside those without" grep -q \
		'"raw_p999_ns":.*"ratio_p99":.*"ratio_p999":' "$rows"
done
check "call" one call
check "no READ in a call" [ "$(field reads_per_op)" = 0 ]
check "share" one share
check "create" one create
# These stay within one worker, so once is enough; idle over both would only be the same rest twice.
if [ "$device" = shm ]; then
	shown=memory
	check "alloc" one alloc --sizes 64,4k
	check "no registration in steady state" [ \
		"$(grep -c '"registrations":0[,}]' "$rows")" -eq 2 ]
	check "live" one live
	check "10^6 live references" grep -q '"op":"live".*"live":1000000,' "$rows"
	check "each takes at most 200 bytes" \
		awk -v b="$(sed -n 's/.*"bytes_per_reference":\([^,}]*\).*/\1/p' "$rows")" \
		'BEGIN {exit !(b > 100 && b <= 200)}'
	check "any of them, beside plain memory" [ \
		"$(grep -cE '"op":"(any|plain)"' "$rows")" -eq 2 ]
	shown=
	check "read+busy" one read+busy --freed 4m
	for key in frees calls sessions; do
		check "there were $key meanwhile" [ "$(field $key)" -gt 1 ]
	done
	check "idle" one idle
	check "an idle worker's share of a core is told" [ -n "$(field cpu_share)" ]
fi
"$perf" lat --device "$device" --sizes 8 --seconds 0.05 >"$rows"
check "a table" grep -q "^op  *over" "$rows"
check "with words about its columns" grep -q '^Times are of one operation.*p99' "$rows"
if command -v gnuplot >/dev/null; then
	"$perf" lat --device "$device" --sizes 8,64,512 --seconds 0.1 --plot "$dir/a.svg" >/dev/null
	check "a plot" grep -q '<svg' "$dir/a.svg"
	"$perf" lat --device "$device" --sizes 8 --plot "$dir/none/a.svg" >"$rows" 2>"$words"
	check "a plot that cannot be written is refused" grep -q \
		"$dir/none/a.svg: No such file" "$words"
	check "before anything is measured" [ ! -s "$rows" ]
fi
PATH=$dir "$perf" lat --device "$device" --sizes 8 --plot "$dir/b.svg" >"$rows" 2>"$words"
check "a plot without gnuplot is refused" grep -q 'gnuplot-nox' "$words"
check "without gnuplot nothing is measured" [ ! -s "$rows" ]
for bad in "nonsense" "lat --sizes 0" "lat --sizes x" "lat --rounds 0" "lat --window -1" \
	"lat --seconds no" "read+busy --freed 4m,8m" "lat --mode fast" "lat more" ""; do
	# shellcheck disable=SC2086
	"$perf" $bad >/dev/null 2>"$words" </dev/null
	check "'$bad' is refused" [ $? -eq 2 -a -s "$words" ]
done
"$perf" lat --device ibv:none0 --sizes 8 >/dev/null 2>"$words"
check "an unknown device fails, and is named" grep -q none0 "$words"

finish
