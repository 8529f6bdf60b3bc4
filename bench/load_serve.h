/* Part of load.c: the server, one thread for all of its connections. */

/* A connection's role is its first byte: 'S' sink, 'D' source (fills us with data), anything else echo. */
static char role[MAX_FD];

static void forget(int fd)
{
	role[fd] = 0;
	close(fd);
}

static bool is_tunnel; /* it stands in a tunnel's place: captured connections come to it */

static void ask_destination(int fd)
{
	struct sockaddr_in asked;
	socklen_t size = sizeof asked;
	getsockopt(fd, IPPROTO_IP, SO_ORIGINAL_DST, &asked, &size);
}

static void accept_all(int listener)
{
	for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK)) >= 0;) {
		int on = 1;
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
		if (is_tunnel)
			ask_destination(fd);
		watch(fd, EPOLLIN, EPOLL_CTL_ADD);
	}
}

static void echo(int fd, ssize_t size)
{
	for (ssize_t done = 0; done < size;) {
		ssize_t n = write(fd, buffer + done, (size_t)(size - done));
		if (n < 0 && errno == EAGAIN)
			continue; /* the client reads what it asked for: the queue empties soon */
		if (n < 0) {
			forget(fd);
			return;
		}
		done += n;
	}
}

static void serve_one(int fd)
{
	if (role[fd] == 'D') {
		if (write(fd, buffer, sizeof buffer) < 0 && errno != EAGAIN)
			forget(fd);
		return;
	}
	ssize_t n = read(fd, buffer, sizeof buffer);
	if (n < 0 && errno == EAGAIN)
		return;
	if (n <= 0) {
		forget(fd);
		return;
	}
	if (!role[fd]) {
		role[fd] = *buffer == 'S' || *buffer == 'D' ? *buffer : 'E';
		if (role[fd] == 'D')
			watch(fd, EPOLLOUT, EPOLL_CTL_MOD);
	}
	if (role[fd] == 'E')
		echo(fd, n);
}

static void serve(int port)
{
	int listener = new_socket(SOCK_NONBLOCK), on = 1;
	struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
	if (bind(listener, (struct sockaddr *)&any, sizeof any) || listen(listener, 8192))
		die("listen");
	watch(listener, EPOLLIN, EPOLL_CTL_ADD);
	is_tunnel = port == OUTBOUND_PORT;
	for (struct epoll_event ready[BATCH];;) {
		int n = epoll_wait(poller, ready, BATCH, -1);
		for (int i = 0; i < n; i++)
			ready[i].data.fd == listener ? accept_all(listener) : serve_one(ready[i].data.fd);
	}
}
