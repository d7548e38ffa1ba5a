/* SPDX-License-Identifier: Apache-2.0 */
/* The options, and the choice of the file. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <sodium.h>

#include "demo.h"
#include "show.h"

#define SLOWEST UINT64_C(4000000) /* bytes per second of the slowest allowed read */

static void usage(FILE *to)
{
	fprintf(to,
		"usage: rref-demo [--file FILE] [--device DEVICE] [--users N]\n"
		"\n"
		"One owner process publishes a file as references in registered memory; N user "
		"processes hand the\n"
		"references from one to the next and read everything, one-sidedly, also while the "
		"owner is stopped.\n"
		"\n"
		"  -f, --file FILE      what to publish, 1 byte to 1 GiB (default: $FILE, else the "
		"C compiler's cc1)\n"
		"  -d, --device DEVICE  auto, shm, ibv or ibv:<device>[:port[:gid-index]] "
		"(default: $RREF_DEVICE, else auto)\n"
		"  -u, --users N        1 to %d (default 3)\n"
		"  -h, --help           this\n"
		"  -V, --version        the version\n"
		"\n"
		"The exit status is the verdict: 0 = every check passed, 1 = one failed, 2 = "
		"usage. NO_COLOR is understood.\n",
		DEMO_USERS_MAX);
}

_Noreturn static void refuse(const char *what, const char *why)
{
	fprintf(stderr, "rref-demo: %s: %s\n", what, why);
	exit(1);
}

/* Returns the path of the compiler proper: tens of megabytes that
 * every machine with a C compiler has. */
static const char *cc1(void)
{
	static char path[4096];
	const char *hint = "name a file with --file";
	FILE *p = popen("cc -print-prog-name=cc1 2>/dev/null", "re");
	size_t n = p ? fread(path, 1, sizeof(path) - 1, p) : 0;
	int status = p ? pclose(p) : -1;

	path[n] = 0;
	path[strcspn(path, "\n")] = 0;
	if (status || !path[0])
		refuse("cannot ask the C compiler (cc) for its cc1", hint);
	if (path[0] != '/') /* cc prints the bare name when it has no cc1 */
		refuse("the C compiler (cc) has no cc1", hint);
	return path;
}

static uint64_t available_memory(void)
{
	char line[128];
	unsigned long long kib, found = UINT64_MAX / 1024;
	FILE *f = fopen("/proc/meminfo", "re");

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1)
			found = kib;
	if (f)
		fclose(f);
	return found * 1024;
}

/* Opens and measures the file; refuses a file that cannot be shown. */
static void open_file(struct demo_job *job)
{
	struct stat st;
	uint64_t need;

	job->file = open(job->path, O_RDONLY | O_CLOEXEC);
	if (job->file < 0 || fstat(job->file, &st))
		refuse(job->path, strerror(errno));
	if (!S_ISREG(st.st_mode))
		refuse(job->path, "not a regular file");
	if (st.st_size == 0)
		refuse(job->path, "the file is empty: there is nothing to publish");
	job->file_bytes = (uint64_t)st.st_size;
	if (job->file_bytes > DEMO_FILE_MAX) {
		fprintf(stderr, "rref-demo: %s: too large: %s, and the demo takes up to 1 GiB\n",
			job->path, show_bytes(job->file_bytes));
		exit(1);
	}
	/* The owner holds it twice (chunks, whole), and each user
	 * once in the whole, with some extra. */
	need = (2 + (uint64_t)job->users) * job->file_bytes +
		(1 + (uint64_t)job->users) * 64 * DEMO_CHUNK_BYTES;
	if (need > available_memory()) {
		fprintf(stderr,
			"rref-demo: %s: too large: %d users of %s need about %s of memory, %s are "
			"available\n",
			job->path, job->users, show_bytes(job->file_bytes), show_bytes(need),
			show_bytes(available_memory()));
		exit(1);
	}
	job->patience = 30 * DEMO_SEC + (int64_t)(job->file_bytes * (uint64_t)DEMO_SEC / SLOWEST);
}

/* Hashes the file itself, before the library touches it. All
 * reads are compared with this digest. */
static void hash_file(struct demo_job *job)
{
	crypto_hash_sha256_state sha;
	unsigned char *buf = malloc(DEMO_CHUNK_BYTES);
	uint64_t done = 0;

	if (!buf)
		refuse(job->path, strerror(ENOMEM));
	show_step("hash");
	crypto_hash_sha256_init(&sha);
	while (done < job->file_bytes) {
		ssize_t n = pread(job->file, buf, DEMO_CHUNK_BYTES, (off_t)done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			refuse(job->path,
			       n ? strerror(errno) : "it became shorter while it was read");
		if ((uint64_t)n > job->file_bytes - done)
			refuse(job->path, "it grew while it was read");
		crypto_hash_sha256_update(&sha, buf, (unsigned long long)n);
		done += (uint64_t)n;
		show_progress("the file", (double)done / (double)job->file_bytes);
	}
	crypto_hash_sha256_final(&sha, job->sha);
	free(buf);
	show_done("SHA-256 of the file computed, to compare with");
}

static int parse_users(const char *text)
{
	char *end;
	long n;

	errno = 0;
	n = strtol(text, &end, 10);
	if (errno || end == text || *end || n < 1 || n > DEMO_USERS_MAX) {
		fprintf(stderr, "rref-demo: --users %s: 1 to %d\n", text, DEMO_USERS_MAX);
		exit(2);
	}
	return (int)n;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "file", required_argument, NULL, 'f' },
		{ "device", required_argument, NULL, 'd' },
		{ "users", required_argument, NULL, 'u' }, { "help", no_argument, NULL, 'h' },
		{ "version", no_argument, NULL, 'V' },
		{ NULL, 0, NULL, 0 },
	};
	const char *env_file = getenv("FILE"), *env_device = getenv("RREF_DEVICE");
	struct demo_job job = { .path = env_file && *env_file ? env_file : NULL,
				.device = env_device && *env_device ? env_device : "auto",
				.users = 3 };
	int o;

	while ((o = getopt_long(argc, argv, "f:d:u:hV", options, NULL)) != -1) {
		switch (o) {
		case 'f':
			job.path = optarg;
			break;
		case 'd':
			job.device = optarg;
			break;
		case 'u':
			job.users = parse_users(optarg);
			break;
		case 'h':
			usage(stdout);
			return 0;
		case 'V':
			printf("rref-demo (librref) %s\n", rref_version());
			return 0;
		default:
			usage(stderr);
			return 2;
		}
	}
	if (optind < argc) {
		fprintf(stderr, "rref-demo: unexpected argument: %s\n", argv[optind]);
		usage(stderr);
		return 2;
	}
	show_init();
	if (sodium_init() < 0)
		refuse("libsodium", "cannot be initialised");
	if (!job.path)
		job.path = cc1();
	open_file(&job);
	printf("librref %s demo: 1 owner, %d user%s, 1 file\n\n", rref_version(), job.users,
	       job.users > 1 ? "s" : "");
	hash_file(&job);
	return demo_launch(&job);
}
