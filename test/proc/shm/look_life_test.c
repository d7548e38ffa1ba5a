/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The life of what is looked at (look_test). The bytes that a view shows never change, though its
 * reference, its session, its owner or its reader may end. The memory comes back when the view is
 * gone.
 */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "core/base/lock.h"
#include "looks.h"
#include "verbs/shm/shm.h"

/* The view holds its reference: the value lives on without any other. */
TG_TEST(look__holds_its_reference, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		const char *at = lend_value(ctx, 1, 3);

		tg_set_flag(0, 1);
		tg_wait_flag_serving(ctx, 0, 2);
		TG_IS(tg_stats(ctx).forks, 1);
		TG_CHECK(!is_used_again(ctx, at));
		tg_set_flag(0, 3);
		TG_CHECK(tg_eventually(comes_back, ctx, (void *)(uintptr_t)at));
		TG_IS(tg_stats(ctx).views_left, 0);
	} else {
		struct rref_view *v;

		tg_wait_flag_serving(ctx, 0, 1);
		v = look_at(tg_kept(0));
		tg_drop_kept();
		tg_set_flag(0, 2);
		tg_wait_flag_serving(ctx, 0, 3);
		shows(v, BYTES, 3);
		rref_view_free(v);
	}
	tg_finish(ctx);
	return 0;
}

/* Stops worker 1, which looks at `at`, until it is fenced. */
static void fence_1(struct rref_ctx *ctx)
{
	tg_stop_worker(1);
	for (int64_t end = now_ns() + stall_ns() + TG_LONG_NS; !no_forks(ctx, NULL);
	     usleep(1000)) {
		TG_CHECK(now_ns() < end);
		rref_progress(ctx);
	}
	TG_IS(tg_stats(ctx).fenced_peers, 1);
}

/* Asks for a value that finds no memory. Checks the words of the error. */
static void finds_no_memory(struct rref_ctx *ctx, const char *words)
{
	struct rlimit before, small;
	struct rref *r;
	void *data;

	TG_CHECK(!getrlimit(RLIMIT_FSIZE, &before));
	small = before;
	small.rlim_cur = 30 * MIB;
	TG_CHECK(!setrlimit(RLIMIT_FSIZE, &small));
	TG_IS(rref_alloc(ctx, 100 * MIB, &r, &data), -ENOMEM);
	TG_TEXT(words);
	TG_CHECK(!setrlimit(RLIMIT_FSIZE, &before));
}

/* A reader that is fenced goes on, and its view shows what it showed. */
TG_TEST(look__of_a_fenced_reader, 2)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		const char *at = lend_value(ctx, 1, 3);
		char dump[8192];
		tg_set_flag(0, 1);
		tg_wait_flag_serving(ctx, 0, 2);
		fence_1(ctx);
		TG_IS(tg_stats(ctx).owners, 0);
		TG_IS(tg_stats(ctx).views_left, 1);
		TG_CHECK(tg_stats(ctx).views_left_bytes >= BYTES);
		TG_CHECK(rref_dump(ctx, dump, sizeof(dump)) > 0 && strstr(dump, "onlooker"));
		finds_no_memory(ctx, "bytes wait for views of workers whose session ended");
		TG_CHECK(!is_used_again(ctx, at));
		tg_continue_worker(1);
		tg_wait_flag_serving(ctx, 0, 3);
		TG_CHECK(!is_used_again(ctx, at));
		TG_IS(tg_stats(ctx).views_left, 1);
		tg_set_flag(0, 4);
		TG_CHECK(tg_eventually(none_looked_at, ctx, NULL));
		TG_CHECK(tg_eventually(comes_back, ctx, (void *)(uintptr_t)at));
		TG_IS(tg_stats(ctx).views_left_bytes, 0);
		tg_set_flag(0, 5);
	} else {
		struct rref_view *v, *no;

		tg_wait_flag_serving(ctx, 0, 1);
		v = look_at(tg_kept(0));
		tg_set_flag(0, 2);
		shows(v, BYTES, 3);
		/* The worker is stopped here, and finds itself fenced when it goes on. */
		for (int err = 0; err != -ENETRESET; usleep(1000)) {
			err = rref_to_here(tg_kept(0), TG_LONG_NS, &no);
			TG_CHECK(!err || err == -ENETRESET);
			if (!err)
				rref_view_free(no);
		}
		tg_drop_kept();
		tg_set_flag(0, 3);
		tg_wait_flag_serving(ctx, 0, 4);
		shows(v, BYTES, 3);
		rref_view_free(v);
		tg_wait_flag_serving(ctx, 0, 5);
	}
	tg_leave(ctx);
	return 0;
}

