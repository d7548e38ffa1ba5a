/* SPDX-License-Identifier: Apache-2.0 */
/* A program's mistakes: options, names, NULLs, sizes. Each time there is an error with words. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/mman.h>
#include <cmocka.h>

#include "tg.h"

#define MS NSEC_PER_MSEC

/* ---- options ---- */

TG_TEST(options__bad_fields, 1)
{
	struct rref_options good, o;
	char core[16];

	tg_options(&good, 0);
#define BAD(field, value, text) (o = good, o.field = (value), tg_refuse(&o, -EINVAL, (text)))
	BAD(size, 0, "size");
	BAD(size, 8, "rref_options_init");
	BAD(size, 1 << 20, "size");
	BAD(rank, -2, "rank -2");
	BAD(rank, 1, "rank 1 of a group of 1: its ranks are 0 to 0");
	BAD(rank, INT32_MAX, "rank");
	BAD(world_size, 0, "world size 0");
	BAD(world_size, -4, "world size -4");
	BAD(world_size, 1025, "1025");
	BAD(mode, (enum rref_progress_mode)3, "mode");
	BAD(mode, (enum rref_progress_mode)-1, "mode");
	BAD(timeout, -1, "timeout");
	BAD(init_timeout, -1, "timeout");
	BAD(peer_timeout, INT64_MIN, "timeout");
	BAD(nr_functions, 1, "functions");
	BAD(flags, 1u << 31, "flags");
	BAD(flags, 2, "flags");
	snprintf(core, sizeof(core), "%d", 100000);
	BAD(poller_core, 100000, core);
	BAD(poller_core, -2, "-2");
	BAD(device, "", "device");
	BAD(device, "token-ring", "token-ring");
	BAD(device, "ibv:", "ibv:");
	BAD(device, "shm:1", "shm:1");
	BAD(device, "ibv:x:0", "port");
	BAD(device, "ibv:x:1:256", "GID");
	BAD(max_ops, UINT32_MAX, "max_ops");
	BAD(nr_threads, UINT32_MAX, "threads");
	BAD(region_bytes, (size_t)4 << 30, "region");
#undef BAD
	tg_accept(&good);
	return 0;
}

TG_TEST(options__defaults_do, 1)
{
	struct rref_options o;

	memset(&o, 0xAA, sizeof(o));
	rref_options_init(&o);
	TG_CHECK(o.size == sizeof(o) && o.rank == -1 && o.world_size == 0 && o.poller_core == -1 &&
		 !o.flags && !o.log && !o.functions && !o.name && strcmp(o.device, "auto") == 0 &&
		 o.log_level == RREF_LOG_WARNING);
	o.device = tg_device();
	/* A missing size would silently be a group of one. */
	tg_refuse(&o, -EINVAL, "world size 0: it was not set");
	o.world_size = 2;
	tg_refuse(&o, -EINVAL, "rank -1 of a group of 2: it was not set");
	o.world_size = 1;
	tg_accept(&o);
	rref_options_init(NULL);
	return 0;
}

/* Programs that were built for another version: their struct
 * is shorter or longer than the library's. */
TG_TEST(options__of_another_version, 1)
{
	size_t shortest = offsetof(struct rref_options, flags) + sizeof(unsigned);
	union {
		struct rref_options o;
		unsigned char bytes[sizeof(struct rref_options) + 32];
	} *newer, *older;
	struct rref_options good;

	tg_options(&good, 0);
	/* Nothing is written past the end of an older program's struct. */
	older = malloc(sizeof(*older));
	TG_CHECK(older);
	memset(older, 0x5a, sizeof(*older));
	rref_options_init_size(&older->o, shortest);
	for (size_t i = shortest; i < sizeof(*older); i++)
		TG_IS(older->bytes[i], 0x5a);
	setenv("RREF_TIMEOUT_MS", "1500", 1);
	TG_IS(rref_options_from_env(&older->o), -EINVAL);
	older->o.world_size = 1;
	TG_OK(rref_options_from_env(&older->o));
	TG_IS(older->o.timeout, 1500 * MS);
	TG_IS(older->o.size, shortest);
	for (size_t i = shortest; i < sizeof(*older); i++)
		TG_IS(older->bytes[i], 0x5a);
	unsetenv("RREF_TIMEOUT_MS");
	free(older);
	/* Nothing is read there either: the next byte is not readable. */
	char *page = mmap(NULL, 2 * 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
			  0);

	TG_CHECK(page != MAP_FAILED && mprotect(page + 65536, 65536, PROT_NONE) == 0);
	struct rref_options *exact = (struct rref_options *)(void *)(page + 65536 - shortest);

	memcpy(exact, &good, shortest);
	exact->size = shortest;
	tg_accept(exact);
	exact->size = shortest - 1;
	tg_refuse(exact, -EINVAL, "rref_options_init");
	munmap(page, 2 * 65536);
	/* Newer programs: the first does not use the new parts, the second does. */
	newer = malloc(sizeof(*newer));
	TG_CHECK(newer);
	memset(newer, 0x5a, sizeof(*newer));
	rref_options_init_size(&newer->o, sizeof(*newer));
	for (size_t i = sizeof(good); i < sizeof(*newer); i++)
		TG_IS(newer->bytes[i], 0);
	newer->o.device = tg_device();
	newer->o.world_size = 1;
	TG_OK(rref_options_from_env(&newer->o));
	tg_accept(&newer->o);
	newer->bytes[sizeof(*newer) - 1] = 1;
	tg_refuse(&newer->o, -EINVAL, "beyond");
	TG_IS(rref_options_from_env(&newer->o), -EINVAL);
	free(newer);
	return 0;
}

