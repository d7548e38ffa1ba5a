/* SPDX-License-Identifier: Apache-2.0 */
/* The group's key: the valid files, their readers, and the distinctions of a MAC. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/base/error.h"
#include "core/group/group.h"

#define NR_STARTERS 16
#define OTHER_UID 54321

static char dir[64];

static int make_dir(void **state)
{
	(void)state;
	snprintf(dir, sizeof(dir), "/tmp/librref-key-test.XXXXXX");
	return mkdtemp(dir) ? setenv("XDG_RUNTIME_DIR", dir, 1) : -1;
}

static int remove_dir(void **state)
{
	char command[96];

	(void)state;
	snprintf(command, sizeof(command), "rm -rf %s", dir);
	return system(command);
}

static const char *path_of(const char *name)
{
	static char path[128];

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	return path;
}

static const char *write_file(const char *name, const void *bytes, size_t length, mode_t mode)
{
	const char *path = path_of(name);
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, bytes, length), length);
	assert_int_equal(fchmod(fd, mode), 0);
	close(fd);
	return path;
}

static int nr_fds(void)
{
	int nr = 0;

	for (int fd = 0; fd < 256; fd++)
		nr += fcntl(fd, F_GETFD) >= 0;
	return nr;
}

static void assert_key_equal(const struct rc_key *a, const struct rc_key *b, bool equal)
{
	assert_int_equal(memcmp(a->bytes, b->bytes, RC_KEY_BYTES) == 0, equal);
}

static void key__same_file_bytes_same_key(void **state)
{
	struct rc_key a, b, c;

	(void)state;
	assert_int_equal(rc_key_load(write_file("a", "sixteen bytes ok", 16, 0600), &a), 0);
	assert_int_equal(rc_key_load(write_file("b", "sixteen bytes ok", 16, 0400), &b), 0);
	assert_int_equal(rc_key_load(write_file("c", "sixteen bytes oK", 16, 0600), &c), 0);
	assert_true(a.is_group);
	assert_key_equal(&a, &b, true);
	assert_key_equal(&a, &c, false);
}

static void key__file_length_16_to_4096(void **state)
{
	static const struct {
		size_t length;
		int result;
	} cases[] = { { 0, -EINVAL }, { 15, -EINVAL }, { 16, 0 },	  { 17, 0 },
		      { 4095, 0 },    { 4096, 0 },     { 4097, -EINVAL }, { 100000, -EINVAL } };
	static uint8_t bytes[100000];
	struct rc_key key;

	(void)state;
	memset(bytes, 'k', sizeof(bytes));
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		const char *path = write_file("k", bytes, cases[i].length, 0600);

		assert_int_equal(rc_key_load(path, &key), cases[i].result);
		if (cases[i].result)
			assert_non_null(strstr(rc_error_text(), path));
	}
}

static void key__file_that_others_can_use_is_refused(void **state)
{
	static const mode_t modes[] = { 0644, 0640, 0660, 0604, 0602, 0601, 0610, 0620, 0777 };
	struct rc_key key;

	(void)state;
	for (size_t i = 0; i < sizeof(modes) / sizeof(modes[0]); i++) {
		assert_int_equal(rc_key_load(write_file("k", "0123456789abcdef", 16, modes[i]),
					     &key),
				 -EACCES);
		assert_non_null(strstr(rc_error_text(), "chmod 600"));
		assert_non_null(strstr(rc_error_text(), path_of("k")));
	}
}

static void key__file_of_another_user_is_refused(void **state)
{
	struct rc_key key;
	const char *path;

	(void)state;
	if (geteuid() != 0) {
		print_message("skipped: only root can give a file away\n");
		skip();
	}
	path = write_file("k", "0123456789abcdef", 16, 0600);
	assert_int_equal(chown(path, OTHER_UID, OTHER_UID), 0);
	assert_int_equal(rc_key_load(path, &key), -EACCES);
	assert_non_null(strstr(rc_error_text(), "54321"));
}

static void key__missing_file(void **state)
{
	struct rc_key key;

	(void)state;
	assert_int_equal(rc_key_load(path_of("nothing"), &key), -ENOENT);
	assert_non_null(strstr(rc_error_text(), "nothing"));
	assert_int_equal(rc_key_load("", &key), -ENOENT);
}

static void key__symbolic_link_is_refused(void **state)
{
	struct rc_key key;
	char target[128];

	(void)state;
	snprintf(target, sizeof(target), "%s", write_file("k", "0123456789abcdef", 16, 0600));
	assert_int_equal(symlink(target, path_of("link")), 0);
	assert_int_equal(rc_key_load(path_of("link"), &key), -EACCES);
	assert_non_null(strstr(rc_error_text(), "symbolic link"));
}

static void key__not_a_file_is_refused_without_waiting(void **state)
{
	struct rc_key key;

	(void)state;
	assert_int_equal(mkfifo(path_of("fifo"), 0600), 0);
	assert_int_equal(rc_key_load(path_of("fifo"), &key), -EINVAL);
	assert_int_equal(mkdir(path_of("dir"), 0700), 0);
	assert_int_equal(rc_key_load(path_of("dir"), &key), -EINVAL);
	assert_int_equal(rc_key_load("/dev/zero", &key), -EINVAL);
}

static void key__text_of_a_hostile_path_is_printable(void **state)
{
	struct rc_key key;

	(void)state;
	assert_int_equal(rc_key_load("/nowhere/\x1b[31m%n%s\n", &key), -ENOENT);
	for (const char *p = rc_error_text(); *p; p++)
		assert_true(*p >= 0x20 && *p < 0x7f);
}

static void key__failure_leaves_the_key_alone(void **state)
{
	struct rc_key key, before;

	(void)state;
	memset(&key, 0x5a, sizeof(key));
	before = key;
	assert_int_equal(rc_key_load(path_of("nothing"), &key), -ENOENT);
	assert_int_equal(rc_key_load(write_file("k", "short", 5, 0600), &key), -EINVAL);
	assert_memory_equal(&key.bytes, &before.bytes, sizeof(key.bytes));
}

static void key__user_key_is_made_once(void **state)
{
	struct rc_key a, b;
	struct stat st;

	(void)state;
	assert_int_equal(rc_key_load(NULL, &a), 0);
	assert_int_equal(rc_key_load(NULL, &b), 0);
	assert_false(a.is_group);
	assert_key_equal(&a, &b, true);
	assert_int_equal(lstat(path_of("librref.key"), &st), 0);
	assert_true(S_ISREG(st.st_mode));
	assert_int_equal(st.st_mode & 07777, 0600);
	assert_int_equal(st.st_size, 32);
	assert_int_equal(st.st_nlink, 1);
}

static void key__user_key_is_never_a_group_key(void **state)
{
	struct rc_key user, group;

	(void)state;
	assert_int_equal(rc_key_load(NULL, &user), 0);
	assert_int_equal(rc_key_load(path_of("librref.key"), &group), 0);
	assert_key_equal(&user, &group, false);
}

/* Starts many processes when the pipe closes. The key file is missing for all, and each writes its
 * result to the other pipe. */
