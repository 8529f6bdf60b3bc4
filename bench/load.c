/* load: the benchmark's load generator and its counterpart, one binary, one thread, epoll.
 *
 *   load serve PORT                          echo on PORT; a connection whose first byte is 'S' is a sink, 'D' a source
 *   load rr HOST PORT SIZE CONNS SECONDS     one request of SIZE bytes outstanding on each connection
 *   load orr HOST PORT SIZE CONNS RATE SECONDS  open loop: RATE requests a second in turn on CONNS connections; SIGINT
 *                                            ends it early
 *   load crr HOST PORT CONNS SECONDS         connect, one byte each way, close
 *   load con HOST PORT SECONDS               the same one at a time; the latency is connect()'s alone
 *   load cold HOST PORT TUNNELPORT SECONDS   the same one at a time, each after this namespace's connections to
 *                                            TUNNELPORT were destroyed (ss -K): the next one needs a new tunnel
 *   load send|recv HOST PORT CONNS SECONDS   bulk towards / from the server
 *   load hold HOST PORT CONNS                opens CONNS connections, one byte each way on each, then waits for EOF on stdin
 *   load turns I N MS rr|con|send|recv ...   the I-th of N that run at the same time, MS milliseconds each in turn; SECONDS
 *                                            is the time of its own turns; the first quarter of a stream's turn does not count
 *
 * Prints one JSON object: operations or bytes (`total`, and `ops` or `bytes`: those that count), seconds, latency quantiles in
 * microseconds, errors, own CPU seconds. Latency is taken from the moment before the write (rr), when the request was
 * due (orr) or before the connect (crr, cold) until the answer was read.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/netfilter_ipv4.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { BATCH = 256, MAX_FD = 1 << 16, BUFFER = 1 << 18, WARM_UP_PERCENT = 10, WARM_UP_MOST_MS = 200, OUTBOUND_PORT = 15001 };

static char buffer[BUFFER];

static void die(const char *what)
{
	fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
	exit(1);
}

/* SIGINT ends an open loop early; what was measured until then is reported. */
static volatile sig_atomic_t interrupted;

static void interrupt(int number)
{
	(void)number;
	interrupted = 1;
}

#include "load_report.h"
#include "load_turns.h"

/* --- sockets ------------------------------------------------------------------------------------------------------- */

static struct sockaddr_in target;
static int poller;

static void watch(int fd, uint32_t events, int op)
{
	struct epoll_event e = {.events = events, .data.fd = fd};
	if (fd >= MAX_FD || epoll_ctl(poller, op, fd, &e))
		die("epoll_ctl");
}

static int new_socket(int flags)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | flags, 0), on = 1;
	if (fd < 0 || setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on))
		die("socket");
	return fd;
}

static int connected(void)
{
	int fd = new_socket(0);
	if (connect(fd, (struct sockaddr *)&target, sizeof target))
		die("connect");
	return fd;
}

static void exactly(int fd, size_t size, bool writing)
{
	for (size_t done = 0; done < size;) {
		ssize_t n = writing ? write(fd, buffer, size - done) : read(fd, buffer, size - done);
		if (n <= 0)
			die(writing ? "write" : "read (closed by peer?)");
		done += (size_t)n;
	}
}

#include "load_serve.h"

/* --- clients ------------------------------------------------------------------------------------------------------- */

static uint64_t started[MAX_FD];
static uint32_t pending[MAX_FD];

static void rr_one(int fd, size_t size, uint64_t end)
{
	for (uint64_t begin = now_ns(), warm = begin + warm_up_ns(end - begin); begin < end;) {
		if (!is_turn(begin)) {
			begin = await_turn(begin, begin > warm);
			continue;
		}
		exactly(fd, size, true);
		exactly(fd, size, false);
		uint64_t done = now_ns();
		total++;
		if (begin > warm)
			record(done - begin);
		begin = done;
	}
}

static void rr_many(size_t size, int conns, uint64_t end)
{
	for (int i = 0; i < conns; i++) {
		int fd = connected();
		watch(fd, EPOLLIN, EPOLL_CTL_ADD);
		exactly(fd, size, true);
	}
	struct epoll_event ready[BATCH];
	for (uint64_t begin = now_ns(), warm = begin + warm_up_ns(end - begin); now_ns() < end;) {
		int n = epoll_wait(poller, ready, BATCH, 100);
		for (int i = 0; i < n; i++) {
			int fd = ready[i].data.fd;
			ssize_t got = read(fd, buffer, sizeof buffer);
			if (got <= 0)
				die("read (closed by peer?)");
			pending[fd] += (uint32_t)got;
			if (pending[fd] < size)
				continue;
			uint64_t t = now_ns();
			total++;
			if (started[fd] > warm)
				record(t - started[fd]);
			pending[fd] = 0;
			started[fd] = t;
			exactly(fd, size, true);
		}
	}
}

static void crr_open(void)
{
	int fd = new_socket(SOCK_NONBLOCK);
	started[fd] = now_ns();
	pending[fd] = 0;
	if (connect(fd, (struct sockaddr *)&target, sizeof target) && errno != EINPROGRESS)
		die("connect");
	watch(fd, EPOLLOUT, EPOLL_CTL_ADD);
}

