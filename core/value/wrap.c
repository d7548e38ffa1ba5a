/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Values that wrap memory which the program registered: no copy is made, and the program gets its
 * memory back.
 *
 * The payload is the program's. So the header (64 bytes among the other values) lies elsewhere, and
 * the location names both. A reader asks for the payload first, and for the header behind it on the
 * same connection (read.c). A header that is still good vouches for the bytes that were read before
 * it.
 *
 * The way back has four steps, strictly in this order. Nobody holds a reference, and each dead
 * worker is fenced (the machine's business, as for any value). The nonce is destroyed. The last
 * view of the owner itself is freed. The release callback runs. The thread that drops the last hold
 * may have the progress lock or not. So the value is pushed as work. The next release of the lock
 * queues the callback as a hook.
 *
 * Over shm a peer maps memory by its descriptor, so only memory of rref_mem_alloc can be wrapped
 * there. The alternative, process_vm_readv by the reader, was left out. Each machine decides
 * whether it is allowed (Yama, containers, dumpable processes). The reader finds that out when it
 * is too late. It knows processes by number, and numbers are used again. It costs each read a
 * system call. A clear refusal at registration is better than a read that fails somewhere else.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/limit.h"
#include "core/base/guard.h"
#include "core/base/lock.h"
#include "core/base/scope.h"
#include "core/base/site.h"
#include "core/base/wait.h"
#include "core/value/internal.h"

struct rref_mem {
	struct rref_ctx *ctx;
	struct rc_region *region;
	char *base;
	size_t length;
	/* rref_mem_alloc: bytes of the mapping; 0 = the memory is the program's own */
	size_t mapped;
	int fd;                   /* descriptor of the mapping; -1 */
	uint64_t wraps;	/* under the lock; values that wrap some of it */
	uint64_t due;	/* under the lock; wraps whose callbacks are due, and have not begun */
	struct list node;	/* under the lock; ctx->value.mems */
};

/* A value, and the parts that give its memory back to the program. */
struct rc_wrap {
	struct rc_value value;
	struct rc_value_extra extra;
	struct rc_header *header; /* header, among the other values */
	struct rref_mem *mem;
	void (*release)(void *arg); /* NULL: nobody wants to hear */
	void *arg;
	/* the program has the reference: from now on it hears of the end */
	bool told;
	struct rc_work work;      /* pushed when the last view is gone */
	struct rc_hook hook;      /* then: the release callback */
	/* under the lock; ctx->value.wraps; while the callback runs ctx->value.wraps_out */
	struct list node;
};

static struct rc_wrap *wrap_of(const struct rc_value *v)
{
	return (struct rc_wrap *)(uintptr_t)v; /* begins with it */
}

struct rc_header *rc_wrap_header(const struct rc_value *v)
{
	return wrap_of(v)->header;
}

/* ---- registrations ---- */

static int mem_make(struct rref_ctx *ctx, void *base, size_t length, int fd, size_t mapped,
		    struct rref_mem **out)
{
	struct rref_mem *m = calloc(1, sizeof(*m));
	int err;

	if (!m)
		return rc_fail(ENOMEM, "memory for a registration's record");
	*m = (struct rref_mem){ .ctx = ctx, .base = base, .length = length, .fd = fd,
				.mapped = mapped };
	err = rc_region_reg(ctx, RV_ACCESS_REMOTE_READ, base, length, fd, (void **)&m->region);
	if (err) {
		free(m);
		return err;
	}
	rc_lock(ctx);
	/* Checked under the lock: a registration that begins after the shutdown would be known
	 * to nobody. */
	err = rc_enter(ctx);
	if (!err)
		list_add_tail(&ctx->value.mems, &m->node);
	rc_unlock(ctx);
	if (err) {
		rc_region_dereg(ctx, m->region);
		free(m);
		return rc_enter(ctx);
	}
	at_add(&ctx->n.mem_bytes, length);
	at_add(&ctx->n.mems, 1);
	*out = m;
	return 0;
}

/* Refuses memory of the program's own where peers cannot read it in place. */
static int check_peers(const struct rref_ctx *ctx)
{
	for (uint32_t i = 0; i < ctx->world; i++)
		if (i != ctx->rank && ctx->peers[i].kind == RV_SHM)
			return rc_fail(
				EOPNOTSUPP,
				"rref_mem_register: %s (rank %u) is reached over shared memory, "
				"where only memory of rref_mem_alloc can be read in place; "
				"take that, or RREF_DEVICE=ibv for the whole group",
				ctx->members[i].name, i);
	return 0;
}

int rref_mem_register(struct rref_ctx *ctx, void *addr, size_t length, struct rref_mem **out)
{
	RB_NO_CANCEL;
	int err = rc_enter(ctx);

	if (err)
		return err;
	if (!out || !addr || !length)
		return rc_fail(EINVAL, "rref_mem_register: %s",
			       !out   ? "nowhere to put the registration"
			       : addr ? "no bytes"
				      : "the address is NULL");
	if (length > UINTPTR_MAX - (uintptr_t)addr)
		return rc_fail(EINVAL,
			       "rref_mem_register: %zu bytes at %p end beyond the address space",
			       length, addr);
	err = check_peers(ctx);
	if (!err)
		err = mem_make(ctx, addr, length, -1, 0, out);
	if (err == -EFAULT)
		return rc_fail(
			EFAULT,
			"rref_mem_register: %zu bytes at %p are not all mapped, "
			"or mapped so that no device may pin them (shared and read-only, "
			"or a device's own memory)",
			length, addr);
	return err;
}

/* Maps zeroed memory that peers of this machine can be given. */
static int map(size_t length, size_t *mapped, int *fd, void **addr)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);

	if (length > SIZE_MAX - page || length > (size_t)INT64_MAX - page)
		return rc_fail(ENOMEM,
			       "rref_mem_alloc: %zu bytes are more than there are addresses",
			       length);
	*mapped = (length + page - 1) & ~(page - 1);
	*fd = RB_OPEN(memfd_create("rref-mem", MFD_CLOEXEC | MFD_ALLOW_SEALING));
	if (*fd < 0)
		return rc_fail(ENOMEM, "rref_mem_alloc: %s", limit_why("memfd_create", errno, 0));
	/* A peer that is given the descriptor could otherwise shrink it, and our next store would
	 * be a SIGBUS. */
	if (limit_file(*mapped) || ftruncate(*fd, (off_t)*mapped) ||
	    fcntl(*fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) ||
	    (*addr = mmap(NULL, *mapped, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0)) ==
		    MAP_FAILED) {
		int err = rc_fail(ENOMEM, "rref_mem_alloc: %s",
				  limit_why("mapping memory", errno, length));

		rb_close(*fd);
		return err;
	}
	madvise(*addr, *mapped, MADV_HUGEPAGE); /* a wish */
	return 0;
}