static void key__user_key_made_by_many_at_once(void **state)
{
	uint8_t first[RC_KEY_BYTES], bytes[RC_KEY_BYTES];
	int go[2], out[2], nr_files = 0;
	char command[128];
	FILE *ls;

	(void)state;
	for (int round = 0; round < 8; round++) {
		unlink(path_of("librref.key"));
		assert_int_equal(pipe(go), 0);
		assert_int_equal(pipe(out), 0);
		for (int i = 0; i < NR_STARTERS; i++) {
			pid_t pid = fork();

			assert_true(pid >= 0);
			if (pid == 0) {
				struct rc_key key;
				char byte;

				close(go[1]);
				(void)!read(go[0], &byte, 1);
				if (rc_key_load(NULL, &key) ||
				    write(out[1], key.bytes, RC_KEY_BYTES) != RC_KEY_BYTES)
					_exit(1);
				_exit(0);
			}
		}
		close(go[0]);
		close(go[1]);
		close(out[1]);
		for (int i = 0; i < NR_STARTERS; i++) {
			int status;

			assert_true(wait(&status) > 0);
			assert_int_equal(status, 0);
		}
		assert_int_equal(read(out[0], first, sizeof(first)), sizeof(first));
		for (int i = 1; i < NR_STARTERS; i++) {
			assert_int_equal(read(out[0], bytes, sizeof(bytes)), sizeof(bytes));
			assert_memory_equal(bytes, first, sizeof(bytes));
		}
		close(out[0]);
	}
	snprintf(command, sizeof(command), "ls -A %s | wc -l", dir);
	ls = popen(command, "r");
	assert_non_null(ls);
	assert_int_equal(fscanf(ls, "%d", &nr_files), 1);
	pclose(ls);
	assert_int_equal(nr_files, 1);
}

