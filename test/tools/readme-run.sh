#!/usr/bin/env bash
# Runs the README's commands with the README's program, word for word: installs, compiles, runs two
# workers.
#   readme-run.sh [--user] [--cc COMMAND] [--to PREFIX]
# --user: the commands for one user alone. --cc: instead of cc. --to: instead of the README's
# folder; the port is a free one then.
set -euo pipefail
tree=$(cd "$(dirname "$0")/../.." && pwd)
user='' cc=cc to=''
while [ $# -gt 0 ]; do
	case $1 in
	--user) user=1; shift ;;
	--cc) cc=$2; shift 2 ;;
	--to) to=$2; shift 2 ;;
	*) echo "readme-run.sh: $1?" >&2; exit 2 ;;
	esac
done
block() { # LANGUAGE N: prints the language's Nth block in the README
	awk -v begin="\`\`\`$1" -v n="$2" \
		'$0 == begin {in_it = ++seen == n; next} $0 == "```" {in_it = 0} in_it' \
		"$tree/README.md"
}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
block c 1 >"$tmp/hello.c"
commands=$(block sh 2)
# The user's installing, then all but root's.
[ -z "$user" ] || commands=$(block sh 3; tail -n +2 <<<"$commands")
[ "$cc" = cc ] || commands=${commands/$'\n'cc /$'\n'$cc }
if [ -n "$to" ]; then
	# shellcheck disable=SC2016
	commands=${commands//'$HOME/.local'/$to}
	commands=${commands/:29500/:$((20000 + RANDOM % 10000))}
fi
echo "$commands"
# Typed at the top of the tree, but that nothing is left there.
cd "$tmp"
export tree
bash -euc "make() { command make -s -C \"\$tree\" \"\$@\"; }
$commands" | tee out
grep -qx 'rank 1 read: hello from rank 0' out