static uint64_t crr_many(int conns, uint64_t end)
{
	uint64_t errors = 0;
	for (int i = 0; i < conns; i++)
		crr_open();
	struct epoll_event ready[BATCH];
	while (now_ns() < end && errors < 1000) {
		int n = epoll_wait(poller, ready, BATCH, 100);
		for (int i = 0; i < n; i++) {
			int fd = ready[i].data.fd;
			if (!pending[fd] && write(fd, "x", 1) == 1) {
				pending[fd] = 1;
				watch(fd, EPOLLIN, EPOLL_CTL_MOD);
				continue;
			}
			if (pending[fd] && read(fd, buffer, 1) == 1) {
				record(now_ns() - started[fd]);
				total++;
			} else {
				errors++;
			}
			close(fd);
			crr_open();
		}
	}
	return errors;
}

/* One connection's requests that are due and not yet answered, oldest first; only the oldest is on the wire. */
enum { DUE = 1024 };
static uint64_t due[DUE][DUE];
static uint32_t due_first[DUE], due_count[DUE];
static int nth[MAX_FD];

static void timer_every(int fd, uint64_t ns)
{
	struct timespec step = {.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};
	struct itimerspec spec = {.it_interval = step, .it_value = step};
	if (fd < 0 || timerfd_settime(fd, 0, &spec, NULL))
		die("timerfd");
	watch(fd, EPOLLIN, EPOLL_CTL_ADD);
}

static void orr_answered(int fd, size_t size, uint64_t warm)
{
	int c = nth[fd];
	ssize_t got = read(fd, buffer, sizeof buffer);
	if (got <= 0)
		die("read (closed by peer?)");
	pending[fd] += (uint32_t)got;
	if (pending[fd] < size)
		return;
	uint64_t was_due = due[c][due_first[c]++ % DUE];
	pending[fd] = 0;
	total++;
	if (was_due > warm)
		record(now_ns() - was_due);
	if (--due_count[c])
		exactly(fd, size, true);
}

/* A request that is due at `when`. False: its connection's queue is full. */
static bool orr_due(int fd, uint64_t when, size_t size)
{
	int c = nth[fd];
	if (due_count[c] == DUE)
		return false;
	due[c][(due_first[c] + due_count[c]) % DUE] = when;
	if (!due_count[c]++)
		exactly(fd, size, true);
	return true;
}

static uint64_t timer_ticks(int timer)
{
	uint64_t ticks;
	if (read(timer, &ticks, sizeof ticks) != sizeof ticks)
		die("timerfd");
	return ticks;
}

/* Returns how many requests were not sent because their connection's queue was full. */
static uint64_t orr(size_t size, int conns, int rate, uint64_t end)
{
	int fds[DUE], timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
	if (conns < 1 || conns > DUE || rate < 1)
		die("orr takes 1 to 1024 connections and a rate");
	for (int c = 0; c < conns; c++) {
		fds[c] = connected();
		nth[fds[c]] = c;
		watch(fds[c], EPOLLIN, EPOLL_CTL_ADD);
	}
	uint64_t step = 1000000000u / (uint64_t)rate, begin = now_ns(), sent = 0, full = 0;
	uint64_t warm = begin + warm_up_ns(end - begin);
	timer_every(timer, step);
	for (struct epoll_event ready[BATCH]; now_ns() < end && !interrupted;) {
		int n = epoll_wait(poller, ready, BATCH, 100);
		for (int i = 0; i < n; i++) {
			if (ready[i].data.fd != timer) {
				orr_answered(ready[i].data.fd, size, warm);
				continue;
			}
			for (uint64_t ticks = timer_ticks(timer); ticks; ticks--, sent++)
				full += !orr_due(fds[sent % (uint64_t)conns], begin + (sent + 1) * step, size);
		}
	}
	return full;
}

static uint64_t cold(int tunnel_port, uint64_t end)
{
	char forget_tunnels[64];
	uint64_t errors = 0;
	snprintf(forget_tunnels, sizeof forget_tunnels, "ss -KHtn dport = %d >/dev/null 2>&1", tunnel_port);
	while (now_ns() < end && errors < 100) {
		if (system(forget_tunnels))
			die("ss -K");
		usleep(2000); /* both ends have seen the reset when it is over */
		uint64_t begin = now_ns();
		int fd = connected();
		if (write(fd, "x", 1) == 1 && read(fd, buffer, 1) == 1) {
			record(now_ns() - begin);
			total++;
		} else {
			errors++;
		}
		close(fd);
	}
	return errors;
}

