/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory of a context. Two arenas: values (remote read) and landing (local only). Each region is
 * registered with every open device, at one random I/O virtual address. So no address of this
 * process is on the wire.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/child.h"
#include "base/limit.h"
#include "base/random.h"
#include "core/base/lock.h"
#include "core/base/log.h"
#include "core/base/site.h"
#include "core/ctx.h"
#include "core/value/internal.h"
#include "core/value/look.h"
#include "core/value/value.h"

/* Bounds on a thread's landing blocks besides one of each class: bytes; a part of the arena's. */
#define KEPT_MAX ((size_t)256 << 10)
#define KEPT_PART 64

uint64_t rc_word(void)
{
	uint64_t word;

	do
		word = rb_random64();
	while (!word);
	return word;
}

int rc_region_reg(struct rref_ctx *ctx, enum rv_access access, void *base, size_t length, int fd,
		  void **cookie)
{
	struct rc_region *r = calloc(1, sizeof(*r));

	if (!r)
		return rc_fail(ENOMEM, "memory for a region's record");
	r->ctx = ctx;
	r->access = access;
	r->length = length;
	/*
	 * 34 random bits above a huge page's alignment, never 0 and never near the end of the
	 * address space. Memory that begins within a page keeps its offset there: devices insist on
	 * it.
	 */
	r->iova = ((rb_random64() >> 9) & ~((UINT64_C(2) << 20) - 1)) + (UINT64_C(2) << 20);
	r->iova += (uintptr_t)base & 4095;
	for (int k = 0; k < RV_NR_KINDS; k++) {
		struct rc_device *d = &ctx->device[k];
		int err;

		if (!d->dev)
			continue;
		err = d->ops->reg(d->dev, base, length, fd, r->iova, access, &r->mr[k]);
		if (err) {
			rc_fail(-err, "%s: registering %zu bytes: %s", d->caps.device, length,
				rv_error_text());
			for (int i = 0; i < k; i++)
				if (r->have[i])
					ctx->device[i].ops->dereg(ctx->device[i].dev, &r->mr[i]);
			free(r);
			return -limit_errno(-err);
		}
		r->have[k] = true;
	}
	*cookie = r;
	return 0;
}

static int reg_value(void *ctx, void *base, size_t length, int fd, void **cookie)
{
	return rc_region_reg(ctx, RV_ACCESS_REMOTE_READ, base, length, fd, cookie);
}

static int reg_landing(void *ctx, void *base, size_t length, int fd, void **cookie)
{
	return rc_region_reg(ctx, RV_ACCESS_LOCAL, base, length, fd, cookie);
}

int rc_region_dereg(void *ctx, void *cookie)
{
	struct rref_ctx *c = ctx;
	struct rc_region *r = cookie;
	int err = 0;

	for (int k = 0; k < RV_NR_KINDS; k++) {
		if (!r->have[k])
			continue;
		int e = c->device[k].ops->dereg(c->device[k].dev, &r->mr[k]);

		if (e) {
			rc_log(c, RREF_LOG_ERROR,
			       "%s: deregistering failed (%s): the memory is kept",
			       c->device[k].caps.device, rv_error_text());
			err = e;
		}
		r->have[k] = e != 0;
	}
	if (!err)
		free(r);
	return err;
}

/* Puts an arena's failure in words: the hook's text if the hook refused, else the arena's own. */
int rc_arena_fail(int err, const char *what, size_t length)
{
	char why[RREF_TEXT_SIZE];

	snprintf(why, sizeof(why), "%s", ra_error_text());
	return rc_fail(limit_errno(-err), "%s of %zu bytes: %.400s", what, length, why);
}

/*
 * Makes the beacon's page. The seals keep a peer that is given the descriptor from shrinking it.
 * Our next store would be a SIGBUS otherwise.
 */
static int beacon_page(struct rref_ctx *ctx)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	void *cookie, *mem = MAP_FAILED;
	int err, fd = RB_OPEN(memfd_create("rref-beacon", MFD_CLOEXEC | MFD_ALLOW_SEALING));

	if (fd >= 0 && !limit_file(page) && !ftruncate(fd, (off_t)page) &&
	    !fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW))
		mem = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (mem == MAP_FAILED)
		err = rc_fail(errno == EAGAIN ? ENOMEM : limit_errno(errno),
			      "the beacon's page: %s",
			      limit_why(fd < 0 ? "memfd_create" : "mapping", errno, page));
	else
		err = rc_region_reg(ctx, RV_ACCESS_REMOTE_READ, mem, page, fd, &cookie);
	if (err) {
		if (mem != MAP_FAILED)
			munmap(mem, page);
		rb_close(fd);
		return err;
	}
	rb_not_in_child(mem, page);
	ctx->session.beacon = mem;
	ctx->session.beacon_fd = fd;
	ctx->session.beacon_region = cookie;
	return 0;
}