TG_TEST(options__small_and_large_but_good, 1)
{
	struct rref_options o;

	tg_options(&o, 0);
	o.region_bytes = 1;
	o.max_ops = 1;
	o.nr_threads = 1;
	o.poller_core = 0;
	tg_accept(&o);
	tg_options(&o, 0);
	o.timeout = INT64_MAX;
	o.init_timeout = INT64_MAX;
	o.peer_timeout = INT64_MAX;
	o.max_value_bytes = (size_t)1 << 38;
	o.max_landing_bytes = (size_t)1 << 38;
	o.flags = RREF_NO_LEAK_CHECK;
	tg_accept(&o);
	return 0;
}

static int nop(struct rref_call *call, void *arg)
{
	(void)call;
	(void)arg;
	return 0;
}

TG_TEST(options__bad_functions, 1)
{
	struct rref_options o;
	char name[RREF_NAME_MAX + 2];
	struct rref_function fn[2] = { { .name = "one", .handler = nop },
				       { .name = "one", .handler = nop } };

	memset(name, 'n', sizeof(name) - 1);
	name[sizeof(name) - 1] = 0;
	tg_options(&o, 0);
	o.functions = fn;
	o.nr_functions = 2;
	tg_refuse(&o, -EEXIST, "one");
	fn[1].name = NULL;
	tg_refuse(&o, -EINVAL, "name");
	fn[1].name = "";
	tg_refuse(&o, -EINVAL, "empty");
	fn[1].name = "with space";
	tg_refuse(&o, -EINVAL, "with space");
	fn[1].name = name;
	tg_refuse(&o, -EINVAL, "longer");
	fn[1] = (struct rref_function){ .name = "two" };
	tg_refuse(&o, -EINVAL, "handler");
	fn[1] = (struct rref_function){ .name = "two", .handler = nop, .flags = 8 };
	tg_refuse(&o, -EINVAL, "two");
	fn[1].flags = RREF_INLINE;
	tg_accept(&o);
	return 0;
}

TG_TEST(environment__as_options, 1)
{
	struct rref_options o;
	struct rref_ctx *ctx = NULL;
	struct rref_worker_info w = { .size = sizeof(w) };

	setenv("RREF_DEVICE", tg_device(), 1);
	setenv("RREF_NAME", "from-env", 1);
	setenv("RREF_TIMEOUT_MS", "1500", 1);
	TG_IS(rref_init(NULL, &ctx), -EINVAL);
	TG_TEXT("RREF_WORLD_SIZE");
	TG_CHECK(!ctx);
	setenv("RREF_WORLD_SIZE", "1", 1);
	TG_OK(rref_init(NULL, &ctx));
	TG_OK(rref_worker(ctx, 0, &w));
	TG_CHECK(strcmp(w.name, "from-env") == 0);
	tg_finish(ctx);
	rref_options_init(&o);
	TG_OK(rref_options_from_env(&o));
	TG_IS(o.timeout, 1500 * MS);
	ctx = NULL;
	setenv("RREF_RANK", "first", 1);
	TG_IS(rref_init(NULL, &ctx), -EINVAL);
	TG_TEXT("RREF_RANK");
	TG_TEXT("first");
	TG_CHECK(!ctx);
	TG_IS(rref_options_from_env(NULL), -EINVAL);
	o.size = 3;
	TG_IS(rref_options_from_env(&o), -EINVAL);
	return 0;
}

/* ---- NULL ---- */