/* The memory comes back when the fenced reader's process has ended. */
DEATH_TEST(look__of_a_fenced_reader_that_is_killed, 2, 1 << 1)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		const char *at = lend_value(ctx, 1, 3);

		tg_set_flag(0, 1);
		tg_wait_flag_serving(ctx, 0, 2);
		fence_1(ctx);
		TG_IS(tg_stats(ctx).views_left, 1);
		TG_CHECK(!is_used_again(ctx, at));
		TG_IS(kill(tg_current->shared->pid[1], SIGKILL), 0);
		TG_CHECK(tg_eventually(none_looked_at, ctx, NULL));
		TG_CHECK(tg_eventually(comes_back, ctx, (void *)(uintptr_t)at));
	} else {
		tg_wait_flag_serving(ctx, 0, 1);
		look_at(tg_kept(0));
		tg_set_flag(0, 2);
		tg_serve_and_die(ctx, 9);
	}
	tg_leave(ctx);
	return 0;
}

/* A reader that dies at once is not waited for. */
DEATH_TEST(look__of_a_reader_that_dies, 2, 1 << 1)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		const char *at = lend_value(ctx, 1, 3);

		tg_set_flag(0, 1);
		TG_CHECK(tg_eventually(tg_is_dead, ctx, &(int){ 1 }));
		TG_CHECK(tg_eventually(no_forks, ctx, NULL));
		TG_CHECK(tg_eventually(none_looked_at, ctx, NULL));
		TG_CHECK(tg_eventually(comes_back, ctx, (void *)(uintptr_t)at));
	} else {
		tg_wait_flag_serving(ctx, 0, 1);
		look_at(tg_kept(0));
		tg_die();
	}
	tg_leave(ctx);
	return 0;
}

/* The owner's death leaves the bytes where they are. */
DEATH_TEST(look__at_an_owner_that_dies, 2, 1 << 1)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct rref *r = value_there(ctx, BYTES, 3);
		struct rref_view *v = look_at(r), *no;

		tg_set_flag(0, 1);
		TG_CHECK(tg_eventually(tg_is_dead, ctx, &(int){ 1 }));
		TG_IS(rref_to_here(r, RREF_DEFAULT, &no), -EOWNERDEAD);
		shows(v, BYTES, 3);
		rref_release(r);
		shows(v, BYTES, 3);
		TG_CHECK(is_of_owner(rref_view_data(v)));
		const void *at = rref_view_data(v);

		rref_view_free(v);
		TG_CHECK(!is_of_owner(at));
	} else {
		tg_serve_and_die(ctx, 0);
	}
	tg_leave(ctx);
	return 0;
}

#define PAGE ((size_t)4096)

/* Tries to cut off this worker's memory for values. Returns how often the kernel refused that. */
static int try_to_cut_off(void)
{
	DIR *d = opendir("/proc/self/fd");
	struct dirent *e;
	int refused = 0;

	TG_CHECK(d);
	while ((e = readdir(d))) {
		char name[64] = "";
		int fd = atoi(e->d_name), mode = fcntl(fd, F_GETFL);

		if (readlinkat(dirfd(d), e->d_name, name, sizeof(name) - 1) < 0 ||
		    !strstr(name, "rref-values") || (mode & O_ACCMODE) != O_RDWR)
			continue;
		TG_IS(ftruncate(fd, 0), -1);
		TG_IS(errno, EPERM);
		refused++;
	}
	closedir(d);
	return refused;
}

/* An owner that breaks the rules can change the bytes. It cannot take pages away, or they are zeros
 * then. Its reader reads on. */
TG_TEST(look__at_an_owner_that_lies, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		char *at = (char *)(uintptr_t)lend_value(ctx, 1, 3);
		char *page = at + PAGE - (uintptr_t)at % PAGE;

		tg_set_flag(0, 1);
		tg_wait_flag_serving(ctx, 0, 2);
		TG_CHECK(try_to_cut_off() > 0);
		bool gone = !madvise(page, PAGE, MADV_REMOVE);

		TG_CHECK(gone || errno == EPERM);
		page[PAGE] ^= 1;
		tg_set_flag(1, gone);
		tg_set_flag(0, 3);
		tg_wait_flag_serving(ctx, 0, 4);
	} else {
		const char *data;
		struct rref_view *v;
		size_t page;

		tg_wait_flag_serving(ctx, 0, 1);
		v = look_at(tg_kept(0));
		data = rref_view_data(v);
		page = PAGE - (uintptr_t)data % PAGE;
		tg_set_flag(0, 2);
		tg_wait_flag_serving(ctx, 0, 3);
		TG_CHECK(tg_filled(data, page, 0, 3));
		for (size_t i = 0; i < PAGE; i++)
			TG_IS((unsigned char)data[page + i],
			      tg_current->shared->flag[1] ? 0 : tg_byte(page + i, 3));
		TG_IS((unsigned char)data[page + PAGE], tg_byte(page + PAGE, 3) ^ 1);
		TG_CHECK(tg_filled(data + page + PAGE + 1, BYTES - page - PAGE - 1,
				   page + PAGE + 1, 3));
		rref_view_free(v);
		tg_set_flag(0, 4);
	}
	tg_finish(ctx);
	return 0;
}

