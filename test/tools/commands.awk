# Writes compile_commands.json from the commands that `make -nB V=1` prints: an entry for each C
# file. Of the files that are built twice, the tests' own build of them is left out. Fails if there
# is no command at all.   dir=FOLDER awk -f commands.awk FILE
function quoted(text) {
	gsub(/[\\"]/, "\\\\&", text)
	return "\"" text "\""
}
/ -c [^ ]+\.c -o [^ ]+\.o$/ && $NF !~ /\/tested\// {
	printf "%s\n{ \"directory\": %s,\n  \"command\": %s,\n  \"file\": %s }", n++ ? "," : "[",
		quoted(ENVIRON["dir"]), quoted($0), quoted($(NF - 2))
}
END {
	if (!n)
		exit 1
	print "\n]"
}
