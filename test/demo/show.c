/* SPDX-License-Identifier: Apache-2.0 */
#include "show.h"

#include <langinfo.h>
#include <locale.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "demo.h"

#define LABEL 10
#define LINE 80                         /* columns of a line with its time */
#define BAR 24
#define CELL 7
#define ROW_LABEL 6
#define REDRAW (80 * DEMO_MSEC)
#define PLAIN_EVERY (5 * DEMO_SEC)

static struct {
	bool tty, colour, utf8;
	bool drawn;                     /* a progress line is on the screen */
	const char *step;
	int64_t begun, last;            /* times of the step and its last line */
	unsigned nr_done;
	const struct show_group *groups;
	size_t nr_groups;
} show;

void show_init(void)
{
	const char *term = getenv("TERM"), *no_colour = getenv("NO_COLOR");

	setlocale(LC_CTYPE, "");
	show.utf8 = strcmp(nl_langinfo(CODESET), "UTF-8") == 0;
	show.tty = isatty(STDOUT_FILENO) && term && strcmp(term, "dumb") != 0;
	show.colour = show.tty && !(no_colour && *no_colour);
	setvbuf(stdout, NULL, _IOLBF, 0);
}

static const char *good(void) { return show.colour ? "\033[32m" : ""; }
static const char *bad(void) { return show.colour ? "\033[1;31m" : ""; }
static const char *dim(void) { return show.colour ? "\033[2m" : ""; }
static const char *plain(void) { return show.colour ? "\033[0m" : ""; }

/* Counts the columns of a text: UTF-8 of narrow characters only. */
static int columns(const char *s)
{
	int n = 0;

	for (; *s; s++)
		n += ((unsigned char)*s & 0xc0) != 0x80;
	return n;
}

static char *scratch(size_t *size)
{
	static char buf[8][80];
	static unsigned turn;

	*size = sizeof(buf[0]);
	return buf[turn++ % 8];
}

const char *show_bytes(uint64_t bytes)
{
	size_t size;
	char *s = scratch(&size);

	if (bytes < 10000)
		snprintf(s, size, "%llu bytes", (unsigned long long)bytes);
	else if (bytes < 1000000)
		snprintf(s, size, "%.1f kB", (double)bytes / 1e3);
	else
		snprintf(s, size, "%.1f MB", (double)bytes / 1e6);
	return s;
}

const char *show_time(int64_t ns)
{
	size_t size;
	char *s = scratch(&size);

	if (ns < 10 * DEMO_MSEC)
		snprintf(s, size, "%.2f ms", (double)ns / 1e6);
	else if (ns < DEMO_SEC)
		snprintf(s, size, "%.0f ms", (double)ns / 1e6);
	else
		snprintf(s, size, "%.1f s", (double)ns / 1e9);
	return s;
}

const char *show_hex(const unsigned char *bytes, size_t nr)
{
	size_t size;
	char *s = scratch(&size);

	s[0] = 0;
	for (size_t i = 0; i < nr && 2 * i + 2 < size; i++)
		snprintf(s + 2 * i, 3, "%02x", bytes[i]);
	return s;
}

const char *show_us(void)
{
	return show.utf8 ? "\u00b5s" : "us";
}

static void clear_line(void)
{
	if (show.drawn)
		fputs("\r\033[K", stdout);
	show.drawn = false;
}

void show_fact(const char *label, const char *fmt, ...)
{
	va_list ap;

	printf("    %s%-*s%s ", dim(), LABEL, label, plain());
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	putchar('\n');
}

void show_step(const char *name)
{
	show.step = name;
	show.begun = show.last = demo_now();
	show.nr_done = 0;
	show_progress("", -1);
}

void show_done(const char *fmt, ...)
{
	int64_t now = demo_now();
	char text[400];
	va_list ap;
	int pad;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	clear_line();
	pad = LINE - 5 - LABEL - columns(text);
	printf("%s%3s%s %-*s %s%s %*s%s\n", good(), show.utf8 ? "  \u2713" : " ok", plain(), LABEL,
	       show.nr_done++ ? "" : show.step, text, dim(), pad > 1 ? pad - 1 : 1,
	       show_time(now - show.begun), plain());
	show.begun = show.last = now;
}

static int terminal_columns(void)
{
	struct winsize w;

	return ioctl(STDOUT_FILENO, TIOCGWINSZ, &w) == 0 && w.ws_col ? w.ws_col : 80;
}

/* Draws one line. A line that wrapped could not be rewritten. So the text is cut, and the bar
 * shrinks to the terminal's width. */