static void key__bad_user_key_is_refused(void **state)
{
	struct rc_key key;
	char target[128];

	(void)state;
	write_file("librref.key", "0123456789abcdef0123456789abcdef", 32, 0644);
	assert_int_equal(rc_key_load(NULL, &key), -EACCES);
	write_file("librref.key", "0123456789abcdef0123456789abcde", 31, 0600);
	assert_int_equal(rc_key_load(NULL, &key), -EINVAL);
	write_file("librref.key", "0123456789abcdef0123456789abcdefg", 33, 0600);
	assert_int_equal(rc_key_load(NULL, &key), -EINVAL);
	assert_int_equal(unlink(path_of("librref.key")), 0);
	snprintf(target, sizeof(target), "%s",
		 write_file("k", "0123456789abcdef0123456789abcdef", 32, 0600));
	assert_int_equal(symlink(target, path_of("librref.key")), 0);
	assert_int_equal(rc_key_load(NULL, &key), -EACCES);
	assert_int_equal(unlink(path_of("librref.key")), 0);
	assert_int_equal(mkfifo(path_of("librref.key"), 0600), 0);
	assert_int_equal(rc_key_load(NULL, &key), -EACCES);
}

/* Makes XDG_RUNTIME_DIR useless in several ways: each time the same key is under /tmp. */
static void key__open_or_missing_runtime_dir_is_not_used(void **state)
{
	struct rc_key a, b, c;

	(void)state;
	unsetenv("XDG_RUNTIME_DIR");
	assert_int_equal(rc_key_load(NULL, &a), 0);
	setenv("XDG_RUNTIME_DIR", "/nowhere", 1);
	assert_int_equal(rc_key_load(NULL, &b), 0);
	assert_key_equal(&a, &b, true);
	setenv("XDG_RUNTIME_DIR", dir, 1);
	assert_int_equal(chmod(dir, 0770), 0);
	assert_int_equal(rc_key_load(NULL, &c), 0);
	assert_key_equal(&a, &c, true);
	assert_int_equal(access(path_of("librref.key"), F_OK), -1);
}

static void remove_other_dirs(void)
{
	char command[128];

	snprintf(command, sizeof(command), "rm -rf /tmp/librref-%d /tmp/librref-%d.*", OTHER_UID,
		 OTHER_UID);
	assert_int_equal(system(command), 0);
}

/* Reads the key in a child of OTHER_UID, since that uid cannot come
 * back. Returns false if it has no key. */
static bool key_of_other(struct rc_key *out)
{
	int pair[2], status;
	pid_t pid;

	assert_int_equal(pipe(pair), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		struct rc_key key;

		unsetenv("XDG_RUNTIME_DIR");
		if (setresgid(OTHER_UID, OTHER_UID, OTHER_UID) ||
		    setresuid(OTHER_UID, OTHER_UID, OTHER_UID))
			_exit(2);
		if (rc_key_load(NULL, &key)) {
			fprintf(stderr, "%s\n", rc_error_text());
			_exit(1);
		}
		_exit(write(pair[1], &key, sizeof(key)) == sizeof(key) ? 0 : 3);
	}
	close(pair[1]);
	bool good = read(pair[0], out, sizeof(*out)) == sizeof(*out);

	close(pair[0]);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return good && status == 0;
}

/* Lets another user take our directory's name first, and give it up
 * later. All get the same key all the while. */
static void key__directory_taken_by_another_user(void **state)
{
	struct rc_key first, next;
	char path[64];

	(void)state;
	if (geteuid() != 0) {
		print_message("skipped: only root can become another user\n");
		skip();
	}
	snprintf(path, sizeof(path), "/tmp/librref-%d", OTHER_UID);
	for (int kind = 0; kind < 3; kind++) {
		remove_other_dirs();
		switch (kind) {
		case 0: assert_int_equal(mkdir(path, 0700), 0); break;
		case 1: assert_int_equal(symlink("/root", path), 0); break;
		default: assert_int_equal(mknod(path, S_IFREG | 0666, 0), 0); break;
		}
		/* A directory with such a name does no harm, if another user
		 * owns it or it is open to others. */
		snprintf(path, sizeof(path), "/tmp/librref-%d.0", OTHER_UID);
		assert_int_equal(mkdir(path, 0700), 0);
		snprintf(path, sizeof(path), "/tmp/librref-%d", OTHER_UID);
		assert_true(key_of_other(&first));
		assert_true(key_of_other(&next));
		assert_key_equal(&first, &next, true);
		if (kind)
			assert_int_equal(unlink(path), 0);
		else
			assert_int_equal(rmdir(path), 0);
		assert_true(key_of_other(&next));
		assert_key_equal(&first, &next, true);
		assert_int_equal(access(path, F_OK), -1);
	}
	remove_other_dirs();
}

