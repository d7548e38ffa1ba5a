/* SPDX-License-Identifier: Apache-2.0 */
#include <stdatomic.h>
#include <sys/mman.h>

#include "tg_rig.h"

#define IOVA (UINT64_C(0x7e57) << 32)
#define NONCE UINT64_C(0x1122334455667788)
#define READY 0x59444552

void rig_open(struct foe *f, struct rig *r, size_t bytes)
{
	int fd = memfd_create("foe-memory", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	TG_CHECK(fd >= 0 && !ftruncate(fd, (off_t)bytes));
	r->memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	TG_CHECK(r->memory != MAP_FAILED);
	TG_OK(f->ops->reg(f->dev, r->memory, bytes, fd, IOVA, RV_ACCESS_REMOTE_READ, &r->mr));
	close(fd);
	r->bytes = bytes;
	r->next = 1;
}

void rig_close(struct foe *f, struct rig *r)
{
	foe_hang_up(f);
	f->ops->dereg(f->dev, &r->mr);
	munmap(r->memory, r->bytes);
}

struct rp_location rig_header(struct foe *f, struct rig *r, uint64_t local_id, uint64_t length,
			      uint64_t hash, uint16_t nr_segments, uint16_t nr_refs)
{
	struct rp_location loc = { .addr = IOVA,
				   .length = length,
				   .nonce = NONCE,
				   .type_hash = hash,
				   .version = 1,
				   .nr_segments = nr_segments,
				   .nr_refs = nr_refs };
	unsigned char *h = r->memory;

	memset(h, 0, 64);
	put_le64(h, NONCE);
	put_le64(h + 8, local_id);
	put_le32(h + 16, FOE);
	put_le32(h + 20, 1);
	put_le64(h + 24, length);
	put_le64(h + 32, hash);
	put_le32(h + 40, READY);
	put_le16(h + 48, nr_segments);
	put_le16(h + 50, nr_refs);
	loc.rkey[f->ops->kind] = r->mr.rkey;
	return loc;
}

int rig_payload_bytes(struct rref_call *call, void *arg)
{
	struct rref_stats s = tg_stats(rref_call_context(call));

	(void)arg;
	return rref_call_error(call, -EDOM, "%lu", (unsigned long)s.payload_bytes);
}

unsigned long rig_offered(struct foe *f)
{
	TG_IS(foe_reply_to(f, "payload_bytes", NULL), -EDOM);
	return strtoul(f->reply_text, NULL, 10);
}
