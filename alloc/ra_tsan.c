/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ThreadSanitizer builds only. jemalloc's fork handlers lock all its mutexes before fork. In the
 * child they initialise them anew instead of unlocking them. So the sanitizer sees no unlock, and
 * reports every later use in the child as a double lock. There, and only there, the private copy
 * registers no handlers (see the Makefile). The tests fork their workers from a process with one
 * thread, in which no mutex can be held.
 */
#ifdef __SANITIZE_THREAD__
int ra_je_no_atfork(void (*prepare)(void), void (*parent)(void), void (*child)(void));
int ra_je_no_atfork(void (*prepare)(void), void (*parent)(void), void (*child)(void))
{
	(void)prepare;
	(void)parent;
	(void)child;
	return 0;
}
#else
typedef int ra_tsan_is_empty; /* ISO C wants a declaration */
#endif
