/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The canary of capture by BPF: a process of the pod's control group that connects. Hooks see who made a socket, so no thread of the
 * agent can stand in for the pod. Runs in the pod's network namespace already.
 *
 *   canary CGROUP DEADLINE_MS PORT ADDRESS...
 *
 * One line per address: 0, accepted; else the errno. Exit code 1: it could not join the group; the errno is the only line.
 *
 * It connects as a child that is born in the group (Linux 5.7): whoever moves into one waits until no processor forks, 5 to 20 ms.
 * Where that is refused, as by a sandbox that cannot look into clone3's arguments, it moves.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef SYS_clone3
#define SYS_clone3 435
#endif
#define INTO_CGROUP 0x200000000ULL

/* struct clone_args, linux/sched.h, as of Linux 5.7. */
struct clone_arguments {
	uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup;
};

/* As fork(), the child in the group: 0 there. */
static pid_t born_in(int group)
{
	struct clone_arguments arguments = { .flags = INTO_CGROUP, .exit_signal = SIGCHLD, .cgroup = (uint64_t)group };

	return (pid_t)syscall(SYS_clone3, &arguments, sizeof(arguments));
}

static int move_into(int group)
{
	int fd = openat(group, "cgroup.procs", O_WRONLY | O_CLOEXEC);
	int failed = fd < 0 || write(fd, "0", 1) != 1 ? errno : 0;

	if (fd >= 0)
		close(fd);
	return failed;
}

/* Returns in the process that is in the group, 0, or in none, the errno; the parent of one that was born there ends with it. */
static int join(const char *path)
{
	int group = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int status;
	pid_t child;

	if (group < 0)
		return errno;
	child = born_in(group);
	if (child < 0)
		return move_into(group);
	if (child == 0)
		return prctl(PR_SET_PDEATHSIG, SIGKILL) == 0 ? 0 : errno;
	if (waitpid(child, &status, 0) != child || !WIFEXITED(status))
		exit(3);
	exit(WEXITSTATUS(status));
}

static socklen_t read_address(const char *text, in_port_t port_be, struct sockaddr_storage *to)
{
	struct sockaddr_in *four = (struct sockaddr_in *)to;
	struct sockaddr_in6 *six = (struct sockaddr_in6 *)to;

	memset(to, 0, sizeof(*to));
	if (inet_pton(AF_INET, text, &four->sin_addr) == 1) {
		four->sin_family = AF_INET;
		four->sin_port = port_be;
		return sizeof(*four);
	}
	if (inet_pton(AF_INET6, text, &six->sin6_addr) == 1) {
		six->sin6_family = AF_INET6;
		six->sin6_port = port_be;
		return sizeof(*six);
	}
	return 0;
}

static int outcome(int fd, int deadline_ms)
{
	struct pollfd wait = { .fd = fd, .events = POLLOUT };
	int failed = 0;
	socklen_t size = sizeof(failed);

	if (poll(&wait, 1, deadline_ms) == 0)
		return ETIMEDOUT;
	if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &failed, &size) != 0)
		return errno;
	return failed;
}

static int try(const char *text, in_port_t port_be, int deadline_ms)
{
	const struct linger reset = { .l_onoff = 1, .l_linger = 0 }; /* no TIME_WAIT in the pod */
	struct sockaddr_storage to;
	socklen_t size = read_address(text, port_be, &to);
	int fd, failed;

	if (size == 0)
		return EINVAL;
	fd = socket(to.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP);
	if (fd < 0)
		return errno;
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
	failed = connect(fd, (struct sockaddr *)&to, size) == 0 ? 0 : errno;
	if (failed == EINPROGRESS)
		failed = outcome(fd, deadline_ms);
	close(fd);
	return failed;
}

int main(int count, char **arguments)
{
	int failed;

	if (count < 5)
		return 2;
	failed = join(arguments[1]);
	if (failed) {
		printf("%d\n", failed);
		return 1;
	}
	for (int each = 4; each < count; each++)
		printf("%d\n", try(arguments[each], htons((in_port_t)atoi(arguments[3])), atoi(arguments[2])));
	return 0;
}
