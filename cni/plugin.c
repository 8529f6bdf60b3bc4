/* nodemesh-cni: the chained CNI plugin, specification 1.1. Asks the node agent over its Unix socket (proto/enrol.schema.json)
 * and passes the previous plugin's result through, byte for byte.
 *
 * Decides nothing and holds nothing. Fail closed: without the agent's yes a pod of Kubernetes does not start. DEL alone
 * always succeeds, so that nothing keeps a pod from going away. plugin.py is the same program in Python; both pass
 * tests/cni/. One thread, no allocation: every buffer is static and bounded. */
#define _GNU_SOURCE
#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "json.h"
#include "output.h"
#include "config.h"
#include "agent.h"

/* A variable of the environment that must be UTF-8; "" when absent. */
static const char *variable(const char *name)
{
	const char *value = getenv(name);
	struct span s = span_of(value ? value : "");
	while (json_more(&s))
		if (!json_utf8(&s))
			fail(BAD_ENVIRONMENT, "%s is not UTF-8", name);
	return value ? value : "";
}

static const char *required(const char *name)
{
	const char *value = variable(name);
	if (!*value)
		fail(BAD_ENVIRONMENT, "%s is not set", name);
	return value;
}

static const char *container_id(void)
{
	const char *id = required("CNI_CONTAINERID");
	for (const char *c = id; *c; c++)
		if (!isalnum((unsigned char)*c) && (c == id || !strchr("_.-", *c)))
			fail(BAD_ENVIRONMENT, "CNI_CONTAINERID is not a container id");
	return id;
}

static const char *interface_name(void)
{
	const char *name = required("CNI_IFNAME");
	if (strlen(name) > 15 || strpbrk(name, "/: ") || !strcmp(name, ".") || !strcmp(name, ".."))
		fail(BAD_ENVIRONMENT, "CNI_IFNAME is not an interface's name");
	return name;
}

/* Splits CNI_ARGS ("KEY=VALUE;KEY=VALUE") in place; the three that matter here. */
static void kubernetes_arguments(const char **name, const char **name_space, const char **uid)
{
	static char copy[8192];
	const char *given = variable("CNI_ARGS");
	*name = *name_space = *uid = "";
	if (strlen(given) >= sizeof copy)
		fail(BAD_ENVIRONMENT, "CNI_ARGS is longer than %zu bytes", sizeof copy - 1);
	strcpy(copy, given);
	for (char *pair, *rest = copy; (pair = strsep(&rest, ";"));) {
		char *value = strchr(pair, '=');
		if (!*pair)
			continue;
		if (!value)
			fail(BAD_ENVIRONMENT, "CNI_ARGS holds a part that is not KEY=VALUE");
		*value++ = '\0';
		if (!strcmp(pair, "K8S_POD_NAME"))
			*name = value;
		else if (!strcmp(pair, "K8S_POD_NAMESPACE"))
			*name_space = value;
		else if (!strcmp(pair, "K8S_POD_UID"))
			*uid = value;
	}
	if (!**name != !**name_space)
		fail(BAD_ENVIRONMENT, "CNI_ARGS has only one of K8S_POD_NAME and K8S_POD_NAMESPACE");
}

static void put_member(const char *name, const char *value)
{
	put(&body, body.length > 1 ? "," : "");
	put_quoted(&body, name);
	put(&body, ":");
	put_quoted(&body, value);
}

/* "ips":[...]: prevResult.ips[].address, as they stand. */
static void put_ips(struct span previous)
{
	struct span ips, walk, ip, address;
	const char *comma = "";
	put(&body, ",\"ips\":[");
	if (find(previous, "ips", &ips)) {
		if (!json_is(ips, '['))
			fail(BAD_JSON, "ips of prevResult is not a list");
		for (walk = json_enter(ips); json_next_element(&walk, &ip); comma = ",") {
			if (!json_is(ip, '{') || !find(ip, "address", &address) || !json_is(address, '"'))
				fail(BAD_JSON, "ips of prevResult holds an entry without an address");
			put(&body, comma);
			put_span(&body, address);
		}
	}
	put(&body, "]");
}

