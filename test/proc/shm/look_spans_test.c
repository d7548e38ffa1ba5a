/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The mappings under views over shm, when this process has no room for more. Worker 1 owns, worker
 * 0 reads.
 */
#include <sys/mman.h>

#include "core/base/lock.h"
#include "looks.h"
#include "verbs/shm/shm.h"

/* ---- mappings that fail ---- */

static void *_Atomic fails_at; /* each mapping over this address makes a hole instead */
static _Atomic unsigned fails;

void *__real_mmap(void *at, size_t length, int prot, int flags, int fd, off_t offset);
void *__wrap_mmap(void *at, size_t length, int prot, int flags, int fd, off_t offset);

void *__wrap_mmap(void *at, size_t length, int prot, int flags, int fd, off_t offset)
{
	if (!(flags & MAP_FIXED) || !at || at != at_load_acq(&fails_at))
		return __real_mmap(at, length, prot, flags, fd, offset);
	munmap(at, length);
	at_add(&fails, 1);
	errno = ENOMEM;
	return MAP_FAILED;
}

/* ---- a region of worker 1's, and its mapping here ---- */

#define REGION (64 * KIB)

static struct rv_mr region;

static void region_begin(struct rref_ctx *ctx, int flag)
{
	const struct rc_device *d = &ctx->device[RV_SHM];
	int fd = memfd_create("region", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	void *mem;

	TG_CHECK(fd >= 0 && !ftruncate(fd, REGION));
	mem = mmap(NULL, REGION, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	TG_CHECK(mem != MAP_FAILED);
	TG_OK(d->ops->reg(d->dev, mem, REGION, fd, UINT64_C(1) << 40, RV_ACCESS_REMOTE_READ,
			  &region));
	close(fd);
	tg_set_flag(flag, (int)region.rkey);
}

static void region_end(struct rref_ctx *ctx)
{
	const struct rc_device *d = &ctx->device[RV_SHM];
	void *mem = region.base;

	TG_OK(d->ops->dereg(d->dev, &region));
	munmap(mem, REGION);
}

static struct rv_conn *link_to_1(struct rref_ctx *ctx)
{
	struct rv_conn *conn;

	rc_lock(ctx);
	conn = ctx->peers[1].link;
	rc_unlock(ctx);
	return conn;
}

static uint32_t rkey_at(int flag)
{
	while (!tg_flag(flag))
		usleep(1000);
	return (uint32_t)tg_flag(flag);
}

static bool is_mapped(struct rref_ctx *ctx, void *rkey)
{
	return at_load(&link_to_1(ctx)->segs[RVS_KEY_INDEX(*(uint32_t *)rkey)].word);
}

static bool is_dropped(struct rref_ctx *ctx, void *rkey)
{
	return !is_mapped(ctx, rkey);
}

static bool failed_twice(struct rref_ctx *ctx, void *arg)
{
	(void)ctx;
	(void)arg;
	return at_load(&fails) == 2;
}

static bool is_kept(struct rv_conn *conn, const struct rvs_span *span)
{
	bool yes = false;

	pthread_mutex_lock(&conn->rx_lock);
	for (const struct rvs_span *s = conn->spans; s; s = s->next)
		yes |= s == span;
	pthread_mutex_unlock(&conn->rx_lock);
	return yes;
}

/*
 * A span whose mapping fails in both ways is kept. A thread that was about to look may still count
 * in it. Its addresses are given up. Memory that falls into the hole is not unmapped later.
 */
TG_TEST(span__that_cannot_be_mapped, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		struct rvs_span *span;
		struct rv_conn *conn;
		uint32_t key;
		char *hole;

		rref_release(value_there(ctx, MIB, 7)); /* begins the session */
		conn = link_to_1(ctx);
		key = rkey_at(1);
		TG_CHECK(tg_eventually(is_mapped, ctx, &key));
		span = at_load_acq(&conn->news[RVS_KEY_INDEX(key)].span);
		hole = span->base;
		tg_set_flag(0, 1);
		TG_CHECK(tg_eventually(is_dropped, ctx, &key));
		TG_CHECK(is_kept(conn, span));
		at_store_rel(&fails_at, hole);
		tg_set_flag(0, 2);
		key = rkey_at(2);
		TG_CHECK(tg_eventually(failed_twice, ctx, NULL));
		TG_CHECK(is_kept(conn, span));
		at_store_rel(&fails_at, NULL);
		/* The late look does this. */
		at_add_sc(&span->refs, 1);
		rvs_span_put(conn->dev, span);
		TG_CHECK(mmap(hole, 4096, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == hole);
		hole[0] = 7;
		tg_set_flag(0, 3);
		key = rkey_at(3);
		TG_CHECK(tg_eventually(is_mapped, ctx, &key));
		TG_CHECK(at_load_acq(&conn->news[RVS_KEY_INDEX(key)].span) != span);
		tg_set_flag(0, 4);
		tg_finish(ctx);
		TG_IS(hole[0], 7);
		munmap(hole, 4096);
		return 0;
	}
	region_begin(ctx, 1);
	tg_wait_flag_serving(ctx, 0, 1);
	region_end(ctx);
	tg_wait_flag_serving(ctx, 0, 2);
	for (int i = 2; i < 4; i++) {
		region_begin(ctx, i);
		tg_wait_flag_serving(ctx, 0, i + 1);
		region_end(ctx);
	}
	tg_finish(ctx);
	return 0;
}

/* ---- bounds ---- */

static bool resumes_again(struct rref_ctx *ctx, void *arg)
{
	(void)arg;
	return tg_stats(ctx).resumed_sessions > 0;
}

/*
 * Mappings that outlive their connection count in the bound of their peer. Its next connection
 * finds no room for the same memory, until the view of the first has ended.
 */
TG_TEST(bound__with_what_outlives_its_connection, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		struct rref *r = value_there(ctx, MIB, 7);
		struct rref_view *v = look_at(r), *again;
		struct rv_conn *conn = link_to_1(ctx);
		int err;

		conn->dev->max_mapped = conn->span_bytes + 8 * KIB;
		rc_lock(ctx);
		rvs_break(conn, ECONNRESET, -1);
		rc_unlock(ctx);
		TG_CHECK(tg_eventually(resumes_again, ctx, NULL));
		for (int i = 0; i < 4; i++) {
			unsigned flags = i & 1 ? RREF_READ_COPY : 0;

			TG_IS(rref_to_here_with(r, flags, RREF_DEFAULT, &again), -ENOMEM);
			TG_TEXT("views hold");
		}
		shows(v, MIB, 7);
		rref_view_free(v);
		/* The first one may still tell of the time before. */
		err = rref_to_here(r, RREF_DEFAULT, &again);
		if (err) {
			TG_IS(err, -ENOMEM);
			TG_OK(rref_to_here(r, RREF_DEFAULT, &again));
		}
		shows(again, MIB, 7);
		rref_view_free(again);
		rref_release(r);
	}
	tg_finish(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(span__that_cannot_be_mapped),
		cmocka_unit_test(bound__with_what_outlives_its_connection),
	};

	if (!tg_is_shm())
		return 0;
	return cmocka_run_group_tests_name("look_spans", tests, NULL, NULL);
}
