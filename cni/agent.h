/* One request to the node agent: HTTP/1.1 over its Unix socket, one connection, one deadline for all of it.
 * Part of plugin.c, whose buffers and `fail` it uses. */

#define MAX_RESPONSE (64 * 1024)

static char response_bytes[MAX_RESPONSE + 1];

static long long now_ms(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

/* Gives the next call what is left of the deadline. False: nothing is. */
static bool set_deadline(int fd, long long until)
{
	long long left = until - now_ms();
	if (left <= 0)
		return false;
	struct timeval t = {.tv_sec = left / 1000, .tv_usec = left % 1000 * 1000};
	return !setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &t, sizeof t) && !setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t);
}

static _Noreturn void fail_unanswered(const struct config *c, enum code code, int error)
{
	if (error == EAGAIN || error == EINPROGRESS)
		fail(code, "the node agent at %s did not answer within %d s", c->socket, c->timeout_s);
	fail(code, "the node agent at %s does not answer: %s", c->socket, strerror(error));
}

static int connect_agent(const struct config *c, enum code code, long long until)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	memcpy(address.sun_path, c->socket, sizeof address.sun_path);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		fail(IO_FAILURE, "no socket: %s", strerror(errno));
	if (!set_deadline(fd, until) || connect(fd, (struct sockaddr *)&address, sizeof address))
		fail_unanswered(c, code, errno);
	return fd;
}

static void send_request(const struct config *c, int fd, enum code code, long long until)
{
	for (size_t sent = 0; sent < request.length;) {
		if (!set_deadline(fd, until))
			fail_unanswered(c, code, EAGAIN);
		ssize_t n = send(fd, request.bytes + sent, request.length - sent, MSG_NOSIGNAL);
		if (n < 0 && errno != EINTR)
			fail_unanswered(c, code, errno);
		sent += n > 0 ? (size_t)n : 0;
	}
}

/* Up to the agent's end of file; more than the buffer holds is no answer of ours. */
static struct span receive(const struct config *c, int fd, enum code code, long long until)
{
	size_t length = 0;
	while (length < MAX_RESPONSE) {
		if (!set_deadline(fd, until))
			fail_unanswered(c, code, EAGAIN);
		ssize_t n = recv(fd, response_bytes + length, MAX_RESPONSE - length, 0);
		if (n < 0 && errno != EINTR)
			fail_unanswered(c, code, errno);
		if (n == 0)
			break;
		length += n > 0 ? (size_t)n : 0;
	}
	response_bytes[length] = '\0';
	return (struct span){response_bytes, response_bytes + length};
}

/* Splits off the body; returns the status, 0 when this is not HTTP. */
static int parse_response(struct span *response)
{
	const char *blank = strstr(response->at, "\r\n\r\n");
	const char *s = response->at + strlen("HTTP/1.1 ");
	if (!blank || strncmp(response->at, "HTTP/1.", 7) || !isdigit((unsigned char)s[0]) ||
	    !isdigit((unsigned char)s[1]) || !isdigit((unsigned char)s[2]))
		return 0;
	response->at = blank + 4;
	return (s[0] - '0') * 100 + (s[1] - '0') * 10 + (s[2] - '0');
}

/* The agent's error object goes out as it is; an answer that is none is a failure of the agent. */
static _Noreturn void fail_refused(const struct config *c, enum code code, int status, struct span answer)
{
	struct span error, number, msg, details = {0};
	bool told = json_take(answer, &error) && json_is(error, '{') && json_find(error, "code", &number) == JSON_FOUND &&
		    json_find(error, "msg", &msg) == JSON_FOUND && json_is(msg, '"');
	for (const char *d = told ? number.at : NULL; told && d < number.end; d++)
		told = isdigit((unsigned char)*d);
	if (!told)
		fail(code, "the node agent at %s answered with status %d and no reason", c->socket, status);
	if (json_find(error, "details", &details) != JSON_FOUND || !json_is(details, '"'))
		details = (struct span){0};
	print_error(number, msg, details);
}

/* Returns when the agent said yes. `code`: of the error when it says nothing. */
static void ask_agent(const struct config *c, const char *method, const char *path, enum code code)
{
	static const char format[] = "%s %s HTTP/1.1\r\nHost: nodemesh\r\nConnection: close\r\nContent-Type: application/json\r\n"
				     "Content-Length: %zu\r\n\r\n";
	long long until = now_ms() + c->timeout_s * 1000LL;
	char head[256];
	snprintf(head, sizeof head, format, method, path, body.length);
	put(&request, head);
	put_span(&request, (struct span){body.bytes, body.bytes + body.length});
	if (body.overflow || request.overflow)
		fail(BAD_CONFIG, "the request to the node agent is larger than %d KiB", MAX_REQUEST / 1024);
	int fd = connect_agent(c, code, until);
	send_request(c, fd, code, until);
	struct span answer = receive(c, fd, code, until);
	close(fd);
	int status = parse_response(&answer);
	if (status != 200)
		fail_refused(c, code, status, answer);
}
