/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One-sided READs: look at key and connection, copy, look again.
 *
 * [any] and lock-free: the path of a READ writes nothing but its landing memory and its status.
 * Only a key whose region is still in the socket costs a lock and syscalls, once.
 *
 * A refused READ ends the connection on both sides, as it does on a NIC. The failing one has its
 * reason, the chain's later ones have -ECONNRESET, and both sides get DISCONNECTED. Landing memory
 * is checked as the NIC checks it: the local key must cover the piece. So a mistake shows here and
 * not only on a cluster.
 */
#include <errno.h>
#include <string.h>

#include "base/fast.h"
#include "base/thread.h"
#include "shm.h"

struct source {
	const char *from;
	uint64_t word;
};

static inline bool landing_ok(const struct rv_conn *conn, const struct rv_sge *s)
{
	const struct rvs_key *k = &conn->keys[RVS_KEY_INDEX(s->lkey)];
	uintptr_t at;

	/* acquire. Pairs with reg()'s release: base and length belong to this key as long as it is
	 * registered. */
	if (unlikely(!s->lkey || at_load_acq(&k->key) != s->lkey))
		return false;
	at = (uintptr_t)s->addr - at_load(&k->base); /* wraps to huge when below */
	return at <= at_load(&k->length) && s->length <= at_load(&k->length) - at;
}

/* Takes the READ's first look at the peer's permission. Returns 0 or -errno. */
static int serve_error(uint32_t serve)
{
	return serve == RVS_SERVE_NONE ? -EACCES : -ECONNRESET;
}

/* Packets that a READ takes from the socket at most. The
 * socket holds fewer, unless a peer goes on and on. */
#define FETCH_PACKETS 1024u
#define FETCH_BATCH 64u

enum { FOUND = 0, MISSING = 1 };

/* Tells whether length bytes from offset on, which wraps to huge below the region, lie in it. */
static inline bool lies_in(uint64_t offset, uint64_t length, uint64_t region)
{
	return offset <= region && length <= region - offset;
}

/* Finds the mapped bytes [addr, addr+length) of key rkey:
 * FOUND, MISSING (not mapped yet) or -EACCES. */
static inline __attribute__((always_inline)) int find_bytes(const struct rv_conn *conn,
							    uint32_t rkey, uint64_t addr,
							    uint64_t length, struct source *out)
{
	const struct rvs_seg *seg = &conn->segs[RVS_KEY_INDEX(rkey)];
	/* Pairs with reg()'s release */
	uint64_t word = at_load_acq(&conn->peer_keys[RVS_KEY_INDEX(rkey)]);
	uint64_t iova, seg_length, offset;
	uintptr_t base;

	if (unlikely((uint32_t)word != rkey || !(word & RVS_WORD_LIVE)))
		return -EACCES;
	/* Partners of all: add_region() and drop_mapping() in map.c, where it
	 * says why the word is loaded twice. */
	if (unlikely(at_load_acq(&seg->word) != word))
		return MISSING;
	base = at_load_acq(&seg->base);
	iova = at_load_acq(&seg->iova);
	seg_length = at_load_acq(&seg->length);
	if (unlikely(at_load(&seg->word) != word))
		return MISSING;
	offset = addr - iova;
	if (unlikely(!lies_in(offset, length, seg_length)))
		return -EACCES;
	out->from = (const char *)base + offset;
	out->word = word;
	return FOUND;
}

/*
 * Receives regions that are under way. Returns FOUND, -EAGAIN when it is not there yet, -ENOMEM
 * when there is no room for it, or find_bytes()'s answer. A wake-up that was taken here is passed
 * on, to progress.
 */
static __attribute__((noinline)) int fetch(struct rv_conn *conn, uint32_t rkey, uint64_t addr,
					   uint64_t length, struct source *out)
{
	RB_NO_CANCEL;
	struct rvs_taken got;
	unsigned packets = 0;
	int rc, found;

	do {
		rc = rvs_drain(conn, FETCH_BATCH, &got);
		packets += got.packets;
		if (got.wakes)
			rvs_wake_self(conn->dev);
		if (got.again)
			rvs_tell_one(conn, got.again);
		if (rc) {
			rvs_break(conn, -rc, -1);
			return -ECONNRESET;
		}
		found = find_bytes(conn, rkey, addr, length, out);
	} while (found == MISSING && got.packets && packets < FETCH_PACKETS);
	if (found != MISSING)
		return found;
	return got.eof ? -ECONNRESET : rvs_missed(conn, rkey);
}

