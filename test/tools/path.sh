#!/usr/bin/env bash
# The path of reads over shm, counted by callgrind while path_test reads 8 bytes 100,000 times. It
# reads one by one, as futures, as batches, and out of queues. Of rref_to_here the library's own
# instructions count, between the call and the device. Of a future all count, from the post to its
# end. Of a batch all count, by value. Of a queue the way in and out counts, also beside 10,000
# other futures. Of a look at a large value all count, and are the same at 64 KiB and 64 MiB. No
# allocation, lock or system call may run.
# Over fake devices the library's own instructions count, around the calls of the driver. These are
# of rref_to_here, of one future, and of each of 50 futures in flight.
#   path.sh [--json] [BUILD_DIR]        --json: the figures as one line, for perf/report.sh
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
. test/tools/check.sh
json=
[ "${1-}" = --json ] && { json=1; shift; }
program=${1:-build}/bin/proc/read/path_test calls=100000
most=140 most_async=420 most_batch=360 most_queue=175 most_look=720
fake=${1:-build}/bin/fake/path_test
most_ibv=430 most_ibv_async=1160 most_ibv_window=1040
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Collects these functions and their callees, and nothing else.
future='rref_to_here_async rref_future_wait rref_future_view rref_future_free'
# shellcheck disable=SC2046
valgrind --tool=callgrind --trace-children=yes \
	$(printf -- '--toggle-collect=%s ' rref_to_here rref_to_here_batch rref_view_free $future \
		rref_queue_add rref_queue_next rref_queue_take) \
	--callgrind-out-file="$work/out.%p" \
	"$program" >"$work/log" 2>&1 || { tail -n 20 "$work/log"; exit 1; }

# Each way has a worker of its own that reads. Makes $work/all and $work/own of the worker that
# called FUNCTION, and did not call OTHER.
look_at() { # FUNCTION [OTHER]
	annotate "$1" "$(grep -lE "$1$" "$work"/out.* | xargs grep -LE "${2:-rc_look_end}$" |
		head -n 1)"
}
annotate() { # FUNCTION OUT
	out=$2
	[ -n "$out" ] || { echo "no worker called $1"; cat "$work/log"; exit 1; }
	callgrind_annotate --inclusive=no --threshold=100 --show-percs=no "$out" >"$work/own" \
		2>/dev/null
	callgrind_annotate --inclusive=yes --threshold=100 --show-percs=no "$out" >"$work/all" \
		2>/dev/null
}
inclusive() { # FUNCTION: prints the instructions spent in the function and below
	grep -E ":$1( |\.| \[)" "$work/all" | head -n 1 | awk '{gsub(",", "", $1); print $1 + 0}'
}
# Only known functions may run. An allocation, a lock or a system call is found as a stranger by any
# name. A list of forbidden names would have to foresee it. A function with less than one
# instruction per read ran only for the first ones, which connect and get memory. (The progress lock
# is taken inline, but given back only by rc_unlock, a separate function.)
strangers() { # KNOWN: prints the functions that run besides
	awk -v calls="$calls" '
		{n = $1; gsub(",", "", n)}
		n + 0 >= calls && match($0, /:[A-Za-z_][A-Za-z0-9_.@'"'"']*/) {
			print substr($0, RSTART + 1, RLENGTH - 1)
		}' "$work/own" | sed "s/[.'@].*//" | grep -vE "^($1)\$" | sort -u
}
nothing_else() { # KNOWN
	local found

	found=$(strangers "$1")
	foreign=$((foreign + $(echo $found | wc -w)))
	check "nothing else runs: no malloc, no lock, no system call ($(echo $found))" \
		[ -z "$found" ]
}
foreign=0
copying='rvs_post_reads|read_value|read_one|find|landing_ok|copy|rc_read_fits|reader_of|pin|count'
copying+='|copy_value|other_landing|rc_kept_take|rref_view_free|__mem(cpy|move)_[a-z0-9_]*'
copying+='|mem(cpy|move)'

look_at rref_to_here
total=$(inclusive rref_to_here) device=$(inclusive rvs_post_reads)
check "$calls reads were counted" grep -qE "^calls=$calls " "$out"
own=$(((total - device) / calls))
echo "$calls reads: $((total / calls)) instructions each," \
	"$own of them before and after the device's READ"
check "at most $most instructions ($own)" [ "$own" -le "$most" ]
check "the device's READ was counted apart" [ "${device:-0}" -gt 0 ]
nothing_else "rref_to_here|rc_fast_read_copied|$copying"
check "the known functions were seen" grep -q rc_fast_read_copied "$work/own"

