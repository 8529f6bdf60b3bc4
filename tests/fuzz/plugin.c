/* The CNI plugin on input from a pipe: for each case a child with that configuration on its stdin and that answer of the
 * agent. A case: one byte for the command, then configuration and answer, each behind its length (four bytes, big endian).
 * Prints how many cases ran; exits 1 and prints the number of the first one that a sanitizer or a signal ended. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static char *spoken;
static size_t spoken_len;

/* Instead of the agent: everything it will ever say is there already. */
static int connect_to_answer(int fd, const struct sockaddr *address, socklen_t length)
{
	int ends[2];
	(void)address, (void)length;
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) || dup2(ends[0], fd) < 0)
		return -1;
	close(ends[0]);
	(void)!write(ends[1], spoken, spoken_len > 65536 ? 65536 : spoken_len);
	return shutdown(ends[1], SHUT_WR);
}

#define connect connect_to_answer
#define main plugin_main
#include "../../cni/plugin.c"
#undef main

static char *take(size_t *length)
{
	unsigned char head[4];
	if (fread(head, 1, 4, stdin) != 4)
		exit(2);
	*length = (size_t)head[0] << 24 | (size_t)head[1] << 16 | (size_t)head[2] << 8 | head[3];
	char *bytes = malloc(*length + 1);
	if (!bytes || fread(bytes, 1, *length, stdin) != *length)
		exit(2);
	return bytes;
}

static void run(int command, const char *given, size_t length)
{
	static const char *const commands[] = {"ADD", "CHECK", "DEL", "GC", "STATUS"};
	FILE *file = tmpfile();
	if (!file || fwrite(given, 1, length, file) != length || fflush(file) || lseek(fileno(file), 0, SEEK_SET))
		_exit(2);
	dup2(fileno(file), STDIN_FILENO);
	if (!freopen("/dev/null", "w", stdout) || setenv("CNI_COMMAND", commands[command % 5], 1))
		_exit(2);
	exit(plugin_main());
}

int main(void)
{
	int cases = 0;
	for (int command; (command = getchar()) != EOF; cases++) {
		size_t length;
		int status;
		char *given = take(&length);
		spoken = take(&spoken_len);
		pid_t child = fork();
		if (!child)
			run(command, given, length);
		if (child < 0 || waitpid(child, &status, 0) < 0)
			return 2;
		if (!WIFEXITED(status) || WEXITSTATUS(status) > 1) {
			printf("case %d ended with status %d\n", cases, status);
			return 1;
		}
		free(given);
		free(spoken);
	}
	printf("%d\n", cases);
	return 0;
}
