#!/usr/bin/env bash
# Builds the programs of docs/examples by each present compiler, as C11 and as C++17. Runs them
# in groups of two and three over shared memory. Compares each rank's output to the letter, and
# its exit status. Each has less than 60 lines, and hello.c is the README's program.
#   examples.sh [BUILD_DIR]
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
. test/tools/check.sh
build=${1:-build}
limit=$((60 * ${RREF_TEST_SLOW:-1}))
tmp=$(mktemp -d) said=$tmp/said
# Ranks that still run after a signal to this script end with it.
trap 'kill $(jobs -pr) 2>/dev/null; wait; rm -rf "$tmp"' EXIT
trap 'exit 1' INT TERM
# The members are told all by this script.
unset "${!RREF_@}" RANK WORLD_SIZE MASTER_ADDR MASTER_PORT
verdict() { # NAME COMMAND...: passes if the command succeeds and prints nothing
	local out name=$1
	shift
	out=$("$@" 2>&1) || out="${out:-failed: $*}"
	empty "$name" "$out"
}
# Prints the words that the ranks of an example must say, in a group of SIZE.
words() { # EXAMPLE SIZE
	local rank
	case $1 in
	hello) echo "rank 1 read: hello from rank 0" ;;
	share)
		for ((rank = 1; rank < $2; rank++)); do
			echo "rank $rank read: one value, many readers"
		done
		;;
	rpc) printf '%s\n' "size=12: 12" "size: refused: no = in 'size'" ;;
	wrap)
		echo "rank 0 has its memory back"
		echo "rank 1 read: a text in memory of rank 0"
		;;
	eventloop) for ((rank = 1; rank < $2; rank++)); do echo "rank $rank: round trip"; done ;;
	batch) echo "rank 1 read 1000 values, their sum is 499500" ;;
	queue) echo "rank 1 added 1000 values as they came: 499500" ;;
	esac
}
group() { # PROGRAM SIZE: writes the output of the ranks in their order, and bad statuses, to $said
	local rank pids=() at
	# An address of loopback that no other group has, below the ports that connections take.
	at=127.$((1 + RANDOM % 254)).$((RANDOM % 256)).$((1 + RANDOM % 254))
	at=$at:$((20000 + RANDOM % 10000))
	for ((rank = 0; rank < $2; rank++)); do
		RREF_DEVICE=shm RREF_RENDEZVOUS=$at RREF_WORLD_SIZE=$2 RREF_RANK=$rank \
			timeout --kill-after=5 "$limit" "$1" >"$tmp/rank$rank" 2>&1 </dev/null &
		pids+=($!)
	done
	for ((rank = 0; rank < $2; rank++)); do
		wait "${pids[rank]}" || echo "rank $rank: status $?" >>"$tmp/rank$rank"
	done
	for ((rank = 0; rank < $2; rank++)); do cat "$tmp/rank$rank"; done >"$said"
}

names='batch eventloop hello queue rpc share wrap'
sed -n '/^```c$/,/^```$/p' README.md | sed '1d;/^```$/,$d' >"$tmp/hello.c"
# shellcheck disable=SC2086
empty "this script knows every example" \
	"$(diff <(printf '%s.c\n' $names) <(ls docs/examples))"
empty "hello.c is the README's program" "$(diff docs/examples/hello.c "$tmp/hello.c")"
for e in $names; do
	empty "$e.c has less than 60 lines" \
		"$(awk 'NR == 60 {print FILENAME}' "docs/examples/$e.c")"
	empty "$e.c has no line above 100 columns" \
		"$(expand "docs/examples/$e.c" | grep -nE '.{101}')"
done
for cc in cc c++ gcc g++ clang clang++; do
	command -v $cc >/dev/null || { echo "there is no $cc"; continue; }
	case $cc in
	*++) flags="-x c++ -std=c++17" ;;
	*) flags=-std=c11 ;;
	esac
	mkdir "$tmp/$cc"
	for e in $names; do
		# shellcheck disable=SC2086
		verdict "$e.c by $cc" $cc $flags -Wall -Wextra -pedantic -Werror -Iinclude \
			"docs/examples/$e.c" -o "$tmp/$cc/$e" \
			-L"$build" -lrref -Wl,-rpath,"$(realpath "$build")"
	done
done
for e in $names; do
	for how in "cc 2" "cc 3" "c++ 2"; do
		read -r cc size <<<"$how"
		group "$tmp/$cc/$e" "$size"
		empty "$e in a group of $size, by $cc" "$(diff <(words "$e" "$size") "$said")"
	done
	# A failure is told in the library's words.
	run timeout --kill-after=5 "$limit" "$tmp/cc/$e"
	check "$e without a group fails" [ $? -eq 1 ]
	check "$e says why" says RREF_WORLD_SIZE
done

finish
