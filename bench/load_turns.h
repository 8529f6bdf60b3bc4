/* Part of load.c: several generators in turn by the clock that they all read. What makes the machine slower for a while
 * then does so for all of them alike, and the ratio between them stands.
 */

static uint64_t own_turn, turns, turn_ns; /* turns: 0 alone */
static uint64_t waited_ns;

static void take_turns(int own, int of, int ms)
{
	if (own < 0 || of < 1 || own >= of || ms < 1) {
		errno = EINVAL;
		die("turns");
	}
	own_turn = (uint64_t)own;
	turns = (uint64_t)of;
	turn_ns = (uint64_t)ms * 1000000u;
}

static uint64_t turns_of_all(void)
{
	return turns ? turns : 1;
}

static bool is_turn(uint64_t now)
{
	return !turns || now / turn_ns % turns == own_turn;
}

/* Whether enough of the own turn has passed for a stream: the queues of the one before have emptied, the own are full. */
static bool is_settled(uint64_t now)
{
	return !turns || now % turn_ns >= turn_ns / 4;
}

/* Sleeps until the next own turn; returns the time then. `counts`: it is time that was measured. */
static uint64_t await_turn(uint64_t now, bool counts)
{
	uint64_t all = turns * turn_ns, next = now / all * all + own_turn * turn_ns;
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