/* Returns the bytes that count, which took `counted_ns`. */
static uint64_t bulk(int conns, uint64_t end, bool sending, uint64_t *counted_ns)
{
	uint64_t bytes = 0;
	for (int i = 0; i < conns; i++) {
		int fd = connected();
		*buffer = sending ? 'S' : 'D';
		exactly(fd, 1, true);
		watch(fd, sending ? EPOLLOUT : EPOLLIN, EPOLL_CTL_ADD);
	}
	struct epoll_event ready[BATCH];
	for (uint64_t begin = now_ns(), done; begin < end; begin = done) {
		if (!is_turn(begin)) {
			done = await_turn(begin, false);
			continue;
		}
		uint64_t before = total;
		int n = epoll_wait(poller, ready, BATCH, 100);
		for (int i = 0; i < n; i++) {
			int fd = ready[i].data.fd;
			ssize_t moved = sending ? send(fd, buffer, sizeof buffer, MSG_DONTWAIT) : read(fd, buffer, sizeof buffer);
			if (moved < 0 && errno == EAGAIN)
				continue;
			if (moved <= 0)
				die("bulk connection closed by peer");
			total += (uint64_t)moved;
		}
		done = now_ns();
		if (is_settled(begin)) {
			bytes += total - before;
			*counted_ns += done - begin;
		}
	}
	return bytes;
}

/* The byte lets the server keep up, and the reset leaves nothing behind; neither is counted. */
static void con(uint64_t end)
{
	const struct linger reset = {.l_onoff = 1, .l_linger = 0};
	for (uint64_t now; (now = now_ns()) < end;) {
		if (!is_turn(now)) {
			await_turn(now, true);
			continue;
		}
		int fd = new_socket(0);
		uint64_t begun = now_ns();
		if (connect(fd, (struct sockaddr *)&target, sizeof target))
			die("connect");
		record(now_ns() - begun);
		total++;
		exactly(fd, 1, true);
		exactly(fd, 1, false);
		setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
		close(fd);
	}
}

static void hold(int conns)
{
	for (int i = 0; i < conns; i++) {
		int fd = connected();
		exactly(fd, 1, true);
		exactly(fd, 1, false);
	}
	printf("{\"case\":\"hold\",\"ops\":%d}\n", conns);
	fflush(stdout);
	while (read(STDIN_FILENO, buffer, sizeof buffer) > 0)
		;
}

static void client(const char *what, char **arg, int args)
{
	if (!inet_pton(AF_INET, arg[0], &target.sin_addr)) {
		errno = EINVAL;
		die(arg[0]);
	}
	target.sin_family = AF_INET;
	target.sin_port = htons((uint16_t)atoi(arg[1]));
	double seconds = atof(arg[args - 1]) * (double)turns_of_all();
	uint64_t begin = now_ns(), end = begin + (uint64_t)(seconds * 1e9), bytes = 0, errors = 0;
	double measured = seconds;
	if (!strcmp(what, "rr")) {
		size_t size = (size_t)atoi(arg[2]);
		atoi(arg[3]) == 1 ? rr_one(connected(), size, end) : rr_many(size, atoi(arg[3]), end);
		measured = seconds - (double)warm_up_ns(end - begin) / 1e9;
	} else if (!strcmp(what, "orr")) {
		errors = orr((size_t)atoi(arg[2]), atoi(arg[3]), atoi(arg[4]), end);
		measured = (double)(now_ns() - begin - warm_up_ns(end - begin)) / 1e9;
	} else if (!strcmp(what, "cold")) {
		errors = cold(atoi(arg[2]), end);
	} else if (!strcmp(what, "con")) {
		con(end);
	} else if (!strcmp(what, "crr")) {
		errors = crr_many(atoi(arg[2]), end);
	} else {
		uint64_t counted_ns = 0;
		bytes = bulk(atoi(arg[2]), end, *what == 's', &counted_ns);
		measured = (double)counted_ns / 1e9;
	}
	report(what, measured - (double)waited_ns / 1e9, bytes, errors);
}

int main(int argc, char **argv)
{
	static const struct { const char *name; int args; } modes[] = {
	    {"rr", 5}, {"orr", 6}, {"crr", 4}, {"con", 3}, {"cold", 4}, {"send", 4}, {"recv", 4}};
	struct rlimit files;
	getrlimit(RLIMIT_NOFILE, &files);
	files.rlim_cur = files.rlim_max;
	setrlimit(RLIMIT_NOFILE, &files);
	signal(SIGPIPE, SIG_IGN);
	signal(SIGINT, interrupt);
	memset(buffer, 'x', sizeof buffer);
	poller = epoll_create1(EPOLL_CLOEXEC);
	if (argc > 5 && !strcmp(argv[1], "turns")) {
		take_turns(atoi(argv[2]), atoi(argv[3]), atoi(argv[4]));
		argv += 4;
		argc -= 4;
	}
	if (argc == 3 && !strcmp(argv[1], "serve"))
		serve(atoi(argv[2]));
	if (argc == 5 && !strcmp(argv[1], "hold")) {
		target = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[3]))};
		inet_pton(AF_INET, argv[2], &target.sin_addr);
		hold(atoi(argv[4]));
		return 0;
	}
	for (size_t i = 0; i < sizeof modes / sizeof *modes; i++)
		if (argc == modes[i].args + 2 && !strcmp(argv[1], modes[i].name)) {
			client(argv[1], argv + 2, modes[i].args);
			return 0;
		}
	fprintf(stderr, "load: see the head of load.c for its arguments\n");
	return 2;
}
