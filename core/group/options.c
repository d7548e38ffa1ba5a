/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Options: defaults, and the environment. A variable is understood entirely, or refused with its
 * name and value. A job of a thousand workers must not start with a limit that was read as zero.
 * Empty is not unset.
 */
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/child.h"
#include "base/util.h"
#include "core/base/error.h"
#include "core/base/quote.h"
#include "core/group/group.h"
#include "rref.h"

#define WORLD_MAX 1024
#define CORE_MAX 1023                            /* the CPUs of a plain cpu_set_t */
#define THREADS_MAX 1024
#define WAITING_MAX (1u << 20)
#define OPS_MAX (1u << 24)
#define REGION_MAX (UINT64_C(1) << 31)           /* a region is one registration of at most 2 GiB */
#define TIMEOUT_MS_MAX UINT64_C(31536000000)     /* a year: now + timeout cannot overflow */

enum field_kind { FIELD_INT, FIELD_UNSIGNED, FIELD_SIZE, FIELD_MS };

#define AT(field) offsetof(struct rref_options, field)

/* guarded by nothing: const. alt: torchrun's name for it. */
static const struct number {
	const char *variable, *alt;
	enum field_kind kind;
	size_t offset;
	int min;
	uint64_t max;
} numbers[] = {
	{ "RREF_RANK", "RANK", FIELD_INT, AT(rank), 0, WORLD_MAX - 1 },
	{ "RREF_WORLD_SIZE", "WORLD_SIZE", FIELD_INT, AT(world_size), 1, WORLD_MAX },
	{ "RREF_POLLER_CORE", NULL, FIELD_INT, AT(poller_core), -1, CORE_MAX },
	{ "RREF_THREADS", NULL, FIELD_UNSIGNED, AT(nr_threads), 0, THREADS_MAX },
	{ "RREF_MAX_WAITING", NULL, FIELD_UNSIGNED, AT(max_waiting), 0, WAITING_MAX },
	{ "RREF_MAX_OPS", NULL, FIELD_UNSIGNED, AT(max_ops), 0, OPS_MAX },
	{ "RREF_MAX_VALUE_BYTES", NULL, FIELD_SIZE, AT(max_value_bytes), 0, SIZE_MAX },
	{ "RREF_MAX_LANDING_BYTES", NULL, FIELD_SIZE, AT(max_landing_bytes), 0, SIZE_MAX },
	{ "RREF_LOOK_BYTES", NULL, FIELD_SIZE, AT(look_bytes), 0, SIZE_MAX },
	{ "RREF_REGION_BYTES", NULL, FIELD_SIZE, AT(region_bytes), 0, REGION_MAX },
	{ "RREF_TIMEOUT_MS", NULL, FIELD_MS, AT(timeout), 0, TIMEOUT_MS_MAX },
	{ "RREF_INIT_TIMEOUT_MS", NULL, FIELD_MS, AT(init_timeout), 0, TIMEOUT_MS_MAX },
	{ "RREF_PEER_TIMEOUT_MS", NULL, FIELD_MS, AT(peer_timeout), 0, TIMEOUT_MS_MAX },
	{ "RREF_STALL_TIMEOUT_MS", NULL, FIELD_MS, AT(stall_timeout), 0, TIMEOUT_MS_MAX },
};

void rref_options_init_size(struct rref_options *opt, size_t size)
{
	struct rref_options o = { .size = size,
				  .rank = -1,
				  .device = "auto",
				  .poller_core = -1,
				  .log_level = RREF_LOG_WARNING,
				  .stall_timeout = 60 * NSEC_PER_SEC };

	if (!opt)
		return;
	memset(opt, 0, size);
	memcpy(opt, &o, min_of(size, sizeof(o)));
}

int rc_options_read(const struct rref_options *opt, struct rref_options *out)
{
	size_t size = opt->size;

	if (size < RC_OPTIONS_MIN)
		return rc_fail(
			EINVAL,
			"options: size is %zu, the least is %zu: call rref_options_init first",
			size, RC_OPTIONS_MIN);
	/*
	 * Checks the options of a newer program: fields that this library does not know must be
	 * unset. The page bounds a wild size.
	 */
	if (size > RC_OPTIONS_MAX)
		return rc_fail(EINVAL, "options: size is %zu: call rref_options_init first", size);
	for (size_t i = sizeof(*out); i < size; i++)
		if (((const unsigned char *)opt)[i])
			return rc_fail(
				EINVAL,
				"options: size is %zu, this library (%s) knows %zu, "
				"and something beyond is set",
				size, rref_version(), sizeof(*out));
	rref_options_init(out);
	memcpy(out, opt, min_of(size, sizeof(*out)));
	out->size = sizeof(*out);
	return 0;
}

