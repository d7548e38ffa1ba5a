/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The calling thread's error text. One line where a failure is found: return rc_fail(EINVAL, "rank
 * %d: ...", rank).
 */
#ifndef RC_ERROR_H
#define RC_ERROR_H

#include <stdbool.h>
#include <stdint.h>

#include "rref.h"

/* Makes the thread's last failure. err positive; returns -err. */
int rc_fail(int err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Makes a failure as rc_fail, of a code that is negative already and a text that is complete. */
int rc_fail_text(int err, const char *text);
const char *rc_error_text(void);
/* Fails as rc_fail_text, about the worker of rank about - 1. answered: it came in an answer. */
int rc_fail_about(int err, const char *text, unsigned about, bool answered);

/* The thread's last failure, and its text. */
struct rc_error {
	int err;            /* negative; 0: no failure since rc_error_forget */
	/* rank + 1 of the worker that it is about; 0: of no particular worker */
	uint16_t about;
	bool answered;
	struct rc_error *outer; /* see rc_error_aside */
	char text[RREF_TEXT_SIZE]; /* first byte 0: no text */
};
/* Copies *e to a program's struct, which may be shorter. */
void rc_error_tell(struct rref_error *e, struct rref_error *out);
void rc_error_forget(void);          /* not the text */
const struct rc_error *rc_error(void);
/* Returns rank + 1 that a passed-on error is about; 0 if the last failure had another errno. */
unsigned rc_error_about(int err);
void rc_error_concerns(unsigned rank); /* the failure just now is about that worker */
/*
 * Clears, puts aside or puts back the thread's last failure. A failure on the way to a success is
 * not the thread's last failure. Nor is a failure of the engine's turn on a thread of the program.
 * Both go into scratch, which takes the place of the last failure meanwhile. scratch: on the
 * caller's stack, borrowed until rc_error_back.
 */
void rc_error_clear(void);
void rc_error_aside(struct rc_error *scratch);
void rc_error_back(const struct rc_error *scratch);

#endif
