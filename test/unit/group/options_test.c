/* SPDX-License-Identifier: Apache-2.0 */
/* Options: their defaults, each variable, each mistake in one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rref.h"

#define MS INT64_C(1000000)

static const char *const variables[] = {
	"RREF_NAME", "RREF_RANK", "RANK", "RREF_WORLD_SIZE", "WORLD_SIZE", "RREF_RENDEZVOUS",
	"MASTER_ADDR", "MASTER_PORT",
	"RREF_DEVICE", "RREF_KEY_FILE", "RREF_PROGRESS", "RREF_POLLER_CORE", "RREF_THREADS",
	"RREF_MAX_OPS",
	"RREF_MAX_VALUE_BYTES", "RREF_MAX_LANDING_BYTES", "RREF_REGION_BYTES", "RREF_TIMEOUT_MS",
	"RREF_INIT_TIMEOUT_MS",
	"RREF_PEER_TIMEOUT_MS", "RREF_LOG", "RREF_LEAK_CHECK", "TORCHELASTIC_USE_AGENT_STORE",
	"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK",
	"MV2_COMM_WORLD_SIZE", "PMI_RANK", "PMI_SIZE",
	"PMIX_RANK", "FLUX_TASK_RANK", "FLUX_JOB_SIZE", "JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE",
	"SLURM_PROCID", "SLURM_NTASKS",
};

static int clear_environment(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(variables) / sizeof(variables[0]); i++)
		unsetenv(variables[i]);
	return 0;
}

/* Sets the defaults, and a group of one, so that a test may set one variable alone. */
static void alone(struct rref_options *opt)
{
	rref_options_init(opt);
	opt->rank = 0;
	opt->world_size = 1;
}

/* Sets variables from pairs up to NULL, reads them. */
static int from_env(struct rref_options *opt, ...)
{
	const char *name;
	va_list ap;

	clear_environment(NULL);
	va_start(ap, opt);
	while ((name = va_arg(ap, const char *)))
		setenv(name, va_arg(ap, const char *), 1);
	va_end(ap);
	alone(opt);
	return rref_options_from_env(opt);
}

static void options__defaults(void **state)
{
	struct rref_options opt, before;

	(void)state;
	memset(&opt, 0xff, sizeof(opt));
	rref_options_init(&opt);
	assert_int_equal(opt.size, sizeof(opt));
	assert_int_equal(opt.rank, -1);
	assert_int_equal(opt.world_size, 0);
	assert_null(opt.name);
	assert_null(opt.rendezvous);
	assert_null(opt.key_file);
	assert_string_equal(opt.device, "auto");
	assert_int_equal(opt.poller_core, -1);
	assert_int_equal(opt.mode, RREF_PROGRESS_AUTO);
	assert_int_equal(opt.log_level, RREF_LOG_WARNING);
	assert_int_equal(opt.nr_threads, 0);
	assert_int_equal(opt.timeout, 0);
	assert_int_equal(opt.stall_timeout, 60000 * MS);
	assert_int_equal(opt.flags, 0);
	assert_null(opt.functions);
	assert_null(opt.log);
	rref_options_init(NULL);

	alone(&opt);
	before = opt;
	assert_int_equal(rref_options_from_env(&opt), 0);
	assert_memory_equal(&opt, &before, sizeof(opt));
}