/* Finds bytes for a look, and the key's word. Returns 0 or -errno. [any] */
int rvs_find(struct rv_conn *conn, uint32_t rkey, uint64_t addr, uint64_t length,
	     const void **at, uint64_t *word)
{
	struct source src;
	int rc = find_bytes(conn, rkey, addr, length, &src);

	if (unlikely(rc == MISSING))
		rc = fetch(conn, rkey, addr, length, &src);
	if (unlikely(rc))
		return rc;
	*at = src.from;
	*word = src.word;
	return 0;
}

static __attribute__((noinline)) int refused(struct rv_conn *conn, struct rv_read *r, int status)
{
	uint32_t serve = at_load_acq(conn->peer_serve);

	rb_assert_is(status, <, 0);
	/* The end of the connection comes before the end of its keys. If both have come, it is the
	 * reason. The caller loaded the key with acquire. */
	if (status == -EACCES && serve != RVS_SERVE_READS)
		status = serve_error(serve);
	r->status = status;
	rvs_break(conn, -status,
		  status == -EACCES	      ? RVS_WC_REM_ACCESS_ERR
			  : status == -EFAULT ? RVS_WC_LOC_PROT_ERR
					      : -1);
	return 0;
}

/* Copies without a call the lengths of a value's header, alone and before a word-sized value. */
static inline void copy(void *to, const void *from, size_t n)
{
	if (n == 72)
		memcpy(to, from, 72);
	else if (n == 64)
		memcpy(to, from, 64);
	else
		memcpy(to, from, n);
}

/*
 * Makes the usual READ, one value with its header, without a loop when nothing is in its way. The
 * first look is only at this process' own mapping. A word never comes back: a key or a permission
 * that was gone before the copy is gone after it. So one look at the peer's words, the last one, is
 * enough. Returns false if it was not made, or not good: the general path finds out why.
 */
static inline bool read_value(struct rv_conn *conn, struct rv_read *r)
{
	const struct rvs_seg *seg = &conn->segs[RVS_KEY_INDEX(r->rkey)];
	uint64_t length = r->sge[0].length, word, seg_length, offset;

	if (unlikely(r->nr_sge != 1 || !length || length > conn->max_msg ||
		     !landing_ok(conn, &r->sge[0])))
		return false;
	word = at_load_acq(&seg->word); /* order as in find_bytes() */
	const char *from = (const char *)at_load_acq(&seg->base);

	offset = r->addr - at_load_acq(&seg->iova);
	seg_length = at_load_acq(&seg->length);
	if (unlikely((uint32_t)word != r->rkey || at_load(&seg->word) != word ||
		     !lies_in(offset, length, seg_length)))
		return false;
	rb_slow_bytes(RB_SLOW_COPY, length);
	copy(r->sge[0].addr, from + offset, length);
	rvs_after_copy(); /* the second look, as below */
	if (unlikely(at_load(&conn->peer_keys[RVS_KEY_INDEX(r->rkey)]) != word ||
		     at_load(conn->peer_serve) != RVS_SERVE_READS))
		return false;
	r->status = 0;
	return true;
}

/* Adds the landing pieces' bytes to *total. Returns 0; -errno with a text; 1: one is no landing
 * memory. */
static inline int landing_total(const struct rv_conn *conn, const struct rv_read *r,
				uint64_t *total)
{
	bool ok = true;

	if (unlikely(r->nr_sge > RV_READ_SGE_MAX))
		return rv_fail(EINVAL, "shm: a READ with %u landing pieces, %d at most", r->nr_sge,
			       RV_READ_SGE_MAX);
	for (uint32_t i = 0; i < r->nr_sge; i++) {
		const struct rv_sge *s = rv_read_sge(r, i);

		*total += s->length;
		ok = ok && (!s->length || landing_ok(conn, s));
	}
	if (unlikely(*total > conn->max_msg))
		return rv_fail(EMSGSIZE, "shm: a READ of %llu bytes, %llu at most",
			       (unsigned long long)*total, (unsigned long long)conn->max_msg);
	return !ok;
}

