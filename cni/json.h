/* A strict, bounded JSON scanner (RFC 8259) that finds where values begin and end; it builds nothing and allocates nothing.
 *
 * `json_take` is the door: what it accepted is well-formed UTF-8 JSON, nested at most JSON_DEPTH deep. The walkers
 * below it only ever see accepted text. Strict means: no NaN, no trailing comma, no control character in a string. */
#ifndef NODEMESH_JSON_H
#define NODEMESH_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#define JSON_DEPTH 64

/* Text from `at` up to, not including, `end`. */
struct span {
	const char *at, *end;
};

enum json_found { JSON_ABSENT, JSON_FOUND, JSON_TWICE };

static bool json_value(struct span *s, int depth);

static bool json_more(const struct span *s)
{
	return s->at < s->end;
}

static bool json_eat(struct span *s, char c)
{
	if (!json_more(s) || *s->at != c)
		return false;
	s->at++;
	return true;
}

static void json_space(struct span *s)
{
	while (json_more(s) && memchr(" \t\r\n", *s->at, 4))
		s->at++;
}

static int json_hex(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* Four hex digits at `s`, or -1. */
static int json_hex4(struct span *s)
{
	int value = 0;
	for (int i = 0; i < 4; i++) {
		int digit = json_more(s) ? json_hex(*s->at++) : -1;
		if (digit < 0)
			return -1;
		value = value * 16 + digit;
	}
	return value;
}

/* One UTF-8 sequence of RFC 3629: no overlong form, no surrogate, nothing above U+10FFFF. */
static bool json_utf8(struct span *s)
{
	static const unsigned least[] = {0, 0x80, 0x800, 0x10000};
	unsigned char first = (unsigned char)*s->at++;
	int more = first < 0x80 ? 0 : first >> 5 == 6 ? 1 : first >> 4 == 14 ? 2 : first >> 3 == 30 ? 3 : -1;
	if (more < 0)
		return false;
	unsigned point = more ? first & (0x3Fu >> more) : first;
	for (int i = 0; i < more; i++) {
		if (!json_more(s) || ((unsigned char)*s->at & 0xC0) != 0x80)
			return false;
		point = point << 6 | ((unsigned char)*s->at++ & 0x3F);
	}
	return point >= least[more] && point <= 0x10FFFF && (point < 0xD800 || point > 0xDFFF);
}

static bool json_string(struct span *s)
{
	if (!json_eat(s, '"'))
		return false;
	while (json_more(s)) {
		if (json_eat(s, '"'))
			return true;
		if (json_eat(s, '\\')) {
			if (!json_more(s) || !memchr("\"\\/bfnrtu", *s->at, 9))
				return false;
			if (*s->at++ == 'u' && json_hex4(s) < 0)
				return false;
		} else if ((unsigned char)*s->at < 0x20 || !json_utf8(s)) {
			return false;
		}
	}
	return false;
}

static bool json_digits(struct span *s)
{
	const char *begin = s->at;
	while (json_more(s) && *s->at >= '0' && *s->at <= '9')
		s->at++;
	return s->at > begin;
}

static bool json_number(struct span *s)
{
	json_eat(s, '-');
	if (!json_eat(s, '0') && !json_digits(s))
		return false;
	if (json_eat(s, '.') && !json_digits(s))
		return false;
	if (json_eat(s, 'e') || json_eat(s, 'E')) {
		if (!json_eat(s, '+'))
			json_eat(s, '-');
		return json_digits(s);
	}
	return true;
}

static bool json_word(struct span *s, const char *word)
{
	size_t length = strlen(word);
	if ((size_t)(s->end - s->at) < length || memcmp(s->at, word, length))
		return false;
	s->at += length;
	return true;
}

static bool json_member(struct span *s, int depth)
{
	json_space(s);
	if (!json_string(s))
		return false;
	json_space(s);
	return json_eat(s, ':') && json_value(s, depth);
}

/* The inside of an object or array, from behind its opening bracket to behind its closing one. */
static bool json_inside(struct span *s, char close, int depth)
{
	json_space(s);
	if (json_eat(s, close))
		return true;
	do {
		if (!(close == '}' ? json_member(s, depth) : json_value(s, depth)))
			return false;
		json_space(s);
	} while (json_eat(s, ','));
	return json_eat(s, close);
}

static bool json_value(struct span *s, int depth)
{
	json_space(s);
	if (!json_more(s))
		return false;
	switch (*s->at) {
	case '{':
	case '[': {
		char close = *s->at++ == '{' ? '}' : ']';
		return depth < JSON_DEPTH && json_inside(s, close, depth + 1);
	}
	case '"':
		return json_string(s);
	case 't':
		return json_word(s, "true");
	case 'f':
		return json_word(s, "false");
	case 'n':
		return json_word(s, "null");
	default:
		return json_number(s);
	}
}

/* `text` is one JSON value and white space; `value` becomes the value alone. */
static bool json_take(struct span text, struct span *value)
{
	json_space(&text);
	value->at = text.at;
	if (!json_value(&text, 0))
		return false;
	value->end = text.at;
	json_space(&text);
	return !json_more(&text);
}

static bool json_is(struct span value, char opening)
{
	return json_more(&value) && *value.at == opening;
}

/* Starts a walk over an accepted object or array: `next_*` until they return false. */
static struct span json_enter(struct span container)
{
	return (struct span){container.at + 1, container.end - 1};
}

static bool json_next_element(struct span *walk, struct span *value)
{
	json_space(walk);
	if (!json_more(walk))
		return false;
	value->at = walk->at;
	json_value(walk, 0);
	value->end = walk->at;
	json_space(walk);
	json_eat(walk, ',');
	return true;
}

static bool json_next_member(struct span *walk, struct span *key, struct span *value)
{
	json_space(walk);
	if (!json_more(walk))
		return false;
	key->at = walk->at;
	json_string(walk);
	key->end = walk->at;
	json_space(walk);
	json_eat(walk, ':');
	return json_next_element(walk, value);
}

/* Appends a code point as UTF-8; returns the bytes written, 0 when `room` is too small. */
static size_t json_put_point(char *out, size_t room, unsigned point)
{
	int more = point < 0x80 ? 0 : point < 0x800 ? 1 : point < 0x10000 ? 2 : 3;
	static const unsigned char lead[] = {0, 0xC0, 0xE0, 0xF0};
	if (room < (size_t)more + 1)
		return 0;
	for (int i = more; i > 0; i--, point >>= 6)
		out[i] = (char)(0x80 | (point & 0x3F));
	out[0] = (char)(lead[more] | point);
	return (size_t)more + 1;
}

/* The code point of the escape at `s` (behind its backslash), or -1: NUL and half a surrogate pair name none. */
static int json_escape_point(struct span *s)
{
	static const char names[] = "\"\\/bfnrt", points[] = "\"\\/\b\f\n\r\t";
	char c = *s->at++;
	if (c != 'u')
		return points[strchr(names, c) - names];
	int high = json_hex4(s);
	if (high < 0xD800 || high > 0xDFFF)
		return high == 0 ? -1 : high;
	if (high > 0xDBFF || !json_eat(s, '\\') || !json_eat(s, 'u'))
		return -1;
	int low = json_hex4(s);
	return low < 0xDC00 || low > 0xDFFF ? -1 : 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00);
}

/* An accepted string as a C string. False: it is no string, does not fit, or holds what no C string can. */
static bool json_text(struct span value, char *out, size_t size)
{
	if (!json_is(value, '"'))
		return false;
	struct span s = json_enter(value);
	size_t used = 0;
	while (json_more(&s)) {
		if (used + 1 >= size)
			return false;
		if (!json_eat(&s, '\\')) {
			out[used++] = *s.at++;
			continue;
		}
		int point = json_escape_point(&s);
		size_t put = point < 0 ? 0 : json_put_point(out + used, size - 1 - used, (unsigned)point);
		if (!put)
			return false;
		used += put;
	}
	out[used] = '\0';
	return true;
}

/* The member `name` of an accepted object. */
static enum json_found json_find(struct span object, const char *name, struct span *found)
{
	struct span walk = json_enter(object), key, value;
	enum json_found result = JSON_ABSENT;
	char text[64];
	while (json_next_member(&walk, &key, &value)) {
		if (!json_text(key, text, sizeof text) || strcmp(text, name))
			continue;
		if (result == JSON_FOUND)
			return JSON_TWICE;
		result = JSON_FOUND;
		*found = value;
	}
	return result;
}

#endif