static void options__each_variable(void **state)
{
	struct rref_options opt;

	(void)state;
	assert_int_equal(from_env(&opt, "RREF_NAME", "node:1", "RREF_RANK", "3", "RREF_WORLD_SIZE",
				  "4", "RREF_RENDEZVOUS", "h:1", "RREF_DEVICE", "ibv:rxe0:1",
				  "RREF_KEY_FILE", "/k", "RREF_PROGRESS", "manual",
				  "RREF_POLLER_CORE", "5", "RREF_THREADS", "6", "RREF_MAX_OPS", "7",
				  "RREF_MAX_VALUE_BYTES", "8", "RREF_MAX_LANDING_BYTES", "9",
				  "RREF_REGION_BYTES", "10", "RREF_TIMEOUT_MS", "11",
				  "RREF_INIT_TIMEOUT_MS", "12", "RREF_PEER_TIMEOUT_MS", "13",
				  "RREF_STALL_TIMEOUT_MS", "15", "RREF_LOG", "debug",
				  "RREF_LEAK_CHECK", "0", "RREF_MAX_WAITING", "14", NULL),
			 0);
	assert_string_equal(opt.name, "node:1");
	assert_ptr_equal(opt.name, getenv("RREF_NAME"));
	assert_int_equal(opt.rank, 3);
	assert_int_equal(opt.world_size, 4);
	assert_string_equal(opt.rendezvous, "h:1");
	assert_string_equal(opt.device, "ibv:rxe0:1");
	assert_string_equal(opt.key_file, "/k");
	assert_int_equal(opt.mode, RREF_PROGRESS_MANUAL);
	assert_int_equal(opt.poller_core, 5);
	assert_int_equal(opt.nr_threads, 6);
	assert_int_equal(opt.max_ops, 7);
	assert_int_equal(opt.max_waiting, 14);
	assert_int_equal(opt.max_value_bytes, 8);
	assert_int_equal(opt.max_landing_bytes, 9);
	assert_int_equal(opt.region_bytes, 10);
	assert_int_equal(opt.timeout, 11 * MS);
	assert_int_equal(opt.init_timeout, 12 * MS);
	assert_int_equal(opt.peer_timeout, 13 * MS);
	assert_int_equal(opt.stall_timeout, 15 * MS);
	assert_int_equal(opt.log_level, RREF_LOG_DEBUG);
	assert_int_equal(opt.flags, RREF_NO_LEAK_CHECK);
}

static void options__words(void **state)
{
	static const char *const modes[] = { "auto", "poll", "manual" };
	static const char *const levels[] = { "error", "warning", "info", "debug" };
	struct rref_options opt;

	(void)state;
	for (int i = 0; i < 3; i++) {
		assert_int_equal(from_env(&opt, "RREF_PROGRESS", modes[i], NULL), 0);
		assert_int_equal(opt.mode, i);
	}
	for (int i = 0; i < 4; i++) {
		assert_int_equal(from_env(&opt, "RREF_LOG", levels[i], NULL), 0);
		assert_int_equal(opt.log_level, i);
	}
	assert_int_equal(from_env(&opt, "RREF_LEAK_CHECK", "1", NULL), 0);
	assert_int_equal(opt.flags, 0);
	opt.flags = RREF_NO_LEAK_CHECK;
	assert_int_equal(rref_options_from_env(&opt), 0);
	assert_int_equal(opt.flags, 0);
}

static void options__bounds_are_included(void **state)
{
	static const struct {
		const char *variable, *low, *high, *below, *above;
	} cases[] = {
		{ "RREF_RANK", "0", "1023", "-1", "1024" },
		{ "RANK", "0", "1023", "-1", "1024" },
		{ "RREF_WORLD_SIZE", "1", "1024", "0", "1025" },
		{ "WORLD_SIZE", "1", "1024", "0", "1025" },
		{ "RREF_POLLER_CORE", "-1", "1023", "-2", "1024" },
		{ "RREF_THREADS", "0", "1024", "-1", "1025" },
		{ "RREF_MAX_OPS", "0", "16777216", "-1", "16777217" },
		{ "RREF_MAX_VALUE_BYTES", "0", "18446744073709551615", "-1",
		  "18446744073709551616" },
		{ "RREF_MAX_LANDING_BYTES", "0", "18446744073709551615", "-1",
		  "18446744073709551616" },
		{ "RREF_REGION_BYTES", "0", "2147483648", "-1", "2147483649" },
		{ "RREF_TIMEOUT_MS", "0", "31536000000", "-1", "31536000001" },
		{ "RREF_INIT_TIMEOUT_MS", "0", "31536000000", "-1", "31536000001" },
		{ "RREF_PEER_TIMEOUT_MS", "0", "31536000000", "-1", "31536000001" },
	};
	struct rref_options opt;

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		assert_int_equal(from_env(&opt, cases[i].variable, cases[i].low, NULL), 0);
		assert_int_equal(from_env(&opt, cases[i].variable, cases[i].high, NULL), 0);
		assert_int_equal(from_env(&opt, cases[i].variable, cases[i].below, NULL), -EINVAL);
		assert_non_null(strstr(rref_last_error(), cases[i].variable));
		assert_int_equal(from_env(&opt, cases[i].variable, cases[i].above, NULL), -EINVAL);
		assert_non_null(strstr(rref_last_error(), cases[i].variable));
		assert_non_null(strstr(rref_last_error(), cases[i].above));
		assert_non_null(strstr(rref_last_error(), ".."));
	}
	assert_int_equal(from_env(&opt, "RREF_POLLER_CORE", "-1", NULL), 0);
	assert_int_equal(opt.poller_core, -1);
}