TG_TEST(null__everywhere, 1)
{
	struct rref_ctx *ctx = tg_join(rank), *none = NULL;
	struct rref *r, *r2 = NULL;
	struct rref_future *f, *f2 = NULL;
	struct rref_queue *queue;
	struct rref_view *v = NULL, *views[1];
	struct rref_error e = { .size = sizeof(e) };
	struct rref_stats s = { .size = sizeof(s) };
	struct rref_worker_info w = { .size = sizeof(w) };
	struct rref_function fn = { .name = "n", .handler = nop };
	const void *data;
	void *mem;
	size_t got;
	char byte, text[100];
	int status[1];

	TG_OK(rref_new(ctx, "x", 1, &r));
	TG_OK(rref_rpc_sync(ctx, 0, "tg.echo", NULL, RREF_DEFAULT, &f));

	TG_IS(rref_init(NULL, NULL), -EINVAL);
	TG_IS(rref_rank(NULL), -EINVAL);
	TG_IS(rref_world_size(NULL), -EINVAL);
	TG_IS(rref_worker(NULL, 0, &w), -EINVAL);
	TG_IS(rref_worker(ctx, 0, NULL), -EINVAL);
	TG_IS(rref_worker(ctx, -1, &w), -EINVAL);
	TG_IS(rref_worker(ctx, 1, &w), -EINVAL);
	w.size = 0;
	TG_IS(rref_worker(ctx, 0, &w), -EINVAL);
	TG_IS(rref_worker_by_name(NULL, "x"), -EINVAL);
	TG_IS(rref_worker_by_name(ctx, NULL), -EINVAL);
	TG_IS(rref_worker_by_name(ctx, ""), -ENOENT);
	TG_IS(rref_progress(NULL), -EINVAL);
	TG_IS(rref_ctx_fd(NULL), -EINVAL);
	TG_IS(rref_ctx_arm(NULL), -EINVAL);
	TG_IS(rref_get_stats(NULL, &s), -EINVAL);
	TG_IS(rref_get_stats(ctx, NULL), -EINVAL);
	s.size = 0;
	TG_IS(rref_get_stats(ctx, &s), -EINVAL);
	TG_IS(rref_dump(NULL, text, sizeof(text)), -EINVAL);
	TG_IS(rref_dump(ctx, NULL, 5), -EINVAL);
	TG_IS(rref_new(NULL, "x", 1, &r2), -EINVAL);
	TG_IS(rref_new(ctx, NULL, 1, &r2), -EINVAL);
	TG_IS(rref_new(ctx, "x", 1, NULL), -EINVAL);
	TG_IS(rref_alloc(NULL, 1, &r2, &mem), -EINVAL);
	TG_IS(rref_alloc(ctx, 1, NULL, &mem), -EINVAL);
	TG_IS(rref_alloc(ctx, 1, &r2, NULL), -EINVAL);
	TG_IS(rref_set(NULL), -EINVAL);
	TG_IS(rref_set_error(NULL, -EIO, NULL), -EINVAL);
	TG_CHECK(rref_dup(NULL) == NULL);
	rref_release(NULL);
	TG_IS(rref_to_here(NULL, 0, &v), -EINVAL);
	TG_IS(rref_to_here(r, 0, NULL), -EINVAL);
	TG_IS(rref_to_here_async(NULL, 0, &f2), -EINVAL);
	TG_IS(rref_to_here_async(r, 0, NULL), -EINVAL);
	TG_IS(rref_to_here_into(NULL, &byte, 0, 1, 0, &got), -EINVAL);
	TG_IS(rref_to_here_into(r, NULL, 0, 1, 0, &got), -EINVAL);
	TG_IS(rref_to_here_into(r, &byte, 0, 1, 0, NULL), -EINVAL);
	TG_IS(rref_to_here_batch(NULL, 1, 0, views, status), -EINVAL);
	TG_IS(rref_local_value(NULL, 0, &v), -EINVAL);
	TG_IS(rref_local_value(r, 0, NULL), -EINVAL);
	TG_IS(rref_owner(NULL), -EINVAL);
	TG_CHECK(rref_owner_name(NULL) && !*rref_owner_name(NULL));
	TG_IS(rref_is_owner(NULL), -EINVAL);
	TG_IS(rref_confirmed(NULL), -EINVAL);
	TG_IS(rref_get_id(NULL).local_id, 0);
	TG_IS(rref_fork_id(NULL).local_id, 0);
	TG_CHECK(rref_context(NULL) == NULL);
	TG_IS(rref_equal(NULL, r), 0);
	TG_IS(rref_equal(NULL, NULL), 0);
	(void)rref_hash(NULL);
	TG_IS(rref_format(NULL, text, sizeof(text)), -EINVAL);
	TG_CHECK(rref_view_data(NULL) == NULL && rref_view_length(NULL) == 0);
	rref_view_free(NULL);
	TG_IS(rref_register(NULL, &fn), -EINVAL);
	TG_IS(rref_register(ctx, NULL), -EINVAL);
	TG_IS(rref_rpc_async(NULL, 0, "tg.echo", NULL, 0, &f2), -EINVAL);
	TG_IS(rref_rpc_async(ctx, 0, NULL, NULL, 0, &f2), -EINVAL);
	TG_IS(rref_rpc_async(ctx, 0, "tg.echo", NULL, 0, NULL), -EINVAL);
	TG_IS(rref_rpc_sync(NULL, 0, "tg.echo", NULL, 0, &f2), -EINVAL);
	TG_IS(rref_remote(NULL, 0, "tg.echo", NULL, 0, &r2), -EINVAL);
	TG_IS(rref_remote(ctx, 0, "tg.echo", NULL, 0, NULL), -EINVAL);
	TG_IS(rref_creation(NULL, &f2), -EINVAL);
	TG_IS(rref_creation(r, NULL), -EINVAL);
	TG_CHECK(rref_call_context(NULL) == NULL && rref_call_function(NULL) &&
		 rref_call_data(NULL) == NULL && rref_call_length(NULL) == 0 &&
		 rref_call_nr_refs(NULL) == 0 && rref_call_ref(NULL, 0) == NULL);
	TG_IS(rref_call_caller(NULL), -EINVAL);
	TG_IS(rref_call_reply(NULL, NULL), -EINVAL);
	TG_IS(rref_call_error(NULL, -EIO, "x"), -EINVAL);
	TG_IS(rref_future_wait(NULL, 0), -EINVAL);
	TG_IS(rref_future_test(NULL), -EINVAL);
	TG_IS(rref_future_then(NULL, NULL, NULL), -EINVAL);
	TG_IS(rref_future_then(f, NULL, NULL), -EINVAL);
	TG_IS(rref_future_cancel(NULL), -EINVAL);
	TG_IS(rref_wait_any(NULL, 1, 0), -EINVAL);
	TG_IS(rref_wait_all(NULL, 1, 0), -EINVAL);
	TG_IS(rref_wait_any((struct rref_future *[]){ NULL }, 1, 0), -EINVAL);
	TG_IS(rref_wait_all((struct rref_future *[]){ NULL }, 1, 0), -EINVAL);
	TG_IS(rref_queue_new(NULL, &queue), -EINVAL);
	TG_IS(rref_queue_new(ctx, NULL), -EINVAL);
	TG_OK(rref_queue_new(ctx, &queue));
	TG_IS(rref_queue_add(NULL, f, NULL), -EINVAL);
	TG_IS(rref_queue_add(queue, NULL, NULL), -EINVAL);
	TG_IS(rref_queue_next(NULL, 0, &f2, NULL), -EINVAL);
	TG_IS(rref_queue_next(queue, 0, NULL, NULL), -EINVAL);
	TG_IS(rref_queue_take(NULL, 0, 1, &f2, NULL), -EINVAL);
	TG_IS(rref_queue_take(queue, 0, 1, NULL, NULL), -EINVAL);
	TG_IS(rref_queue_take(queue, 0, 0, &f2, NULL), -EINVAL);
	TG_IS(rref_queue_fd(NULL), -EINVAL);
	TG_IS(rref_queue_arm(NULL), -EINVAL);
	rref_queue_free(NULL);
	rref_queue_free(queue);
	TG_IS(rref_future_error(NULL, &e), -EINVAL);
	TG_IS(rref_future_error(f, NULL), -EINVAL);
	e.size = 0;
	TG_IS(rref_future_error(f, &e), -EINVAL);
	TG_IS(rref_future_view(NULL, &v), -EINVAL);
	TG_IS(rref_future_view(f, NULL), -EINVAL);
	TG_IS(rref_future_data(NULL, &data, &got), -EINVAL);
	TG_IS(rref_future_data(f, NULL, &got), -EINVAL);
	TG_IS(rref_future_data(f, &data, NULL), -EINVAL);
	TG_IS(rref_future_nr_refs(NULL), -EINVAL);
	TG_IS(rref_future_ref(NULL, 0, &r2), -EINVAL);
	TG_IS(rref_future_ref(f, 0, NULL), -EINVAL);
	rref_future_free(NULL);
	rref_free_ctx(NULL);
	TG_CHECK(!none && !r2 && !f2 && !v);

	rref_future_free(f);
	rref_release(r);
	TG_CHECK(tg_eventually(tg_idle, ctx, NULL));
	TG_IS(tg_stats(ctx).owners, 0);
	tg_finish(ctx);
	return 0;
}

