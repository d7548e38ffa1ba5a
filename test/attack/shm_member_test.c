/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A member of the group that misbehaves over shared memory (T0 of docs/SECURITY.md). It hands over descriptors that are
 * not what they should be, and keeps the right ones in its hands to change them later. Worker 1 must not crash, stand
 * still or run out of anything by it, and the two good workers go on with their work.
 */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/mman.h>
#include <cmocka.h>

#include "tg_foe.h"
#include "verbs/shm/shm.h"

#ifndef MFD_HUGETLB
#define MFD_HUGETLB 0x0004U
#endif

/* Announces a region of the foe's under key index 9, behind the back of the foe's own device. */
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

/* ---- memory that is not what it should be ---- */

static int memory(unsigned flags, int seals, off_t size)
{
	int fd = memfd_create("foe-region", MFD_CLOEXEC | flags);

	TG_CHECK(fd >= 0 && !ftruncate(fd, size));
	TG_CHECK(!seals || !fcntl(fd, F_ADD_SEALS, seals));
	return fd;
}

/* A look at memory that shrank would be a SIGBUS, and a page larger than the machine's would cover what lies behind it. */
FOE_TEST(region__that_could_shrink_or_is_no_memory)
{
	int huge = MFD_ALLOW_SEALING | MFD_HUGETLB, pair[2], fd;

	TG_CHECK(!pipe(pair));
	for (int kind = 0; kind < 6; kind++) {
		switch (kind) {
		case 0: fd = memory(0, 0, 4096); break;
		case 1: fd = memory(MFD_ALLOW_SEALING, F_SEAL_GROW, 4096); break;
		case 2: fd = memory((unsigned)huge, F_SEAL_SHRINK | F_SEAL_GROW, 2 << 20); break;
		case 3: fd = memory(MFD_ALLOW_SEALING, F_SEAL_SHRINK | F_SEAL_GROW, 4095); break;
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

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(region__that_could_shrink_or_is_no_memory),
	};

	return cmocka_run_group_tests_name("shm_member", tests, NULL, NULL);
}