static void options__numbers_are_strict(void **state)
{
	static const char *const bad[] = {
		"", " ", "a", "1a", "a1", " 1", "1 ", "+1", "--1", "-", "1.0", "1e1", "0x1", "1,0",
		"1_0", "1K", "\n1", "1\n", "%n",
		"99999999999999999999999999999999999999999999",
		"-99999999999999999999999999999999999999999999", "-0x1", "\xd9\xa1",
	};
	static const char *const names[] = {
		"RREF_RANK", "RANK", "RREF_WORLD_SIZE", "WORLD_SIZE", "RREF_POLLER_CORE",
		"RREF_THREADS", "RREF_MAX_OPS",
		"RREF_MAX_VALUE_BYTES", "RREF_MAX_LANDING_BYTES", "RREF_REGION_BYTES",
		"RREF_TIMEOUT_MS", "RREF_INIT_TIMEOUT_MS",
		"RREF_PEER_TIMEOUT_MS",
	};
	struct rref_options opt, before;

	(void)state;
	alone(&before);
	for (size_t v = 0; v < sizeof(names) / sizeof(names[0]); v++)
		for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
			assert_int_equal(from_env(&opt, names[v], bad[i], NULL), -EINVAL);
			assert_memory_equal(&opt, &before, sizeof(opt));
			assert_non_null(strstr(rref_last_error(), names[v]));
			for (const char *p = rref_last_error(); *p; p++)
				assert_true(*p >= 0x20 && *p < 0x7f);
		}
	assert_int_equal(from_env(&opt, "RREF_RANK", "0007", NULL), 0);
	assert_int_equal(opt.rank, 7);
}

static void options__other_texts_are_strict(void **state)
{
	static const char *const bad[][2] = {
		{ "RREF_NAME", "" }, { "RREF_NAME", "a b" }, { "RREF_NAME", "a/b" },
		{ "RREF_DEVICE", "" },
		{ "RREF_DEVICE", "roce" }, { "RREF_DEVICE", "ibv:a:b" }, { "RREF_KEY_FILE", "" },
		{ "RREF_RENDEZVOUS", "" },
		{ "RREF_PROGRESS", "" }, { "RREF_PROGRESS", "AUTO" }, { "RREF_PROGRESS", "0" },
		{ "RREF_LOG", "" },
		{ "RREF_LOG", "warn" }, { "RREF_LOG", "3" }, { "RREF_LEAK_CHECK", "" },
		{ "RREF_LEAK_CHECK", "no" },
		{ "RREF_LEAK_CHECK", "2" },
	};
	struct rref_options opt, before;

	(void)state;
	alone(&before);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		assert_int_equal(from_env(&opt, bad[i][0], bad[i][1], NULL), -EINVAL);
		assert_memory_equal(&opt, &before, sizeof(opt));
		assert_non_null(strstr(rref_last_error(), bad[i][0]));
		assert_non_null(strstr(rref_last_error(), bad[i][1]));
	}
	assert_int_equal(from_env(&opt, "RREF_LOG", "loud", NULL), -EINVAL);
	assert_non_null(strstr(rref_last_error(), "error, warning, info, debug"));
}

static void options__a_late_bad_variable_changes_nothing(void **state)
{
	struct rref_options opt, before;

	(void)state;
	alone(&before);
	assert_int_equal(from_env(&opt, "RREF_RANK", "1", "RREF_WORLD_SIZE", "2", "RREF_LEAK_CHECK",
				  "x", NULL),
			 -EINVAL);
	assert_memory_equal(&opt, &before, sizeof(opt));
}

static void options__unset_variables_keep_earlier_values(void **state)
{
	struct rref_options opt;

	(void)state;
	clear_environment(NULL);
	rref_options_init(&opt);
	opt.rank = 2;
	opt.name = "mine";
	opt.rendezvous = "there:1";
	setenv("RREF_WORLD_SIZE", "8", 1);
	assert_int_equal(rref_options_from_env(&opt), 0);
	assert_int_equal(opt.rank, 2);
	assert_int_equal(opt.world_size, 8);
	assert_string_equal(opt.name, "mine");
	assert_string_equal(opt.rendezvous, "there:1");
}

