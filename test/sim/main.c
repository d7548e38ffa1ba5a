/* SPDX-License-Identifier: Apache-2.0 */
/* sim: runs many schedules of the protocol's simulator, or one again; see usage(). */
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "test/sim/sim.h"

#define DEFAULT_SEEDS 20000u
#define MAX_JOBS 256u
#define MAX_PROFILES 8u
#define HANG_S 60               /* a schedule takes a millisecond, on a busy machine ten */
#define PROGRESS_NS (5 * NSEC_PER_SEC)
#define PROGRESS_PARTS 40u      /* the most lines of a long run */

struct options {
	uint64_t seeds, first, seed;
	unsigned workers, jobs;
	int profile;
	const char *keep;
	bool one, trace, no_shrink;
};

/* The part of one job, shared with the parent. */
struct job {
	_Atomic uint64_t seed, done;
	struct sim_result sum[MAX_PROFILES];
	uint64_t schedules[MAX_PROFILES];
	struct sim_result failure;
};

static void usage(FILE *f)
{
	fprintf(f,
		"usage: sim [OPTION ...]\n"
		"Random programs over the reference protocol's machines and a bad network, checked "
		"after every event.\n"
		"  --seeds N     run the schedules of N seeds (RREF_SIM_SEEDS, else %u)\n"
		"  --first N     the first of them (1)\n"
		"  --jobs N      processes beside each other (1)\n"
		"  --workers N   %u..%u workers in each schedule (by seed: 3..8)\n"
		"  --profile P   one only of these (by seed: all in turn):\n",
		DEFAULT_SEEDS, MIN_MACHINES, MAX_MACHINES);
	for (unsigned i = 0; i < sim_nr_profiles; i++)
		fprintf(f, "                  %u  %s\n", i, sim_profiles[i].name);
	fprintf(f,
		"  --seed N      run that one again\n"
		"  --keep LIST   of its decisions only these, e.g. 3,8-11 (as printed for a "
		"failing seed)\n"
		"  --trace       print its decisions, steps and effects\n"
		"  --no-shrink   print a failing seed as it is\n"
		"  --help\n"
		"The first failing seed is shrunk and printed with its trace. Status: 0 none "
		"failed, 1 one did, 2 usage.\n");
}

static int bad(const char *what, const char *text)
{
	fprintf(stderr, "sim: %s: '%s'; sim --help lists the options\n", what, text);
	return 2;
}

static bool number(const char *text, uint64_t min, uint64_t max, uint64_t *out)
{
	char *end;

	if (*text < '0' || *text > '9')
		return false;
	errno = 0;
	*out = strtoull(text, &end, 10);
	return !errno && !*end && *out >= min && *out <= max;
}

/* Leaves out all decisions except for the list's. Returns 0, or 2 with a message. */
static int keep(struct sim_plan *p, const char *list)
{
	for (unsigned i = 0; i < p->nr; i++)
		p->list[i].left_out = true;
	for (const char *at = list; *at;) {
		unsigned from, to;
		int n = 0;

		if (sscanf(at, "%u%n", &from, &n) != 1 || *at < '0' || *at > '9')
			return bad("--keep wants numbers and ranges, as in 3,8-11", list);
		at += n;
		to = from;
		if (*at == '-') {
			if (sscanf(++at, "%u%n", &to, &n) != 1 || *at < '0' || *at > '9')
				return bad("--keep wants numbers and ranges, as in 3,8-11", list);
			at += n;
		}
		if (from > to || to >= p->nr) {
			fprintf(stderr, "sim: --keep: this seed has decisions 0..%u: '%s'\n",
				p->nr - 1, list);
			return 2;
		}
		for (unsigned i = from; i <= to; i++)
			p->list[i].left_out = false;
		if (*at == ',' && at[1])
			at++;
		else if (*at)
			return bad("--keep wants numbers and ranges, as in 3,8-11", list);
	}
	return 0;
}

static void print_kept(const struct sim_plan *p)
{
	const char *comma = "";

	for (unsigned i = 0, end; i < p->nr; i = end) {
		end = i + 1;
		if (p->list[i].left_out)
			continue;
		while (end < p->nr && !p->list[end].left_out)
			end++;
		printf(end - i > 1 ? "%s%u-%u" : "%s%u", comma, i, end - 1);
		comma = ",";
	}
}

static void print_replay(const struct options *o, const struct sim_plan *p)
{
	printf("replay: build/bin/sim --seed %" PRIu64 " --trace", p->seed);
	if (o->profile >= 0)
		printf(" --profile %d", o->profile);
	if (o->workers)
		printf(" --workers %u", o->workers);
	putchar('\n');
}

