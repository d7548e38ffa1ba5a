/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Strangers over shared memory (T1 of docs/SECURITY.md): another user of the machine, and processes
 * of the same user that do not hold the group's key. Each connects to worker 1 as fast as it can,
 * for a second. However many come, the work that they cause and the lines that they put into the
 * log are bounded, and the session that is up goes on.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <cmocka.h>

#include "tg_foe.h"
#include "verbs/shm/shm.h"

#define OTHER_UID 12345
#define BACKLOG 129 /* connections that wait to be accepted: listen(128) */
#define OPEN_MAX_ 400 /* connections that a stranger keeps */
#define LINES 60u   /* 32, powers of two, and some of others */

/* What one stranger does with a connection; returns true if that is to stay open. */
typedef bool (*act_fn)(struct foe *f, int sock);

static int dial(const struct rv_addr *to)
{
	struct sockaddr_un sun = { .sun_family = AF_UNIX };
	size_t len;
	const char *name = rvs_name(to, &len);
	int sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	memcpy(sun.sun_path + 1, name, len);
	if (sock >= 0 && connect(sock, (struct sockaddr *)&sun,
				 (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + len))) {
		close(sock);
		sock = -1;
	}
	return sock;
}

/* In a process of its own. Says over `out` how many connections it made, and how long it took. */
static void strangers(struct foe *f, act_fn act, uid_t uid, int out)
{
	int open_socks[OPEN_MAX_], at = 0;
	uint64_t said[2] = { 0, 0 };
	int64_t start = now_ns();

	if (uid && (setgid(uid) || setuid(uid)))
		_exit(2);
	memset(open_socks, -1, sizeof(open_socks));
	while (now_ns() - start < NSEC_PER_SEC) {
		int sock = dial(&f->members[1].addr[RV_SHM]);

		if (sock < 0)
			continue;
		said[0]++;
		if (!act(f, sock)) {
			close(sock);
			continue;
		}
		if (open_socks[at] >= 0)
			close(open_socks[at]);
		open_socks[at] = sock;
		at = (at + 1) % OPEN_MAX_;
	}
	said[1] = (uint64_t)(now_ns() - start);
	_exit(write(out, said, sizeof(said)) == sizeof(said) ? 0 : 3);
}

static void flood_by(struct foe *f, act_fn act, uid_t uid)
{
	uint64_t said[2], lines = foe_shown()->logged_lines, rounds;
	int pair[2], status;
	pid_t pid;

	foe_meet(f, 1);
	TG_OK(pipe(pair));
	pid = fork();
	TG_CHECK(pid >= 0);
	if (!pid)
		strangers(f, act, uid, pair[1]);
	close(pair[1]);
	rounds = foe_shown()->rounds;
	foe_others_work();
	TG_IS(read(pair[0], said, sizeof(said)), sizeof(said));
	close(pair[0]);
	TG_IS(waitpid(pid, &status, 0), pid);
	TG_IS(status, 0);
	TG_CHECK(foe_shown()->rounds > rounds);
	/* Those that worker 1 took, and those that still wait. */
	if (said[0] > (said[1] / RVS_WINDOW_NS + 2) * RVS_WINDOW_STRANGERS + BACKLOG) {
		fprintf(stderr, "worker 1 took %lu strangers in %lu ms\n", (unsigned long)said[0],
			(unsigned long)(said[1] / 1000000));
		_exit(1);
	}
	TG_CHECK(said[0] > RVS_WINDOW_STRANGERS);
	foe_others_work();
	foe_still_served(f); /* this session too */
	if (foe_shown()->logged_lines - lines > LINES) {
		fprintf(stderr, "%lu lines in the log\n",
			(unsigned long)(foe_shown()->logged_lines - lines));
		_exit(1);
	}
}

static bool leave(struct foe *f, int sock)
{
	(void)f, (void)sock;
	return false;
}

static bool stay_silent(struct foe *f, int sock)
{
	(void)f, (void)sock;
	return true;
}

static bool send_garbage(struct foe *f, int sock)
{
	(void)f;
	(void)!send(sock, "0123456789abcdef", 16, MSG_DONTWAIT | MSG_NOSIGNAL);
	return false;
}

/* Well-formed, and with what belongs to it: only the core can tell that its MAC is wrong. */
static bool say_hello(struct foe *f, int sock)
{
	static struct rvs_ring ring;
	static int box = -1;
	struct rvs_packet p;

	if (box < 0) {
		if (rvs_box_create(&ring, 8, &box))
			_exit(4);
		foe_make_hello(f, 1);
		f->hello[f->hello_length - 1] ^= 1; /* of its MAC */
	}
	memset(&p, 0, sizeof(p));
	p.credits = 8;
	p.len = (uint16_t)f->hello_length;
	memcpy(p.data, f->hello, f->hello_length);
	(void)rvs_packet_send(sock, &p, RVS_PKT_HELLO, (int[]){ f->dev->page_fd, box }, 2);
	return false;
}

FOE_TEST(other_user__connects)
{
	if (geteuid()) {
		fprintf(stderr, "skipped: needs root to become another user\n");
		return;
	}
	flood_by(f, leave, OTHER_UID);
	flood_by(f, stay_silent, OTHER_UID);
}

FOE_TEST(stranger__hangs_up)
{
	flood_by(f, leave, 0);
}

FOE_TEST(stranger__says_nothing)
{
	flood_by(f, stay_silent, 0);
}

FOE_TEST(stranger__says_garbage)
{
	flood_by(f, send_garbage, 0);
}

FOE_TEST(stranger__has_another_key)
{
	flood_by(f, say_hello, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(other_user__connects),
		cmocka_unit_test(stranger__hangs_up),
		cmocka_unit_test(stranger__has_another_key),
		cmocka_unit_test(stranger__says_garbage),
		cmocka_unit_test(stranger__says_nothing),
	};

	return cmocka_run_group_tests_name("shm_stranger", tests, NULL, NULL);
}