static void beacon_close(struct rref_ctx *ctx)
{
	size_t length = ctx->session.beacon_region ? ctx->session.beacon_region->length : 0;

	/* A page that a device would not let go of stays where it is. */
	if (!length || rc_region_dereg(ctx, ctx->session.beacon_region))
		return;
	munmap(ctx->session.beacon, length);
	rb_close(ctx->session.beacon_fd);
	ctx->session.beacon_region = NULL;
	ctx->session.beacon = NULL;
}

/*
 * Makes the beacon and the landing places of probes. The beacon has a region of its own: every peer
 * is told its key. That key must not open values. The landing place is the first block of its
 * arena. Both register at once, so that a limit on locked memory shows in rref_init, not later.
 */
static is_alone int beacons_open(struct rref_ctx *ctx)
{
	void *mem;
	int err = beacon_page(ctx);

	if (err)
		return err;
	*ctx->session.beacon = htole64(++ctx->session.own_beat.count);
	err = ra_alloc(ctx->value.landing, ctx->world * sizeof(*ctx->session.probe_landing),
		       CACHE_LINE, &mem);
	if (err)
		return rc_arena_fail(err, "landing places",
				     ctx->world * sizeof(*ctx->session.probe_landing));
	ctx->session.probe_landing = mem;
	return 0;
}

void rc_beacon(struct rref_ctx *ctx, enum rv_kind kind, struct rw_auth *out)
{
	/* the page's start: iova keeps the offset in its page, which is 0 */
	out->beacon_addr = ctx->session.beacon_region->iova;
	out->beacon_rkey = ctx->session.beacon_region->mr[kind].rkey;
}

/*
 * Registers all memory of this process as a landing place, with a device that copies. So its READs
 * may bring a value straight into memory of the program. The registration ends with the device.
 */
static is_alone int reg_everything(struct rref_ctx *ctx)
{
	for (int k = 0; k < RV_NR_KINDS; k++) {
		struct rc_device *d = &ctx->device[k];
		int err = d->dev && d->caps.reads_inline
				  ? d->ops->reg(d->dev, NULL, SIZE_MAX, -1, 0, RV_ACCESS_LOCAL,
						&d->any)
				  : 0;

		if (err)
			return rc_fail(-err, "%s: %s", d->caps.device, rv_error_text());
	}
	return 0;
}

is_alone int rc_memory_open(struct rref_ctx *ctx, const struct rref_options *opt)
{
	struct ra_hooks hooks = { .reg = reg_value, .dereg = rc_region_dereg, .ctx = ctx };
	struct ra_options ro = { .max_bytes = opt->max_value_bytes,
				 .first_region = opt->region_bytes,
				 .huge = 1,
				 .name = "rref-values",
				 .option = "RREF_MAX_VALUE_BYTES" };
	int err = ra_arena_create(&hooks, &ro, &ctx->value.arena);

	rc_looks_open(ctx, opt);
	if (err)
		return rc_fail(-err, "RREF_MAX_VALUE_BYTES: %s", ra_error_text());
	struct ra_stats values;

	ra_stats(ctx->value.arena, &values);
	ctx->value.max_bytes = values.max_bytes;
	hooks.reg = reg_landing;
	ro.max_bytes = opt->max_landing_bytes;
	ro.name = "rref-landing";
	ro.option = "RREF_MAX_LANDING_BYTES";
	err = ra_arena_create(&hooks, &ro, &ctx->value.landing);
	if (err)
		return rc_fail(-err, "RREF_MAX_LANDING_BYTES: %s", ra_error_text());
	struct ra_stats landing;

	ra_stats(ctx->value.landing, &landing);
	ctx->value.kept_max = min_of(KEPT_MAX, landing.max_bytes / KEPT_PART);
	err = reg_everything(ctx);
	return err ? err : beacons_open(ctx);
}

void rc_memory_close(struct rref_ctx *ctx)
{
	rc_scrub_close(ctx);
	beacon_close(ctx);
	rc_looks_close(ctx);
	ra_arena_destroy(ctx->value.landing);
	ra_arena_destroy(ctx->value.arena);
	ctx->value.landing = ctx->value.arena = NULL;
}

