/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Records of a dump. A record has a kind and fields, and is written on one line. The line is text
 * (kind key=value ...) or a JSON object. One code path writes both forms, so that they cannot say
 * different things. JSON is written here by hand: it is strings, numbers and pairs of numbers. A
 * library for that would be one more for every user to install.
 */
#ifndef RC_DUMP_H
#define RC_DUMP_H

#include "core/base/locked.h"
#include "core/ctx.h"

/* Growing buffer of whole records. failed: memory ran out, and nothing is added any more. */
struct rc_record {
	char *buf;
	size_t size, used;
	bool json, failed;
};

void rc_rec_begin(struct rc_record *r, const char *kind);
/* Adds a text. Leaves the field out for NULL. */
void rc_rec_text(struct rc_record *r, const char *key, const char *text);
void rc_rec_number(struct rc_record *r, const char *key, uint64_t value);
void rc_rec_signed(struct rc_record *r, const char *key, int64_t value);
/* Adds a flag. Leaves the field out unless the flag is set. */
void rc_rec_flag(struct rc_record *r, const char *key, bool is);
void rc_rec_id(struct rc_record *r, const char *key, struct rref_id id);
void rc_rec_hex(struct rc_record *r, const char *key, uint64_t value);
/* Adds a time in seconds, at a constant width. */
void rc_rec_age(struct rc_record *r, const char *key, int64_t ns);
void rc_rec_end(struct rc_record *r);

/* Adds an entry that the machine visits as a record. kind NULL: the entry's own kind. */
needs_lock void rc_rec_visit(struct rref_ctx *ctx, struct rc_record *r, const char *kind,
			     const struct rp_visit *v);
/* Adds a handle that the program holds. */
needs_lock void rc_rec_handle(struct rref_ctx *ctx, struct rc_record *r, const char *kind,
			      const struct rref *h);

/* Returns the name of counter i, and its offset in *at. NULL at the end. */
const char *rc_stats_field(unsigned i, size_t *at);

#endif
