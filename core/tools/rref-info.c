/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rref-info: the devices of this machine for librref, and the choice of `auto`. Tells why it leaves
 * out the others, and the remedy. Linked statically, since it asks the device layer itself.
 */
#include <errno.h>
#include <getopt.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/limit.h"
#include "base/util.h"
#include "core/base/error.h"
#include "core/group/group.h"
#include "core/wire/wire.h"
#include "verbs/rv.h"

#define DEVICES_MAX 64
#define LABEL 22
#define COLUMNS 100
/* bytes of the first region, for values and for landing memory alike */
#define FIRST_REGION (UINT64_C(16) << 20)
#define SHMEM_THP "/sys/kernel/mm/transparent_hugepage/shmem_enabled"

struct opened {
	bool ok;
	struct rv_caps caps;
	char why_not[512];
};

static void usage(FILE *to)
{
	fputs("usage: rref-info [--device DEVICE]\n"
	      "\n"
	      "Says what this machine has for librref: version, RDMA devices, shared memory, what "
	      "the device \"auto\"\n"
	      "would choose and why not the others, and the limits that matter. It changes "
	      "nothing.\n"
	      "\n"
	      "  -d, --device DEVICE  only: would RREF_DEVICE=DEVICE open here? (auto, shm, ibv "
	      "or\n"
	      "                       ibv:<device>[:port[:gid-index]]) Exit status 0 if so, 1 if "
	      "not.\n"
	      "  -V, --version        the version\n"
	      "  -h, --help           this\n"
	      "\n"
	      "Exit status 2: usage.\n",
	      to);
}