/* ---- values ---- */

/* Takes in what can be free: a view that ended elsewhere, or a value released a moment ago. */
static void room_for_value(struct rref_ctx *ctx)
{
	void (*find_room)(struct rref_ctx *ctx);

	rc_lock(ctx);
	find_room = ctx->value.find_room;
	rc_unlock(ctx); /* runs the work that is queued */
	if (find_room)
		find_room(ctx);
	rc_scrub_all(ctx);
}

/* Allocates memory that no device serves, under the same bound. */
static int local_alloc(struct rref_ctx *ctx, size_t bytes, void **out)
{
	uint64_t live = at_load(&ctx->n.value_bytes);

	if (live + bytes > ctx->value.max_bytes) {
		room_for_value(ctx);
		live = at_load(&ctx->n.value_bytes);
	}
	if (live > ctx->value.max_bytes || bytes > ctx->value.max_bytes - live)
		return rc_fail(
			ENOMEM,
			"a value of %zu bytes: %zu of at most %zu bytes are in use "
			"(max_value_bytes)",
			bytes, (size_t)live, ctx->value.max_bytes);
	*out = aligned_alloc(CACHE_LINE, (bytes + CACHE_LINE - 1) & ~(size_t)(CACHE_LINE - 1));
	return *out ? 0 : rc_fail(ENOMEM, "memory for a value of %zu bytes", bytes);
}

/* Returns an arena's error, with its text. Says how much is kept for views of others. */
static int no_room(struct rref_ctx *ctx, int err, size_t length)
{
	uint64_t left = at_load(&ctx->n.views_left_bytes);
	char why[RREF_TEXT_SIZE];

	err = rc_arena_fail(err, "a value", length);
	if (!left)
		return err;
	snprintf(why, sizeof(why), "%s", rc_error_text());
	return rc_fail(-err,
		       "%.390s; %" PRIu64 " bytes wait for views of workers whose session ended",
		       why, left);
}

static int registered_alloc(struct rref_ctx *ctx, size_t bytes, void **out)
{
	int err = ra_alloc(ctx->value.arena, bytes, CACHE_LINE, out);

	if (err == -ENOMEM) {
		room_for_value(ctx);
		err = ra_alloc(ctx->value.arena, bytes, CACHE_LINE, out);
	}
	return err ? no_room(ctx, err, bytes - RC_HEADER_BYTES) : 0;
}

int rc_header_alloc(struct rref_ctx *ctx, void **out)
{
	return registered_alloc(ctx, RC_HEADER_BYTES, out);
}

static bool is_local(const struct rc_value *v)
{
	return v->type->flags & RREF_LOCAL_ONLY;
}

struct rc_header *rc_value_header(const struct rc_value *v)
{
	return v->wrapped ? rc_wrap_header(v) : (struct rc_header *)rc_value_data(v) - 1;
}

size_t rc_value_bytes(const struct rc_value *v)
{
	return RC_HEADER_BYTES + (v->wrapped ? 0 : rc_extent(v->view.length, v->view.nr_segments));
}

/*
 * Makes a value's record. Its rare parts are in the same block, if they are known now. calloc is
 * not used: glibc's goes past the memory that the thread has just freed. Most records are made of
 * such memory.
 */
static struct rc_value *record_make(const char *site, const char *function, bool large)
{
	struct rc_value *v = large ? rc_large_make()
				   : malloc(sizeof(*v) +
					    (site || function ? sizeof(*v->extra) : 0));

	if (!v)
		return NULL;
	if (!large)
		memset(v, 0, sizeof(*v));
	if (site || function) {
		v->extra = (struct rc_value_extra *)(v + 1);
		*v->extra = (struct rc_value_extra){ .site = site, .function = function };
	}
	return v;
}

static void record_free(struct rc_value *v)
{
	if (v->extra != (struct rc_value_extra *)(v + 1))
		free(v->extra);
	free(v);
}

int rc_value_make(struct rref_ctx *ctx, const struct rref_type *type, const struct iovec *segments,
		  size_t nr, bool copy, const char *function, const char *what,
		  struct rc_value **out)
{
	const struct rc_type *t;
	struct rc_value *v;
	size_t length;
	void *mem;
	int err = rc_type_get(ctx, type, what, &t);

