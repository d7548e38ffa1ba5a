/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Groups whose workers are contexts of this one process. Each has a fake device of its own: worker
 * 0 has fake0, and so on. A failure ends the program with a message, as in tg.h.
 */
#ifndef FG_H
#define FG_H

#include "fv.h"
#include "tg.h"

struct fg {
	int world;
	struct rref_ctx *ctx[FV_DEVICES];
	enum rref_progress_mode mode;
	int64_t peer_timeout; /* 0: the test's usual one */
};

/* Brings all workers together; world and options are set. They have tg_functions, and fg.make. */
void fg_join(struct fg *g);
/* Shuts all down gracefully, each by a thread of its own, and frees them. */
void fg_leave(struct fg *g);
/* Makes a value of worker `owner`, with the bytes of tg_fill. Returns a reference to it that worker
 * `holder` has. */
struct rref *fg_value(struct fg *g, int owner, int holder, size_t length, unsigned seed);
/* Reads a value and checks its bytes. */
void fg_read(struct rref *ref, size_t length, unsigned seed);
/* Checks a view and frees it. */
void fg_check(struct rref_view *v, size_t length, unsigned seed);

/*
 * Function of all workers, besides tg_functions: fg.make makes a value, and answers with the only
 * reference to it.
 */
struct fg_make {
	size_t length;
	unsigned seed;
};

/* Answers a call with references to nr new values of 64 bytes each. */
int fg_give_small(struct rref_call *call, unsigned nr);

#endif
