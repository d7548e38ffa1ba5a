#!/usr/bin/env bash
# Runs the README's program as the README says: two workers on this machine.   readme-run.sh PROGRAM
set -euo pipefail
port=$((20000 + RANDOM % 20000))
export RREF_WORLD_SIZE=2 RREF_RENDEZVOUS=127.0.0.1:$port
RREF_RANK=0 "$1" &
first=$!
trap 'kill $first 2>/dev/null || true' EXIT
out=$(RREF_RANK=1 "$1")
wait $first
trap - EXIT
echo "$out"
grep -q 'hello' <<<"$out"