/* Has the owner lay a second header 8 bytes behind the true one. A view there would break a program
 * that counts on the alignment. */
TG_TEST(look__where_it_is_not_aligned, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		char *header = (char *)(uintptr_t)lend_value(ctx, 1, 3) - RC_HEADER_BYTES;
		struct rc_header h, kept;

		memcpy(&kept, header, sizeof(kept));
		h = kept;
		h.length = htole64(BYTES - 64);
		memcpy(header + 8, &h, sizeof(h));
		tg_set_flag(0, 1);
		tg_wait_flag_serving(ctx, 0, 2);
		memcpy(header, &kept, sizeof(kept));
		tg_set_flag(0, 3);
	} else {
		struct rref_view *v;

		tg_wait_flag_serving(ctx, 0, 1);
		rc_remote(tg_kept(0))->loc.addr += 8;
		rc_remote(tg_kept(0))->loc.length = BYTES - 64;
		TG_OK(rref_to_here(tg_kept(0), RREF_DEFAULT, &v));
		TG_IS(rref_view_length(v), BYTES - 64);
		TG_IS((uintptr_t)rref_view_data(v) % 64, 0);
		TG_IS(rref_view_is_copy(v), 1);
		rref_view_free(v);
		tg_set_flag(0, 2);
		tg_wait_flag_serving(ctx, 0, 3);
		tg_drop_kept();
	}
	tg_finish(ctx);
	return 0;
}

/* Lets both leave, gracefully or at once. The view is good until its context is freed. */
static void leave_with_a_view(int rank, unsigned how)
{
	struct rref_ctx *ctx = tg_join_refs(rank);
	struct rref_view *v = NULL;

	if (rank == 0) {
		struct rref *r = value_there(ctx, BYTES, 3);

		v = look_at(r);
		rref_release(r);
	}
	tg_meet_serving(ctx, 1);
	TG_OK(rref_shutdown(ctx, how, TG_LONG_NS));
	if (rank == 0 && how == RREF_SHUTDOWN_GRACEFUL) {
		char report[4096];

		TG_CHECK(rref_leak_report(ctx, report, sizeof(report)) > 0);
		TG_CHECK(!strncmp(report, "view ", 5) && strstr(report, "holds=1"));
		TG_CHECK(!strstr(report, "unreleased"));
	}
	if (rank == 1)
		rref_free_ctx(ctx);
	tg_meet(2);
	if (rank == 0) {
		shows(v, BYTES, 3);
		rref_view_free(v);
		rref_free_ctx(ctx);
	}
}

TG_TEST(look__behind_a_shutdown, 2)
{
	leave_with_a_view(rank, RREF_SHUTDOWN_GRACEFUL);
	return 0;
}

TG_TEST(look__behind_a_hasty_shutdown, 2)
{
	leave_with_a_view(rank, RREF_SHUTDOWN_NOW);
	return 0;
}

/* A reader that was fenced goes on when its owner has left. */
TG_TEST(look__of_a_fenced_reader_whose_owner_leaves, 2)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		lend_value(ctx, 1, 3);
		tg_set_flag(0, 1);
		tg_wait_flag_serving(ctx, 0, 2);
		fence_1(ctx);
		TG_IS(tg_stats(ctx).views_left, 1);
		tg_leave(ctx);
		tg_continue_worker(1);
		tg_set_flag(0, 3);
	} else {
		struct rref_view *v;
		int err;

		tg_wait_flag_serving(ctx, 0, 1);
		v = look_at(tg_kept(0));
		tg_set_flag(0, 2);
		tg_wait_flag_serving(ctx, 0, 3);
		shows(v, BYTES, 3);
		tg_drop_kept();
		rref_view_free(v);
		/* Learns that it was fenced, or that its peer has left. */
		err = rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, TG_LONG_NS);
		if (err != -ENETRESET && err != -EOWNERDEAD)
			TG_OK(err);
		rref_free_ctx(ctx);
	}
	return 0;
}

static bool goes_on(struct rref_ctx *ctx, void *arg)
{
	(void)arg;
	return tg_stats(ctx).resumed_sessions > 0;
}

/* Looks at a value. Reads copy until the new connection has the owner's region. */
static struct rref_view *look_soon(struct rref *r)
{
	for (int64_t end = tg_deadline();; tg_pause()) {
		struct rref_view *v;

		TG_OK(rref_to_here(r, RREF_DEFAULT, &v));
		if (!rref_view_is_copy(v))
			return v;
		rref_view_free(v);
		TG_CHECK(now_ns() < end);
	}
}

