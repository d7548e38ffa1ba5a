/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A member of the group that misbehaves over shared memory (T0 of docs/SECURITY.md). It hands over
 * wrong descriptors, and keeps right ones to change them later. Worker 1 must not crash, stand
 * still or run out of anything. The two good workers go on with their work.
 */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/mman.h>
#include <cmocka.h>

#include "tg_attack.h"
#include "verbs/shm/shm.h"

#ifndef MFD_HUGETLB
#define MFD_HUGETLB 0x0004U
#endif

/* Announces a region of the foe's under key index 9, unknown to the foe's own device. */
static void announce(struct foe *f, int fd, uint32_t count, uint64_t length)
{
	struct rvs_packet p;

	memset(&p, 0, sizeof(p));
	p.word = RVS_WORD(0x10009u, count);
	p.iova = UINT64_C(1) << 33;
	p.length = length;
	at_store_sc(&f->dev->page->key[9], p.word);
	TG_OK(rvs_packet_send(f->conn->sock, &p, RVS_PKT_REGION, &fd, fd >= 0));
}

/* ---- wrong memory ---- */

/* Hands over memory that could shrink, where a look would raise SIGBUS. Also a page larger than the
 * machine's, which would cover the memory after it. */
FOE_TEST(region__shrinkable_or_no_memory)
{
	int huge = MFD_ALLOW_SEALING | MFD_HUGETLB, pair[2], fd;

	TG_CHECK(!pipe(pair));
	for (int kind = 0; kind < 6; kind++) {
		switch (kind) {
		case 0: fd = tg_memory(0, 0, 4096); break;
		case 1: fd = tg_memory(MFD_ALLOW_SEALING, F_SEAL_GROW, 4096); break;
		case 2: fd = tg_memory((unsigned)huge, F_SEAL_SHRINK | F_SEAL_GROW, 2 << 20); break;
		case 3: fd = tg_memory(MFD_ALLOW_SEALING, F_SEAL_SHRINK | F_SEAL_GROW, 4095); break;
		case 4: fd = open("/dev/zero", O_RDWR | O_CLOEXEC); break;
		default: fd = dup(pair[0]); break;
		}
		TG_CHECK(fd >= 0);
		foe_meet(f, 1);
		announce(f, fd, (uint32_t)kind + 1, 4096);
		if (kind < 2)
			TG_OK(ftruncate(fd, 0));
		FOE_UNTIL(f, f->ended);
		TG_IS(f->status, -ECONNRESET);
		close(fd);
		foe_others_work();
	}
	foe_meet(f, 1);
	foe_still_served(f);
	close(pair[0]);
	close(pair[1]);
}

/* Counts the lines of worker 1's memory map that name the foe's regions.
 * Also stores its address space in bytes. */
static unsigned mapped_by_worker_1(uint64_t *bytes)
{
	char path[64], line[512];
	unsigned long pages = 0;
	unsigned nr = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/maps", (int)tg_current->shared->pid[1]);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof(line), f))
		nr += strstr(line, "foe-region") != NULL;
	if (f)
		fclose(f);
	snprintf(path, sizeof(path), "/proc/%d/statm", (int)tg_current->shared->pid[1]);
	f = fopen(path, "re");
	TG_CHECK(f && fscanf(f, "%lu", &pages) == 1);
	fclose(f);
	*bytes = (uint64_t)pages * (uint64_t)sysconf(_SC_PAGESIZE);
	return nr;
}

/* Hands over region after region, all alive: nr of one page, of the same memory. */
static void hand_over(struct foe *f, int fd, uint64_t length, unsigned nr)
{
	struct rvs_packet p;

	memset(&p, 0, sizeof(p));
	p.iova = UINT64_C(1) << 33;
	p.length = length;
	for (unsigned i = 0; i < nr; i++) {
		int err;

		p.word = RVS_WORD(0x10000u | (i + 100), 1);
		at_store_sc(&f->dev->page->key[i + 100], p.word);
		while ((err = rvs_packet_send(f->conn->sock, &p, RVS_PKT_REGION, &fd, 1)) ==
		       -EAGAIN)
			foe_pump(f);
		TG_OK(err);
	}
	/* Worker 1 has taken in all of it when the socket has its full room again. */
	for (unsigned i = 0; i < 1000; i++) {
		int err;

		while ((err = rvs_wake_send(f->conn->sock)) == -EAGAIN)
			foe_pump(f);
		TG_OK(err);
	}
}

FOE_TEST(regions__without_number)
{
	int fd = tg_memory(MFD_ALLOW_SEALING, F_SEAL_SHRINK | F_SEAL_GROW, 4096);
	uint64_t bytes;
	unsigned nr;

	foe_meet(f, 1);
	hand_over(f, fd, 4096, RVS_MAX_REGIONS + 2000);
	nr = mapped_by_worker_1(&bytes);
	/* A few belong to its own device. */
	TG_CHECK(nr > RVS_MAX_REGIONS / 2 && nr <= RVS_MAX_REGIONS);
	foe_still_served(f);
}

