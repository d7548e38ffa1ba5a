#!/usr/bin/env bash
# perf/report.sh and report.py with peers that print nonsense, nothing, or half a line, that fail or
# stand still. The report says so and is whole. The last report stays until then.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
. test/tools/check.sh
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
said=$tmp/said show_last=20
tree=$tmp/tree
mkdir -p "$tree"/{perf/peers,test/tools,test/vm,build/bin,docs/perf}
cp perf/report.sh perf/report.py perf/targets.py perf/measures.md "$tree/perf"

# Makes a program of the small tree. It prints NAME.says and NAME.words, if they are there. Its
# status is in NAME.status. It stands still while NAME.wait is there.
stub() { # PATH NAME
	cat >"$tree/$1" <<END
#!/usr/bin/env bash
for ((i = 0; i < 200; i++)); do [ -e "$tmp/$2.wait" ] && sleep 0.1 || break; done
[ ! -e "$tmp/$2.says" ] || cat "$tmp/$2.says"
[ ! -e "$tmp/$2.words" ] || cat "$tmp/$2.words" >&2
exit \$(cat "$tmp/$2.status" 2>/dev/null || echo 0)
END
	chmod +x "$tree/$1"
}
stub perf/peers/run.sh peers
stub test/tools/path.sh path
stub test/tools/deps.sh deps
stub test/tools/on-roce.sh roce
stub test/vm/prepare.sh prepare
stub test/vm/run.sh counted
stub build/bin/rref-perf perf
stub build/bin/rref-fake fake
report() { (cd "$tree" && timeout 60 perf/report.sh "$@") >"$said" 2>&1; }
page=$tree/docs/PERF.md
fails_with() { # WORDS COMMAND...
	local words=$1
	shift
	! "$@" && says "$words"
}
row() { grep -F "| $1" "$page"; }  # WHAT: prints the row that begins so
rows_say() { row "$1" | grep -qE -- "$2"; }
old() { # the files of an older report
	echo "an old report" >"$page"
	for name in lat-shm.svg lat-roce.svg beside.txt; do
		echo "old $name" >"$tree/docs/perf/$name"
	done
}
untouched() { # what old made is there
	grep -qx "an old report" "$page" && kept lat-shm.svg && kept lat-roce.svg && kept beside.txt
}
kept() { grep -qx "old $1" "$tree/docs/perf/$1"; }
whole() { grep -q '^# Speed' "$page" && grep -q '^## What each measure brought' "$page"; }
not_in_page() { ! grep -qE "$1" "$page"; }

# Prints a JSON line: KEY=NUMBER or KEY=:TEXT of each word.
line() {
	local word sep='{'
	for word in "$@"; do
		case $word in
		*=:*) printf '%s"%s":"%s"' "$sep" "${word%%=*}" "${word#*=:}" ;;
		*) printf '%s"%s":%s' "$sep" "${word%%=*}" "${word#*=}" ;;
		esac
		sep=,
	done
	echo '}'
}
{
	line op=:lat bytes=8 raw=:memcpy p50_ns=30 raw_p50_ns=3 ratio_p50=10 ops_per_s=3e7
	line op=:lat bytes=65536 raw=:memcpy p50_ns=2000 ratio_p50=1.01 ops_per_s=5e5
	line op=:batch bytes=64 "raw=:one by one" p50_ns=230 ratio_p50=7.5 ops_per_s=4e6
	line op=:threads way=:to_here threads=2 of_one_thread=1.95 ops_per_s=6e7
	line op=:read+busy p50_ns=50 ratio_p99=1.1 ratio_p999=1.5 frees=3 ops_per_s=6e7
} >"$tmp/perf.says"
{
	line op=:pair peer=:ucx what=:rate ours_ns=27 peer_ns=18
	line op=:lat peer=:ucx bytes=8 p50_ns=38
} >"$tmp/peers.says"
line op=:path instructions=152 foreign=0 ibv=340 >"$tmp/path.says"
{
	line op=:threads "way=:one value" threads=8 of_two_threads=0.97 ops_per_s=4e6
	line op=:read+busy ratio_p99=1.1 ratio_p999=1.7 p50_ns=300 ops_per_s=3e6
} >"$tmp/fake.says"
{
	line op=:threads way=:to_here threads=2 of_one_thread=0.9 raw_of_one_thread=1.2
	line op=:threads way=:to_here threads=8 of_two_threads=0.9
} >"$tmp/roce.says"

