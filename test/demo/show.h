/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The display. A terminal shows one line that is rewritten while a step runs. It shows colour
 * unless NO_COLOR is set or the terminal is dumb. Other outputs get plain lines, at most one every
 * few seconds. Boxes and ticks appear if the locale is UTF-8.
 */
#ifndef DEMO_SHOW_H
#define DEMO_SHOW_H

#include <stddef.h>
#include <stdint.h>

void show_init(void);
void show_fact(const char *label, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* show_step begins a step, whose time runs. show_done prints a line
 * that it is done; a step may have several. */
void show_step(const char *name);
void show_done(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void show_progress(const char *what, double share);   /* 0..1; < 0 = not known */

/* Print a worker's remark, and an error (to standard error). */
void show_note(const char *who, const char *text);
void show_error(const char *who, const char *text);

/* Prints the last line. */
void show_passed(unsigned nr_checks, int64_t ns);
void show_failed(const char *why);

/* A table of one label and nr numbers per row, under headings in groups.
 * Cells are texts of at most width columns. */
struct show_group {
	const char *title;
	size_t nr;
	const char *const *heads;
};
void show_table_top(const char *label, const struct show_group *groups, size_t nr);
void show_table_row(const char *label, const char *const *cells);
void show_table_end(void);

/* Format "33.3 MB", "1.2 ms" into static buffers, eight in turn. */
const char *show_bytes(uint64_t bytes);
const char *show_time(int64_t ns);
const char *show_us(void);   /* microseconds */
const char *show_hex(const unsigned char *bytes, size_t nr);

#endif