/* An older program's smaller structs, and a newer one's larger ones. */
TG_TEST(sizes__of_structs_of_other_versions, 1)
{
	struct rref_ctx *ctx = tg_join(rank);
	struct {
		struct rref_stats s;
		uint64_t more[4];
	} s;
	struct rref_future *f;
	struct {
		struct rref_error e;
		char more[64];
	} e;

	memset(&s, 0x77, sizeof(s));
	s.s.size = offsetof(struct rref_stats, users);
	TG_OK(rref_get_stats(ctx, &s.s));
	TG_CHECK(s.s.owners == 0 && s.s.forks == 0 && s.s.users == UINT64_C(0x7777777777777777));
	s.s.size = sizeof(s);
	TG_OK(rref_get_stats(ctx, &s.s));
	TG_CHECK(s.s.users == 0 && s.more[0] == UINT64_C(0x7777777777777777));
	TG_OK(rref_rpc_async(ctx, 0, "no.such", NULL, RREF_DEFAULT, &f));
	TG_IS(rref_future_wait(f, RREF_DEFAULT), -ENOSYS);
	memset(&e, 0x77, sizeof(e));
	e.e.size = offsetof(struct rref_error, text) + 5;
	TG_OK(rref_future_error(f, &e.e));
	TG_CHECK(e.e.err == -ENOSYS && e.e.text[5] == 0x77);
	/* The operation whose text was cut off still ends. */
	TG_CHECK(memchr(e.e.text, 0, 5) != NULL);
	rref_future_free(f);
	tg_finish(ctx);
	return 0;
}