# ---- all is well
old
check "a report is made" report
check "it is whole" whole
check "another command's output stays" kept beside.txt
batch="shm: batch of 1,000 of 64 B" async='shm: `to_here_async`'
check "a figure within its bound is met" \
	rows_say "shm: to_here / memcpy from the segment, p50, 64 KiB" '1\.01 \| met \|$'
check "a figure beyond it is missed" rows_say "$batch" '\| 8\.7 \|.* 7\.5 \| \*\*missed'
check "a pair's ratio" rows_say "$async" '\| 7\.7 \| at most 1\.5 \| 1\.5 \| met'
check "at least so much" rows_say "2 threads / 1 thread, 8 B: shm, synchronous" '1\.95 \| met'
check "a bound that was measured" rows_say "2 threads / 1 thread, 8 B: ibv" \
	'at least 1\.08 \| 0\.9 \| \*\*missed'
check "another bound" rows_say "8 threads on two cores / 2 threads, 8 B: ibv" '0\.95 \| 0\.9 \|'
check "a tail" rows_say "shm: p99.9 of 8 B reads" '1\.5 \| met'
check "a tail over fake devices" rows_say "fake devices: p99.9 of 8 B reads" '1\.7 \| met'
check "threads over fake devices" rows_say "8 threads / 2 threads, 8 B: fake devices, one value" \
	'0\.97 \| met'
check "instructions over fake devices" rows_say 'instructions of `to_here` 8 B over ibv (fake' \
	'340 \| met'
check "no line, no figure" rows_say "shm: view of 16 MiB" 'not measured: no such line'
check "the results are kept, for --again" grep -q '"op":"pair"' "$tree/build/perf/peers.jsonl"
rm "$page"
check "written again" report --again
check "it is the same report" rows_say "$batch" '7\.5 \| \*\*missed'

# ---- peers that say nonsense
nonsense() { # NAME LINE WHAT: a line of the peers, and what the report says of it
	old
	echo "$2" >"$tmp/peers.says"
	check "$1: a report is made" report
	check "$1: it is whole" whole
	check "$1: no traceback" not says Traceback
	check "$1: the row tells why" rows_say "$async" "not measured: .*$3"
	check "$1: other rows stand" rows_say "$batch" '7\.5 \| \*\*missed'
}
pair='{"op":"pair","what":"rate","ours_ns":27,"peer_ns":'
nonsense "inf" "${pair}inf}" 'no JSON'
nonsense "Infinity" "${pair}Infinity}" 'peer_ns is inf'
nonsense "nan" "${pair}NaN}" 'peer_ns is nan'
nonsense "a text" "$pair\"fast\"}" 'peer_ns is fast'
nonsense "zero" "${pair}0}" 'no such line|zero'
nonsense "half a line" "$pair" 'no JSON'
nonsense "a row in a row" "$pair[1]}" 'peer_ns is'
nonsense "another key" '{"op":"pair","what":"rate"}' 'no such line'
nonsense "no row" "hello" 'no such line'
nonsense "a bar" "{\"op\": a|b" 'no JSON'

old
for _ in {1..5}; do echo "${pair}inf}"; done >"$tmp/peers.says"
check "five lines of nonsense" report
check "are told as three and a number" [ "$(grep -c '^  - peers: ' "$page")" -eq 4 ]

