/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The group's key and its uses. The crypto is libsodium's: keyed BLAKE2b for MACs, its
 * constant-time comparison, its wiping. The random numbers are base/random.h's.
 *
 * A key that others could read or replace is worth nothing. So every file is opened first and then
 * judged by fstat. A check by name could be raced.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/limit.h"
#include "base/random.h"
#include "base/util.h"
#include "core/base/error.h"
#include "core/base/quote.h"
#include "core/group/group.h"

#define KEY_FILE_MIN 16
#define KEY_FILE_MAX 4096
#define USER_SECRET_BYTES 32
#define USER_TRIES 16
#define OTHER_DIRS 1000
#define OTHER_DIR_WAIT_NS (50 * NSEC_PER_MSEC)

_Static_assert(RC_KEY_BYTES >= crypto_generichash_KEYBYTES_MIN &&
		       RC_KEY_BYTES <= crypto_generichash_KEYBYTES_MAX,
	       "key");
_Static_assert(RC_MAC_BYTES >= crypto_generichash_BYTES_MIN &&
		       RC_MAC_BYTES <= crypto_generichash_BYTES_MAX,
	       "MAC");
_Static_assert(RC_KEY_BYTES == RC_MAC_BYTES && RC_KEY_BYTES == crypto_kx_PUBLICKEYBYTES &&
	       RC_KEY_BYTES == crypto_kx_SECRETKEYBYTES, "one size for keys and MACs");
_Static_assert(RC_SHORT_MAC_BYTES <= RC_MAC_BYTES && RC_SHORT_MAC_BYTES >= 16,
	       "a short MAC is a cut MAC");

static pthread_once_t sodium_once = PTHREAD_ONCE_INIT;

static void start_sodium(void)
{
	(void)!sodium_init();
}

/*
 * Fills buf, not by libsodium: libsodium ends the process where the system gives no random bytes.
 */
void rc_random(void *buf, size_t length)
{
	rb_random(buf, length);
}

void rc_mac(const struct rc_key *key, const char *label, const void *data, size_t length,
	    uint8_t *mac)
{
	crypto_generichash_state state;

	pthread_once(&sodium_once, start_sodium);
	crypto_generichash_init(&state, key->bytes, sizeof(key->bytes), RC_MAC_BYTES);
	/* Includes the label's NUL, so that no label equals another label and some data. */
	crypto_generichash_update(&state, (const unsigned char *)label, strlen(label) + 1);
	crypto_generichash_update(&state, data, length);
	crypto_generichash_final(&state, mac, RC_MAC_BYTES);
	sodium_memzero(&state, sizeof(state));
}

bool rc_mac_equal(const uint8_t *a, const uint8_t *b, size_t length)
{
	return sodium_memcmp(a, b, length) == 0;
}

void rc_identity_make(struct rc_identity *out)
{
	uint8_t seed[crypto_kx_SEEDBYTES];

	rc_random(seed, sizeof(seed));
	crypto_kx_seed_keypair(out->public, out->secret, seed);
	sodium_memzero(seed, sizeof(seed));
}

void rc_identity_wipe(struct rc_identity *id)
{
	sodium_memzero(id, sizeof(*id));
}

int rc_pair_key(const struct rc_key *group, const struct rc_identity *self,
		const struct rc_member *me, const struct rc_member *peer, struct rc_key *out)
{
	/*
	 * Lets the lower rank of the two play the exchange's client, whose receiving key comes
	 * first for both.
	 */
	bool is_low = me->rank < peer->rank;
	const struct rc_member *low = is_low ? me : peer, *high = is_low ? peer : me;
	uint8_t data[2 * crypto_kx_SESSIONKEYBYTES + 2 * (4 + 8)],
		*second = data + crypto_kx_SESSIONKEYBYTES;
	uint8_t *p = second + crypto_kx_SESSIONKEYBYTES;
	int r = is_low ? crypto_kx_client_session_keys(data, second, self->public, self->secret,
						       peer->public)
		       : crypto_kx_server_session_keys(second, data, self->public, self->secret,
						       peer->public);

	if (r)
		return rc_fail(EKEYREJECTED, "%s (rank %u) has a public key that is none",
			       peer->name, peer->rank);
	put_le32(p, low->rank);
	put_le64(p + 4, low->incarnation);
	put_le32(p + 12, high->rank);
	put_le64(p + 16, high->incarnation);
	rc_mac(group, "rref peer pair 1", data, sizeof(data), out->bytes);
	out->is_group = group->is_group;
	sodium_memzero(data, sizeof(data));
	return 0;
}

void rc_key_wipe(struct rc_key *key)
{
	if (key)
		sodium_memzero(key, sizeof(*key));
}

/*
 * Turns the bytes of a key into a key of fixed length. The label keeps a user's key from ever
 * equalling a group's.
 */