static inline void copy_landing(const struct rv_read *r, const char *from)
{
	for (uint32_t i = 0; i < r->nr_sge; i++) {
		const struct rv_sge *s = rv_read_sge(r, i);

		copy(s->addr, from, s->length);
		from += s->length;
	}
}

/*
 * Takes the second look. Pairs with dereg() and close_conn(): bytes copied after they took effect
 * fail here.
 */
static inline int second_look(const struct rv_conn *conn, uint32_t rkey, uint64_t word)
{
	uint32_t serve;

	rvs_after_copy();
	if (unlikely(at_load_acq(&conn->peer_keys[RVS_KEY_INDEX(rkey)]) != word))
		return -EACCES;
	serve = at_load(conn->peer_serve);
	return likely(serve == RVS_SERVE_READS) ? 0 : serve_error(serve);
}

/* Makes one READ. Returns 0: done, r->status says how. -errno: not posted. */
static __attribute__((noinline)) int read_one(struct rv_conn *conn, struct rv_read *r)
{
	uint32_t serve = at_load_acq(conn->peer_serve); /* Pairs with allow_reads(), close_conn() */
	uint64_t total = 0;
	struct source src;
	int rc = landing_total(conn, r, &total);

	if (unlikely(rc))
		return rc < 0 ? rc : refused(conn, r, -EFAULT);
	if (unlikely(serve != RVS_SERVE_READS))
		return refused(conn, r, serve_error(serve));
	if (unlikely(!total)) {
		r->status = 0;
		return 0;
	}
	rc = find_bytes(conn, r->rkey, r->addr, total, &src);
	if (unlikely(rc == MISSING)) {
		rc = fetch(conn, r->rkey, r->addr, total, &src);
		if (rc == -EAGAIN || rc == -ENOMEM)
			return rc; /* not posted: the text is set */
	}
	if (unlikely(rc))
		return refused(conn, r, rc);
	rb_assert((uint32_t)src.word == r->rkey && (src.word & RVS_WORD_LIVE));
	rb_slow_bytes(RB_SLOW_COPY, total);
	copy_landing(r, src.from);
	rc = second_look(conn, r->rkey, src.word);
	if (unlikely(rc))
		return refused(conn, r, rc);
	r->status = 0;
	return 0;
}

static __attribute__((noinline)) int post_reads(struct rv_conn *conn, struct rv_read *r, unsigned n)
{
	/* Pairs with rvs_watch_add(), which set up all that follows */
	uint32_t state = at_load_acq(&conn->state);

	if (unlikely(state != RVS_UP && state != RVS_BROKEN))
		return rv_fail(ENOTCONN, "shm: READ over a connection that is not up");
	rb_assert(n > 0 && conn->peer_keys && conn->peer_serve);
	/* More than the queue of a NIC would hold is the caller's to post again, there as here. */
	n = min_of(n, conn->max_reads);
	for (unsigned i = 0; i < n; i++) {
		int rc;

		if (unlikely(at_load(&conn->state) != RVS_UP)) {
			r[i].status = -ECONNRESET;
			continue;
		}
		rc = read_one(conn, &r[i]);
		if (unlikely(rc))
			return i ? (int)i : rc;
	}
	return (int)n;
}

int rvs_post_reads(struct rv_conn *conn, struct rv_read *r, unsigned n)
{
	/* Pairs with rvs_watch_add() */
	if (RB_FAST(likely(n == 1 && at_load_acq(&conn->state) == RVS_UP && read_value(conn, r))))
		return 1;
	return post_reads(conn, r, n);
}

/* Fetches a value's header and the first of its payload; the processor itself fetches the rest. */
void rvs_will_read(struct rv_conn *conn, uint32_t rkey, uint64_t addr, uint64_t length)
{
	struct source src;

	if (find_bytes(conn, rkey, addr, length, &src) != FOUND)
		return;
	__builtin_prefetch(src.from);
	if (length > CACHE_LINE)
		__builtin_prefetch(src.from + CACHE_LINE);
}
