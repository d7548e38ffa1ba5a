/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Values, views of them, and the program's handles.
 *
 * A worker may own and hold 10^6 values, each with its handle. Then these structs are most of the
 * memory beside header and payload. So each thing stands in one of them. The place of a value is
 * not kept at all: its header and region tell it (rc_value_locate). All alias views of a value are
 * its own beginning. Rare parts lie apart (struct rc_value_extra).
 *
 * Guards: see core/ctx.h.
 */
#ifndef RC_REF_H
#define RC_REF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "alloc/ra.h"
#include "base/atomic.h"
#include "base/util.h"
#include "core/base/work.h"
#include "core/protocol/protocol.h"
#include "rref.h"
#include "verbs/rv.h"

/*
 * ---- value header: 64 bytes before each payload, read together with it (docs/WIRE.md)
 * ------------------------
 */

struct rc_header {
	/* the value's own; 0 = nothing readable here; destroyed before the memory is reused */
	uint64_t nonce;
	uint64_t local_id;
	uint32_t created_on;
	uint32_t version;    /* 1: values are immutable so far */
	uint64_t length;     /* payload bytes */
	uint64_t type_hash;
	uint32_t state;      /* RC_HEADER_READY */
	uint32_t crc32c;     /* 0: not used yet */
	uint16_t nr_segments;
	uint16_t nr_refs;
	uint32_t reserved0;
	uint64_t reserved1;
};
#define RC_HEADER_BYTES 64u
#define RC_HEADER_READY 0x59444552u /* "REDY" */
_Static_assert(sizeof(struct rc_header) == RC_HEADER_BYTES,
	       "the header is part of the wire format");
/*
 * Each value that can be made can be read. A landing block has more bytes before the payload than a
 * value has.
 */
#define RC_LANDING_BYTES (CACHE_LINE + RC_HEADER_BYTES)
#define RC_VALUE_MAX (RA_VALUE_MAX - RC_LANDING_BYTES)

/*
 * ---- views: the beginning of a landing block, or of an own value
 * -----------------------------------------------
 */

struct rref_view {
	struct rref_ctx *ctx;     /* [const] */
	const void *data;         /* [const] */
	/* [const] bytes of the payload; the table of its segments follows if there are two or
	 * more */
	size_t length;
	uint16_t nr_segments;     /* number of segments; not used in a range */
	/* references that the value holds; in a landing block 0 unless it has outer */
	uint16_t nr_refs;
	/* landing: cache class, -1 = none; RC_VIEW_ALIAS, RC_VIEW_LOOK */
	int cache_class;
};
#define RC_VIEW_ALIAS (-2)
#define RC_VIEW_LOOK (-3) /* begins a struct rc_look */

/*
 * A landing block. The bytes that a READ brings lie behind it: the header at its end, then the
 * payload. They lie side by side as at the owner, so one value is one landing piece.
 */
struct rc_landing {
	struct rref_view view;
	size_t block;             /* bytes of the whole */
	uint32_t lkey[RV_NR_KINDS]; /* the region's key, per provider */
	uint64_t type_hash;       /* hash of the type; not used in a range */
	union {
		struct rref *outer; /* reference by which the value was read, if nr_refs; hold.c */
		struct rc_landing *next; /* the next one that a reader keeps */
	};
	struct rc_header header;  /* a device writes it: looked at when the READ is over */
};
_Static_assert(offsetof(struct rc_landing, header) == CACHE_LINE,
	       "no device writes where this process does");
_Static_assert(sizeof(struct rc_landing) == offsetof(struct rc_landing, header) + RC_HEADER_BYTES,
	       "the payload follows the header");
_Static_assert(sizeof(struct rc_landing) == RC_LANDING_BYTES,
	       "the largest value fits a landing block");

static inline struct rc_landing *rc_landing_of(const struct rref_view *v) /* not an alias */
{
	return (struct rc_landing *)(uintptr_t)v; /* begins with it */
}

/*
 * Value of each byte of a header's landing place before the READ. No header is like that, and a
 * scrubbed one is 0.
 */
#define RC_UNREAD 0xff

/* Returns the piece where header and payload of so many bytes land. */
static inline struct rv_sge rc_landing_piece(struct rc_landing *l, size_t length, enum rv_kind kind)
{
	return (struct rv_sge){ &l->header, (uint32_t)(RC_HEADER_BYTES + length), l->lkey[kind] };
}