static int options_refuse(const char *variable, const char *value, const char *why)
{
	char quoted[128];

	return rc_fail(EINVAL, "%s=\"%s\": %s", variable,
		       rc_quote(quoted, sizeof(quoted), value, strlen(value)), why);
}

/* Tells whether v, or -v, is in min..max. */
static bool is_in_range(uint64_t v, bool negative, int min, uint64_t max)
{
	if (negative)
		return v <= (uint64_t) - (int64_t)min;
	return v <= max && (min <= 0 || v >= (uint64_t)min);
}

/* Reads decimal digits and nothing else; a '-' only where negative numbers have a meaning. */
static int options_parse_number(const char *variable, const char *value, int min, uint64_t max,
				bool *negative, uint64_t *out)
{
	const char *p = value;
	uint64_t v = 0;
	char why[96];
	bool over = false;

	*negative = min < 0 && *p == '-';
	p += *negative;
	if (!*p)
		return options_refuse(variable, value, "not a number");
	for (; *p; p++) {
		unsigned digit = (unsigned)(unsigned char)*p - '0';

		if (digit > 9)
			return options_refuse(variable, value, "not a whole decimal number");
		over |= __builtin_mul_overflow(v, (uint64_t)10, &v);
		over |= __builtin_add_overflow(v, (uint64_t)digit, &v);
	}
	if (over || !is_in_range(v, *negative, min, max)) {
		snprintf(why, sizeof(why), "not in %d..%llu", min, (unsigned long long)max);
		return options_refuse(variable, value, why);
	}
	*out = v;
	return 0;
}

static int read_number(const struct number *n, const char *variable, const char *value,
		       struct rref_options *opt)
{
	char *field = (char *)opt + n->offset;
	bool negative;
	uint64_t v = 0;
	int r = options_parse_number(variable, value, n->min, n->max, &negative, &v);

	if (r)
		return r;
	switch (n->kind) {
	case FIELD_INT:
		*(int *)(void *)field = negative ? -(int)v : (int)v;
		break;
	case FIELD_UNSIGNED:
		*(unsigned *)(void *)field = (unsigned)v;
		break;
	case FIELD_SIZE:
		*(size_t *)(void *)field = (size_t)v;
		break;
	case FIELD_MS:
		*(int64_t *)(void *)field = (int64_t)v * NSEC_PER_MSEC;
		break;
	}
	return 0;
}

/*
 * Finds the variable's word in the list. Sets *out to its index, or to -1 if the variable is not
 * set. A refusal lists the words.
 */
static int read_word(const char *variable, const char *const *words, int *out)
{
	const char *value = getenv(variable);
	char why[96];
	size_t used;

	*out = -1;
	if (!value)
		return 0;
	for (int i = 0; words[i]; i++)
		if (strcmp(value, words[i]) == 0) {
			*out = i;
			return 0;
		}
	used = (size_t)snprintf(why, sizeof(why), "not one of");
	for (int i = 0; words[i] && used < sizeof(why); i++)
		used += (size_t)snprintf(why + used, sizeof(why) - used, "%s %s", i ? "," : "",
					 words[i]);
	return options_refuse(variable, value, why);
}

static int read_words(struct rref_options *o)
{
	static const char *const modes[] = { "auto", "poll", "manual", NULL };
	static const char *const levels[] = { "error", "warning", "info", "debug", NULL };
	static const char *const bools[] = { "0", "1", NULL };
	int mode, level, check, r;

	if ((r = read_word("RREF_PROGRESS", modes, &mode)) ||
	    (r = read_word("RREF_LOG", levels, &level)) ||
	    (r = read_word("RREF_LEAK_CHECK", bools, &check)))
		return r;
	if (mode >= 0)
		o->mode = (enum rref_progress_mode)mode;
	if (level >= 0)
		o->log_level = (enum rref_log_level)level;
	if (level >= 0 && !o->log)
		o->log = rc_log_stderr;
	if (check == 0)
		o->flags |= RREF_NO_LEAK_CHECK;
	else if (check == 1)
		o->flags &= ~RREF_NO_LEAK_CHECK;
	return 0;
}