static void torchrun__is_understood(void **state)
{
	struct rref_options opt;

	(void)state;
	assert_int_equal(from_env(&opt, "RANK", "1", "WORLD_SIZE", "2", "MASTER_ADDR", "node0",
				  "MASTER_PORT", "29500", NULL),
			 0);
	assert_int_equal(opt.rank, 1);
	assert_int_equal(opt.world_size, 2);
	assert_string_equal(opt.rendezvous, "node0:29500");
	assert_int_equal(from_env(&opt, "MASTER_ADDR", "fe80::1", "MASTER_PORT", "1", NULL), 0);
	assert_string_equal(opt.rendezvous, "[fe80::1]:1");
	assert_int_equal(from_env(&opt, "MASTER_ADDR", "[::1]", "MASTER_PORT", "65535", NULL), 0);
	assert_string_equal(opt.rendezvous, "[::1]:65535");
}

/* Leaves MASTER_PORT alone, which torchrun's agent then holds for its own store. */
static void torchrun__agent_store_keeps_its_port(void **state)
{
	struct rref_options opt;

	(void)state;
	assert_int_equal(from_env(&opt, "MASTER_ADDR", "h", "MASTER_PORT", "29500",
				  "TORCHELASTIC_USE_AGENT_STORE", "True", NULL),
			 0);
	assert_string_equal(opt.rendezvous, "h:29501");
	assert_int_equal(from_env(&opt, "MASTER_ADDR", "h", "MASTER_PORT", "65535",
				  "TORCHELASTIC_USE_AGENT_STORE", "True", NULL),
			 0);
	assert_string_equal(opt.rendezvous, "h:65534");
	assert_int_equal(from_env(&opt, "MASTER_ADDR", "h", "MASTER_PORT", "29500",
				  "TORCHELASTIC_USE_AGENT_STORE", "False", NULL),
			 0);
	assert_string_equal(opt.rendezvous, "h:29500");
}

static void torchrun__rref_variables_win(void **state)
{
	struct rref_options opt;

	(void)state;
	assert_int_equal(from_env(&opt, "RANK", "garbage", "RREF_RANK", "0", "WORLD_SIZE", "9",
				  "RREF_WORLD_SIZE", "3", "MASTER_ADDR", "a", "MASTER_PORT", "x",
				  "RREF_RENDEZVOUS", "b:2", NULL),
			 0);
	assert_int_equal(opt.rank, 0);
	assert_int_equal(opt.world_size, 3);
	assert_string_equal(opt.rendezvous, "b:2");
}

static void torchrun__bad_master_is_refused(void **state)
{
	static const char *const ports[] = {
		"", "0", "65536", "-1", "http", "1 ", "99999999999999999999999"
	};
	struct rref_options opt;
	char host[400];

	(void)state;
	for (size_t i = 0; i < sizeof(ports) / sizeof(ports[0]); i++) {
		assert_int_equal(from_env(&opt, "MASTER_ADDR", "h", "MASTER_PORT", ports[i], NULL),
				 -EINVAL);
		assert_non_null(strstr(rref_last_error(), "MASTER_PORT"));
	}
	assert_int_equal(from_env(&opt, "MASTER_ADDR", "", "MASTER_PORT", "1", NULL), -EINVAL);
	memset(host, 'h', sizeof(host) - 1);
	host[sizeof(host) - 1] = '\0';
	assert_int_equal(from_env(&opt, "MASTER_ADDR", host, "MASTER_PORT", "1", NULL), -EINVAL);
	assert_non_null(strstr(rref_last_error(), "MASTER_ADDR"));
	/* Half an address: an error for a group, but not for a group of one. */
	assert_int_equal(from_env(&opt, "WORLD_SIZE", "2", "MASTER_ADDR", "h", NULL), -EINVAL);
	assert_non_null(strstr(rref_last_error(), "MASTER_PORT"));
	assert_int_equal(from_env(&opt, "WORLD_SIZE", "2", "MASTER_PORT", "1", NULL), -EINVAL);
	assert_int_equal(from_env(&opt, "MASTER_ADDR", "h", NULL), 0);
	assert_null(opt.rendezvous);
}

/* ---- without a group ---- */