/* Prints a labelled line. Longer texts continue on the next lines. */
static void row(const char *label, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void row(const char *label, const char *fmt, ...)
{
	char text[1024], *p = text;
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	while (*p || p == text) {
		size_t n = strlen(p), cut = n;

		if (n > COLUMNS - LABEL - 3)
			for (cut = COLUMNS - LABEL - 3; cut && p[cut] != ' ';)
				cut--;
		cut = cut ? cut : n; /* one endless word */
		printf("  %-*s %.*s\n", LABEL, label, (int)cut, p);
		label = "";
		p += cut;
		if (!*p)
			break;
		p += strspn(p, " ");
	}
}

/*
 * Returns a text like "16 MiB", in the largest unit that loses no detail. Eight static buffers are
 * used in turn.
 */
static const char *size_text(uint64_t bytes)
{
	static const char *const units[] = { "bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
	static char buf[8][24];
	static unsigned turn;
	char *s = buf[turn++ % 8];
	double v = (double)bytes;
	unsigned u = 0;

	for (; v >= 1024 && u + 1 < array_size(units); u++)
		v /= 1024;
	snprintf(s, sizeof(buf[0]), v < 10 && u && v != (double)(uint64_t)v ? "%.1f %s" : "%.0f %s",
		 v, units[u]);
	return s;
}

static void try_open(const struct rv_ops *ops, const struct rc_device_choice *c, struct opened *out)
{
	struct rv_options o = { .device = c->device[0] ? c->device : NULL,
				.port = c->port,
				.gid_index = c->gid_index };
	struct rv_dev *dev;
	int err = ops->open(&o, &dev);

	memset(out, 0, sizeof(*out));
	if (err) {
		snprintf(out->why_not, sizeof(out->why_not), "%s",
			 *rv_error_text() ? rv_error_text() : rref_strerror(err));
		return;
	}
	ops->caps(dev, &out->caps);
	out->ok = true;
	ops->close(dev);
}

static void show_opened(const char *name, const struct opened *o)
{
	if (!o->ok) {
		row(name, "does not open: %s", o->why_not);
		return;
	}
	row(name, "opens: %s", o->caps.device);
	row("", "one READ brings up to %s; larger values are read in pieces",
	    size_text(o->caps.max_msg));
	row("", "small values that lie side by side: up to %u of a batch by one READ",
	    o->caps.reads_inline ? 1 : o->caps.max_sge);
	if (!o->caps.reads_inline)
		row("",
		    "per connection %u READs under way, %u of them in the hardware; inline up to "
		    "%u bytes",
		    o->caps.max_reads, o->caps.max_rd_atomic, o->caps.max_inline);
}

static int explain_device(const char *text)
{
	struct rc_device_choice c;
	struct opened o;
	int nr_ok = 0;

	if (rc_device_parse(text, &c)) {
		printf("RREF_DEVICE=%s would not open: %s\n", text, rc_error_text());
		return 1;
	}
	printf("RREF_DEVICE=%s\n", text);
	if (c.use_shm) {
		try_open(&rv_shm_ops, &c, &o);
		show_opened("shm", &o);
		nr_ok += o.ok;
	}
	if (c.use_ibv) {
		try_open(&rv_ibv_ops, &c, &o);
		show_opened("ibv", &o);
		nr_ok += o.ok;
	}
	if (!nr_ok)
		printf("It would not open.\n");
	else if (c.use_shm && c.use_ibv)
		printf("It would open: shm for peers on this machine, ibv for peers on others%s.\n",
		       nr_ok == 2     ? ""
			       : o.ok ? ", and ibv here too, since shm does not open"
				      : ", of which none can be reached now");
	else
		printf("It would open, for peers on %s.\n",
		       c.use_shm ? "this machine only" : "this machine and on others");
	return nr_ok ? 0 : 1;
}

static void show_port(const struct rv_device_info *d)
{
	char name[80];

	snprintf(name, sizeof(name), "%s port %d", d->name, d->port);
	if (d->usable)
		row(name, "usable");
	else
		row(name, "not usable: %s", d->why_not[0] ? d->why_not : "no reason is known");
	if (d->state[0])
		row("  link", "%s, %s%s%s, active MTU %u", d->state, d->link,
		    d->netdev[0] ? " on " : "", d->netdev, d->active_mtu);
	if (d->gid_index >= 0)
		row("  GID chosen", "index %d: %s (%s%s)", d->gid_index, d->gid,
		    d->ip[0] ? "IP " : "no IP address", d->ip);
	if (!d->max_qp)
		return;
	row("  one message", "up to %s, inline up to %u bytes", size_text(d->max_msg),
	    d->max_inline);
	row("  limits",
	    "%u queue pairs, %u shared receive queues, %u completions per queue, %u regions of up "
	    "to %s, %u pieces per "
	    "request, %u READs in the hardware",
	    d->max_qp, d->max_srq, d->max_cq, d->max_mr, size_text(d->max_mr_size), d->max_sge,
	    d->max_rd_atomic);
	row("  capabilities", "atomics: %s; memory windows: %s; on-demand paging: %s",
	    d->atomics ? "yes" : "no", d->memory_windows ? "yes" : "no",
	    d->on_demand_paging ? "yes" : "no");
}

/* Returns a netdev for SoftRoCE: up, with an address, no loopback. */
static const char *some_netdev(void)
{
	static char name[IF_NAMESIZE] = "<dev>";
	struct ifaddrs *list = NULL;

	if (getifaddrs(&list))
		return name;
	for (struct ifaddrs *i = list; i; i = i->ifa_next)
		if (i->ifa_addr && i->ifa_addr->sa_family == AF_INET && (i->ifa_flags & IFF_UP) &&
		    !(i->ifa_flags & IFF_LOOPBACK)) {
			snprintf(name, sizeof(name), "%s", i->ifa_name);
			break;
		}
	freeifaddrs(list);
	return name;
}

/* Returns the number of devices' ports found. */
static int show_devices(void)
{
	struct rv_device_info *d = calloc(DEVICES_MAX, sizeof(*d));
	int found = 0, err = d ? rv_ibv_devices(d, DEVICES_MAX, &found) : -ENOMEM;

	puts("RDMA devices");
	if (err)
		row("unknown", "%s", d ? rv_error_text() : "no memory");
	else if (!found)
		row("none", "%s", rv_error_text());
	for (int i = 0; i < found; i++)
		show_port(&d[i]);
	free(d);
	return found;
}

static void show_choice(const struct opened *shm, const struct opened *ibv, int nr_ports)
{
	const char *env = getenv("RREF_DEVICE"),
		   *no_ibv = nr_ports ? ibv->why_not : "no RDMA device, see above";

	puts("\nWhat \"auto\" chooses");
	if (shm->ok) {
		row("peers on this machine", "shm");
		row("  why not ibv", "%s",
		    ibv->ok ? "shm is faster; RREF_DEVICE=ibv takes ibv all the same" : no_ibv);
	} else {
		row("peers on this machine", "%s%s", ibv->ok ? "ibv on " : "none: rref_init fails",
		    ibv->ok ? ibv->caps.device : "");
		row("  why not shm", "%s", shm->why_not);
	}
	if (ibv->ok) {
		row("peers on others", "ibv on %s", ibv->caps.device);
	} else {
		row("peers on others", "none: a group of several machines is refused");
		row("  why not ibv", "%s", no_ibv);
	}
	row("  why not shm", "it reaches processes of the same machine only");
	if (!ibv->ok && !nr_ports)
		row("  to have ibv", "modprobe rdma_rxe && rdma link add rxe0 type rxe netdev %s",
		    some_netdev());
	if (env && *env)
		printf("\nRREF_DEVICE=%s is set and counts instead: see rref-info --device %s\n",
		       env, env);
}

/* Returns whether this process has CAP_IPC_LOCK, which lifts the limit. */
static bool may_lock_all(void)
{
	const uint64_t ipc_lock = UINT64_C(1) << 14;
	unsigned long long caps = 0;
	char line[128];
	FILE *f = fopen("/proc/self/status", "re");

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "CapEff: %llx", &caps) == 1)
			break;
	if (f)
		fclose(f);
	return caps & ipc_lock;
}