TG_TEST(version__and_words, 1)
{
	char want[32];

	snprintf(want, sizeof(want), "%d.%d.%d", RREF_VERSION_MAJOR, RREF_VERSION_MINOR,
		 RREF_VERSION_PATCH);
	TG_CHECK(strcmp(rref_version(), want) == 0);
	TG_IS(rref_version_number(), RREF_VERSION_NUMBER);
	TG_CHECK(strcmp(rref_last_error(), "") == 0);
	for (int err = -4200; err < 4200; err++)
		TG_CHECK(rref_strerror(err) && *rref_strerror(err) &&
			 rref_strerror(err) == rref_strerror(-err));
	TG_CHECK(*rref_strerror(INT32_MIN) && *rref_strerror(INT32_MAX));
	TG_CHECK(strcmp(rref_strerror(-ETIMEDOUT), "timed out") == 0);
	/* Either side may have ended it, for more reasons than one: the text blames neither. */
	TG_CHECK(strstr(rref_strerror(-ENETRESET), "though both live"));
	return 0;
}

static _Atomic int nr_logged;

static void logged(void *ctx, enum rref_log_level level, const char *text)
{
	TG_CHECK(ctx == &nr_logged && level <= RREF_LOG_DEBUG && text && *text);
	atomic_fetch_add(&nr_logged, 1);
}

TG_TEST(log__goes_to_the_callback, 2)
{
	struct rref_options o;
	struct rref_ctx *ctx;

	tg_options(&o, rank);
	o.log = logged;
	o.log_ctx = &nr_logged;
	o.log_level = RREF_LOG_DEBUG;
	o.functions = tg_functions;
	o.nr_functions = tg_nr_functions;
	TG_OK(rref_init(&o, &ctx));
	TG_CHECK(atomic_load(&nr_logged) > 0);
	TG_OK(rref_rpc_sync(ctx, 1 - rank, "tg.echo", NULL, RREF_DEFAULT, NULL));
	tg_finish(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(options__bad_fields),
		cmocka_unit_test(options__defaults_do),
		cmocka_unit_test(options__of_another_version),
		cmocka_unit_test(options__small_and_large_but_good),
		cmocka_unit_test(options__bad_functions),
		cmocka_unit_test(environment__as_options),
		cmocka_unit_test(null__everywhere),
		cmocka_unit_test(sizes__of_structs_of_other_versions),
		cmocka_unit_test(version__and_words),
		cmocka_unit_test(log__goes_to_the_callback),
	};

	return cmocka_run_group_tests_name("input", tests, NULL, NULL);
}
