/* Part of load.c: what it measures with, and what it prints. */

/* The first part of a request run is not counted: a tenth of it, but no more than a fixed time. */
static uint64_t warm_up_ns(uint64_t whole_ns)
{
	uint64_t share = whole_ns / 100 * WARM_UP_PERCENT, most = WARM_UP_MOST_MS * 1000000ull;
	return share < most ? share : most;
}

static uint64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static double cpu_s(void)
{
	double total = 0;
	for (int who = RUSAGE_CHILDREN; who <= RUSAGE_SELF; who++) { /* -1, 0 */
		struct rusage r;
		getrusage(who, &r);
		total += (double)(r.ru_utime.tv_sec + r.ru_stime.tv_sec) + (double)(r.ru_utime.tv_usec + r.ru_stime.tv_usec) / 1e6;
	}
	return total;
}

/* --- histogram: log-linear, 64 steps per power of two, hence within 1.6 % ------------------------------------------ */

enum { STEPS = 64, STEP_BITS = 6 };
static uint64_t bins[64 * STEPS], samples, largest;
static uint64_t total; /* operations or bytes, also those that were too early to count */
static double sum;

static void record(uint64_t ns)
{
	if (!ns)
		ns = 1;
	int power = 63 - __builtin_clzll(ns);
	uint64_t step = power >= STEP_BITS ? ns >> (power - STEP_BITS) : ns << (STEP_BITS - power);
	bins[power * STEPS + (step & (STEPS - 1))]++;
	samples++;
	sum += (double)ns;
	if (ns > largest)
		largest = ns;
}

static double quantile_us(double q)
{
	uint64_t rank = (uint64_t)(q * (double)samples), seen = 0;
	for (int i = 0; i < 64 * STEPS; i++) {
		seen += bins[i];
		if (seen > rank) {
			double step = STEPS + i % STEPS, scale = (double)(1ull << (i / STEPS));
			return step * scale / STEPS / 1e3;
		}
	}
	return (double)largest / 1e3;
}

static void report(const char *what, double seconds, uint64_t bytes, uint64_t errors)
{
	printf("{\"case\":\"%s\",\"ops\":%lu,\"total\":%lu,\"bytes\":%lu,\"seconds\":%.4f,\"mean_us\":%.2f,\"p50_us\":%.2f,\"p90_us\":%.2f,"
	       "\"p99_us\":%.2f,\"p999_us\":%.2f,\"max_us\":%.1f,\"errors\":%lu,\"cpu_s\":%.3f}\n",
	       what, samples, total, bytes, seconds, samples ? sum / (double)samples / 1e3 : 0, quantile_us(.5), quantile_us(.9),
	       quantile_us(.99), quantile_us(.999), (double)largest / 1e3, errors, cpu_s());
	fflush(stdout);
}