/* False: no pod of Kubernetes, nothing to ask. */
static bool put_attachment(struct span previous)
{
	const char *id = container_id(), *netns = required("CNI_NETNS"), *ifname = interface_name();
	const char *name, *name_space, *uid;
	kubernetes_arguments(&name, &name_space, &uid);
	if (!*name)
		return false;
	put(&body, "{");
	put_member("container_id", id);
	put_member("netns", netns);
	put_member("ifname", ifname);
	put_member("pod_name", name);
	put_member("pod_namespace", name_space);
	if (*uid)
		put_member("pod_uid", uid);
	put_ips(previous);
	put(&body, "}");
	return true;
}

static void put_valid_attachments(struct span attachments)
{
	struct span walk, entry, id, ifname;
	const char *comma = "";
	put(&body, "{\"valid_attachments\":[");
	for (walk = json_enter(attachments); json_next_element(&walk, &entry); comma = ",") {
		if (!json_is(entry, '{') || !find(entry, "containerID", &id) || !find(entry, "ifname", &ifname) ||
		    !json_is(id, '"') || !json_is(ifname, '"'))
			fail(BAD_JSON, "cni.dev/valid-attachments holds an entry without containerID and ifname");
		put(&body, comma);
		put(&body, "{\"container_id\":");
		put_span(&body, id);
		put(&body, ",\"ifname\":");
		put_span(&body, ifname);
		put(&body, "}");
	}
	put(&body, "]}");
}

/* prevResult with the configuration's cniVersion: changed only where that member differs or is missing. */
static void print_result(const struct config *c)
{
	struct span version, rest = c->previous;
	char text[16];
	if (!find(c->previous, "cniVersion", &version)) {
		struct span walk = json_enter(c->previous);
		json_space(&walk);
		printf("{\"cniVersion\":\"%s\"%s", output_version, json_more(&walk) ? "," : "");
		rest.at++;
	} else if (!json_text(version, text, sizeof text) || strcmp(text, output_version)) {
		print_span((struct span){rest.at, version.at});
		printf("\"%s\"", output_version);
		rest.at = version.end;
	}
	print_span(rest);
	printf("\n");
}

static void require_version(const struct config *c, enum version least, const char *command)
{
	if (c->version < least)
		fail(BAD_VERSION, "%s needs CNI version %s or newer", command, version_names[least]);
}

static void require_previous(const struct config *c)
{
	if (!c->previous.at)
		fail(BAD_CONFIG, "prevResult is missing: nodemesh-cni has to follow another plugin in the list");
}

static void add(const struct config *c)
{
	require_previous(c);
	if (put_attachment(c->previous))
		ask_agent(c, "POST", "/cni/add", TRY_AGAIN_LATER);
	print_result(c);
}

static void check(const struct config *c)
{
	require_version(c, V0_4_0, "CHECK");
	require_previous(c);
	if (put_attachment(c->previous))
		ask_agent(c, "POST", "/cni/check", TRY_AGAIN_LATER);
}

static void del(const struct config *c)
{
	put(&body, "{");
	put_member("container_id", container_id());
	put(&body, "}");
	ask_agent(c, "POST", "/cni/del", TRY_AGAIN_LATER);
}

static void gc(const struct config *c)
{
	require_version(c, V1_1_0, "GC");
	if (!c->attachments.at)
		fail(BAD_CONFIG, "cni.dev/valid-attachments is missing");
	put_valid_attachments(c->attachments);
	ask_agent(c, "POST", "/cni/gc", TRY_AGAIN_LATER);
}

static void status(const struct config *c)
{
	require_version(c, V1_1_0, "STATUS");
	ask_agent(c, "GET", "/cni/status", NOT_AVAILABLE);
}

int main(void)
{
	static const struct {
		const char *name;
		void (*run)(const struct config *);
	} commands[] = {{"ADD", add}, {"CHECK", check}, {"DEL", del}, {"GC", gc}, {"STATUS", status}};
	static struct config config;
	const char *command = required("CNI_COMMAND");
	is_del = !strcmp(command, "DEL");
	if (!strcmp(command, "VERSION")) {
		printf("{\"cniVersion\":\"1.1.0\",\"supportedVersions\":[\"0.3.0\",\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]}\n");
		finish(0);
	}
	for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
		if (strcmp(command, commands[i].name))
			continue;
		parse_config(&config);
		commands[i].run(&config);
		finish(0);
	}
	fail(BAD_ENVIRONMENT, "CNI_COMMAND is none of ADD, CHECK, DEL, GC, STATUS, VERSION");
}