int rref_mem_alloc(struct rref_ctx *ctx, size_t length, struct rref_mem **out, void **addr)
{
	RB_NO_CANCEL;
	size_t mapped = 0;
	void *base = NULL;
	int fd = -1, err = rc_enter(ctx);

	if (err)
		return err;
	if (!out || !addr || !length)
		return rc_fail(EINVAL, "rref_mem_alloc: %s",
			       length ? "nowhere to put the memory or its registration"
				      : "no bytes");
	err = map(length, &mapped, &fd, &base);
	if (err)
		return err;
	err = mem_make(ctx, base, length, fd, mapped, out);
	if (err) {
		munmap(base, mapped);
		rb_close(fd);
		return err;
	}
	*addr = base;
	return 0;
}

/* Frees mem, which is out of ctx->value.mems already. */
static int mem_free(struct rref_mem *m)
{
	struct rref_ctx *ctx = m->ctx;
	int err = rc_region_dereg(ctx, m->region);

	if (err)
		return err;
	if (m->mapped) {
		rb_close(m->fd); /* first: the unmapping frees it, which takes its time */
		munmap(m->base, m->mapped);
	}
	at_sub(&ctx->n.mem_bytes, m->length);
	at_sub(&ctx->n.mems, 1);
	free(m);
	return 0;
}

/* ---- wrapping ---- */