#define RC_CACHE_CLASSES 11   /* landing blocks of 256 B .. 256 KiB */
#define RC_LANDING_BLOCK(size_class) ((size_t)256 << (size_class))
/*
 * Returns the class of a landing block for so many bytes. Returns -1 if it is too large to be kept.
 */
static inline int rc_landing_class(size_t length)
{
	size_t block = sizeof(struct rc_landing) + length;
	int size_class =
		block <= 256 ? 0 : 64 - __builtin_clzll((unsigned long long)(block - 1)) - 8;

	return size_class < RC_CACHE_CLASSES ? size_class : -1;
}

/*
 * ---- values owned here
 * ------------------------------------------------------------------------------------------
 */

/* A type known here; in ctx->value.types until the context is freed. See types.c. */
struct rc_type {
	struct rc_type *next_name, *next_hash;
	uint64_t hash;
	size_t element_size;
	unsigned flags;
	bool one;                 /* built in: one number, not an array */
	char name[];
};

/* pins: 1 of the protocol machine (or the handle that fills it) + one per alias view. */
struct rc_value {
	struct rref_view view;    /* all alias views are this one */
	const struct rc_type *type; /* [const] */
	/* [const] rare parts, from its publishing on; NULL: nothing of that */
	struct rc_value_extra *extra;
	_Atomic uint32_t pins;
	/* [const] the payload is the program's: part of a struct rc_wrap, wrap.c */
	bool wrapped;
};
_Static_assert(sizeof(struct rc_value) == 56, "beside malloc's own word it fits a cache line");

/* Rare parts of a value. */
struct rc_value_extra {
	/* under the lock; view.nr_refs references, held by the value: hold.c */
	struct rref **refs;
	/* [const] place in the program where it was made: debug builds; NULL */
	const char *site;
	const char *function;     /* [const] function whose result it is; NULL */
};

static inline struct rc_value *rc_value_of(const struct rref_view *v) /* NULL: a landing block's */
{
	/* begins with it */
	return v->cache_class == RC_VIEW_ALIAS ? (struct rc_value *)(uintptr_t)v : NULL;
}
static inline const char *rc_value_site(const struct rc_value *v)
{
	return v->extra ? v->extra->site : NULL;
}
static inline const char *rc_value_function(const struct rc_value *v)
{
	return v->extra ? v->extra->function : NULL;
}

/* memory.c */
/*
 * Makes a value of bytes. function: the function whose result it is, NULL = none. Takes the lock
 * when memory is short.
 */
int rc_value_alloc(struct rref_ctx *ctx, size_t length, const char *function,
		   struct rc_value **out);
/*
 * Makes a value of a type and of segments, which are copied in if copy is set. Error texts begin
 * with `what` for the public function. Otherwise as rc_value_alloc.
 */
int rc_value_make(struct rref_ctx *ctx, const struct rref_type *type, const struct iovec *segments,
		  size_t nr, bool copy, const char *function, const char *what,
		  struct rc_value **out);
struct rc_header *rc_value_header(const struct rc_value *v);
/* Returns the bytes of the whole in this worker's memory: header, payload, table of segments. */
size_t rc_value_bytes(const struct rc_value *v);
static inline void *rc_value_data(const struct rc_value *v)
{
	return (void *)(uintptr_t)v->view.data;
}
void rc_value_publish(struct rc_value *v, struct rref_id id); /* fills its header; before SET */
/* locates a published value */
void rc_value_locate(const struct rc_value *v, struct rp_location *out);
void rc_value_unpin(struct rc_value *v);
/* Drops a pin when the context is freed: the memory stays as it is, and goes with the arena. */
void rc_value_leave(struct rc_value *v);
/* Destroys the nonce and drops the machine's pin. */
void rc_value_retire(struct rc_value *v);
/* Allocates the header of a value that wraps; as rc_value_alloc. */
int rc_header_alloc(struct rref_ctx *ctx, void **out);
int rc_landing_get(struct rref_ctx *ctx, size_t length, struct rc_landing **out);
/* Tells whether a thread is in the arena of landing blocks, where it may stand still. */
bool rc_landing_waits(const struct rref_ctx *ctx);
void rc_landing_put(struct rc_landing *l);
/* Takes a view from rref_view_free that its thread does not keep. */
void rc_view_put(struct rref_view *v);

