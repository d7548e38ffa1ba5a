/* SPDX-License-Identifier: Apache-2.0 */
/* Joining a group with mistakes: addresses, ranks, keys, devices.
 * Each time there is an error with words. */
#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/stat.h>
#include <cmocka.h>

#include "tg.h"

#define MS NSEC_PER_MSEC

/* ---- meeting ---- */

TG_TEST(rendezvous__bad_addresses, 1)
{
	static const char *const bad[] = { "",
					   "nowhere",
					   ":",
					   "127.0.0.1:",
					   "127.0.0.1:0",
					   "127.0.0.1:65536",
					   "127.0.0.1:http",
					   "127.0.0.1:-1",
					   "::1:5",
					   ":7777",
					   "127.0.0.1:1 " };
	struct rref_options o;

	tg_options(&o, 0);
	o.world_size = 2;
	o.rendezvous = NULL;
	tg_refuse(&o, -EINVAL, "rendezvous");
	for (size_t i = 0; i < array_size(bad); i++)
		for (int r = 0; r < 2; r++) {
			o.rank = r;
			o.rendezvous = bad[i];
			tg_refuse(&o, -EINVAL, "rendezvous");
		}
	return 0;
}

TG_TEST(rendezvous__no_listener, 1)
{
	struct rref_options o;
	char place[64];
	int64_t start = now_ns();

	tg_free_place(place, sizeof(place));
	tg_options(&o, 1);
	o.world_size = 2;
	o.rendezvous = place;
	o.init_timeout = 300 * MS;
	struct rref_ctx *ctx = NULL;
	int err = rref_init(&o, &ctx);

	TG_CHECK((err == -ETIMEDOUT || err == -ECONNREFUSED) && !ctx);
	/* The text names the attempts and their number. */
	TG_TEXT(place);
	TG_TEXT("tries");
	TG_TEXT("rank 1");
	TG_CHECK(now_ns() - start < 60 * NSEC_PER_SEC);
	return 0;
}

TG_TEST(rendezvous__some_do_not_come, 2)
{
	struct rref_options o;

	tg_options(&o, rank);
	o.world_size = 4;
	o.init_timeout = 1 * NSEC_PER_SEC;
	struct rref_ctx *ctx = NULL;
	int err = rref_init(&o, &ctx);

	TG_CHECK(!ctx);
	if (rank == 0) {
		TG_IS(err, -ETIMEDOUT);
		/* The missing ranks. */
		TG_TEXT("2");
		TG_TEXT("3");
	} else {
		TG_CHECK(err == -ETIMEDOUT || err == -ECONNREFUSED);
		TG_CHECK(strlen(rref_last_error()) > 0);
	}
	return 0;
}

TG_TEST(rendezvous__address_taken, 2)
{
	struct rref_options o;

	/* Two groups with the same address: their second rank 0 cannot listen. */
	tg_options(&o, 0);
	if (rank == 0) {
		o.world_size = 2;
		o.init_timeout = 10 * NSEC_PER_SEC;
		struct rref_ctx *ctx = NULL;
		int err = rref_init(&o, &ctx);

		/* This worker waits for a rank 1 that never comes. The other
		 * process has told us that it tried. */
		TG_CHECK(err == -ETIMEDOUT || err == -EADDRINUSE);
		TG_CHECK(!ctx);
		tg_set_flag(0, err == -EADDRINUSE ? 2 : 1);
	} else {
		struct rref_ctx *ctx = NULL;

		usleep(200000);
		o.world_size = 2;
		o.init_timeout = 1 * NSEC_PER_SEC;
		int err = rref_init(&o, &ctx);

		TG_CHECK(!ctx && (err == -EADDRINUSE || err == -ETIMEDOUT));
		if (err == -EADDRINUSE)
			TG_TEXT(o.rendezvous);
	}
	return 0;
}

/* A worker that is started again comes too late. It is told that
 * this may be the reason of the silence. */
TG_TEST(rendezvous__a_group_that_has_started_is_closed, 2)
{
	struct rref_ctx *ctx = tg_join(rank);

	tg_meet(0);
	if (rank == 1) {
		struct rref_options o;

		tg_options(&o, 1);
		o.init_timeout = 300 * MS;
		tg_refuse(&o, -ECONNREFUSED, "A group that has started is closed");
	}
	tg_meet_serving(ctx, 1);
	tg_finish(ctx);
	return 0;
}

TG_TEST(rendezvous__rank_twice, 3)
{
	struct rref_options o;
	struct rref_ctx *ctx = NULL;

	/* 0, 1, 1 */
	tg_options(&o, rank ? 1 : 0);
	o.name = rank == 1 ? "first" : rank == 2 ? "second" : "zero";
	o.init_timeout = 5 * NSEC_PER_SEC;
	int err = rref_init(&o, &ctx);

	TG_CHECK(!ctx);
	if (rank) {
		TG_IS(err, -EEXIST);
		TG_TEXT("1");
	} else {
		TG_CHECK(err < 0);
	}
	return 0;
}

TG_TEST(rendezvous__without_a_key_only_here, 1)
{
	struct rref_options o;

	tg_options(&o, 0);
	o.world_size = 2;
	o.init_timeout = 1 * NSEC_PER_SEC;
	o.rendezvous = "0.0.0.0:45678";
	tg_refuse(&o, -EACCES, "key");
	o.rank = 1;
	o.rendezvous = "192.0.2.1:45678";
	tg_refuse(&o, -EACCES, "key");
	return 0;
}

/* ---- keys ---- */

