/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A member searches all memory that worker 1 hands over, in shared memory. It finds the living
 * values, also values that were not given to it (docs/SECURITY.md says so). It finds no value that
 * was reclaimed, no word of a value, and no way to write.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/mman.h>
#include <cmocka.h>

#include "tg_foe.h"
#include "verbs/shm/shm.h"

#define SECRET_BYTES 48

/* ---- functions of worker 1 ---- */

static struct rref *kept_value;

/* Makes the secret at run time, so that the search does not find the program's own text. */
static void make_secret(char secret[SECRET_BYTES], char which)
{
	for (int i = 0; i < SECRET_BYTES; i++)
		secret[i] = (char)(which ^ (i * 37 + 11));
}

static int make_value(struct rref_call *call, void *arg)
{
	bool keep = arg != NULL;
	char secret[SECRET_BYTES];
	struct rref *ref;

	make_secret(secret, keep ? 'k' : 'g');
	TG_OK(rref_new(rref_call_context(call), secret, sizeof(secret), &ref));
	if (keep)
		kept_value = ref;
	else
		rref_release(ref);
	return rref_call_reply(call, NULL);
}

static int release_kept(struct rref_call *call, void *arg)
{
	(void)arg;
	rref_release(kept_value);
	return rref_call_reply(call, NULL);
}

static int give(struct rref_call *call, void *arg)
{
	(void)arg;
	TG_OK(rref_new(rref_call_context(call), "given", 6, &kept_value));
	return rref_call_reply(call, &(struct rref_args){ .refs = &kept_value, .nr_refs = 1 });
}

static uint64_t word_looked_for;

static int find_word(void *arg, const char *bytes, size_t length)
{
	char text[4][24], record[4096];

	snprintf(text[0], sizeof(text[0]), "%llu", (unsigned long long)word_looked_for);
	snprintf(text[1], sizeof(text[1]), "%llx", (unsigned long long)word_looked_for);
	snprintf(text[2], sizeof(text[2]), "%llX", (unsigned long long)word_looked_for);
	snprintf(text[3], sizeof(text[3]), "%lld", (long long)word_looked_for);
	length = min_of(length, sizeof(record) - 1);
	memcpy(record, bytes, length);
	record[length] = '\0';
	for (int i = 0; i < 4; i++)
		*(int *)arg += strstr(record, text[i]) != NULL;
	return 0;
}

/* Replies -EDOM if a dump of this worker shows the word that is the call's data. */
static int look_into_dumps(struct rref_call *call, void *arg)
{
	int found = 0;

	(void)arg;
	memcpy(&word_looked_for, rref_call_data(call), sizeof(word_looked_for));
	for (unsigned flags = 0; flags < 4; flags++)
		(void)rref_dump_to(rref_call_context(call), flags, find_word, &found);
	return found ? -EDOM : rref_call_reply(call, NULL);
}

static const struct rref_function served[] = {
	{ .name = "keep_secret", .handler = make_value, .arg = &kept_value },
	{ .name = "make_secret", .handler = make_value },
	{ .name = "release_kept", .handler = release_kept },
	{ .name = "give", .handler = give },
	{ .name = "look_into_dumps", .handler = look_into_dumps },
};

/* ---- looking ---- */

static const struct rvs_seg *segment(const struct foe *f, uint32_t i)
{
	return at_load(&f->conn->segs[i].word) ? &f->conn->segs[i] : NULL;
}

static bool is_found(struct foe *f, const void *bytes, size_t length)
{
	for (uint32_t i = 0; i < f->conn->segs_end; i++) {
		const struct rvs_seg *s = segment(f, i);

		if (s &&
		    memmem((const void *)at_load(&s->base), at_load(&s->length), bytes, length))
			return true;
	}
	return false;
}

static void call(struct foe *f, const char *name)
{
	TG_IS(foe_reply_to(f, name, NULL), 0);
}

FOE_TEST(memory__shows_living_values_alone)
{
	char kept[SECRET_BYTES], gone[SECRET_BYTES];

	make_secret(kept, 'k');
	make_secret(gone, 'g');
	foe_meet(f, 1);
	call(f, "keep_secret");
	call(f, "make_secret");
	FOE_UNTIL(f, is_found(f, kept, sizeof(kept)));
	FOE_UNTIL(f, !is_found(f, gone, sizeof(gone)));
	call(f, "release_kept");
	FOE_UNTIL(f, !is_found(f, kept, sizeof(kept)));
}

FOE_TEST(word__is_in_no_memory_and_no_dump)
{
	struct rw_message m = { .frame.type = RW_CALL };
	uint64_t before, word;

	foe_meet(f, 1);
	call(f, "give");
	TG_IS(f->reply_nr_refs, 1);
	word = f->reply_refs[0].word;
	TG_CHECK(word != 0);
	TG_CHECK(f->conn->segs_end > 0);
	TG_CHECK(is_found(f, "given", 6) && !is_found(f, &word, sizeof(word)));
	before = f->nr_recv[RW_REPLY];
	m.u.call = (struct rw_call){ .call_id = 9, .kind = RW_CALL_RPC, .name = "look_into_dumps",
				     .name_length = 15, .data = (const void *)&word,
				     .data_length = sizeof(word) };
	TG_OK(foe_say(f, &m));
	FOE_UNTIL(f, f->nr_recv[RW_REPLY] > before);
	TG_IS(f->reply_status, 0);
	call(f, "release_kept");
}

FOE_TEST(memory__cannot_be_made_writable)
{
	unsigned nr = 0;

	foe_meet(f, 1);
	foe_still_served(f);
	for (uint32_t i = 0; i < f->conn->segs_end; i++) {
		const struct rvs_seg *s = segment(f, i);

		if (!s)
			continue;
		nr++;
		TG_IS(mprotect((void *)at_load(&s->base), 4096, PROT_READ | PROT_WRITE), -1);
		TG_IS(errno, EACCES);
	}
	TG_CHECK(nr > 0);
	TG_IS(mprotect(f->conn->peer_page, sizeof(*f->conn->peer_page), PROT_READ | PROT_WRITE),
	      -1);
	TG_IS(errno, EACCES);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(memory__cannot_be_made_writable),
		cmocka_unit_test(memory__shows_living_values_alone),
		cmocka_unit_test(word__is_in_no_memory_and_no_dump),
	};

	foe_functions = served;
	foe_nr_functions = array_size(served);
	return cmocka_run_group_tests_name("secrets", tests, NULL, NULL);
}