/* describe.c */
int rc_check_refs(struct rref_ctx *ctx, struct rref *const *refs, size_t nr);
/* Makes a value of the description, with a copy of its bytes if copy is set. As rc_value_make. */
int rc_value_describe(struct rref_ctx *ctx, const struct rref_value_desc *d, bool copy,
		      const char *function, const char *what, struct rc_value **out);

/* hold.c */
/* Makes v hold refs, before it is published. */
int rc_value_hold(struct rc_value *v, struct rref *const *refs, size_t nr);
/* Lets go of the references that v holds. No lock is needed; any thread may have it. */
void rc_value_let_go(struct rc_value *v);
/* Lets go of the references in values that handles still pin. The context is shut. */
needs_lock void rc_values_let_go(struct rref_ctx *ctx);
/* Makes the view of a value with references hold ref. */
void rc_view_hold(struct rc_landing *l, struct rref *ref, uint16_t nr_refs);
void rc_view_let_go(struct rref_view *v);                   /* lets go of outer: v is given back */

/* wrap.c */
struct rc_header *rc_wrap_header(const struct rc_value *v);
void rc_wrap_locate(const struct rc_value *v, struct rp_location *loc); /* the payload's place */
/* ends a value that nobody uses; the lock may be held */
void rc_wrap_finished(struct rc_value *v);
void rc_wraps_close(struct rref_ctx *ctx);

/* types.c, shape.c */
int rc_types_open(struct rref_ctx *ctx);
void rc_types_close(struct rref_ctx *ctx);
/* Returns NULL if the type is not known here. Lock-free. */
const struct rc_type *rc_type_find(struct rref_ctx *ctx, uint64_t hash);
const struct rc_type *rc_type_bytes(struct rref_ctx *ctx);
int rc_type_get(struct rref_ctx *ctx, const struct rref_type *type, const char *what,
		const struct rc_type **out);
void rc_type_describe(const struct rc_type *t, struct rref_type *out);
/* Adds a type that an owner told. Returns -EBADMSG if the name is none, or not of that hash. */
int rc_type_learn(struct rref_ctx *ctx, uint64_t hash, const char *name, size_t length,
		  size_t element_size, unsigned flags, const struct rc_type **out);
/* Writes a type in words into buf, and returns it: two types may differ in more than the name. */
const char *rc_type_words(const struct rc_type *t, char *buf, size_t size);
int rc_type_check_out(const struct rref_type *out, const char *what);
uint64_t rc_extent(uint64_t length, uint32_t nr_segments); /* payload and table */
int rc_shape_make(const struct rc_type *t, const struct iovec *segments, size_t nr,
		  const char *what, size_t *length);
void rc_shape_write(void *payload, size_t length, const struct iovec *segments, size_t nr,
		    bool copy);
/* Checks a value from elsewhere: lengths that add up, and whole elements if the type is known. */
bool rc_shape_check(const void *payload, uint64_t length, uint32_t nr, const struct rc_type *t);

/* ---- handles ---- */

enum rc_handle_state { /* [atomic] store-release under the lock, load-acquire on the read path */
	RC_H_REQUESTED = 0,  /* user: not confirmed; owner: value not known here yet */
	RC_H_CONFIRMED,      /* user: confirmed, no location yet */
	RC_H_READY,          /* user: loc is valid; owner: value is valid */
	RC_H_FAILED,         /* err, text are valid */
};

/*
 * The fields of every handle. A handle of a value that the program made here itself (rref_new and
 * the like) has no others. They fit a cache line.
 */
