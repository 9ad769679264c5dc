/* proxy_wasm_json.h: reading JSON, for the configuration of a plugin or a body.
 *
 *     pw_json config, name;
 *     if (!pw_json_parse(pw_view(&text), &config)) ...       // not JSON
 *     if (pw_json_member(config, PW_STR("name"), &name)) ... // there
 *     pw_text value = {NULL, 0, 0};
 *     if (!pw_json_string(name, &value)) ...                 // not a string
 *
 * A value is a view of the text, which has to live as long. Nothing is allocated but the
 * strings that are asked for. The text is checked once, whole, by RFC 8259: UTF-8, no
 * comments, nothing behind the value, at most PW_JSON_DEPTH levels. Of a name that is
 * there twice the last one counts.
 *
 * Licensed under the Apache License, Version 2.0.
 */
#ifndef PROXY_WASM_JSON_H
#define PROXY_WASM_JSON_H

#include "proxy_wasm.h"

#ifdef __cplusplus
extern "C" {
#endif

#ifndef PW_JSON_DEPTH
#define PW_JSON_DEPTH 64
#endif

/* A value: all zero is none, otherwise text that was found to be in order. */
typedef struct {
  const char *at, *end;
} pw_json;

typedef enum { PW_JSON_NONE, PW_JSON_NULL, PW_JSON_BOOL, PW_JSON_NUMBER, PW_JSON_STRING, PW_JSON_ARRAY, PW_JSON_OBJECT } pw_json_kind;

static inline pw_json_kind pw_json_kind_of(pw_json v) {
  if (v.at == v.end) return PW_JSON_NONE;
  switch (*v.at) {
    case 'n': return PW_JSON_NULL;
    case 't': case 'f': return PW_JSON_BOOL;
    case '"': return PW_JSON_STRING;
    case '[': return PW_JSON_ARRAY;
    case '{': return PW_JSON_OBJECT;
    default: return PW_JSON_NUMBER;
  }
}

/* The text of a value as it stands there. */
static inline pw_str pw_json_raw(pw_json v) { return pw_of(v.at, (size_t)(v.end - v.at)); }

static inline const char *pw_json_space(const char *p, const char *end) {
  while (p < end && (*p == ' ' || *p == '\t' || *p == '\n' || *p == '\r')) p++;
  return p;
}

/* The length of the character in UTF-8 at p, or 0 if there is none. */
static inline size_t pw_json_rune(const char *p, const char *end) {
  const unsigned char *s = (const unsigned char *)p;
  size_t n = s[0] < 0x80 ? 1 : s[0] < 0xc2 ? 0 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : s[0] < 0xf5 ? 4 : 0;
  if (n > (size_t)(end - p)) return 0;
  for (size_t i = 1; i < n; i++)
    if ((s[i] & 0xc0) != 0x80) return 0;
  if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f)) return 0;
  if ((s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] > 0x8f)) return 0;
  return n;
}

static inline bool pw_json_digit(const char *p, const char *end) { return p < end && *p >= '0' && *p <= '9'; }

/* Four hexadecimal digits, or -1. */
static inline int32_t pw_json_hex(const char *p, const char *end) {
  int32_t n = 0;
  if (end - p < 4) return -1;
  for (int i = 0; i < 4; i++) {
    char c = p[i];
    n = n * 16 + (c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -0x10000);
    if (n < 0) return -1;
  }
  return n;
}

/* The pw_json_..._end functions give what is behind a thing that begins at p, or NULL
 * if it is not in order. */

static inline const char *pw_json_string_end(const char *p, const char *end) {
  if (p == end || *p != '"') return NULL;
  for (p++; p < end && *p != '"';) {
    size_t n = pw_json_rune(p, end);
    if (n == 0 || (unsigned char)*p < 0x20) return NULL;
    if (*p == '\\') {
      if (p + 1 == end) return NULL;
      if (p[1] == 'u') {
        if (pw_json_hex(p + 2, end) < 0) return NULL;
        n = 6;
      } else if (p[1] != 0 && strchr("\"\\/bfnrt", p[1]) != NULL) {
        n = 2;
      } else {
        return NULL;
      }
    }
    p += n;
  }
  return p < end ? p + 1 : NULL;
}

