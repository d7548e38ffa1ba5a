/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The address blob: the machine, and the listener's name on it.
 *
 *   0 'S'   1 version   2..17 boot id
 *   18..25  inode of the network namespace (abstract socket names live in one)
 *   26..    the abstract socket name, without its leading NUL
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/random.h"
#include "shm.h"

#define HOST_AT 2
#define NAME_AT 26
#define NAME_MAX_LEN 64

_Static_assert(NAME_AT + NAME_MAX_LEN <= RV_ADDR_MAX, "the blob holds the name");

static int read_boot_id(unsigned char out[16])
{
	char text[52] = ""; /* longer than 16 bytes with a '-' behind each */
	int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
	unsigned nr = 0, byte;

	if (fd < 0 && rvs_lacks_fd(errno))
		return rvs_fail_fds(errno, "cannot read the boot id");
	if (fd < 0)
		return rv_fail(errno == ENOENT ? ENODEV : errno,
			       "shm: cannot read the boot id: %s%s", strerror(errno),
			       errno == ENOENT ? " (is /proc mounted?)" : "");
	(void)!read(fd, text, sizeof(text) - 1);
	close(fd);
	for (const char *p = text; nr < 16 && sscanf(p, "%2x", &byte) == 1; nr++) {
		out[nr] = (unsigned char)byte;
		p += p[2] == '-' ? 3 : 2;
	}
	return nr == 16 ? 0
			: rv_fail(ENODEV, "shm: the boot id is not what it should be: '%s'", text);
}

int rvs_self(struct rv_addr *out)
{
	unsigned char random[16];
	struct stat st;
	int rc, n = 0;

	memset(out, 0, sizeof(*out));
	out->bytes[0] = 'S';
	out->bytes[1] = RVS_VERSION;
	rc = read_boot_id(out->bytes + HOST_AT);
	if (rc)
		return rc;
	if (stat("/proc/self/ns/net", &st))
		return rv_fail(ENODEV, "shm: cannot see the network namespace: %s",
			       strerror(errno));
	put_le64(out->bytes + HOST_AT + 16, st.st_ino);
	rb_random(random, sizeof(random));
	char *name = (char *)out->bytes + NAME_AT;
	n = snprintf(name, NAME_MAX_LEN, "rref-");
	for (unsigned i = 0; i < sizeof(random); i++)
		n += snprintf(name + n, (size_t)(NAME_MAX_LEN - n), "%02x", random[i]);
	out->len = (uint16_t)(NAME_AT + n);
	return 0;
}

int rvs_reach(struct rv_dev *dev, const struct rv_addr *to)
{
	if (to->len <= NAME_AT || to->len > NAME_AT + NAME_MAX_LEN || to->bytes[0] != 'S')
		return rv_fail(EHOSTUNREACH, "shm: not an address of this provider");
	if (memcmp(to->bytes + HOST_AT, dev->self.bytes + HOST_AT, 16))
		return rv_fail(EHOSTUNREACH, "shm: the peer is on another machine");
	if (memcmp(to->bytes + HOST_AT + 16, dev->self.bytes + HOST_AT + 16, 8))
		return rv_fail(EHOSTUNREACH,
			       "shm: the peer is in another network namespace of this machine");
	return 0;
}

const char *rvs_name(const struct rv_addr *a, size_t *len)
{
	*len = (size_t)a->len - NAME_AT;
	return (const char *)a->bytes + NAME_AT;
}