static void derive(const char *label, const void *bytes, size_t length, struct rc_key *out)
{
	crypto_generichash_state state;

	pthread_once(&sodium_once, start_sodium);
	crypto_generichash_init(&state, NULL, 0, RC_KEY_BYTES);
	crypto_generichash_update(&state, (const unsigned char *)label, strlen(label) + 1);
	crypto_generichash_update(&state, bytes, length);
	crypto_generichash_final(&state, out->bytes, RC_KEY_BYTES);
	sodium_memzero(&state, sizeof(state));
}

/* Reads up to size bytes, less only at the end of the file. Returns how many, or -errno. */
static ssize_t read_all(int fd, uint8_t *buf, size_t size)
{
	size_t have = 0;

	while (have < size) {
		ssize_t n = read(fd, buf + have, size - have);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			break;
		have += (size_t)n;
	}
	return (ssize_t)have;
}

static int key_write_all(int fd, const uint8_t *buf, size_t size)
{
	while (size) {
		ssize_t n = write(fd, buf, size);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		buf += n;
		size -= (size_t)n;
	}
	return 0;
}

/* Tells whether no other user may use the file. */
static bool is_private(const struct stat *st)
{
	return st->st_uid == geteuid() && !(st->st_mode & 077);
}

static int key_file_lost(const char *name, int err)
{
	if (err == ENOENT || err == ENOTDIR)
		return rc_fail(ENOENT, "key file \"%s\": no such file", name);
	if (err == ELOOP)
		return rc_fail(EACCES, "key file \"%s\" is a symbolic link: name the file itself",
			       name);
	if (err == EACCES || err == EPERM)
		return rc_fail(EACCES, "key file \"%s\": this user (uid %u) may not read it", name,
			       (unsigned)geteuid());
	return rc_fail(err, "key file \"%s\": open: %s", name, rref_strerror(err));
}

/* Checks that only this user, or root, could have made the file's key. */
static int key_file_check(int fd, const char *name)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return rc_fail(errno, "key file \"%s\": fstat: %s", name, rref_strerror(errno));
	if (!S_ISREG(st.st_mode))
		return rc_fail(EINVAL, "key file \"%s\" is not a regular file", name);
	if (st.st_uid != geteuid() && st.st_uid != 0)
		return rc_fail(
			EACCES,
			"key file \"%s\" belongs to uid %u; "
			"it must belong to this user (uid %u) or to root",
			name, (unsigned)st.st_uid, (unsigned)geteuid());
	if (st.st_mode & 077)
		return rc_fail(EACCES,
			       "key file \"%s\" has mode %04o, others could use it: chmod 600 it",
			       name, (unsigned)st.st_mode & 07777);
	return 0;
}

static int key_file_read(int fd, const char *name, struct rc_key *out)
{
	uint8_t bytes[KEY_FILE_MAX + 1];
	ssize_t n = read_all(fd, bytes, sizeof(bytes));
	int r = 0;

	if (n < 0) {
		r = rc_fail((int)-n, "key file \"%s\": read: %s", name, rref_strerror((int)n));
	} else if (n < KEY_FILE_MIN || n > KEY_FILE_MAX) {
		r = rc_fail(EINVAL, "key file \"%s\" has %s%zd bytes; a key has %d to %d", name,
			    n > KEY_FILE_MAX ? "more than " : "", min_of(n, (ssize_t)KEY_FILE_MAX),
			    KEY_FILE_MIN, KEY_FILE_MAX);
	} else {
		derive("rref group key 1", bytes, (size_t)n, out);
		out->is_group = true;
	}
	sodium_memzero(bytes, sizeof(bytes));
	return r;
}

static int load_group_key(const char *path, struct rc_key *out)
{
	char name[200];
	int fd, r;

	rc_quote(name, sizeof(name), path, strlen(path));
	/*
	 * O_NOFOLLOW: a user who may place a link could choose the key. O_NONBLOCK: a FIFO must not
	 * stop us before fstat sees it.
	 */
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
	if (fd < 0)
		return key_file_lost(name, errno);
	r = key_file_check(fd, name);
	if (!r)
		r = key_file_read(fd, name, out);
	close(fd);
	return r;
}

/* Opens a directory that is this user's alone. Returns -errno without a text if it is not. */
static int open_private_dir(const char *path)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	struct stat st;

	if (fd < 0)
		return -errno;
	if (fstat(fd, &st) < 0 || !is_private(&st)) {
		close(fd);
		return -EACCES;
	}
	return fd;
}

/*
 * Tells that there is no key at path, or at name in path. The text says why: a limit of this
 * process, or a place that does not serve.
 */