	if (!err)
		err = rc_shape_make(t, segments, nr, what, &length);
	if (err)
		return err;
	v = record_make(rc_site_take(), function,
			RC_HEADER_BYTES + rc_extent(length, (uint32_t)nr) > RC_LARGE_BYTES);
	if (!v)
		return rc_fail(ENOMEM, "memory for a value's record");
	v->view = (struct rref_view){ .ctx = ctx,
				      .length = length,
				      .nr_segments = (uint16_t)nr,
				      .cache_class = RC_VIEW_ALIAS };
	v->type = t;
	err = is_local(v) ? local_alloc(ctx, rc_value_bytes(v), &mem)
			  : registered_alloc(ctx, rc_value_bytes(v), &mem);
	if (err) {
		record_free(v);
		return err;
	}
	memset(mem, 0, RC_HEADER_BYTES);
	v->view.data = (char *)mem + RC_HEADER_BYTES;
	rc_shape_write(rc_value_data(v), length, segments, nr, copy);
	at_store(&v->pins, 1);
	at_add(&ctx->n.value_bytes, rc_value_bytes(v));
	*out = v;
	return 0;
}

int rc_value_alloc(struct rref_ctx *ctx, size_t length, const char *function, struct rc_value **out)
{
	if (length > RC_VALUE_MAX)
		return rc_fail(EMSGSIZE, "a value of %zu bytes: the limit is %zu", length,
			       (size_t)RC_VALUE_MAX);
	return rc_value_make(ctx, NULL, &(struct iovec){ .iov_len = length }, 1, false, function,
			     "a value", out);
}

void rc_value_publish(struct rc_value *v, struct rref_id id)
{
	struct rc_header *h = rc_value_header(v);
	uint64_t nonce;

	if (is_local(v))
		return; /* ready, and there is nothing to read it by */
	nonce = rc_word(); /* a draw of its own: the nonce tells nothing of the value's word */
	h->local_id = htole64(id.local_id);
	h->created_on = htole32(id.created_on);
	h->version = htole32(1);
	h->length = htole64(v->view.length);
	h->type_hash = htole64(v->type->hash);
	h->nr_segments = htole16(v->view.nr_segments);
	h->nr_refs = htole16(v->view.nr_refs);
	h->state = htole32(RC_HEADER_READY);
	/* Last, so that a reader that was given the location never finds the nonce beside a
	 * half-made header. */
	__atomic_store_n(&h->nonce, htole64(nonce), __ATOMIC_RELEASE);
}

void rc_value_locate(const struct rc_value *v, struct rp_location *out)
{
	const struct rc_header *h = rc_value_header(v);
	const struct rc_region *r;
	void *base;

	*out = (struct rp_location){ .length = v->view.length,
				     .type_hash = v->type->hash,
				     .nr_segments = v->view.nr_segments,
				     .nr_refs = v->view.nr_refs,
				     .version = 1 };
	if (is_local(v))
		return;
	r = ra_lookup(v->view.ctx->value.arena, h, &base);
	out->addr = r->iova + (uint64_t)((const char *)h - (const char *)base);
	out->nonce = le64toh(h->nonce);
	for (int k = 0; k < RV_NR_KINDS; k++)
		out->rkey[k] = r->have[k] ? r->mr[k].rkey : 0;
	if (v->wrapped)
		rc_wrap_locate(v, out);
}

void rc_value_unpin(struct rc_value *v)
{
	if (at_sub_ar(&v->pins, 1) != 1)
		return;
	if (v->wrapped) {
		rc_value_let_go(v); /* first: behind the next line v is another's */
		rc_wrap_finished(v);
		return;
	}
	rc_value_let_go(v);
	/* Scrubbed before reuse: a late reader must not find an old secret. */
	if (rc_value_bytes(v) > RC_LARGE_BYTES) {
		rc_scrub_later(v);
		return;
	}
	explicit_bzero(rc_value_header(v), rc_value_bytes(v));
	rc_value_free(v);
}

void rc_value_free(struct rc_value *v)
{
	struct rref_ctx *ctx = v->view.ctx;
	struct rc_header *h = rc_value_header(v);
	size_t bytes = rc_value_bytes(v);

	if (is_local(v))
		free(h);
	else
		ra_free(ctx->value.arena, h, bytes);
	at_sub(&ctx->n.value_bytes, bytes);
	record_free(v);
}

void rc_value_leave(struct rc_value *v)
{
	if (at_sub_ar(&v->pins, 1) == 1)
		record_free(v);
}

void rc_value_retire(struct rc_value *v)
{
	/* A read that still comes must find no nonce: nobody in the group holds a reference.
	 * Local aliases live on. */
	__atomic_store_n(&rc_value_header(v)->nonce, 0, __ATOMIC_RELEASE);
	rc_value_unpin(v);
}