static void write_key(const char *path, const char *bytes, size_t length, mode_t mode)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);

	TG_CHECK(fd >= 0 && write(fd, bytes, length) == (ssize_t)length && fchmod(fd, mode) == 0);
	close(fd);
}

static const char *key_path(char *buf, size_t size, const char *name)
{
	const char *dir = getenv("TMPDIR");

	snprintf(buf, size, "%s/rref-input-test-%d-%s", dir && *dir ? dir : "/tmp",
		 (int)tg_current->shared->pid[0], name);
	return buf;
}

TG_TEST(key__bad_files, 1)
{
	struct rref_options o;
	char path[200];

	key_path(path, sizeof(path), "bad");
	tg_options(&o, 0);
	o.key_file = path;
	tg_refuse(&o, -ENOENT, path);
	write_key(path, "0123456789abcdef0123", 20, 0644);
	tg_refuse(&o, -EACCES, "chmod 600");
	write_key(path, "short", 5, 0600);
	tg_refuse(&o, -EINVAL, "16");
	write_key(path, "0123456789abcdef0123", 20, 0600);
	tg_accept(&o);
	unlink(path);
	return 0;
}

TG_TEST(key__same_on_both_sides, 2)
{
	struct rref_options o;
	struct rref_ctx *ctx;
	char path[200];

	tg_meet(0); /* the path is named after rank 0's pid */
	key_path(path, sizeof(path), rank ? "b" : "a");
	write_key(path, "a shared secret, not a good one", 31, 0600);
	tg_options(&o, rank);
	o.key_file = path;
	o.functions = tg_functions;
	o.nr_functions = tg_nr_functions;
	TG_OK(rref_init(&o, &ctx));
	unlink(path);
	TG_OK(rref_rpc_sync(ctx, 1 - rank, "tg.echo", NULL, RREF_DEFAULT, NULL));
	tg_finish(ctx);
	return 0;
}

TG_TEST(key__different, 2)
{
	struct rref_options o;
	struct rref_ctx *ctx = NULL;
	char path[200];

	tg_meet(0);
	key_path(path, sizeof(path), rank ? "d" : "c");
	write_key(path, rank ? "a secret of another group" : "a secret of this group...", 25, 0600);
	tg_options(&o, rank);
	o.key_file = path;
	o.init_timeout = 2 * NSEC_PER_SEC;
	int err = rref_init(&o, &ctx);

	unlink(path);
	TG_CHECK(!ctx);
	if (rank)
		TG_IS(err, -EKEYREJECTED);
	else
		TG_CHECK(err == -ETIMEDOUT || err == -EKEYREJECTED);
	return 0;
}

/* ---- devices ---- */

static bool has_rdma(void)
{
	DIR *d = opendir("/sys/class/infiniband");
	struct dirent *e;
	bool yes = false;

	while (d && (e = readdir(d)))
		yes |= e->d_name[0] != '.';
	if (d)
		closedir(d);
	return yes;
}

TG_TEST(device__ibv_on_a_machine_without_rdma, 1)
{
	struct rref_options o;

	tg_options(&o, 0);
	if (!has_rdma()) {
		o.device = "ibv";
		tg_refuse(&o, -ENODEV, "rdma link add");
	}
	o.device = "ibv:no_such_device0";
	tg_refuse(&o, -ENODEV, "no_such_device0");
	return 0;
}

/* A named device is asked for a port or a GID that it does not have. */
TG_TEST(device__without_that_port_or_gid, 1)
{
	DIR *d = opendir("/sys/class/infiniband");
	struct rref_options o;
	struct dirent *e;
	char text[300];

	tg_options(&o, 0);
	o.device = text;
	while (d && (e = readdir(d))) {
		if (e->d_name[0] == '.')
			continue;
		snprintf(text, sizeof(text), "ibv:%s:250", e->d_name);
		tg_refuse(&o, -ENODEV, "250");
		snprintf(text, sizeof(text), "ibv:%s:1:255", e->d_name);
		tg_refuse(&o, -ENODEV, "255");
	}
	if (d)
		closedir(d);
	TG_CHECK(tg_is_shm() || has_rdma());
	return 0;
}

TG_TEST(device__auto_on_one_machine, 2)
{
	struct rref_options o;
	struct rref_ctx *ctx;
	struct rref_worker_info w = { .size = sizeof(w) };

	tg_options(&o, rank);
	o.device = "auto";
	o.functions = tg_functions;
	o.nr_functions = tg_nr_functions;
	TG_OK(rref_init(&o, &ctx));
	TG_OK(rref_worker(ctx, 1 - rank, &w));
	TG_CHECK(strcmp(w.device, "shm") == 0);
	TG_OK(rref_rpc_sync(ctx, 1 - rank, "tg.echo", NULL, RREF_DEFAULT, NULL));
	tg_finish(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(rendezvous__bad_addresses),
		cmocka_unit_test(rendezvous__no_listener),
		cmocka_unit_test(rendezvous__some_do_not_come),
		cmocka_unit_test(rendezvous__address_taken),
		cmocka_unit_test(rendezvous__a_group_that_has_started_is_closed),
		cmocka_unit_test(rendezvous__rank_twice),
		cmocka_unit_test(rendezvous__without_a_key_only_here),
		cmocka_unit_test(key__bad_files),
		cmocka_unit_test(key__same_on_both_sides),
		cmocka_unit_test(key__different),
		cmocka_unit_test(device__ibv_on_a_machine_without_rdma),
		cmocka_unit_test(device__without_that_port_or_gid),
		cmocka_unit_test(device__auto_on_one_machine),
	};

	return cmocka_run_group_tests_name("join", tests, NULL, NULL);
}