static int value_make(struct rref_mem *mem, size_t offset, size_t length,
		      const struct rc_type *type, struct rc_wrap **out)
{
	struct rref_ctx *ctx = mem->ctx;
	struct rc_wrap *w = calloc(1, sizeof(*w));
	struct rc_value *v;
	void *header;
	int err;

	if (!w)
		return rc_fail(ENOMEM, "memory for a value's record");
	err = rc_header_alloc(ctx, &header);
	if (err) {
		free(w);
		return err;
	}
	v = &w->value;
	v->view = (struct rref_view){ .ctx = ctx,
				      .data = mem->base + offset,
				      .length = length,
				      .nr_segments = 1,
				      .cache_class = RC_VIEW_ALIAS };
	v->type = type;
	v->wrapped = true;
	v->extra = &w->extra;
	w->extra.site = rc_site_take();
	w->header = header;
	memset(header, 0, RC_HEADER_BYTES);
	at_store(&v->pins, 1);
	at_add(&ctx->n.value_bytes, RC_HEADER_BYTES);
	at_add(&ctx->n.wrapped_bytes, length);
	w->mem = mem;
	rc_lock(ctx);
	mem->wraps++;
	list_add_tail(&ctx->value.wraps, &w->node);
	rc_unlock(ctx);
	*out = w;
	return 0;
}

void rc_wrap_locate(const struct rc_value *v, struct rp_location *loc)
{
	const struct rref_mem *m = wrap_of(v)->mem;

	loc->data_addr = m->region->iova + (uint64_t)((const char *)v->view.data - m->base);
	for (int k = 0; k < RV_NR_KINDS; k++)
		loc->data_rkey[k] = m->region->have[k] ? m->region->mr[k].rkey : 0;
}

/* Checks that the bytes lie in mem; *offset is where they begin. */
static int check_place(const struct rref_mem *mem, const struct rref_value_desc *d, size_t *offset)
{
	*offset = (uintptr_t)d->data - (uintptr_t)mem->base;
	if (!d->length || (uintptr_t)d->data < (uintptr_t)mem->base || *offset > mem->length ||
	    d->length > mem->length - *offset)
		return rc_fail(
			EINVAL,
			"rref_wrap: %zu bytes at %p are not some of the %zu registered bytes at %p",
			d->length, d->data, mem->length, (void *)mem->base);
	if (d->length > RC_VALUE_MAX)
		return rc_fail(EMSGSIZE, "rref_wrap: a value of %zu bytes: the limit is %zu",
			       d->length, (size_t)RC_VALUE_MAX);
	return 0;
}

/* Checks what rref_wrap was given; *offset is where the value begins in mem. */
static int check_wrap(const struct rref_mem *mem, const struct rref_value_desc *d, const void *out,
		      size_t *offset)
{
	if (!mem || !out)
		return rc_fail(EINVAL, "rref_wrap: %s",
			       mem ? "nowhere to put the reference" : "no registered memory");
	int err = rc_enter(mem->ctx);

	if (err)
		return err;
	if (!d || d->segments || d->nr_segments)
		return rc_fail(EINVAL, "rref_wrap: %s",
			       d ? "a wrapped value is one segment, of data and length"
				 : "no description of the value");
	err = check_place(mem, d, offset);
	if (err)
		return err;
	if (d->type && (d->type->flags & RREF_LOCAL_ONLY))
		return rc_fail(
			EINVAL,
			"rref_wrap: a value of a local only type lies in memory that no device "
			"serves; this is registered");
	return rc_check_refs(mem->ctx, d->refs, d->nr_refs);
}

/* Makes the value and the holds on its references. */
static int wrap_make(struct rref_mem *mem, size_t offset, const struct rref_value_desc *d,
		     const struct rc_type *type, struct rc_wrap **out)
{
	int err = value_make(mem, offset, d->length, type, out);

	if (err)
		return err;
	err = rc_value_hold(&(*out)->value, d->refs, d->nr_refs);
	if (err)
		rc_value_unpin(&(*out)->value);
	return err;
}

