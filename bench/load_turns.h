/* Part of load.c: several generators in turn by the clock that they all read. What makes the machine slower for a while
 * then does so for all of them alike, and the ratio between them stands.
 */

enum { TURN_NS = 5000000 };
static uint64_t own_turn, turns; /* turns: 0 alone */
static uint64_t waited_ns;

static void take_turns(int own, int of)
{
	if (own < 0 || of < 1 || own >= of) {
		errno = EINVAL;
		die("turns");
	}
	own_turn = (uint64_t)own;
	turns = (uint64_t)of;
}

static uint64_t turns_of_all(void)
{
	return turns ? turns : 1;
}

static bool is_turn(uint64_t now)
{
	return !turns || now / TURN_NS % turns == own_turn;
}

/* Sleeps until the next own turn; returns the time then. `counts`: it is time that was measured. */
static uint64_t await_turn(uint64_t now, bool counts)
{
	uint64_t all = turns * TURN_NS, next = now / all * all + own_turn * TURN_NS;
	if (next <= now)
		next += all;
	struct timespec when = {.tv_sec = (time_t)(next / 1000000000u), .tv_nsec = (long)(next % 1000000000u)};
	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &when, NULL) == EINTR)
		;
	uint64_t woken = now_ns();
	if (counts)
		waited_ns += woken - now;
	return woken;
}
