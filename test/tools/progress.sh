#!/usr/bin/env bash
# Runs a command with its output in a file, and says every few seconds how far it is. The output is
# shown when the command fails. Of a make that succeeds only the warnings are shown: all lines but
# the short ones of the build ("  CC    core/call/answer.c").
#   progress.sh [--make] TEXT COMMAND...      --make: COMMAND is a make, and its -n counts the work
set -uo pipefail
make=
[ "$1" = --make ] && { make=1; shift; }
text=$1
shift
of=
log=$(mktemp) || exit 1
pid=
trap 'rm -f "$log"' EXIT
trap '[ -n "$pid" ] && kill "$pid" 2>/dev/null; wait; exit 130' INT TERM HUP
short='^  [A-Z]{2,5}  '
[ -z "$make" ] || of=$("$@" -n V= 2>/dev/null | grep -c "^printf '  %")
"$@" >"$log" 2>&1 </dev/null &
pid=$!
said=0
while sleep 0.2 && [ -n "$(jobs -rp)" ]; do
	[ $((SECONDS - said)) -ge 5 ] || continue
	said=$SECONDS
	n=$(grep -cE "$short" "$log")
	if [ "$n" -gt 0 ]; then
		printf '%s: %d%s built, %d s\n' "$text" "$n" "${of:+ of $of}" "$SECONDS"
	else
		printf '%s: %d s  %s\n' "$text" "$SECONDS" \
			"$(tail -n 1 "$log" | tr '\r' '\n' | tail -n 1 | cut -c 1-60)"
	fi
done
wait "$pid"
status=$?
pid=
if [ $status -ne 0 ]; then
	grep -vE "$short" "$log" | tail -n 200 >&2
elif grep -qE "$short" "$log"; then
	grep -vE "$short" "$log" >&2
fi
exit $status