int rref_wrap(struct rref_mem *mem, const struct rref_value_desc *desc, void (*release)(void *arg),
	      void *arg, struct rref **out)
{
	RB_NO_CANCEL;
	const struct rc_type *t;
	struct rc_wrap *w = NULL;
	size_t offset = 0, whole;
	int err = check_wrap(mem, desc, out, &offset);

	if (err)
		return err;
	struct rref_ctx *ctx = mem->ctx;

	err = rc_type_get(ctx, desc->type, "rref_wrap", &t);
	if (!err)
		err = rc_shape_make(t, &(struct iovec){ .iov_len = desc->length }, 1, "rref_wrap",
				    &whole);
	if (err)
		return err;
	struct rc_scope *s = rc_scope_begin(ctx, "wrap", NULL, ctx->rank, ctx->rank);
	struct rref *ref = NULL;

	err = wrap_make(mem, offset, desc, t, &w);
	if (!err) {
		w->release = release;
		w->arg = arg;
		/* the value is gone if it fails, and nobody is told */
		err = rc_handle_of_value(ctx, &w->value, true, &ref);
	}
	if (!err) {
		w->told = true; /* set before anybody else can know of it: ref is not out yet */
		*out = ref;
	}
	rc_scope_end(ctx, s, err);
	return err;
}

/* ---- the way back ---- */

static _Thread_local unsigned returning; /* release callbacks on this thread's stack */

static void wrap_give_back(struct rref_ctx *ctx, struct rc_hook *h)
{
	struct rc_wrap *w = container_of(h, struct rc_wrap, hook);

	rc_lock(ctx);
	w->mem->wraps--; /* dropped before the callback, which may deregister the memory */
	w->mem->due--;
	list_add_tail(&ctx->value.wraps_out, &w->node);
	rc_unlock(ctx);
	returning++;
	w->release(w->arg);
	returning--;
	rc_lock(ctx);
	list_del(&w->node);
	rc_unlock(ctx);
	free(w);
}

/* Queues the release callback, or frees the value if there is none. */
static needs_lock void give_back_soon(struct rref_ctx *ctx, struct rc_work *work)
{
	struct rc_wrap *w = container_of(work, struct rc_wrap, work);

	list_del(&w->node);
	if (w->told && w->release) {
		w->hook.run = wrap_give_back;
		w->mem->due++;
		rc_hook_push(ctx, &w->hook);
		return;
	}
	w->mem->wraps--;
	free(w);
}

/* Ends a value whose last hold is gone. May be called with the lock and without. */
void rc_wrap_finished(struct rc_value *v)
{
	struct rc_wrap *w = wrap_of(v);
	struct rref_ctx *ctx = v->view.ctx;

	explicit_bzero(w->header, RC_HEADER_BYTES);
	ra_free(ctx->value.arena, w->header, RC_HEADER_BYTES);
	at_sub(&ctx->n.value_bytes, RC_HEADER_BYTES);
	at_sub(&ctx->n.wrapped_bytes, v->view.length);
	w->work.run = give_back_soon;
	rc_work_push(ctx, &w->work);
	/* The holder of the lock, this thread perhaps, looks when it lets go of it. */
	if (rc_trylock(ctx))
		rc_unlock(ctx);
}

/* Returns the release callback of a value in mem that is due and in the queue, or NULL. */
static needs_lock struct rc_hook *find_due(struct rref_ctx *ctx, const struct rref_mem *mem)
{
	struct list *l, *tmp;

	if (!mem->due)
		return NULL;
	list_for_each_safe(l, tmp, &ctx->hooks.due) {
		struct rc_hook *h = container_of(l, struct rc_hook, node);

		if (h->run == wrap_give_back && container_of(h, struct rc_wrap, hook)->mem == mem)
			return h;
	}
	return NULL;
}

/* Takes the same callback out of the queue, if there is one. Returns it, or NULL. */
static needs_lock struct rc_hook *take_due(struct rref_ctx *ctx, const struct rref_mem *mem)
{
	while (rc_work_run_pushed(ctx))
		; /* the end of a handle pushes the value that it pins */
	struct rc_hook *h = find_due(ctx, mem);

	if (h)
		rc_hook_take(ctx, h);
	return h;
}