static int device_check(const char *text)
{
	struct rc_device_choice device;

	return rc_device_parse(text, &device);
}

/*
 * guarded by nothing: const. A text is refused by check, or with the words of empty. An empty name
 * of a key file must not mean "no key" to a user who sets the variable.
 */
static const struct text {
	const char *variable;
	size_t offset;
	int (*check)(const char *text);
	const char *empty;
} texts[] = {
	{ "RREF_NAME", AT(name), rc_name_check, NULL },
	{ "RREF_DEVICE", AT(device), device_check, NULL },
	{ "RREF_KEY_FILE", AT(key_file), NULL, "empty; unset it to go without a key" },
	{ "RREF_RENDEZVOUS", AT(rendezvous), NULL, "empty; it must be host:port" },
	{ "RREF_TRACE", AT(trace), NULL, "empty; unset it to write no trace" },
};

static int read_text(const struct text *t, const char *value, struct rref_options *o)
{
	char why[RREF_TEXT_SIZE];

	if (t->empty && !*value)
		return options_refuse(t->variable, value, t->empty);
	if (t->check && t->check(value)) {
		snprintf(why, sizeof(why), "%s", rc_error_text());
		return rc_fail(EINVAL, "%s: %s", t->variable, why);
	}
	*(const char **)(void *)((char *)o + t->offset) = value;
	return 0;
}

/*
 * Keeps the few texts that a process ever forms, each once. The option is one text, formed of two
 * variables, MASTER_ADDR and MASTER_PORT. Options are plain data without an end of life, so nothing
 * could free it.
 */
static const char *keep_text(const char *text)
{
	static struct kept {
		struct kept *next; /* guarded by rb_hold */
		char text[];
	} *head;
	struct kept *k;
	size_t size = strlen(text) + 1;

	rb_hold(); /* a child finds the list whole */
	for (k = head; k; k = k->next)
		if (strcmp(k->text, text) == 0)
			break;
	if (!k && (k = malloc(sizeof(*k) + size))) {
		memcpy(k->text, text, size);
		k->next = head;
		head = k;
	}
	rb_release();
	return k ? k->text : NULL;
}

/*
 * Passes over MASTER_ADDR or MASTER_PORT alone, which names no place. It is refused in a group that
 * has no other address.
 */
static int half_a_master(const struct rref_options *opt, const char *addr, const char *port)
{
	if ((!addr && !port) || opt->rendezvous || opt->world_size == 1)
		return 0;
	return rc_fail(EINVAL, "%s is set but %s is not; set both, or RREF_RENDEZVOUS=host:port",
		       addr ? "MASTER_ADDR" : "MASTER_PORT", addr ? "MASTER_PORT" : "MASTER_ADDR");
}

/*
 * Returns the group's port. torchrun's own agent may listen at MASTER_PORT, for the whole life of
 * the job. Then the next port is ours.
 */
static unsigned master_port(unsigned port)
{
	const char *agent = getenv("TORCHELASTIC_USE_AGENT_STORE");

	if (!agent || strcmp(agent, "True") != 0)
		return port;
	return port == 65535 ? port - 1 : port + 1;
}

static int read_master(struct rref_options *opt)
{
	const char *addr = getenv("MASTER_ADDR"), *port = getenv("MASTER_PORT");
	char text[320];
	bool negative;
	uint64_t number;
	int r;

	if (!addr || !port)
		return half_a_master(opt, addr, port);
	if (!*addr || strlen(addr) > 255)
		return options_refuse("MASTER_ADDR", addr, "not a host");
	r = options_parse_number("MASTER_PORT", port, 1, 65535, &negative, &number);
	if (r)
		return r;
	snprintf(text, sizeof(text), strchr(addr, ':') && addr[0] != '[' ? "[%s]:%u" : "%s:%u",
		 addr, master_port((unsigned)number));
	opt->rendezvous = keep_text(text);
	return opt->rendezvous ? 0
			       : rc_fail(ENOMEM, "no memory for the rendezvous address (%zu bytes)",
					 strlen(text) + 1);
}

