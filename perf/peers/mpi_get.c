/* SPDX-License-Identifier: Apache-2.0 */
/*
 * MPI's one-sided get between two processes: MPI_Get and MPI_Win_flush in a passive epoch, in
 * groups as rref-perf does.
 *   mpirun -n 2 mpi_get [SECONDS [SIZE ...]]      one JSON object a line
 */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GROUP_S 2e-6
#define SAMPLES 200000

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double gets(MPI_Win win, char *to, int bytes, int n)
{
	double start = MPI_Wtime();

	for (int i = 0; i < n; i++) {
		MPI_Get(to, bytes, MPI_BYTE, 0, 0, bytes, MPI_BYTE, win);
		MPI_Win_flush(0, win);
	}
	return MPI_Wtime() - start;
}

static void measure(MPI_Win win, char *to, int bytes, double seconds, double *v)
{
	int group = 1, nr = 0;
	double took, end;

	for (int i = 0; i < 100; i++)
		gets(win, to, bytes, 1);
	while ((took = gets(win, to, bytes, group)) < GROUP_S && group < 1 << 16)
		group *= 2;
	for (end = MPI_Wtime() + seconds; (MPI_Wtime() < end || nr < 5) && nr < SAMPLES; nr++)
		v[nr] = gets(win, to, bytes, group) / group * 1e9;
	qsort(v, (size_t)nr, sizeof(*v), compare);
	printf("{\"op\":\"lat\",\"peer\":\"mpi\",\"device\":\"shm\",\"bytes\":%d,\"iters\":%d,"
	       "\"group\":%d,\"p50_ns\":%.2f,\"p99_ns\":%.2f}\n",
	       bytes, nr * group, group, v[nr / 2], v[nr * 99 / 100]);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	int rank, largest = 8;
	double seconds = argc > 1 ? atof(argv[1]) : 0.5, *v = malloc(SAMPLES * sizeof(*v));
	char *at, *to;
	MPI_Win win;

	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	for (int i = 2; i < argc; i++)
		largest = atoi(argv[i]) > largest ? atoi(argv[i]) : largest;
	to = malloc((size_t)largest);
	MPI_Win_allocate(largest, 1, MPI_INFO_NULL, MPI_COMM_WORLD, &at, &win);
	memset(at, 0x5a, (size_t)largest);
	memset(to, 1, (size_t)largest);
	MPI_Barrier(MPI_COMM_WORLD);
	if (rank == 1) {
		MPI_Win_lock(MPI_LOCK_SHARED, 0, 0, win);
		for (int i = 2; i < argc; i++)
			measure(win, to, atoi(argv[i]), seconds, v);
		if (argc < 3)
			measure(win, to, 8, seconds, v);
		MPI_Win_unlock(0, win);
	}
	MPI_Barrier(MPI_COMM_WORLD);
	MPI_Win_free(&win);
	MPI_Finalize();
	free(to);
	free(v);
	return 0;
}
