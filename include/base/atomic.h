/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory-order wrappers: every atomic access of the library names its order here. There is no
 * seq_cst by default.
 *
 * Orders live on variables (release store / acquire load), not in stand-alone fences, because
 * thread sanitizers misread fences. The one exception is the sleeper's handshake: store a flag,
 * then look; store work, then look at the flag. It needs the store-load order that only seq_cst
 * gives: at_xchg_sc / at_load_sc, on both variables.
 */
#ifndef RREF_BASE_ATOMIC_H
#define RREF_BASE_ATOMIC_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define at_load(p)          atomic_load_explicit((p), memory_order_relaxed)
#define at_load_acq(p)      atomic_load_explicit((p), memory_order_acquire)
#define at_load_sc(p)       atomic_load_explicit((p), memory_order_seq_cst)
#define at_store(p, v)      atomic_store_explicit((p), (v), memory_order_relaxed)
#define at_store_rel(p, v)  atomic_store_explicit((p), (v), memory_order_release)
#define at_store_sc(p, v)   atomic_store_explicit((p), (v), memory_order_seq_cst)
#define at_xchg_acq(p, v)   atomic_exchange_explicit((p), (v), memory_order_acquire)
#define at_xchg_ar(p, v)    atomic_exchange_explicit((p), (v), memory_order_acq_rel)
#define at_xchg_sc(p, v)    atomic_exchange_explicit((p), (v), memory_order_seq_cst)
#define at_add(p, v)        atomic_fetch_add_explicit((p), (v), memory_order_relaxed)
/* Adds without a locked instruction. There is only one writer,
 * mostly the holder of a lock; any thread may read. */
#define at_add_mine(p, v)   at_store((p), at_load(p) + (v))
#define at_add_rel(p, v)    atomic_fetch_add_explicit((p), (v), memory_order_release)
#define at_add_sc(p, v)     atomic_fetch_add_explicit((p), (v), memory_order_seq_cst)
#define at_sub(p, v)        atomic_fetch_sub_explicit((p), (v), memory_order_relaxed)
#define at_sub_sc(p, v)     atomic_fetch_sub_explicit((p), (v), memory_order_seq_cst)
#define at_sub_rel(p, v)    atomic_fetch_sub_explicit((p), (v), memory_order_release)
#define at_sub_ar(p, v)     atomic_fetch_sub_explicit((p), (v), memory_order_acq_rel)
#define at_or_ar(p, v)      atomic_fetch_or_explicit((p), (v), memory_order_acq_rel)
#define at_or_sc(p, v)     atomic_fetch_or_explicit((p), (v), memory_order_seq_cst)
#define at_and_ar(p, v)     atomic_fetch_and_explicit((p), (v), memory_order_acq_rel)
/* Strong: callers act on a failure. *exp receives what was there. */
#define at_cas_ar(p, exp, v) \
	atomic_compare_exchange_strong_explicit((p), (exp), (v), memory_order_acq_rel, \
						memory_order_acquire)
#define at_cas_sc(p, exp, v) \
	atomic_compare_exchange_strong_explicit((p), (exp), (v), memory_order_seq_cst, \
						memory_order_relaxed)
/* Weak: callers loop. */
#define at_cas_weak_ar(p, exp, v) \
	atomic_compare_exchange_weak_explicit((p), (exp), (v), memory_order_acq_rel, \
					      memory_order_acquire)

#define at_cas_weak_sc(p, exp, v) \
	atomic_compare_exchange_weak_explicit((p), (exp), (v), memory_order_seq_cst, \
					      memory_order_relaxed)

static inline void cpu_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ __volatile__("yield");
#endif
}

#define CACHE_LINE 64
#define cache_aligned _Alignas(CACHE_LINE)
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

#endif
