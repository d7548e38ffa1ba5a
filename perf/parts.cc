// SPDX-License-Identifier: Apache-2.0
// The cost of the parts by themselves, in one process: value memory and the lookup of its keys,
// operation slots, futures, landing blocks, the queue to oneself, a turn of the engine. Also the
// wire codec, steps of the protocol's machine, and the public calls that stay inside a worker.
// `make perf` runs it; times are of this machine only.
#include <benchmark/benchmark.h>

#include <cstdio>
#include <cstring>

extern "C" {
#include "alloc/ra.h"
#include "core/protocol/protocol.h"
#include "core/wire/wire.h"
#include "parts_core.h"
#include "rref.h"
}

static int reg(void *, void *base, size_t, int, void **cookie)
{
	*cookie = base;
	return 0;
}

static int dereg(void *, void *)
{
	return 0;
}

static void value_memory(benchmark::State &state)
{
	struct ra_hooks hooks = { reg, dereg, nullptr };
	struct ra_options options = {};
	struct ra_arena *arena;
	size_t size = static_cast<size_t>(state.range(0));

	if (ra_arena_create(&hooks, &options, &arena)) {
		state.SkipWithError(ra_error_text());
		return;
	}
	for (auto _ : state) {
		void *p;

		if (ra_alloc(arena, size, 64, &p)) {
			state.SkipWithError(ra_error_text());
			break;
		}
		benchmark::DoNotOptimize(p);
		ra_free(arena, p, size);
	}
	ra_arena_destroy(arena);
}
BENCHMARK(value_memory)->Arg(64)->Arg(4096)->Arg(65536)->Arg(1 << 20);

static void key_lookup(benchmark::State &state)
{
	struct ra_hooks hooks = { reg, dereg, nullptr };
	struct ra_options options = {};
	struct ra_arena *arena;
	void *p, *base;

	if (ra_arena_create(&hooks, &options, &arena) || ra_alloc(arena, 4096, 64, &p)) {
		state.SkipWithError(ra_error_text());
		return;
	}
	for (auto _ : state)
		benchmark::DoNotOptimize(ra_lookup(arena, p, &base));
	ra_free(arena, p, 4096);
	ra_arena_destroy(arena);
}
BENCHMARK(key_lookup);

static struct rw_message call_message(const char *data, uint32_t length, unsigned refs)
{
	struct rw_message m = {};

	m.frame.type = RW_CALL;
	m.u.call.call_id = 7;
	m.u.call.kind = RW_CALL_RPC;
	m.u.call.name = "function";
	m.u.call.name_length = 8;
	m.u.call.data = data;
	m.u.call.data_length = length;
	m.u.call.nr_refs = static_cast<uint8_t>(refs);
	for (unsigned i = 0; i < refs; i++) {
		m.u.call.refs[i].id.local_id = i + 1;
		m.u.call.refs[i].fork.local_id = i + 100;
	}
	return m;
}

static void encode_decode(benchmark::State &state)
{
	static char data[3072];
	static unsigned char buf[4096];
	struct rw_message m = call_message(data, static_cast<uint32_t>(state.range(0)),
					   static_cast<unsigned>(state.range(1)));
	static struct rw_message got;

	for (auto _ : state) {
		int length = rw_encode(&m, buf, sizeof(buf));

		if (length < 0 || rw_decode(buf, static_cast<size_t>(length), 4, &got)) {
			state.SkipWithError("encode or decode failed");
			break;
		}
		benchmark::DoNotOptimize(got);
	}
}
BENCHMARK(encode_decode)->Args({ 0, 0 })->Args({ 64, 1 })->Args({ RW_INLINE_MAX, RW_REFS_MAX });

static void create_and_release(benchmark::State &state)
{
	struct rp *machine;
	uint64_t next = 0;

	if (rp_create(0, 4, &machine)) {
		state.SkipWithError("no memory");
		return;
	}
	for (auto _ : state) {
		struct rp_event ev = {};

		ev.type = RP_EV_NEW;
		ev.id.local_id = ++next;
		rp_step(machine, &ev, nullptr);
		ev.type = RP_EV_SET;
		ev.value = &next;
		rp_step(machine, &ev, nullptr);
		ev.type = RP_EV_RELEASE;
		rp_step(machine, &ev, nullptr);
		rp_effects_clear(machine);
	}
	rp_destroy(machine);
}
BENCHMARK(create_and_release);

static struct rref_ctx *alone()
{
	struct rref_options o;
	struct rref_ctx *ctx = nullptr;

	rref_options_init(&o);
	o.world_size = 1;
	o.device = "shm";
	o.mode = RREF_PROGRESS_MANUAL;
	return rref_init(&o, &ctx) ? nullptr : ctx;
}

static int nothing(struct rref_call *, void *)
{
	return 0;
}

template <typename Fn> static void inside(benchmark::State &state, Fn part)
{
	struct rref_ctx *ctx = alone();

	if (!ctx) {
		state.SkipWithError(rref_last_error());
		return;
	}
	for (auto _ : state)
		if (part(ctx)) {
			state.SkipWithError(rref_last_error());
			break;
		}
	rref_free_ctx(ctx);
}

static void slot(benchmark::State &state) { inside(state, parts_slot); }
BENCHMARK(slot);

static void future(benchmark::State &state) { inside(state, parts_future); }
BENCHMARK(future);

static void landing_block(benchmark::State &state)
{
	inside(state, [](struct rref_ctx *ctx) { return parts_landing(ctx, 64); });
}
BENCHMARK(landing_block);

static void idle_turn(benchmark::State &state) { inside(state, parts_turn); }
BENCHMARK(idle_turn);

static void queue_to_self(benchmark::State &state)
{
	struct rref_ctx *ctx = alone();
	struct rref_function f = {};

	f.name = "nothing";
	f.handler = nothing;
	f.flags = RREF_INLINE;
	if (!ctx || rref_register(ctx, &f)) {
		state.SkipWithError(rref_last_error());
		return;
	}
	for (auto _ : state)
		if (rref_rpc_sync(ctx, 0, "nothing", nullptr, RREF_DEFAULT, nullptr)) {
			state.SkipWithError(rref_last_error());
			break;
		}
	rref_free_ctx(ctx);
}
BENCHMARK(queue_to_self);

static void own_value(benchmark::State &state)
{
	struct rref_ctx *ctx = alone();
	char bytes[64] = {};

	if (!ctx) {
		state.SkipWithError(rref_last_error());
		return;
	}
	for (auto _ : state) {
		struct rref *ref;
		struct rref_view *view;

		if (rref_new(ctx, bytes, sizeof(bytes), &ref) ||
		    rref_to_here(ref, RREF_DEFAULT, &view)) {
			state.SkipWithError(rref_last_error());
			break;
		}
		benchmark::DoNotOptimize(rref_view_data(view));
		rref_view_free(view);
		rref_release(ref);
	}
	rref_free_ctx(ctx);
}
BENCHMARK(own_value);

int main(int argc, char **argv)
{
	benchmark::Initialize(&argc, argv);
	if (benchmark::ReportUnrecognizedArguments(argc, argv))
		return 1;
	std::fputs("\"Library was built as DEBUG\" below is about Debian's libbenchmark; "
		   "librref is built as it is used.\n", stderr);
	benchmark::RunSpecifiedBenchmarks();
	benchmark::Shutdown();
	return 0;
}