look_at rref_to_here_async 'rref_queue_(next|take)'
async=0
for function in $future; do
	async=$((async + $(inclusive "$function")))
done
async=$((async / calls))
echo "as futures: $async instructions each, to the end of the future"
check "at most $most_async instructions ($async)" [ "$async" -le "$most_async" ]
nothing_else "${future// /|}|rc_future_check|rc_fast_begin|rc_own_put|at_once_over|$copying"

look_at rref_to_here_batch
batch=$(($(inclusive rref_to_here_batch) / calls))
echo "as batches of 50: $batch instructions each"
check "at most $most_batch instructions ($batch)" [ "$batch" -le "$most_batch" ]
nothing_else "rref_to_here_batch|run_(scoped|batch)|(start|try|end)_read|rc_fast_many|$copying"

look_at rref_queue_next
queue=$((($(inclusive rref_queue_add) + $(inclusive rref_queue_next)) / calls))
echo "into a queue and out: $queue instructions each"
check "at most $most_queue instructions ($queue)" [ "$queue" -le "$most_queue" ]
queued='rref_queue_(add|next|take)|take_or_wait|take_ended|push_ended|leave_to_its_end'
nothing_else "$queued|${future// /|}|rc_future_check|rc_fast_begin|rc_own_put|at_once_over|$copying"
look_at rref_queue_take
full=$((($(inclusive rref_queue_add) + $(inclusive rref_queue_take)) / calls))
echo "of 10,000: $full instructions each"
check "a queue with 10,000 futures costs a fifth more at most ($full, $queue)" \
	[ "$full" -le $((queue * 6 / 5)) ]

looks=''
looking='rref_to_here|rref_view_free|rc_fast_read_copied|rc_kept_take|other_landing|new_landing'
looking+='|look_(or_read|at_large|marked|is_good|with|at|away)|rc_look_(take|put|end|mark)|put_view'
looking+='|rc_read_look|rvs_(find|span_put)|find_bytes|set_mark|may_look|header_is_good|rc_can_look'
looking+='|rc_view_put|rref_(dup|release)|rc_shape_check|fits_type|rc_type_find|rp_is_wrapped|pin'
looking+='|handle_give_back|(__)?pthread_setcancelstate|reader_of'
looking+='|mem(cpy|move)|__mem(cpy|move)_[a-z0-9_]*'
for nth in 1 2; do
	annotate "a look" "$(grep -lE 'rc_look_end$' "$work"/out.* | sort -V | sed -n "${nth}p")"
	look=$((($(inclusive rref_to_here) + $(inclusive rref_view_free)) / calls))
	echo "a look at a large value: $look instructions"
	check "at most $most_look instructions ($look)" [ "$look" -le "$most_look" ]
	nothing_else "$looking"
	looks="$looks $look"
done
check "a look at 64 MiB costs what one at 64 KiB costs ($looks )" \
	[ "$(printf '%s\n' $looks | sort -u | wc -l)" -eq 1 ]

# Counts a test over fake devices: prints the instructions of a read around the driver's calls.
over_fake() { # TEST FUNCTION...
	local test=$1
	shift
	# shellcheck disable=SC2046
	valgrind --tool=callgrind $(printf -- '--toggle-collect=%s ' "$@") \
		--callgrind-out-file="$work/$test.%p" "$fake" "$test" >"$work/log" 2>&1 ||
		tail -n 20 "$work/log" >&2
	perf/around.py "$1" "$work/$test".* | grep -oE '"instructions": [0-9]+' | cut -d ' ' -f 2
}
counted() { # WHAT COUNT MOST
	echo "over ibv, $1: $2 instructions each, around the driver's calls"
	check "over ibv, $1: at most $3 instructions ($2)" [ "${2:-$3$3}" -le "$3" ]
}
ibv=$(over_fake path__one_by_one rref_to_here)
counted "one by one" "$ibv" "$most_ibv"
# shellcheck disable=SC2086
ibv_async=$(over_fake path__as_a_future $future)
counted "as a future" "$ibv_async" "$most_ibv_async"
# shellcheck disable=SC2086
ibv_window=$(over_fake path__as_many_futures $future)
counted "as 50 futures" "$ibv_window" "$most_ibv_window"

[ -z "$json" ] || printf '{"op":"path","device":"shm","bytes":8,"instructions":%d,%s,%s}\n' \
	"$own" "\"with_device\":$((total / calls)),\"foreign\":$foreign" \
	"\"async\":$async,\"batch\":$batch,\"queue\":$queue,\"look\":$look,\"ibv\":$ibv" \
	",\"ibv_async\":$ibv_async,\"ibv_window\":$ibv_window"
finish