struct rref {
	struct rref_ctx *ctx;
	struct rref_id id;
	union {
		/* owner: from RC_H_READY, or at once for the handle that fills it; kept if pins */
		struct rc_value *value;
		/* error text from RC_H_FAILED, but if pins: malloc'ed; NULL = the words of err */
		char *text;
	};
	struct rc_item dropped;      /* item from the last release on that did not get the lock */
	_Atomic uint32_t refs;       /* holds; the last one's release ends it */
	_Atomic uint32_t nested;     /* holds that values have, of refs */
	uint32_t owner;
	int16_t err;                 /* valid from RC_H_FAILED */
	uint16_t about;              /* the same: as in struct rp_effect */
	_Atomic uint8_t state;       /* enum rc_handle_state */
	/* [atomic] RC_FAST_*: while it is not 0, a user's that is READY */
	_Atomic uint8_t fast_class;
	/* a call that is being served holds it for its handler: that hold is not the handler's */
	_Atomic uint8_t lent;
	bool owned : 1, remote : 1, creator : 1; /* [const] remote: it begins a struct rc_remote */
	bool unset; /* owner: made by rref_alloc and not set yet */
	bool ended; /* the machine was told already (shutdown) */
	bool pins; /* owner: its value, since the shutdown, which is why it failed */
};
_Static_assert(sizeof(struct rref) <= CACHE_LINE, "there may be millions of them");

/* A handle that came in a message, or whose value a call makes. */
struct rc_remote {
	struct rref ref;
	struct rp_location loc;      /* user: valid from RC_H_READY */
	struct rref_id fork;         /* zero of an owner's */
	struct rref_future *creation;	/* under the lock */
	/* place in the program where it was made: debug builds; NULL */
	const char *_Atomic site;
};
_Static_assert(offsetof(struct rc_remote, loc) == CACHE_LINE,
	       "a fast read looks at two lines of them");

static inline struct rc_remote *rc_remote(const struct rref *h)
{
	return (struct rc_remote *)(uintptr_t)h;
}
static inline struct rref_id rc_fork_of(const struct rref *h)
{
	return h->remote ? rc_remote(h)->fork : (struct rref_id){ 0 };
}
/* Returns the value of an owner's handle. NULL: it has none yet, or it failed. */
static inline needs_lock struct rc_value *rc_handle_value(const struct rref *h)
{
	return h->owned && (h->pins || at_load(&h->state) != RC_H_FAILED) ? h->value : NULL;
}
static inline const char *rc_handle_site(
	const struct rref *h) /* a remote handle; values of others have it */
{
	return h->remote ? at_load(&rc_remote(h)->site) : NULL;
}
static inline void rc_handle_made_at(struct rref *h, const char *site)
{
	if (h->remote)
		at_store(&rc_remote(h)->site, site);
}

/* handle.c */
/* Makes a remote handle. Returns NULL if there is no memory. */
needs_lock struct rref *rc_handle_make(struct rref_ctx *ctx, bool owned, struct rref_id id,
				       struct rref_id fork, uint32_t owner);
/* Goes through every handle, from h = NULL on. Returns NULL after the last. */
needs_lock struct rref *rc_handle_next(struct rref_ctx *ctx, const struct rref *h);
needs_lock void rc_handle_end(struct rref_ctx *ctx, struct rref *h); /* tells the machine, once */
needs_lock void rc_handle_put(struct rref *h); /* rref_release under it */
needs_lock void rc_handle_free(struct rref *h);
needs_lock void rc_handle_fail(struct rref *h, int err, const char *text);
needs_lock void rc_handle_fail_about(struct rref *h, int err, uint16_t about, const char *text);
needs_lock void rc_handle_ready(struct rref *h, const struct rp_location *loc); /* user */
const char *rc_handle_why(const struct rref *h); /* puts why it FAILED in words */
/* Sets the error text. Returns the code of a FAILED handle. */
int rc_handle_error(const struct rref *h);
/* Ends a handle that was pushed. */
needs_lock void rc_handle_dropped(struct rref_ctx *ctx, struct rc_item *item);
/* Returns the first of nr ids that follow each other. */
struct rref_id rc_next_ids(struct rref_ctx *ctx, unsigned nr);
static inline struct rref_id rc_next_id(struct rref_ctx *ctx)
{
	return rc_next_ids(ctx, 1);
}
/* Gives back a hold as rref_release does, mostly inline. */
static inline void rc_handle_release(struct rref *h)
{
	uint32_t refs = at_load(&h->refs);

	/* Release. Pairs with handle_give_back, where the last hold ends. */
	if (unlikely(refs < 2 || !at_cas_ar(&h->refs, &refs, refs - 1)))
		rref_release(h);
}
/* Consumes v in every case. */
int rc_handle_of_value(struct rref_ctx *ctx, struct rc_value *v, bool set, struct rref **out);

#endif