/* Reads the options as a program does that leaves everything to the environment. */
static int from_these(struct rref_options *opt, const char *const (*pairs)[2])
{
	clear_environment(NULL);
	for (size_t i = 0; pairs[i][0]; i++)
		setenv(pairs[i][0], pairs[i][1], 1);
	rref_options_init(opt);
	return rref_options_from_env(opt);
}

static void group__without_variables_is_an_error(void **state)
{
	static const char *const none[][2] = { { NULL, NULL } };
	static const char *const rank_only[][2] = { { "RREF_RANK", "1" }, { NULL, NULL } };
	static const char *const place_only[][2] = { { "RREF_RENDEZVOUS", "h:1" }, { NULL, NULL } };
	static const char *const master[][2] = { { "MASTER_ADDR", "h" },
						 { "MASTER_PORT", "1" },
						 { NULL, NULL } };
	static const char *const one[][2] = { { "RREF_WORLD_SIZE", "1" }, { NULL, NULL } };
	static const char *const torch_one[][2] = { { "WORLD_SIZE", "1" }, { NULL, NULL } };
	struct rref_options opt, before;

	(void)state;
	rref_options_init(&before);
	assert_int_equal(from_these(&opt, none), -EINVAL);
	assert_memory_equal(&opt, &before, sizeof(opt));
	assert_non_null(strstr(rref_last_error(), "RREF_RANK"));
	assert_non_null(strstr(rref_last_error(), "RREF_WORLD_SIZE"));
	assert_non_null(strstr(rref_last_error(), "RREF_RENDEZVOUS"));
	assert_non_null(strstr(rref_last_error(), "torchrun"));
	assert_non_null(strstr(rref_last_error(), "RREF_WORLD_SIZE=1"));
	assert_null(strstr(rref_last_error(), "started this process"));
	assert_int_equal(from_these(&opt, rank_only), -EINVAL);
	assert_non_null(strstr(rref_last_error(), "the rank is 1"));
	assert_int_equal(from_these(&opt, place_only), -EINVAL);
	assert_int_equal(from_these(&opt, master), -EINVAL);
	assert_int_equal(from_these(&opt, one), 0);
	assert_int_equal(opt.world_size, 1);
	assert_int_equal(from_these(&opt, torch_one), 0);
	assert_int_equal(opt.world_size, 1);
}

static void group__without_a_rank_is_an_error(void **state)
{
	static const char *const sizes[][2][2] = {
		{ { "RREF_WORLD_SIZE", "2" }, { NULL, NULL } },
		{ { "WORLD_SIZE", "2" }, { NULL, NULL } },
	};
	struct rref_options opt;

	(void)state;
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		assert_int_equal(from_these(&opt, sizes[i]), -EINVAL);
		assert_non_null(strstr(rref_last_error(), "no rank"));
		assert_non_null(strstr(rref_last_error(), "2 workers"));
		assert_non_null(strstr(rref_last_error(), "RREF_RANK"));
	}
	/* Values that the program sets count as well. */
	clear_environment(NULL);
	rref_options_init(&opt);
	opt.rank = 1;
	opt.world_size = 2;
	assert_int_equal(rref_options_from_env(&opt), 0);
	assert_int_equal(opt.rank, 1);
}

/* Runs the part of the text from "sh -c" on, with its program replaced, in
 * the environment that the text is about. */
static void run_line(const char *text, char *out, size_t size)
{
	const char *line = strstr(text, "sh -c '"),
		   *program = line ? strstr(line, "./program") : NULL;
	char command[600];
	FILE *f;

	assert_non_null(line);
	assert_non_null(program);
	snprintf(command, sizeof(command), "%.*s printenv RREF_RANK RREF_WORLD_SIZE",
		 (int)(program - line), line);
	f = popen(command, "r");
	assert_non_null(f);
	size = fread(out, 1, size - 1, f);
	out[size] = '\0';
	assert_int_equal(pclose(f), 0);
}