static inline const char *pw_json_number_end(const char *p, const char *end) {
  if (p < end && *p == '-') p++;
  if (!pw_json_digit(p, end)) return NULL;
  if (*p == '0') p++;
  else while (pw_json_digit(p, end)) p++;
  if (p < end && *p == '.') {
    if (!pw_json_digit(++p, end)) return NULL;
    while (pw_json_digit(p, end)) p++;
  }
  if (p < end && (*p == 'e' || *p == 'E')) {
    p++;
    if (p < end && (*p == '+' || *p == '-')) p++;
    if (!pw_json_digit(p, end)) return NULL;
    while (pw_json_digit(p, end)) p++;
  }
  return p;
}

static inline const char *pw_json_word_end(const char *p, const char *end, pw_str word) {
  return pw_has_prefix(pw_of(p, (size_t)(end - p)), word) ? p + word.size : NULL;
}

static inline const char *pw_json_scalar_end(const char *p, const char *end) {
  if (p == end) return NULL;
  switch (*p) {
    case '"': return pw_json_string_end(p, end);
    case 't': return pw_json_word_end(p, end, PW_STR("true"));
    case 'f': return pw_json_word_end(p, end, PW_STR("false"));
    case 'n': return pw_json_word_end(p, end, PW_STR("null"));
    default: return pw_json_number_end(p, end);
  }
}

/* The name of a member with its colon, and the space behind it. */
static inline const char *pw_json_name_end(const char *p, const char *end) {
  if ((p = pw_json_string_end(p, end)) == NULL) return NULL;
  p = pw_json_space(p, end);
  return p < end && *p == ':' ? pw_json_space(p + 1, end) : NULL;
}

/* Without recursion, so that a deep text needs no deep stack. */
static inline const char *pw_json_value_end(const char *p, const char *end) {
  char closers[PW_JSON_DEPTH]; /* of the arrays and objects that are open */
  size_t depth = 0;
  for (;;) {
    /* Here a value begins. */
    if (p < end && (*p == '[' || *p == '{')) {
      if (depth == PW_JSON_DEPTH) return NULL;
      char closer = closers[depth++] = *p == '[' ? ']' : '}';
      p = pw_json_space(p + 1, end);
      if (p == end || *p != closer) {
        if (closer == '}' && (p = pw_json_name_end(p, end)) == NULL) return NULL;
        continue;
      }
      p++, depth--;
    } else if ((p = pw_json_scalar_end(p, end)) == NULL) {
      return NULL;
    }
    /* Here a value has ended. */
    while (depth > 0) {
      p = pw_json_space(p, end);
      if (p == end) return NULL;
      if (*p == closers[depth - 1]) {
        p++, depth--;
        continue;
      }
      if (*p != ',') return NULL;
      p = pw_json_space(p + 1, end);
      if (closers[depth - 1] == '}' && (p = pw_json_name_end(p, end)) == NULL) return NULL;
      break;
    }
    if (depth == 0) return p;
  }
}

/* Takes a whole text; false if it is not one JSON value. */
static inline bool pw_json_parse(pw_str text, pw_json *value) {
  const char *end = text.data + text.size;
  value->at = value->end = NULL;
  if (text.size == 0) return false;
  const char *at = pw_json_space(text.data, end), *behind = pw_json_value_end(at, end);
  if (behind == NULL || pw_json_space(behind, end) != end) return false;
  value->at = at;
  value->end = behind;
  return true;
}

/* Goes through an array or object:
 *     pw_json items = pw_json_items(list), name, value;
 *     while (pw_json_next(&items, &name, &value)) ...
 * The items of an array have no name. Other values have no items. */
static inline pw_json pw_json_items(pw_json v) {
  pw_json_kind kind = pw_json_kind_of(v);
  if (kind != PW_JSON_ARRAY && kind != PW_JSON_OBJECT) v.end = v.at;
  return v;
}

static inline bool pw_json_next(pw_json *items, pw_json *name, pw_json *value) {
  /* items->at is at the opening bracket, at a comma, or at the closing one. */
  if (items->at == items->end) return false;
  bool named = items->end[-1] == '}';
  const char *p = pw_json_space(items->at + 1, items->end);
  if (p == items->end || *p == items->end[-1]) return false; /* nothing begins with a closing bracket */
  name->at = name->end = NULL;
  if (named) {
    name->at = p;
    name->end = pw_json_string_end(p, items->end);
    p = pw_json_name_end(p, items->end);
  }
  value->at = p;
  value->end = pw_json_value_end(p, items->end);
  items->at = pw_json_space(value->end, items->end);
  return true;
}