/* Returns a value of mem whose callback runs, or NULL if there is no such value. */
static needs_lock struct rc_wrap *find_out(struct rref_ctx *ctx, const struct rref_mem *mem)
{
	struct list *l, *tmp;

	list_for_each_safe(l, tmp, &ctx->value.wraps_out) {
		struct rc_wrap *w = container_of(l, struct rc_wrap, node);

		if (w->mem == mem)
			return w;
	}
	return NULL;
}

/*
 * Returns true if no callback of mem runs on another thread or is about to, popped a moment ago.
 * Returns true too if a callback is in the queue: it may be taken. A callback does not wait for
 * callbacks that run: two would wait for each other.
 */
static needs_lock bool none_out(struct rref_ctx *ctx, void *arg)
{
	const struct rref_mem *mem = arg;

	return find_due(ctx, mem) || (!mem->due && (returning || !find_out(ctx, mem)));
}

/* Lets go of the lock meanwhile. */
static needs_lock void wait_for_callbacks(struct rref_ctx *ctx, struct rref_mem *mem)
{
	unsigned turn = 0;

	if (rc_wait_until(ctx, none_out, mem, INT64_MAX) != -ESHUTDOWN)
		return;
	/* No turn is made any more, but a callback may still run on another thread. */
	while (!none_out(ctx, mem)) {
		rc_unlock(ctx);
		rc_pause(&turn);
		rc_lock(ctx);
	}
}

/*
 * Runs the callbacks of values that were released a moment ago. The memory is not the program's
 * before they have run. Lets go of the lock meanwhile.
 */
static needs_lock void run_callbacks(struct rref_ctx *ctx, struct rref_mem *mem)
{
	struct rc_hook *due;

	do {
		while ((due = take_due(ctx, mem))) {
			rc_unlock(ctx);
			rc_hook_run(ctx, due);
			rc_lock(ctx);
		}
		wait_for_callbacks(ctx, mem);
	} while (find_due(ctx, mem));
}

int rref_mem_deregister(struct rref_mem *mem)
{
	RB_NO_CANCEL;
	struct rref_ctx *ctx = mem ? mem->ctx : NULL;
	uint64_t wraps;

	if (!mem)
		return 0;
	if (rc_is_barred(ctx))
		return rc_enter_slow(ctx);
	rc_lock(ctx);
	run_callbacks(ctx, mem);
	wraps = mem->wraps;
	if (!wraps) {
		struct rc_wrap *w;

		list_del(&mem->node);
		while ((w = find_out(ctx, mem)))
			w->mem = NULL; /* the callback deregisters: mem may be another's address */
	}
	rc_unlock(ctx);
	/* Callbacks of other memory may be due from here, and no other thread would run them. */
	if (at_load(&ctx->state) == RC_CTX_SHUT && !rc_in_callback())
		rc_hooks_flush(ctx);
	if (wraps)
		return rc_fail(EBUSY, "rref_mem_deregister: %llu values still wrap this memory",
			       (unsigned long long)wraps);
	if (!mem_free(mem))
		return 0;
	rc_lock(ctx);
	list_add_tail(&ctx->value.mems, &mem->node);
	rc_unlock(ctx);
	return rc_fail(EBUSY, "rref_mem_deregister: a device does not let go of it: %s",
		       rv_error_text());
}

/*
 * Ends the values and registrations of a context that is being freed. Views that the program never
 * freed are not to be touched any more. Registrations that it never gave up go now.
 */
void rc_wraps_close(struct rref_ctx *ctx)
{
	struct list *l, *tmp;

	rc_lock_settled(ctx);
	rc_unlock(ctx);
	rc_hooks_flush(ctx);
	rc_lock(ctx);
	list_for_each_safe(l, tmp, &ctx->value.wraps) {
		struct rc_wrap *w = container_of(l, struct rc_wrap, node);

		at_store(&w->value.pins, 1);
		/* The handles that it held are gone already: the caller freed all of the
		 * context's. */
		free(w->extra.refs);
		w->extra.refs = NULL;
		rc_value_unpin(&w->value);
	}
	rc_unlock(ctx);
	rc_hooks_flush(ctx);
	/* memory that a device keeps stays mapped for good */
	while ((l = list_pop(&ctx->value.mems)))
		mem_free(container_of(l, struct rref_mem, node));
}
