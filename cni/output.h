/* What the plugin says: JSON put together in a bounded buffer, and the error object on stdout that ends it. Part of
 * plugin.c. */

#define MAX_REQUEST (64 * 1024)

enum code { /* CNI specification, "Error" */
	BAD_VERSION = 1,
	BAD_ENVIRONMENT = 4,
	IO_FAILURE = 5,
	BAD_JSON = 6,
	BAD_CONFIG = 7,
	TRY_AGAIN_LATER = 11,
	NOT_AVAILABLE = 50,
};

struct text {
	char bytes[MAX_REQUEST];
	size_t length;
	bool overflow;
};

static struct text body, request;
static const char *output_version = "1.1.0"; /* of errors that come before the configuration is understood */
static bool is_del;

static void put_span(struct text *t, struct span s)
{
	size_t length = (size_t)(s.end - s.at);
	if (length > sizeof t->bytes - t->length) {
		t->overflow = true;
		return;
	}
	memcpy(t->bytes + t->length, s.at, length);
	t->length += length;
}

static struct span span_of(const char *s)
{
	return (struct span){s, s + strlen(s)};
}

static void put(struct text *t, const char *s)
{
	put_span(t, span_of(s));
}

/* As a JSON string; `s` is UTF-8. */
static void put_quoted(struct text *t, const char *s)
{
	put(t, "\"");
	for (; *s; s++) {
		char escaped[8];
		if (*s == '"' || *s == '\\')
			snprintf(escaped, sizeof escaped, "\\%c", *s);
		else if ((unsigned char)*s < 0x20)
			snprintf(escaped, sizeof escaped, "\\u%04x", *s);
		else
			snprintf(escaped, sizeof escaped, "%c", *s);
		put(t, escaped);
	}
	put(t, "\"");
}

static void print_span(struct span s)
{
	fwrite(s.at, 1, (size_t)(s.end - s.at), stdout);
}

/* The end of a command. What cannot be written to stdout has not been said. */
static _Noreturn void finish(int status)
{
	exit(fflush(stdout) ? 1 : status);
}

/* The error object on stdout, exit status 1. `code`, `msg` and `details` are JSON; `details` may be empty. */
static _Noreturn void print_error(struct span code, struct span msg, struct span details)
{
	if (is_del) {
		fprintf(stderr, "nodemesh-cni: DEL: %.*s\n", (int)(msg.end - msg.at), msg.at);
		finish(0);
	}
	printf("{\"cniVersion\":\"%s\",\"code\":", output_version);
	print_span(code);
	printf(",\"msg\":");
	print_span(msg);
	if (details.at < details.end) {
		printf(",\"details\":");
		print_span(details);
	}
	printf("}\n");
	finish(1);
}

static _Noreturn __attribute__((format(printf, 2, 3))) void fail(enum code code, const char *format, ...)
{
	static char sentence[1024], number[16];
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(sentence, sizeof sentence, format, arguments);
	va_end(arguments);
	snprintf(number, sizeof number, "%d", code);
	request.length = 0;
	put_quoted(&request, sentence);
	struct span msg = {request.bytes, request.bytes + request.length}, none = {0};
	print_error(span_of(number), msg, none);
}