static void show_memlock(void)
{
	struct rlimit l;

	if (getrlimit(RLIMIT_MEMLOCK, &l)) {
		row("locked memory", "unknown: %s", strerror(errno));
		return;
	}
	if (l.rlim_cur == RLIM_INFINITY) {
		row("locked memory", "unlimited");
		return;
	}
	row("locked memory", "limit %s (ulimit -l), hard limit %s", size_text(l.rlim_cur),
	    l.rlim_max == RLIM_INFINITY ? "none" : size_text(l.rlim_max));
	if (may_lock_all())
		row("",
		    "lifted for this process by CAP_IPC_LOCK (in a user namespace it may not be)");
	else if (l.rlim_cur < 2 * FIRST_REGION)
		row("",
		    "too little for ibv: all registered memory counts, and a context begins with "
		    "%s",
		    size_text(2 * FIRST_REGION));
	else
		row("",
		    "ibv can register that much in all, values and what is read here together; shm "
		    "is not concerned");
	if (!may_lock_all())
		row("",
		    "more: ulimit -l unlimited, /etc/security/limits.d, or LimitMEMLOCK=infinity "
		    "in a systemd unit");
}

/* Shows the word in brackets of "always within_size [advise] never". */
static void show_thp(void)
{
	char line[128] = "", *word, *end;
	FILE *f = fopen(SHMEM_THP, "re");

	if (f && !fgets(line, sizeof(line), f))
		line[0] = 0;
	if (f)
		fclose(f);
	word = strchr(line, '[');
	end = word ? strchr(word, ']') : NULL;
	if (!end) {
		row("huge pages (shmem)", "not known here: " SHMEM_THP " cannot be read");
		return;
	}
	*end = 0;
	word++;
	if (strcmp(word, "never") == 0 || strcmp(word, "deny") == 0) {
		row("huge pages (shmem)", "%s: values and landing memory are in small pages", word);
		row("  for 2 MiB pages", "echo advise > " SHMEM_THP);
	} else {
		row("huge pages (shmem)", "%s: regions ask for 2 MiB pages, and may get them",
		    word);
	}
}

static int show_all(void)
{
	const struct rc_device_choice any = { .port = 0, .gid_index = -1 };
	struct opened shm, ibv;
	int nr_ports;

	printf("librref %s, wire protocol %u\n\n", rref_version(), RW_PROTOCOL_VERSION);
	nr_ports = show_devices();
	try_open(&rv_shm_ops, &any, &shm);
	try_open(&rv_ibv_ops, &any, &ibv);
	puts("\nShared memory");
	show_opened("shm", &shm);
	show_choice(&shm, &ibv, nr_ports);
	puts("\nMemory");
	show_memlock();
	show_thp();
	row("values, landing",
	    "up to %s each by default: half of what this machine, or this container, has",
	    size_text(limit_memory() / 2));
	return 0;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "device", required_argument, NULL, 'd' }, { "version", no_argument, NULL, 'V' },
		{ "help", no_argument, NULL, 'h' }, { NULL, 0, NULL, 0 },
	};
	const char *device = NULL;
	int o;

	while ((o = getopt_long(argc, argv, "d:Vh", options, NULL)) != -1) {
		switch (o) {
		case 'd':
			device = optarg;
			break;
		case 'V':
			printf("rref-info (librref) %s\n", rref_version());
			return 0;
		case 'h':
			usage(stdout);
			return 0;
		default:
			usage(stderr);
			return 2;
		}
	}
	if (optind < argc) {
		fprintf(stderr, "rref-info: unexpected argument: %s\n", argv[optind]);
		usage(stderr);
		return 2;
	}
	return device ? explain_device(device) : show_all();
}
