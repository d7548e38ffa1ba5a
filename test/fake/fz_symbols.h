/* SPDX-License-Identifier: Apache-2.0 */
/* The functions of the running program, from its own file. */
#ifndef FZ_SYMBOLS_H
#define FZ_SYMBOLS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct fz_symbol {
	uintptr_t at, end;
	const char *name;
	bool library; /* a function of librref */
	unsigned stops; /* stops of threads in it */
};

void fz_symbols_open(void);
/* Returns the function that has the instruction, or NULL. Safe in signal handlers. */
struct fz_symbol *fz_symbol_of(uintptr_t at);
/* Writes "function+offset". */
void fz_symbol_text(uintptr_t at, char *buf, size_t size);
/* Returns the number of functions in which threads were stopped. */
unsigned fz_symbols_stopped(void);

#endif