static void group__a_launcher_is_named_with_the_line_that_works(void **state)
{
	static const struct {
		const char *name, *rank, *size;
	} all[] = {
		{ "mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE" },
		{ "mpirun", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE" },
		{ "mpiexec", "PMI_RANK", "PMI_SIZE" },
		{ "flux run", "FLUX_TASK_RANK", "FLUX_JOB_SIZE" },
		{ "jsrun", "JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE" },
		{ "srun", "SLURM_PROCID", "SLURM_NTASKS" },
	};
	struct rref_options opt;
	char text[RREF_TEXT_SIZE], out[64];

	(void)state;
	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
		const char *const pairs[][2] = { { all[i].rank, "5" },
						 { all[i].size, "7" },
						 { NULL, NULL } };
		const char *const sized[][2] = { { all[i].rank, "5" },
						 { "RREF_WORLD_SIZE", "7" },
						 { NULL, NULL } };

		assert_int_equal(from_these(&opt, sized), -EINVAL);
		assert_non_null(strstr(rref_last_error(), all[i].rank));
		assert_int_equal(from_these(&opt, pairs), -EINVAL);
		snprintf(text, sizeof(text), "%s", rref_last_error());
		assert_non_null(strstr(text, all[i].name));
		assert_non_null(strstr(text, all[i].rank));
		run_line(text, out, sizeof(out));
		assert_string_equal(out, "5\n7\n");
	}
	/* PMIX tells no size. */
	const char *const pmix[][2] = { { "PMIX_RANK", "3" }, { NULL, NULL } };

	assert_int_equal(from_these(&opt, pmix), -EINVAL);
	assert_non_null(strstr(rref_last_error(), "RREF_RANK=$PMIX_RANK RREF_WORLD_SIZE=N"));
	/* The variable may hold anything: the text ends with the whole line and has no control
	 * codes of a terminal. */
	const char *const wild[][2] = {
		{ "OMPI_COMM_WORLD_RANK",
		  "\x1b[2J\nxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx" },
		{ "RREF_RANK", "1023" },
		{ NULL, NULL }
	};

	assert_int_equal(from_these(&opt, wild), -EINVAL);
	snprintf(text, sizeof(text), "%s", rref_last_error());
	assert_string_equal(text + strlen(text) - 9, "./program");
	for (const char *p = text; *p; p++)
		assert_true(*p >= 0x20 && *p < 0x7f);
}

static void *read_many(void *arg)
{
	struct rref_options opt;

	for (int i = 0; i < 200; i++) {
		alone(&opt);
		if (rref_options_from_env(&opt))
			return arg;
	}
	return (void *)(uintptr_t)opt.rendezvous;
}

/* Checks that the text is formed once, and outlives the thread that formed it. */
static void torchrun__address_is_shared_by_threads(void **state)
{
	pthread_t threads[4];
	void *texts[4];

	(void)state;
	clear_environment(NULL);
	setenv("MASTER_ADDR", "node7", 1);
	setenv("MASTER_PORT", "77", 1);
	for (int i = 0; i < 4; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, read_many, NULL), 0);
	for (int i = 0; i < 4; i++)
		assert_int_equal(pthread_join(threads[i], &texts[i]), 0);
	for (int i = 0; i < 4; i++) {
		assert_ptr_equal(texts[i], texts[0]);
		assert_string_equal(texts[i], "node7:77");
	}
}

static void options__size_is_checked(void **state)
{
	struct rref_options opt;

	(void)state;
	clear_environment(NULL);
	assert_int_equal(rref_options_from_env(NULL), -EINVAL);
	memset(&opt, 0, sizeof(opt));
	assert_int_equal(rref_options_from_env(&opt), -EINVAL);
	assert_non_null(strstr(rref_last_error(), "rref_options_init"));
}

#define CLEAN(f) cmocka_unit_test_setup_teardown(f, clear_environment, clear_environment)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CLEAN(group__a_launcher_is_named_with_the_line_that_works),
		CLEAN(group__without_a_rank_is_an_error),
		CLEAN(group__without_variables_is_an_error),
		CLEAN(options__a_late_bad_variable_changes_nothing),
		CLEAN(options__bounds_are_included),
		CLEAN(options__defaults),
		CLEAN(options__each_variable),
		CLEAN(options__numbers_are_strict),
		CLEAN(options__other_texts_are_strict),
		CLEAN(options__size_is_checked),
		CLEAN(options__unset_variables_keep_earlier_values),
		CLEAN(options__words),
		CLEAN(torchrun__address_is_shared_by_threads),
		CLEAN(torchrun__agent_store_keeps_its_port),
		CLEAN(torchrun__bad_master_is_refused),
		CLEAN(torchrun__is_understood),
		CLEAN(torchrun__rref_variables_win),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