FOE_TEST(regions__without_end)
{
	uint64_t before, bytes,
		memory_bytes = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
	int fd = tg_memory(MFD_ALLOW_SEALING, F_SEAL_SHRINK | F_SEAL_GROW, (off_t)1 << 36);

	foe_meet(f, 1);
	mapped_by_worker_1(&before);
	hand_over(f, fd, UINT64_C(1) << 36, 500);
	mapped_by_worker_1(&bytes);
	TG_CHECK(bytes <= before + 4 * memory_bytes + ((uint64_t)1 << 30));
	foe_still_served(f);
}

/* Sends a word again, which could name another region to a READ that has looked at the first. */
FOE_TEST(region__word_used_again)
{
	int fd = tg_memory(MFD_ALLOW_SEALING, F_SEAL_SHRINK | F_SEAL_GROW, 8192);

	for (unsigned i = 0; i < 2; i++) {
		foe_meet(f, 1);
		announce(f, fd, 5, 4096);
		announce(f, fd, 5 + i,
			 8192); /* the same again changes nothing; the next takes its place */
		foe_still_served(f);
		announce(f, fd, 6, 4096);
		foe_still_served(f);
		announce(f, fd, 5, 4096);
		FOE_UNTIL(f, f->ended);
		foe_others_work();
	}
	close(fd);
}

/* ---- wake-ups ---- */

/* Claims a sleep that has not ended yet: the next message to the foe brings a wake-up. */
static void fall_asleep(struct foe *f)
{
	static uint32_t number;

	at_store_sc(&f->dev->page->sleeping, ++number);
}

/*
 * Wakes that are never taken in. The socket is full, or an eventfd that blocks is
 * full (it may be the wake-up of an older library). Neither holds worker 1 up: it
 * answers each message, and serves the other worker.
 */
FOE_TEST(wake_up__is_never_taken)
{
	uint64_t full = UINT64_MAX - 1;

	foe_meet(f, 1);
	foe_still_served(f);
	TG_IS((int)write(f->dev->wake, &full, sizeof(full)), (int)sizeof(full));
	TG_OK(fcntl(f->dev->wake, F_SETFL, fcntl(f->dev->wake, F_GETFL) & ~O_NONBLOCK));
	for (unsigned i = 0; i < 1000; i++) {
		uint64_t pongs = f->nr_recv[RW_PONG];
		struct rv_event ev[16];

		fall_asleep(f);
		TG_OK(foe_say_number(f, RW_PING, i));
		/* Quick polls alone look at no socket. */
		for (int64_t end = tg_deadline(); f->nr_recv[RW_PONG] == pongs; ) {
			int n = f->ops->poll(f->dev, ev, 16, 0);

			TG_CHECK(now_ns() < end);
			foe_take(f, ev, n);
			if (!n)
				tg_pause();
		}
		if (i % 250 == 0)
			foe_others_work();
	}
	at_store_sc(&f->dev->page->sleeping, 0);
	foe_others_work();
	(void)!read(f->dev->wake, &full, sizeof(full));
	foe_still_served(f);
}

/* ---- floods on the socket ---- */

/* Sends with `send` for a second, as fast as worker 1 takes it. The rest stays in the socket. */
static void flood(struct foe *f, tg_send_fn send_one)
{
	const unsigned room = 1000; /* more than the socket holds */
	int64_t start = now_ns(), took;
	uint32_t nr = 0;

	while ((took = now_ns() - start) < NSEC_PER_SEC) {
		int err = send_one(f, nr);

		TG_CHECK(!err || err == -EAGAIN);
		nr += !err;
	}
	foe_others_work();
	if (nr > (took / RVS_WINDOW_NS + 2) * RVS_WINDOW_PACKETS + room) {
		fprintf(stderr, "worker 1 took %u packets in %lld ms\n", nr,
			(long long)(took / NSEC_PER_MSEC));
		_exit(1);
	}
	TG_CHECK(nr > RVS_WINDOW_PACKETS);
	foe_still_served(f);
}

FOE_TEST(flood__of_regions)
{
	foe_meet(f, 1);
	flood(f, tg_send_region);
}

FOE_TEST(flood__of_wake_ups)
{
	foe_meet(f, 1);
	flood(f, tg_send_wake);
}

FOE_TEST(flood__of_questions)
{
	foe_meet(f, 1);
	flood(f, tg_send_again);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(flood__of_questions),
		cmocka_unit_test(flood__of_regions),
		cmocka_unit_test(flood__of_wake_ups),
		cmocka_unit_test(region__shrinkable_or_no_memory),
		cmocka_unit_test(region__word_used_again),
		cmocka_unit_test(regions__without_end),
		cmocka_unit_test(regions__without_number),
		cmocka_unit_test(wake_up__is_never_taken),
	};

	return cmocka_run_group_tests_name("shm_member", tests, NULL, NULL);
}
