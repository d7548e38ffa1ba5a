/* SPDX-License-Identifier: Apache-2.0 */
/* Memory of the core, registered. No on-demand paging: it can expose the whole address space. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#include "ibv.h"

/* Explains why a registration failed, and the remedy. Returns -errno. */
int rvi_reg_failed(int err, size_t length)
{
	struct rlimit lim;
	char limit[32] = "unknown";

	if (err != ENOMEM && err != EAGAIN && err != EPERM)
		return rv_fail(err ? err : EIO, "cannot register %zu bytes: %s", length,
			       strerror(err));
	if (!getrlimit(RLIMIT_MEMLOCK, &lim)) {
		if (lim.rlim_cur == RLIM_INFINITY)
			return rv_fail(ENOMEM,
				       "cannot register %zu bytes: no memory (RLIMIT_MEMLOCK is "
				       "unlimited)",
				       length);
		snprintf(limit, sizeof(limit), "%llu", (unsigned long long)lim.rlim_cur);
	}
	return rv_fail(ENOMEM,
		       "cannot register %zu bytes: RLIMIT_MEMLOCK is %s bytes for all locked "
		       "memory together, or memory ran "
		       "out; raise it: ulimit -l unlimited (or memlock in "
		       "/etc/security/limits.conf)",
		       length, limit);
}

static int reg_check(const struct rv_dev *dev, const void *base, size_t length, uint64_t iova,
		     enum rv_access access)
{
	bool remote = access == RV_ACCESS_REMOTE_READ;

	if (!length || (access != RV_ACCESS_LOCAL && !remote))
		return rv_fail(EINVAL, "cannot register: %s",
			       length ? "unknown access" : "no bytes");
	if (length > dev->attr.max_mr_size)
		return rv_fail(EMSGSIZE, "cannot register %zu bytes: the device's limit is %llu",
			       length, (unsigned long long)dev->attr.max_mr_size);
	/* The kernel insists on it (ib_uverbs_reg_mr). */
	if (remote && ((iova ^ (uintptr_t)base) & 4095))
		return rv_fail(EINVAL,
			       "cannot register: the remote address must have the memory's offset "
			       "within its page");
	return 0;
}

/*
 * Registers memory. Value memory allows only remote reads: no device, not even our own, may write
 * through that key. Its remote address is the caller's random iova. Landing memory keeps its own
 * address, for local keys address by iova too.
 */
int rvi_reg(struct rv_dev *dev, void *base, size_t length, int fd, uint64_t iova,
	    enum rv_access access, struct rv_mr *out)
{
	bool remote = access == RV_ACCESS_REMOTE_READ;
	struct rvi_region *r;
	int err;

	(void)fd;
	err = reg_check(dev, base, length, iova, access);
	if (err)
		return err;
	r = malloc(sizeof(*r));
	if (!r)
		return rv_fail(ENOMEM, "no memory for a registration");
	rb_slow(RB_SLOW_REGISTER);
	r->mr = remote ? ibv_reg_mr_iova(dev->pd, base, length, iova, IBV_ACCESS_REMOTE_READ)
		       : ibv_reg_mr(dev->pd, base, length, IBV_ACCESS_LOCAL_WRITE);
	if (!r->mr) {
		err = errno;
		free(r);
		return rvi_reg_failed(err, length);
	}
	pthread_mutex_lock(&dev->region_lock);
	list_add_tail(&dev->regions, &r->link);
	pthread_mutex_unlock(&dev->region_lock);
	*out = (struct rv_mr){
		.base = base,
		.length = length,
		.iova = iova,
		.lkey = remote ? 0 : r->mr->lkey,
		.rkey = remote ? r->mr->rkey : 0,
		.impl = r,
	};
	return 0;
}

int rvi_dereg(struct rv_dev *dev, struct rv_mr *mr)
{
	struct rvi_region *r = mr->impl;
	int rc;

	if (!r)
		return 0;
	rb_assert_is(mr->lkey | mr->rkey, ==, mr->rkey ? r->mr->rkey : r->mr->lkey);
	pthread_mutex_lock(&dev->region_lock);
	rb_assert(!list_empty(&r->link));
	list_del(&r->link);
	pthread_mutex_unlock(&dev->region_lock);
	/* The call stands outside the lock: on rxe a WRITE in
	 * progress can hold it up for some 50 s. */
	rb_slow(RB_SLOW_DEREGISTER);
	rc = ibv_dereg_mr(r->mr);
	if (rc) {
		/* The memory must not be reused, for any reason: fail closed. */
		pthread_mutex_lock(&dev->region_lock);
		list_add_tail(&dev->regions, &r->link);
		pthread_mutex_unlock(&dev->region_lock);
		return rv_fail(EBUSY, "cannot deregister %zu bytes: %s; they stay mapped",
			       mr->length, strerror(rc));
	}
	free(r);
	mr->impl = NULL;
	return 0;
}

void rvi_regions_free(struct rv_dev *dev)
{
	struct list *l;

	while ((l = list_pop(&dev->regions))) {
		struct rvi_region *r = container_of(l, struct rvi_region, link);

		ibv_dereg_mr(r->mr);
		free(r);
	}
}
