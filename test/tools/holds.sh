#!/usr/bin/env bash
# Prints the longest holds of the progress lock in a test run, each with its program. One is by the
# thread's processor time, the other by the clock. Prints how many holds had slow work
# (include/base/slow.h). Fails if a kind of slow work occurred that KNOWN does not name; by default
# that is test/tools/slow.txt.   holds.sh FILE [KNOWN]
set -uo pipefail
file=$1 known=${2:-$(dirname "$0")/slow.txt}
numbers() { od -An -v -t u8 -w64 "$file"; }
text() { # OFFSET BYTES: text of the file
	tail -c "+$(($1 + 1))" "$file" | head -c "$2" | tr '\0' '\n' | head -n 1
}
name_of() { text $(($1 * 64 + 8)) 56; } # NUMBER of its record

read -r nr slow longest _ _ work _ < <(numbers)
[ "${nr:-0}" -gt 0 ] || exit 0
found='' unknown=''
while read -r i count; do
	name=$(name_of "$i")
	found="$found${found:+, }$name $count"
	grep -qE "^$name " "$known" || unknown="$unknown $name"
done < <(numbers | awk 'NR > 1 && $1 > 0 {print NR - 1, $1}')
echo "longest hold of the lock: $((work / 1000)) us of work ($(text 48 16)), with pauses" \
	"$((longest / 1000)) us ($(text 24 16)); holds with slow work: $slow of $nr" \
	"${found:+($found)}"
[ -z "$unknown" ] || echo "FAILED: slow work under the progress lock, not in $known:$unknown" \
	"(RREF_TEST_HOLDS_STOP=KIND ends a process there)"
[ -z "$unknown" ]