static void key__no_descriptor_is_leaked(void **state)
{
	struct rc_key key;
	int before = nr_fds();

	key__bad_user_key_is_refused(state);
	assert_int_equal(unlink(path_of("librref.key")), 0);
	assert_int_equal(rc_key_load(NULL, &key), 0);
	assert_int_equal(rc_key_load(NULL, &key), 0);
	key__file_length_16_to_4096(state);
	key__file_that_others_can_use_is_refused(state);
	key__not_a_file_is_refused_without_waiting(state);
	assert_int_equal(nr_fds(), before);
}

static void key__wipe_leaves_nothing(void **state)
{
	struct rc_key key, zero;

	(void)state;
	memset(&zero, 0, sizeof(zero));
	memset(&key, 0x77, sizeof(key));
	rc_key_wipe(&key);
	assert_memory_equal(&key, &zero, sizeof(key));
	rc_key_wipe(NULL);
}

static void mac__depends_on_key_label_and_data(void **state)
{
	struct rc_key a = { .bytes = { 1 } }, b = { .bytes = { 2 } };
	uint8_t m[6][RC_MAC_BYTES], again[RC_MAC_BYTES];

	(void)state;
	rc_mac(&a, "label", "data", 4, m[0]);
	rc_mac(&b, "label", "data", 4, m[1]);
	rc_mac(&a, "labeL", "data", 4, m[2]);
	rc_mac(&a, "label", "datA", 4, m[3]);
	rc_mac(&a, "label", "data", 3, m[4]);
	/* The same bytes in a row, split at another place. */
	rc_mac(&a, "labeld", "ata", 3, m[5]);
	for (int i = 0; i < 6; i++)
		for (int j = 0; j < i; j++)
			assert_false(rc_mac_equal(m[i], m[j], RC_MAC_BYTES));
	rc_mac(&a, "label", "data", 4, again);
	assert_true(rc_mac_equal(m[0], again, RC_MAC_BYTES));
	rc_mac(&a, "label", NULL, 0, again);
}

static void random__differs_each_time(void **state)
{
	uint8_t a[RC_NONCE_BYTES], b[RC_NONCE_BYTES];

	(void)state;
	rc_random(a, sizeof(a));
	rc_random(b, sizeof(b));
	assert_memory_not_equal(a, b, sizeof(a));
	rc_random(a, 0);
}

#define IN_DIR(f) cmocka_unit_test_setup_teardown(f, make_dir, remove_dir)

int main(void)
{
	const struct CMUnitTest tests[] = {
		IN_DIR(key__bad_user_key_is_refused),
		IN_DIR(key__directory_taken_by_another_user),
		IN_DIR(key__failure_leaves_the_key_alone),
		IN_DIR(key__file_length_16_to_4096),
		IN_DIR(key__file_of_another_user_is_refused),
		IN_DIR(key__file_that_others_can_use_is_refused),
		IN_DIR(key__missing_file),
		IN_DIR(key__no_descriptor_is_leaked),
		IN_DIR(key__not_a_file_is_refused_without_waiting),
		IN_DIR(key__open_or_missing_runtime_dir_is_not_used),
		IN_DIR(key__same_file_bytes_same_key),
		IN_DIR(key__symbolic_link_is_refused),
		IN_DIR(key__text_of_a_hostile_path_is_printable),
		IN_DIR(key__user_key_is_made_once),
		IN_DIR(key__user_key_is_never_a_group_key),
		IN_DIR(key__user_key_made_by_many_at_once),
		cmocka_unit_test(key__wipe_leaves_nothing),
		cmocka_unit_test(mac__depends_on_key_label_and_data),
		cmocka_unit_test(random__differs_each_time),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
