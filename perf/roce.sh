#!/usr/bin/env bash
# Runs rref-perf over the present RDMA device, and perftest in the same boot; JSON lines.
#   roce.sh [SECONDS]
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
seconds=${1:-5}
server=
trap '[ -n "$server" ] && kill "$server" 2>/dev/null' EXIT

# The first RDMA device, as the library takes it, and the address of its network device.
netdev=$(cat /sys/class/infiniband/*/ports/*/gid_attrs/ndevs/* 2>/dev/null | head -n 1)
ip=$(ip -4 -o addr show ${netdev:+dev "$netdev"} 2>/dev/null |
	grep -oE '([0-9]{1,3}\.){3}[0-9]{1,3}' | head -n 1)
[ -n "$ip" ] || echo "roce.sh: no address for perftest" >&2

# The reader stays on its first processor, in the guest. rxe moves the bytes in the
# softirq of the processor that posts. If the other one is idle, the posting thread is
# moved to and fro. Then all takes up to twice as long. perftest exchanges its addresses
# over TCP. By rdma_cm (-R) its server would poll until the end. If both processors are
# one core's, that takes up to half of the measured speed.
reader=() owner=()
[ "${RREF_VM-}" = 1 ] && reader=(taskset -c 0) owner=(taskset -c 1)

# 48A7 is port 18599.
perftest() { # OP PROGRAM BYTES ITERATIONS COLUMN SCALE KEY
	local line
	"${owner[@]}" "$2" -F -s "$3" -n "$4" -p 18599 >/dev/null 2>&1 &
	server=$!
	for _ in {1..100}; do # it says nothing when it listens
		grep -q ':48A7 .* 0A ' /proc/net/tcp /proc/net/tcp6 && break
		sleep 0.1
	done
	for _ in 1 2 3; do
		line=$("${reader[@]}" "$2" -F -s "$3" -n "$4" -p 18599 "$ip" 2>/dev/null |
			grep -E "^ *$3 ")
		[ -n "$line" ] && break
		sleep 1
	done
	wait "$server"
	server=
	[ -n "$line" ] || { echo "roce.sh: $2 of $3 bytes said nothing" >&2; return 1; }
	echo "$line" | awk -v op="$1" -v bytes="$3" -v c="$5" -v scale="$6" -v key="$7" \
		'{
			printf "{\"op\":\"%s\",\"peer\":\"perftest\",\"device\":\"ibv\",", op
			printf "\"bytes\":%d,\"iters\":%d,", bytes, $2
			printf "\"%s\":%.1f}\n", key, $c * scale
		}'
}

failed=0
# A warm-up: an emulator translates the programs when they first
# run, and the guest has only just started.
build/bin/rref-perf lat --device ibv --json --seconds 2 --sizes 8 >/dev/null || failed=1
perf() { build/bin/rref-perf "$@" --device ibv --json --seconds "$seconds" || failed=1; }
perf lat --sizes 8,4k,64k,1m
perf bw --sizes 64k
perf rate --window 64
for op in batch async call share create call+bulk read+bulk threads; do
	perf $op
done
# The header costs 64 bytes more, and a fifth packet for 4 KiB.
perf lat --headed --sizes 8,4k,64k
# The instructions of a read around the driver's calls, by callgrind.
if command -v valgrind >/dev/null && [ -x build/bin/proc/read/path_test ]; then
	work=$(mktemp -d)
	RREF_TEST_DEVICE=ibv RREF_TEST_SLOW=10 timeout 150 valgrind --tool=callgrind \
		--trace-children=yes --toggle-collect=rref_to_here \
		--callgrind-out-file="$work/out.%p" build/bin/proc/read/path_test \
		>"$work/log" 2>&1 && perf/around.py "$work"/out.* || {
		failed=1
		echo "roce.sh: no instructions counted: $(tail -n 1 "$work/log")" >&2
	}
	rm -rf "$work"
fi
if [ -n "$ip" ] && command -v ib_read_bw >/dev/null; then
	# ib_read_lat: bytes, iterations, smallest, largest, typical ... in us; ib_read_bw: bytes,
	# iterations, peak, average in MiB/s
	perftest lat ib_read_lat 8 2000 5 1000 p50_ns || failed=1
	perftest lat ib_read_lat 65536 200 5 1000 p50_ns || failed=1
fi
# Ours and theirs in turn: a machine with other work is not the same a minute later.
for _ in {1..9}; do
	"${reader[@]}" build/bin/rref-perf bw --device ibv --json --seconds 1 --rounds 1 --sizes \
		1m || failed=1
	[ -z "$ip" ] || ! command -v ib_read_bw >/dev/null ||
		perftest bw ib_read_bw 1048576 64 4 1048576 bytes_per_s || failed=1
done
exit $failed
