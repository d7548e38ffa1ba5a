#!/usr/bin/env bash
# Measures everything in the same minutes and writes docs/PERF.md and its plots; some ten minutes.
# All is made in build/perf/new, and replaces the last report once it is whole. A part that cannot
# be measured is told here and in the report, with the reason.
#   report.sh [--quick] [--again | --roce]
#     --again   only written again, from the last results
#     --roce    that part measured anew
#     --quick   short runs, to try all this; the report goes to build/perf/quick
#
# Parts that need both processors take a prefix on a machine with other work. They are call, create,
# and UCX:
#   RREF_PERF_PREFIX="chrt -f 10" report.sh
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
quick=
[ "${1-}" = --quick ] && { quick=1; shift; }
work=build/perf${quick:+/quick} prefix=${RREF_PERF_PREFIX-} begun=$SECONDS
new=$work/new perf=build/bin/rref-perf
parts=(shm peers idle path fake roce counted)
short() { [ -n "$quick" ] && echo "$1" || echo "$2"; }
say() { echo "== $1 ($((SECONDS - begun)) s)"; }
load() { cut -d ' ' -f 1 /proc/loadavg; }
failure() { # NAME WHAT WHY: notes it for the report
	echo "report.sh: $1: $2: $3" >&2
	printf '%s\t%s\t%s\n' "$1" "$2" "$3" >>"$new/failed"
}
part() { # NAME SECONDS COMMAND...: its JSON lines to $new/NAME.jsonl
	local name=$1 limit=$2 status words
	shift 2
	{
		{
			timeout --kill-after=10 "$limit" "$@" </dev/null 2>&1 1>&3
			echo $? >"$new/status"
		} | tee "$new/words" >&2
	} 3>&1 | tee -a "$new/$name.jsonl"
	status=$(cat "$new/status")
	[ "$status" -ne 0 ] || return 0
	words=$(grep -aE '^[a-z_.-]+: ' "$new/words" | tail -n 3 | tr '\t\n' '  ')
	[ "$status" -ne 124 ] || words="not over after $limit s${words:+; $words}"
	failure "$name" "$*" "${words:-status $status}"
}
shm() { # TIMES SECONDS OPERATION [OPTIONS...]
	local times seconds i
	times=$(short 1 "$1") seconds=$(short 0.2 "$2")
	shift 2
	for ((i = 0; i < times; i++)); do
		# shellcheck disable=SC2086
		part shm 120 $before_each "$perf" "$@" --json --seconds "$seconds"
	done
}
over_shm() {
	say "over shared memory"
	# The places of a process's pages make ten percent of a large copy. Other guests of the
	# machine make as much of a share or a creation, for seconds. So there are three runs, and
	# the report takes the middle one.
	before_each=
	shm 3 1 lat
	shm 3 0.5 bw
	shm 1 2 rate --window 64
	shm 3 1 batch
	shm 3 1 async
	shm 1 1 view
	shm 3 1 share
	shm 1 2 alloc
	shm 1 2 live
	shm 1 12 threads
	shm 1 4 call+bulk
	shm 1 4 read+bulk
	shm 1 10 read+busy
	before_each=$prefix
	shm 1 1 call
	shm 3 1 create
}
roce() {
	rm -f "$new/roce.jsonl" "$new/counted.jsonl"
	say "over RoCE"
	RREF_VM_TIMEOUT=600 part roce 700 test/tools/on-roce.sh perf/roce.sh "$(short 0.3 3)"
	say "over SoftRoCE, counted"
	test/tools/deps.sh roce && test/vm/prepare.sh ||
		failure counted test/vm/prepare.sh "there is no guest"
	part counted 200 test/vm/run.sh --icount 2 --timeout 190 -- perf/counted.sh
}
measure() {
	local before
	before=$(load)
	over_shm
	say "peers"
	part peers 300 perf/peers/run.sh "$(short 0.1 1)"
	say "idle"
	part idle 60 "$perf" idle --json --seconds "$(short 1 10)"
	say "the path of a read"
	part path 240 test/tools/path.sh --json
	say "over fake devices"
	part fake 60 build/bin/rref-fake --json threads 1 "$(short 1 5)"
	part fake 60 build/bin/rref-fake --json threads 7 "$(short 1 5)"
	part fake 120 build/bin/rref-fake --json busy "$(short 1 10)"
	roce
	echo "$before to $(load)${prefix:+; call, create and UCX by \`$prefix\`, before it}" \
		>"$new/load"
}
# Puts the files of one folder in the place of those of another.
replace() { # FROM TO NAME...
	local from=$1 to=$2 name
	shift 2
	for name in "$@"; do
		rm -rf "${to:?}/$name"
		[ ! -e "$from/$name" ] || mv "$from/$name" "$to/$name"
	done
}

rm -rf "$new"
mkdir -p "$new/perf"
results=("${parts[@]/%/.jsonl}" load failed)
case ${1-} in
--again | --roce)
	for name in "${results[@]}"; do
		[ ! -e "$work/$name" ] || cp "$work/$name" "$new/$name"
	done
	;;
esac
case ${1-} in
--again) ;;
--roce)
	sed -i '/^\(roce\|counted\)\t/d' "$new/failed" 2>/dev/null
	roce
	;;
*) measure ;;
esac
say "the report"
/usr/bin/python3 perf/report.py "$new" "$new/perf" >"$new/PERF.md" || {
	echo "report.sh: no report could be made; docs/PERF.md is the old one" >&2
	exit 1
}
replace "$new" "$work" "${results[@]}"
if [ -n "$quick" ]; then
	replace "$new" "$work" PERF.md perf
else
	mkdir -p docs/perf
	replace "$new/perf" docs/perf lat-shm.svg lat-roce.svg
	mv "$new/PERF.md" docs/PERF.md
fi
say "$(short "$work/PERF.md" docs/PERF.md) is written"