# ---- the script of the peers, with a UCX that says nonsense or nothing
script=$tree/perf/peers/again
cp perf/peers/run.sh "$script"
cat >"$tree/ucx_perftest" <<END
#!/usr/bin/env bash
[ \$1 = -p ] || cat "$tmp/ucx.says"
END
chmod +x "$tree/ucx_perftest"
ucx() { # SAYS: what UCX prints
	echo "$1" >"$tmp/ucx.says"
	(cd "$tree" && PATH=$tree:$PATH timeout 60 "$script" 0.1 ucx) >"$tmp/json" 2>"$said"
}
check "a UCX that is well" ucx 'Final: 1000 0.038 0.040 0.040 1 1 1 1'
check "its median is taken" grep -q '"bytes":8,"iters":1000,"p50_ns":38.0}$' "$tmp/json"
check "so are pairs with it" grep -q '"what":"lat","ours_ns":30,"peer_ns":38.0}$' "$tmp/json"
check "means, with several outstanding" grep -qE \
	'"what":"rate","ours_ns":33.3[0-9]*,"peer_ns":40.0}$' "$tmp/json"
check "a UCX that says inf" fails_with 'run.sh: ucx_perftest ucp_get of 8 bytes said: .*inf' \
	ucx 'Final: 1000 inf inf inf 1 1 1 1'
check "prints no line of it" [ ! -s "$tmp/json" ]
check "a UCX that says zero" fails_with 'said: Final: 1000 0' ucx 'Final: 1000 0 0 0 0 0 0 0'
check "prints no line of it" [ ! -s "$tmp/json" ]
check "a UCX that says nothing" fails_with 'ucp_get of 8 bytes said nothing' ucx ''
check "prints no line of it" [ ! -s "$tmp/json" ]

# ---- peers that say nothing, fail, or stand still
rm "$tmp/peers.says"
echo "run.sh: ucx_perftest ucp_get of 8 bytes said nothing: no | route" >"$tmp/peers.words"
echo 1 >"$tmp/peers.status"
old
check "a silent peer: a report is made" report
check "it is told at once" says '^report.sh: peers: .*said nothing'
check "and in the report" grep -q '^  - peers: .*said nothing' "$page"
check "and in its row" rows_say "$async" 'not measured: .*said nothing'
check "and in its section" grep -q '^Not measured: .*ucx_perftest' "$page"
for name in perf path fake roce counted; do
	mv "$tmp/$name.says" "$tmp/$name.was" 2>/dev/null
	echo 3 >"$tmp/$name.status"
done
old
check "nothing can be measured: a report is made" report
check "it is whole, too" whole
check "no row is met or missed" not_in_page '\| (met|\*\*missed\*\*) \|$'
check "a status is told" rows_say "$batch" 'status 3'

# ---- a report that cannot be made
for name in perf path fake roce; do mv "$tmp/$name.was" "$tmp/$name.says"; done
rm "$tmp"/*.status
before=$(cat "$tree"/build/perf/*.jsonl | cksum)
old
mv "$tree/perf/measures.md" "$tmp"
check "a report that cannot be made fails" not report
check "the old one stays" untouched
check "so do the old results" [ "$(cat "$tree"/build/perf/*.jsonl | cksum)" = "$before" ]
mv "$tmp/measures.md" "$tree/perf"

# ---- an interrupted one
: >"$tmp/counted.wait"
(cd "$tree" && exec perf/report.sh) >"$said" 2>&1 &
pid=$!
for _ in {1..150}; do
	grep -q 'counted' "$said" && break
	sleep 0.1
done
check "it had come to its last part" says '^== .*counted'
disown $pid
kill -KILL $pid
for _ in {1..50}; do kill -0 $pid 2>/dev/null && sleep 0.1 || break; done
check "an interrupted one leaves the old report" untouched
rm "$tmp/counted.wait"

# ---- a quick one
check "a quick one" report --quick
check "leaves the old report" untouched
check "is a report of its own" grep -q '^# Speed' "$tree/build/perf/quick/PERF.md"
finish