/* Reports a seed that failed: its text, its shrunk plan, its trace. */
static void report(const struct options *o, uint64_t seed, struct sim_result *result)
{
	struct sim_plan p;
	unsigned nr = 0;

	sim_plan_make(&p, seed, o->profile, o->workers);
	if (o->keep)
		keep(&p, o->keep);
	printf("FAILED seed %" PRIu64 " (%s, %u workers, at decision %u of %u): %s\n", seed,
	       sim_profiles[p.profile].name, p.workers, result->decision, p.nr, result->text);
	print_replay(o, &p);
	if (o->no_shrink)
		return;
	fflush(stdout);
	sim_shrink(&p, result);
	for (unsigned i = 0; i < p.nr; i++)
		nr += !p.list[i].left_out;
	printf("shrunk to %u decisions, %u workers: %s\n", nr, p.workers, result->text);
	printf("replay: build/bin/sim --seed %" PRIu64 " --profile %u --workers %u --keep ", seed,
	       p.profile, p.workers);
	print_kept(&p);
	printf(" --trace\n");
	sim_run_apart(&p, stdout, result);
}

static int run_one(const struct options *o)
{
	struct sim_result result;
	struct sim_plan p;
	int rc;

	sim_plan_make(&p, o->seed, o->profile, o->workers);
	rc = o->keep ? keep(&p, o->keep) : 0;
	if (rc)
		return rc;
	if (sim_run_apart(&p, o->trace ? stdout : NULL, &result)) {
		/* Shown already, without shrinking. */
		if (o->trace)
			printf("FAILED seed %" PRIu64 ": %s\n", o->seed, result.text);
		else
			report(o, o->seed, &result);
		return 1;
	}
	printf("seed %" PRIu64 " (%s, %u workers, %u decisions): %" PRIu64
	       " events, nothing found\n",
	       o->seed, sim_profiles[p.profile].name, p.workers, p.nr, result.steps);
	return 0;
}

static void add(struct sim_result *sum, const struct sim_result *r)
{
	sum->steps += r->steps;
	sum->messages += r->messages;
	sum->reads += r->reads;
	sum->kills += r->kills;
	sum->fences += r->fences;
	sum->parts += r->parts;
	sum->freed += r->freed;
	sum->refused_records += r->refused_records;
	sum->attacks += r->attacks;
}

static void run_job(const struct options *o, unsigned nr, struct job *job)
{
	struct sim_result result;
	struct sim_plan p;

	for (uint64_t seed = o->first + nr; seed < o->first + o->seeds; seed += o->jobs) {
		atomic_store(&job->seed, seed);
		alarm(HANG_S);
		sim_plan_make(&p, seed, o->profile, o->workers);
		if (sim_run(&p, NULL, &result)) {
			job->failure = result;
			_exit(1);
		}
		add(&job->sum[p.profile], &result);
		job->schedules[p.profile]++;
		atomic_store(&job->done, atomic_load(&job->done) + 1);
	}
	_exit(0);
}

static uint64_t all_done(const struct options *o, const struct job *jobs)
{
	uint64_t done = 0;

	for (unsigned i = 0; i < o->jobs; i++)
		done += atomic_load(&jobs[i].done);
	return done;
}

static void progress(const struct options *o, uint64_t done, int64_t start)
{
	printf("%" PRIu64 " of %" PRIu64 " schedules, %.0f per second\n", done, o->seeds,
	       (double)done * 1e9 / (double)(now_ns() - start + 1));
	fflush(stdout);
}

static void print_line(const char *name, uint64_t schedules, const struct sim_result *r)
{
	printf("%-29s %9" PRIu64 " %11" PRIu64 " %10" PRIu64 " %10" PRIu64 " %9" PRIu64 " %8" PRIu64
	       " %8" PRIu64 " %7" PRIu64 "\n",
	       name, schedules, r->steps, r->messages, r->reads, r->freed, r->kills, r->fences,
	       r->attacks);
}

static void totals(const struct options *o, const struct job *jobs, int64_t start)
{
	struct sim_result all = { .steps = 0 };
	uint64_t schedules = 0;
	double s = (double)(now_ns() - start) / 1e9;

	printf("%-29s %9s %11s %10s %10s %9s %8s %8s %7s\n", "profile", "schedules", "events",
	       "messages", "reads", "freed", "deaths", "fences", "attacks");
	for (unsigned i = 0; i < sim_nr_profiles; i++) {
		struct sim_result sum = { .steps = 0 };
		uint64_t n = 0;

		for (unsigned j = 0; j < o->jobs; j++) {
			add(&sum, &jobs[j].sum[i]);
			n += jobs[j].schedules[i];
		}
		if (!n)
			continue;
		print_line(sim_profiles[i].name, n, &sum);
		add(&all, &sum);
		schedules += n;
	}
	print_line("all", schedules, &all);
	printf("seeds %" PRIu64 "..%" PRIu64 ": %.1f s, %.0f schedules per second\n", o->first,
	       o->first + o->seeds - 1, s, (double)schedules / s);
}

/* Returns the number of tests: each profile is one. */
static unsigned nr_tests(const struct options *o)
{
	return o->profile >= 0 ? 1 : (unsigned)min_of(o->seeds, sim_nr_profiles);
}