/* A session that goes on over another connection keeps its views, in the mapping of the old one. */
TG_TEST(look__over_another_connection, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		const char *at = lend_value(ctx, 1, 3);

		tg_set_flag(0, 1);
		tg_wait_flag_serving(ctx, 0, 2);
		rc_lock(ctx);
		rvs_break(ctx->peers[1].link, ECONNRESET, -1);
		rc_unlock(ctx);
		TG_CHECK(tg_eventually(goes_on, ctx, NULL));
		tg_set_flag(0, 3);
		tg_wait_flag_serving(ctx, 0, 4);
		TG_CHECK(!is_used_again(ctx, at));
		tg_set_flag(0, 5);
		TG_CHECK(tg_eventually(comes_back, ctx, (void *)(uintptr_t)at));
		TG_IS(tg_stats(ctx).fenced_peers, 0);
	} else {
		struct rref_view *v, *again;
		const void *at;

		tg_wait_flag_serving(ctx, 0, 1);
		v = look_at(tg_kept(0));
		at = rref_view_data(v);
		tg_set_flag(0, 2);
		tg_wait_flag_serving(ctx, 0, 3);
		again = look_soon(tg_kept(0));
		TG_CHECK(rref_view_data(again) != at);
		shows(again, BYTES, 3);
		rref_view_free(again);
		tg_drop_kept();
		tg_set_flag(0, 4);
		tg_wait_flag_serving(ctx, 0, 5);
		shows(v, BYTES, 3);
		TG_CHECK(is_of_owner(at));
		rref_view_free(v);
		TG_CHECK(!is_of_owner(at));
	}
	tg_finish(ctx);
	return 0;
}

/* A child has no views, and takes none away from its parent. */
TG_TEST(look__in_a_child, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	if (rank == 0) {
		struct rref *r = value_there(ctx, BYTES, 3);
		struct rref_view *v = look_at(r);
		int status;
		pid_t pid;

		rref_release(r);
		pid = fork();
		if (pid == 0) {
			TG_CHECK(!rref_view_data(v));
			TG_IS(rref_view_length(v), 0);
			TG_IS(rref_view_is_copy(v), 0);
			rref_view_free(v);
			_exit(7);
		}
		TG_CHECK(waitpid(pid, &status, 0) == pid);
		TG_CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7);
		TG_OK(rref_rpc_sync(ctx, 1, "pub.drop", NULL, RREF_DEFAULT, NULL));
		TG_IS(tg_stats_of(ctx, 1).owners, 1);
		shows(v, BYTES, 3);
		rref_view_free(v);
		tg_until_clean(ctx, 1);
	}
	tg_finish(ctx);
	return 0;
}

#define VIEWS 64

/* Views of two values outlive their references, and end in any order. */
TG_TEST(look__ends_in_any_order, 2)
{
	struct rref_ctx *ctx = tg_join_refs(rank);

	for (unsigned round = 0; rank == 0 && round < 20; round++) {
		struct rref *r[2] = { value_there(ctx, 64 * KIB, 1),
				      value_there(ctx, 64 * KIB, 2) };
		struct rref_view *v[VIEWS];
		unsigned seed[VIEWS];

		for (unsigned i = 0; i < VIEWS; i++) {
			seed[i] = 1 + (unsigned)random() % 2;
			v[i] = look_at(r[seed[i] - 1]);
		}
		rref_release(r[0]);
		rref_release(r[1]);
		TG_OK(rref_rpc_sync(ctx, 1, "pub.drop", NULL, RREF_DEFAULT, NULL));
		for (unsigned left = VIEWS; left; left--) {
			unsigned i = (unsigned)random() % left;

			shows(v[i], 64 * KIB, seed[i]);
			rref_view_free(v[i]);
			v[i] = v[left - 1];
			seed[i] = seed[left - 1];
		}
		tg_until_clean(ctx, 1);
	}
	tg_finish(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(look__holds_its_reference),
		cmocka_unit_test(look__ends_in_any_order),
		cmocka_unit_test(look__of_a_fenced_reader),
		cmocka_unit_test(look__of_a_fenced_reader_that_is_killed),
		cmocka_unit_test(look__of_a_fenced_reader_whose_owner_leaves),
		cmocka_unit_test(look__of_a_reader_that_dies),
		cmocka_unit_test(look__at_an_owner_that_dies),
		cmocka_unit_test(look__at_an_owner_that_lies),
		cmocka_unit_test(look__where_it_is_not_aligned),
		cmocka_unit_test(look__over_another_connection),
		cmocka_unit_test(look__in_a_child),
		cmocka_unit_test(look__behind_a_shutdown),
		cmocka_unit_test(look__behind_a_hasty_shutdown),
	};

	if (!tg_is_shm())
		return 0;
	return cmocka_run_group_tests_name("look_life", tests, NULL, NULL);
}