static int no_key(int err, const char *what, const char *path, const char *name)
{
	const char *slash = *name ? "/" : "";

	if (limit_errno(err) == ENOMEM)
		return rc_fail(ENOMEM, "user key: cannot %s %s%s%s: %s", what, path, slash, name,
			       limit_why("file", err, USER_SECRET_BYTES));
	return rc_fail(
		EACCES,
		"user key: cannot %s %s%s%s: %s; set RREF_KEY_FILE, "
		"or XDG_RUNTIME_DIR to a directory of this user",
		what, path, slash, name, rref_strerror(err));
}

static bool is_private_dir(DIR *in, const char *name)
{
	struct stat st;

	return fstatat(dirfd(in), name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(st.st_mode) &&
	       is_private(&st);
}

/*
 * Finds a directory of this user alone among /tmp/librref-<uid>.*, which serve while another user
 * has taken the usual name. Takes the first by name, so that all workers find the same. Returns a
 * descriptor, or -ENOENT.
 */
static int find_other_dir(char *path, size_t size)
{
	char prefix[48], best[NAME_MAX + 1] = "";
	DIR *d = opendir("/tmp");
	struct dirent *e;
	int fd;

	snprintf(prefix, sizeof(prefix), "librref-%u.", (unsigned)geteuid());
	while (d && (e = readdir(d))) {
		/*
		 * Judges a directory before it takes the name, so that directories of others do not
		 * hide it. The open directory is judged once more.
		 */
		if (strncmp(e->d_name, prefix, strlen(prefix)) == 0 &&
		    (!*best || strcmp(e->d_name, best) < 0) && is_private_dir(d, e->d_name))
			snprintf(best, sizeof(best), "%s", e->d_name);
	}
	if (d)
		closedir(d);
	if (!*best)
		return -ENOENT;
	snprintf(path, size, "/tmp/%s", best);
	fd = open_private_dir(path);
	return fd < 0 ? -ENOENT : fd;
}

/*
 * Makes such a directory: the first whose name is free. So workers that begin at the same time make
 * the same directory. Names that another user has taken are passed by. After many of these it takes
 * a name that cannot be guessed. Then workers that begin together may each make a directory: they
 * wait, and agree on the first.
 */
static int make_other_dir(char *path, size_t size)
{
	uint64_t suffix;
	int fd = -EEXIST;

	for (unsigned i = 0; i < OTHER_DIRS && fd < 0; i++) {
		snprintf(path, size, "/tmp/librref-%u.%u", (unsigned)geteuid(), i);
		if (mkdir(path, 0700) < 0 && errno != EEXIST)
			return no_key(errno, "make the directory", path, "");
		fd = open_private_dir(path);
	}
	if (fd >= 0) {
		close(fd);
		return find_other_dir(path, size);
	}
	rc_random(&suffix, sizeof(suffix));
	snprintf(path, size, "/tmp/librref-%u.x%016llx", (unsigned)geteuid(),
		 (unsigned long long)suffix);
	if (mkdir(path, 0700) < 0)
		return no_key(errno, "make the directory", path, "");
	nanosleep(&(struct timespec){ .tv_nsec = OTHER_DIR_WAIT_NS }, NULL);
	return find_other_dir(path, size);
}

static int open_runtime_dir(char *path, size_t size)
{
	const char *xdg = secure_getenv("XDG_RUNTIME_DIR");

	if (!xdg || xdg[0] != '/' || strlen(xdg) >= size)
		return -ENOENT;
	memcpy(path, xdg, strlen(xdg) + 1);
	return open_private_dir(path);
}

/* Makes and opens the usual directory in /tmp, or one beside it if another user has its name. */
static int make_user_dir(char *path, size_t size)
{
	int fd;

	snprintf(path, size, "/tmp/librref-%u", (unsigned)geteuid());
	if (mkdir(path, 0700) < 0 && errno != EEXIST)
		return no_key(errno, "make the directory", path, "");
	fd = open_private_dir(path);
	if (fd >= 0)
		return fd;
	if (fd != -EACCES && fd != -ELOOP && fd != -ENOTDIR)
		return no_key(-fd, "open the directory", path, "");
	fd = make_other_dir(path, size);
	if (fd == -ENOENT)
		return rc_fail(EACCES,
			       "user key: /tmp/librref-%u is not a directory of this user alone, "
			       "mode 0700, and one beside it could not be kept: set RREF_KEY_FILE",
			       (unsigned)geteuid());
	return fd;
}

/*
 * Opens the directory of the user's secret. XDG_RUNTIME_DIR may be missing, another user's (su,
 * sudo -E, cron) or too open (WSL). Then /tmp serves, where the directory must be this user's
 * alone. Another user may have taken its name, and may let go of it at any time. Then a directory
 * beside it serves, and goes on to serve. Returns a descriptor.
 */
static int open_user_dir(char *path, size_t size, const char **name)
{
	int fd = open_runtime_dir(path, size);

	*name = fd >= 0 ? "librref.key" : "key";
	if (fd < 0) {
		snprintf(path, size, "/tmp/librref-%u", (unsigned)geteuid());
		fd = open_private_dir(path);
	}
	if (fd < 0)
		fd = find_other_dir(path, size);
	return fd < 0 ? make_user_dir(path, size) : fd;
}

/*
 * Writes a fresh secret, and flushes it before the file has its name. Where /tmp is a disk, a power
 * cut could leave a name without bytes. That would lock this user out.
 */
static int write_secret(int fd)
{
	uint8_t secret[USER_SECRET_BYTES];
	int r;

	rc_random(secret, sizeof(secret));
	r = limit_file(sizeof(secret)) ? -errno : key_write_all(fd, secret, sizeof(secret));
	sodium_memzero(secret, sizeof(secret));
	return !r && fsync(fd) < 0 ? -errno : r;
}

/*
 * Gives the file its name, unless another process did. Falls back on a file system without hard
 * links.
 */
static int give_name(int dir, const char *tmp, const char *name)
{
	if (linkat(dir, tmp, dir, name, 0) == 0 || errno == EEXIST)
		return 0;
	if ((errno == EPERM || errno == EOPNOTSUPP || errno == EMLINK || errno == ENOSYS) &&
	    (renameat2(dir, tmp, dir, name, RENAME_NOREPLACE) == 0 || errno == EEXIST))
		return 0;
	return -errno;
}

/*
 * Makes the secret. It is complete before it has its name, and link(2) gives the name to one
 * process only. So all processes that start at the same time read the same bytes. A crash in
 * between leaves no half of a key.
 */
static int create_user_secret(int dir, const char *path, const char *name)
{
	uint64_t suffix;
	char tmp[64];
	int fd, r;

	rc_random(&suffix, sizeof(suffix));
	snprintf(tmp, sizeof(tmp), ".%s.%016llx", name, (unsigned long long)suffix);
	fd = openat(dir, tmp, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		return no_key(errno, "create a file in", path, "");
	r = write_secret(fd);
	close(fd);
	if (r)
		r = no_key(-r, "write in", path, "");
	else if ((r = give_name(dir, tmp, name)))
		r = no_key(-r, "create", path, name);
	unlinkat(dir, tmp, 0);
	return r;
}

/* Opens the secret, and makes it if there is none. */
static int open_user_secret(int dir, const char *path, const char *name)
{
	/* Repeats only if another process removes the file at the same time. */
	for (int tries = 0;; tries++) {
		int fd = openat(dir, name,
				O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
		int r;

		if (fd >= 0)
			return fd;
		if (errno == ELOOP)
			return rc_fail(EACCES, "user key: %s/%s is a symbolic link: remove it",
				       path, name);
		if (errno != ENOENT || tries == USER_TRIES)
			return no_key(errno, "open", path, name);
		r = create_user_secret(dir, path, name);
		if (r)
			return r;
	}
}

static int read_user_secret(int fd, const char *path, const char *name, struct rc_key *out)
{
	uint8_t secret[USER_SECRET_BYTES + 1];
	struct stat st;
	ssize_t n;
	int r = 0;

	if (fstat(fd, &st) < 0)
		return rc_fail(errno, "user key: fstat %s/%s: %s", path, name,
			       rref_strerror(errno));
	if (!S_ISREG(st.st_mode) || !is_private(&st))
		return rc_fail(
			EACCES,
			"user key: %s/%s is not a file of this user (uid %u) alone, "
			"mode 0600: remove it",
			path, name, (unsigned)geteuid());
	n = read_all(fd, secret, sizeof(secret));
	if (n < 0) {
		r = rc_fail((int)-n, "user key: read %s/%s: %s", path, name, rref_strerror((int)n));
	} else if (n != USER_SECRET_BYTES) {
		r = rc_fail(EINVAL, "user key: %s/%s does not have %d bytes: remove it", path, name,
			    USER_SECRET_BYTES);
	} else {
		derive("rref user key 1", secret, USER_SECRET_BYTES, out);
		out->is_group = false;
	}
	sodium_memzero(secret, sizeof(secret));
	return r;
}

static int load_user_key(struct rc_key *out)
{
	char path[512];
	const char *name;
	int dir = open_user_dir(path, sizeof(path), &name), fd, r;

	if (dir < 0)
		return dir;
	fd = open_user_secret(dir, path, name);
	r = fd < 0 ? fd : read_user_secret(fd, path, name, out);
	if (fd >= 0)
		close(fd);
	close(dir);
	return r;
}

int rc_key_load(const char *key_file, struct rc_key *out)
{
	return key_file ? load_group_key(key_file, out) : load_user_key(out);
}