static int run_many(const struct options *o)
{
	struct job *jobs = mmap(NULL, o->jobs * sizeof(*jobs), PROT_READ | PROT_WRITE,
				MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int64_t start = now_ns(), said = start;
	pid_t pids[MAX_JOBS];
	unsigned running = o->jobs, failed = o->jobs;
	uint64_t done, said_done = 0;

	if (jobs == MAP_FAILED) {
		perror("sim: memory for the jobs");
		return 1;
	}
	fflush(stdout);
	for (unsigned i = 0; i < o->jobs; i++) {
		pids[i] = fork();
		if (pids[i] == 0)
			run_job(o, i, &jobs[i]);
		if (pids[i] < 0) {
			perror("sim: fork");
			while (i--)
				kill(pids[i], SIGKILL);
			return 1;
		}
	}
	while (running) {
		bool ended = false;

		for (unsigned i = 0; i < o->jobs; i++) {
			int status;

			if (pids[i] <= 0 || waitpid(pids[i], &status, WNOHANG) != pids[i])
				continue;
			pids[i] = 0;
			running--;
			ended = true;
			if (!WIFEXITED(status) || WEXITSTATUS(status)) {
				/* The lowest of the known ones, so that jobs change little. */
				if (failed == o->jobs ||
				    atomic_load(&jobs[i].seed) < atomic_load(&jobs[failed].seed))
					failed = i;
				for (unsigned k = 0; k < o->jobs; k++)
					if (pids[k] > 0)
						kill(pids[k], SIGTERM);
				for (unsigned k = 0; k < o->jobs; k++)
					if (pids[k] > 0) {
						waitpid(pids[k], NULL, 0);
						running--;
						pids[k] = 0;
					}
			}
		}
		done = all_done(o, jobs);
		if (running && now_ns() - said >= PROGRESS_NS &&
		    done >= said_done + o->seeds / PROGRESS_PARTS) {
			said = now_ns();
			said_done = done;
			progress(o, done, start);
		}
		if (running && !ended)
			usleep(20000);
	}
	if (failed < o->jobs) {
		uint64_t seed = atomic_load(&jobs[failed].seed);
		struct sim_result result = jobs[failed].failure;
		struct sim_plan p;

		sim_plan_make(&p, seed, o->profile, o->workers);
		/* A crash left no text: run it again for its rule. */
		if (!result.text[0] && !sim_run_apart(&p, NULL, &result))
			snprintf(result.text, sizeof(result.text),
				 "a job ended at it, but it passes by itself");
		report(o, seed, &result);
		printf("%u passed, 1 failed\n", nr_tests(o) - 1);
		munmap(jobs, o->jobs * sizeof(*jobs));
		return 1;
	}
	totals(o, jobs, start);
	printf("%u passed, 0 failed\n", nr_tests(o));
	munmap(jobs, o->jobs * sizeof(*jobs));
	return 0;
}

int main(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "seeds", required_argument, NULL, 'n' },
		{ "first", required_argument, NULL, 'f' },
		{ "seed", required_argument, NULL, 's' },
		{ "workers", required_argument, NULL, 'w' },
		{ "jobs", required_argument, NULL, 'j' },
		{ "profile", required_argument, NULL, 'p' },
		{ "keep", required_argument, NULL, 'k' },  { "trace", no_argument, NULL, 't' },
		{ "no-shrink", no_argument, NULL, 'x' },   { "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	struct options o = { .seeds = DEFAULT_SEEDS, .first = 1, .jobs = 1, .profile = -1 };
	const char *env = getenv("RREF_SIM_SEEDS");
	uint64_t n;
	int c;

	if (env && *env && !number(env, 1, UINT32_MAX, &o.seeds))
		return bad("RREF_SIM_SEEDS wants a number from 1 on", env);
	while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		switch (c) {
		case 'n':
			if (!number(optarg, 1, UINT32_MAX, &o.seeds))
				return bad("--seeds wants a number from 1 on", optarg);
			break;
		case 'f':
			if (!number(optarg, 0, UINT64_MAX / 2, &o.first))
				return bad("--first wants a number", optarg);
			break;
		case 's':
			if (!number(optarg, 0, UINT64_MAX / 2, &o.seed))
				return bad("--seed wants a number", optarg);
			o.one = true;
			break;
		case 'w':
			if (!number(optarg, MIN_MACHINES, MAX_MACHINES, &n))
				return bad("--workers wants a number from 1 to 8", optarg);
			o.workers = (unsigned)n;
			break;
		case 'j':
			if (!number(optarg, 1, MAX_JOBS, &n))
				return bad("--jobs wants a number from 1 to 256", optarg);
			o.jobs = (unsigned)n;
			break;
		case 'p':
			if (!number(optarg, 0, sim_nr_profiles - 1, &n))
				return bad("--profile wants the number of one", optarg);
			o.profile = (int)n;
			break;
		case 'k':
			o.keep = optarg;
			break;
		case 't':
			o.trace = true;
			break;
		case 'x':
			o.no_shrink = true;
			break;
		case 'h':
			usage(stdout);
			return 0;
		default:
			fprintf(stderr, "sim --help lists the options\n");
			return 2;
		}
	}
	if (optind < argc)
		return bad("not an option", argv[optind]);
	if ((o.keep || o.trace) && !o.one)
		return bad("needs --seed", o.keep ? "--keep" : "--trace");
	return o.one ? run_one(&o) : run_many(&o);
}