/*
 * Variables by which a launcher numbers its processes. The order is the order of trust: a job of
 * Slurm may run mpirun inside. size NULL: this launcher does not tell the size.
 */
static const struct launcher {
	const char *name, *command, *rank, *size;
} launchers[] = {
	{ "Open MPI", "mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE" },
	{ "MVAPICH", "mpirun", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE" },
	{ "MPICH", "mpiexec", "PMI_RANK", "PMI_SIZE" },
	{ "Flux", "flux run", "FLUX_TASK_RANK", "FLUX_JOB_SIZE" },
	{ "JSM", "jsrun", "JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE" },
	{ "Slurm", "srun", "SLURM_PROCID", "SLURM_NTASKS" },
	{ "PMIx", "the launcher", "PMIX_RANK", NULL },
};

/* Appends to text (size bytes) what to type if a known launcher has started this process. */
static void add_launcher(char *text, size_t size)
{
	char rank[32], quoted[48];
	size_t used = strlen(text);

	for (size_t i = 0; i < array_size(launchers) && used < size; i++) {
		const struct launcher *l = &launchers[i];
		const char *value = getenv(l->rank);

		if (!value)
			continue;
		snprintf(rank, sizeof(rank), "%s", value);
		rc_quote(quoted, sizeof(quoted), rank, strlen(rank));
		snprintf(
			text + used, size - used,
			". %s started this process (%s=%s): "
			"%s sh -c 'RREF_RANK=$%s RREF_WORLD_SIZE=%s%s exec \"$0\" "
			"\"$@\"' ./program",
			l->name, l->rank, quoted, l->command, l->rank, l->size ? "$" : "",
			l->size ? l->size : "N");
		return;
	}
}

/*
 * Refuses a group without a size. Otherwise each process that a launcher starts would silently be a
 * group of one.
 */
static int options_check_place(const struct rref_options *o)
{
	char text[RREF_TEXT_SIZE], rank[64] = "";

	if (o->world_size > 0 && (o->rank >= 0 || o->world_size == 1))
		return 0;
	if (o->rank >= 0)
		snprintf(rank, sizeof(rank), "the rank is %d, but ", o->rank);
	if (o->world_size > 0)
		snprintf(
			text, sizeof(text),
			"no rank: the group has %d workers, "
			"and neither RREF_RANK nor RANK (torchrun) is set",
			o->world_size);
	else
		snprintf(
			text, sizeof(text),
			"no group: %sneither RREF_WORLD_SIZE nor WORLD_SIZE (torchrun) is set; "
			"each worker needs RREF_RANK, RREF_WORLD_SIZE, RREF_RENDEZVOUS; "
			"RREF_WORLD_SIZE=1 is a group of one",
			rank);
	add_launcher(text, sizeof(text));
	return rc_fail(EINVAL, "%s", text);
}

static int read_numbers(struct rref_options *o)
{
	for (size_t i = 0; i < array_size(numbers); i++) {
		const char *variable = numbers[i].variable, *value = getenv(variable);
		int r;

		if (!value && numbers[i].alt) {
			variable = numbers[i].alt;
			value = getenv(variable);
		}
		if (value && (r = read_number(&numbers[i], variable, value, o)))
			return r;
	}
	return 0;
}

static int read_texts(struct rref_options *o)
{
	for (size_t i = 0; i < array_size(texts); i++) {
		const char *value = getenv(texts[i].variable);
		int r = value ? read_text(&texts[i], value, o) : 0;

		if (r)
			return r;
	}
	return getenv("RREF_RENDEZVOUS") ? 0 : read_master(o);
}

int rref_options_from_env(struct rref_options *opt)
{
	struct rref_options o;
	int r;

	if (!opt)
		return rc_fail(EINVAL, "options: NULL");
	if ((r = rc_options_read(opt, &o)) || (r = read_numbers(&o)) || (r = read_texts(&o)) ||
	    (r = read_words(&o)) || (r = options_check_place(&o)))
		return r;
	o.size = opt->size;
	rc_error_clear();
	/* Copies no further than the program's own struct. */
	memcpy(opt, &o, min_of(o.size, sizeof(o)));
	return 0;
}
