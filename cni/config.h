/* The network configuration on stdin, read and checked. Part of plugin.c. */

#define MAX_CONFIG (1024 * 1024)
#define DEFAULT_SOCKET "/run/nodemesh/cni.sock"
#define DEFAULT_TIMEOUT_S 30
#define MAX_TIMEOUT_S 300

enum version { V0_3_0, V0_3_1, V0_4_0, V1_0_0, V1_1_0, VERSIONS };
static const char *const version_names[VERSIONS] = {"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"};

struct config {
	struct span document, previous, attachments; /* `at` is NULL when absent */
	enum version version;
	char socket[sizeof(((struct sockaddr_un *)0)->sun_path)];
	int timeout_s;
};

static char config_bytes[MAX_CONFIG + 1];

static size_t read_config(void)
{
	size_t length = 0;
	for (;;) {
		ssize_t n = read(STDIN_FILENO, config_bytes + length, sizeof config_bytes - length);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			fail(IO_FAILURE, "the network configuration on stdin cannot be read: %s", strerror(errno));
		length += (size_t)n;
		if (length > MAX_CONFIG)
			fail(BAD_JSON, "the network configuration on stdin is larger than 1 MiB");
		if (n == 0)
			return length;
	}
}

/* A member of the configuration; false when absent. */
static bool find(struct span object, const char *name, struct span *value)
{
	enum json_found found = json_find(object, name, value);
	if (found == JSON_TWICE)
		fail(BAD_JSON, "the network configuration has \"%s\" twice", name);
	return found == JSON_FOUND;
}

static enum version parse_version(struct span document)
{
	struct span value;
	char text[16] = "";
	if (!find(document, "cniVersion", &value) || !json_text(value, text, sizeof text))
		fail(BAD_CONFIG, "cniVersion of the network configuration is missing or no version");
	for (int v = 0; v < VERSIONS; v++)
		if (!strcmp(text, version_names[v]))
			return (enum version)v;
	fail(BAD_VERSION, "CNI version %s is not supported, 0.3.0 to 1.1.0 are", text);
}

static int parse_timeout(struct span value)
{
	int seconds = 0;
	const char *c = value.at;
	while (c < value.end && isdigit((unsigned char)*c) && seconds <= MAX_TIMEOUT_S)
		seconds = seconds * 10 + (*c++ - '0');
	if (c < value.end || seconds < 1 || seconds > MAX_TIMEOUT_S)
		fail(BAD_CONFIG, "timeoutSeconds is not a whole number from 1 to %d", MAX_TIMEOUT_S);
	return seconds;
}

static void parse_keys(struct config *c)
{
	struct span value;
	char name[256];
	if (!find(c->document, "name", &value) || !json_text(value, name, sizeof name) || !*name)
		fail(BAD_CONFIG, "name of the network configuration is missing or no name");
	strcpy(c->socket, DEFAULT_SOCKET);
	if (find(c->document, "agentSocket", &value) && (!json_text(value, c->socket, sizeof c->socket) || *c->socket != '/'))
		fail(BAD_CONFIG, "agentSocket is not an absolute path of at most %zu bytes", sizeof c->socket - 1);
	c->timeout_s = DEFAULT_TIMEOUT_S;
	if (find(c->document, "timeoutSeconds", &value))
		c->timeout_s = parse_timeout(value);
}

static void parse_config(struct config *c)
{
	struct span stdin_text = {config_bytes, config_bytes + read_config()};
	if (!json_take(stdin_text, &c->document) || !json_is(c->document, '{'))
		fail(BAD_JSON, "the network configuration on stdin is not a JSON object");
	c->version = parse_version(c->document);
	output_version = version_names[c->version];
	parse_keys(c);
	if (find(c->document, "prevResult", &c->previous) && !json_is(c->previous, '{'))
		fail(BAD_JSON, "prevResult is not a JSON object");
	if (find(c->document, "cni.dev/valid-attachments", &c->attachments) && !json_is(c->attachments, '['))
		fail(BAD_JSON, "cni.dev/valid-attachments is not a list");
}