static void draw_progress(const char *what, double share)
{
	int left = terminal_columns() - LABEL - 6, bar, full;

	printf("  %s %-*s ", show.utf8 ? "\u00b7" : ".", LABEL, show.step ? show.step : "");
	left -= printf("%.*s", left > 0 ? left : 0, what);
	bar = left - 8 < BAR ? left - 8 : BAR;
	if (share >= 0 && bar > 0) {
		share = share > 1 ? 1 : share;
		full = (int)(share * bar);
		fputs("  ", stdout);
		for (int i = 0; i < bar; i++)
			fputs(i < full ? (show.utf8 ? "\u2588" : "#")
				       : (show.utf8 ? "\u2591" : "."),
			      stdout);
		printf(" %3.0f %%", share * 100);
	}
	fflush(stdout);
}

void show_progress(const char *what, double share)
{
	int64_t now = demo_now();

	if (!show.tty) {
		if (now - show.last > PLAIN_EVERY && share >= 0) {
			show.last = now;
			printf("    %-*s %s: %.0f %%\n", LABEL, show.step, what, share * 100);
		}
		return;
	}
	if (show.drawn && now - show.last < REDRAW)
		return;
	show.last = now;
	clear_line();
	draw_progress(what, share);
	show.drawn = true;
}

void show_note(const char *who, const char *text)
{
	clear_line();
	printf("    %-*s %s\n", LABEL, who, text);
}

void show_error(const char *who, const char *text)
{
	clear_line();
	fflush(stdout);
	fprintf(stderr, "rref-demo: %s: %s\n", who, text);
}

void show_passed(unsigned nr_checks, int64_t ns)
{
	clear_line();
	printf("%sPASSED%s: all %u checks, in %s\n", good(), plain(), nr_checks, show_time(ns));
	fflush(stdout);
}

void show_failed(const char *why)
{
	clear_line();
	printf("%sFAILED%s in step %s: %s\n", bad(), plain(), show.step ? show.step : "start", why);
	fflush(stdout);
}

static size_t group_width(const struct show_group *g)
{
	return g->nr * (CELL + 1) + 1;
}

static void rule(const char *left, const char *middle, const char *right)
{
	fputs("  ", stdout);
	fputs(dim(), stdout);
	fputs(left, stdout);
	for (int i = 0; i < ROW_LABEL + 2; i++)
		fputs(show.utf8 ? "\u2500" : "-", stdout);
	for (size_t g = 0; g < show.nr_groups; g++) {
		fputs(middle, stdout);
		for (size_t i = 0; i < group_width(&show.groups[g]); i++)
			fputs(show.utf8 ? "\u2500" : "-", stdout);
	}
	printf("%s%s\n", right, plain());
}

static void bar(void)
{
	printf("%s%s%s", dim(), show.utf8 ? "\u2502" : "|", plain());
}

static void label_cell(const char *label)
{
	fputs("  ", stdout);
	bar();
	printf(" %-*s ", ROW_LABEL, label);
}

void show_table_top(const char *label, const struct show_group *groups, size_t nr)
{
	show.groups = groups;
	show.nr_groups = nr;
	rule(show.utf8 ? "\u250c" : "+", show.utf8 ? "\u252c" : "+", show.utf8 ? "\u2510" : "+");
	label_cell("");
	for (size_t g = 0; g < nr; g++) {
		bar();
		printf(" %s%*s", groups[g].title,
		       (int)group_width(&groups[g]) - 1 - columns(groups[g].title), "");
	}
	bar();
	putchar('\n');
	label_cell(label);
	for (size_t g = 0; g < nr; g++) {
		bar();
		for (size_t i = 0; i < groups[g].nr; i++)
			printf("%s%*s", i ? " " : "", CELL + !i - columns(groups[g].heads[i]), ""),
				fputs(groups[g].heads[i], stdout);
		putchar(' ');
	}
	bar();
	putchar('\n');
	rule(show.utf8 ? "\u251c" : "+", show.utf8 ? "\u253c" : "+", show.utf8 ? "\u2524" : "+");
}

void show_table_row(const char *label, const char *const *cells)
{
	label_cell(label);
	for (size_t g = 0; g < show.nr_groups; g++) {
		bar();
		for (size_t i = 0; i < show.groups[g].nr; i++)
			printf("%*s", CELL + 1, *cells++);
		putchar(' ');
	}
	bar();
	putchar('\n');
}

void show_table_end(void)
{
	rule(show.utf8 ? "\u2514" : "+", show.utf8 ? "\u2534" : "+", show.utf8 ? "\u2518" : "+");
}