static inline size_t pw_json_count(pw_json v) {
  pw_json items = pw_json_items(v), name, value;
  size_t n = 0;
  while (pw_json_next(&items, &name, &value)) n++;
  return n;
}

static inline void pw_json_add_rune(pw_text *t, uint32_t c) {
  char b[4];
  size_t n = 0;
  if (c < 0x80) {
    b[n++] = (char)c;
  } else {
    if (c < 0x800) {
      b[n++] = (char)(0xc0 | c >> 6);
    } else {
      if (c < 0x10000) {
        b[n++] = (char)(0xe0 | c >> 12);
      } else {
        b[n++] = (char)(0xf0 | c >> 18);
        b[n++] = (char)(0x80 | (c >> 12 & 0x3f));
      }
      b[n++] = (char)(0x80 | (c >> 6 & 0x3f));
    }
    b[n++] = (char)(0x80 | (c & 0x3f));
  }
  pw_add(t, pw_of(b, n));
}

/* Appends the text of a string, without quotes and escapes; false, and nothing is
 * appended, if the value is none. Half of a pair of surrogates becomes U+FFFD. */
static inline bool pw_json_string(pw_json v, pw_text *into) {
  if (pw_json_kind_of(v) != PW_JSON_STRING) return false;
  const char *end = v.end - 1;
  for (const char *p = v.at + 1; p < end;) {
    const char *plain = p;
    while (p < end && *p != '\\') p++;
    pw_add(into, pw_of(plain, (size_t)(p - plain)));
    if (p == end) break;
    if (p[1] != 'u') {
      static const char from[] = "bfnrt", to[] = "\b\f\n\r\t";
      const char *found = strchr(from, p[1]);
      char c = found != NULL ? to[found - from] : p[1];
      pw_add(into, pw_of(&c, 1));
      p += 2;
      continue;
    }
    uint32_t c = (uint32_t)pw_json_hex(p + 2, end);
    p += 6;
    if (c >= 0xd800 && c < 0xdc00 && end - p >= 6 && p[0] == '\\' && p[1] == 'u') {
      uint32_t low = (uint32_t)pw_json_hex(p + 2, end);
      if (low >= 0xdc00 && low < 0xe000) {
        c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
        p += 6;
      }
    }
    pw_json_add_rune(into, c >= 0xd800 && c < 0xe000 ? 0xfffd : c);
  }
  return true;
}

/* Whether a value is this string. */
static inline bool pw_json_is(pw_json v, pw_str text) {
  pw_text s = {NULL, 0, 0};
  bool equal = pw_json_string(v, &s) && pw_equal(pw_view(&s), text);
  pw_free(&s);
  return equal;
}

/* Finds a member of an object. */
static inline bool pw_json_member(pw_json v, pw_str wanted, pw_json *found) {
  pw_json items = pw_json_items(v), name, value;
  found->at = found->end = NULL;
  while (pw_json_next(&items, &name, &value))
    if (pw_json_is(name, wanted)) *found = value;
  return found->at != NULL;
}

static inline bool pw_json_bool(pw_json v, bool *value) {
  if (pw_json_kind_of(v) != PW_JSON_BOOL) return false;
  *value = *v.at == 't';
  return true;
}

/* A number without fraction and exponent that fits; others are none. */
static inline bool pw_json_int(pw_json v, int64_t *value) {
  if (pw_json_kind_of(v) != PW_JSON_NUMBER) return false;
  bool negative = *v.at == '-';
  int64_t n = 0;
  for (const char *p = v.at + negative; p < v.end; p++) {
    if (!pw_json_digit(p, v.end) || __builtin_mul_overflow(n, (int64_t)10, &n)) return false;
    int64_t digit = *p - '0';
    if (negative ? __builtin_sub_overflow(n, digit, &n) : __builtin_add_overflow(n, digit, &n)) return false;
  }
  *value = n;
  return true;
}

/* Any number, as near as a double comes. */
static inline bool pw_json_double(pw_json v, double *value) {
  char text[64];
  pw_str raw = pw_json_raw(v);
  if (pw_json_kind_of(v) != PW_JSON_NUMBER || raw.size >= sizeof text) return false;
  memcpy(text, raw.data, raw.size);
  text[raw.size] = 0;
  *value = strtod(text, NULL);
  return true;
}

#ifdef __cplusplus
}
#endif

#endif /* PROXY_WASM_JSON_H */
