#include "proxy_wasm_json.h"
#include "reqlog.h"

/* What is longer is cut: a client must not decide how much memory a line takes. */
enum { MAX_VALUE = 1024 };

/* Appends text as JSON. Bytes that are no UTF-8 become U+FFFD, as JSON has none. */
static void add_quoted(pw_text *t, pw_str s) {
  static const char hex[] = "0123456789abcdef";
  pw_add(t, PW_STR("\""));
  const char *p = s.data, *end = s.data + (s.size < MAX_VALUE ? s.size : MAX_VALUE);
  while (p < end) {
    size_t n = pw_json_rune(p, end);
    if (n == 0) {
      pw_add(t, PW_STR("\xef\xbf\xbd"));
      p++;
      continue;
    }
    if (*p == '"' || *p == '\\') {
      pw_add(t, PW_STR("\\"));
    } else if ((unsigned char)*p < 0x20) {
      char escape[6] = {'\\', 'u', '0', '0', hex[*p >> 4], hex[*p & 15]};
      pw_add(t, pw_of(escape, sizeof escape));
      p++;
      continue;
    }
    pw_add(t, pw_of(p, n));
    p += n;
  }
  pw_add(t, PW_STR("\""));
}

/* Appends a member whose name needs no escapes. */
static void add_name(pw_text *t, const char *name) {
  pw_add(t, t->size > 1 ? PW_STR(",\"") : PW_STR("\""));
  pw_add(t, pw_of(name, strlen(name)));
  pw_add(t, PW_STR("\":"));
}

static void add_number(pw_text *t, const char *name, uint64_t n) {
  add_name(t, name);
  pw_add_uint(t, n);
}

static void add_text(pw_text *t, const char *name, pw_str s) {
  add_name(t, name);
  add_quoted(t, s);
}

/* A number that the proxy knows; 0: it does not. */
static uint64_t number(pw_str path) {
  pw_text value;
  uint64_t n = 0;
  if (pw_get_property(path, &value) && value.size == sizeof n) memcpy(&n, value.data, sizeof n);
  pw_free(&value);
  return n;
}

/* Appends a header of the request, if it is there; with end, only what is before that
 * character. */
static void add_header(pw_text *t, const char *name, pw_str header, char end) {
  pw_text value;
  if (pw_get_header(PW_REQUEST_HEADERS, header, &value)) {
    pw_str s = pw_view(&value);
    const char *found = end != 0 && s.size > 0 ? memchr(s.data, end, s.size) : NULL;
    add_text(t, name, found != NULL ? pw_of(s.data, (size_t)(found - s.data)) : s);
  }
  pw_free(&value);
}

static void add_headers(pw_text *t, const settings *s) {
  pw_text value;
  pw_text all = {NULL, 0, 0};
  pw_add(&all, PW_STR("{"));
  for (size_t i = 0; i < s->header_count; i++) {
    if (pw_get_header(PW_REQUEST_HEADERS, pw_view(&s->headers[i]), &value)) {
      if (all.size > 1) pw_add(&all, PW_STR(","));
      add_quoted(&all, pw_view(&s->headers[i]));
      pw_add(&all, PW_STR(":"));
      add_quoted(&all, pw_view(&value));
    }
    pw_free(&value);
  }
  pw_add(&all, PW_STR("}"));
  if (all.size > 2) {
    add_name(t, "headers");
    pw_add(t, pw_view(&all));
  }
  pw_free(&all);
}

pw_text line_make(const settings *s) {
  pw_text t = {NULL, 0, 0}, details;
  pw_add(&t, PW_STR("{"));
  add_number(&t, "time_ms", pw_now() / 1000000);
  add_header(&t, "method", PW_STR(":method"), 0);
  add_header(&t, "authority", PW_STR(":authority"), 0);
  add_header(&t, "path", PW_STR(":path"), s->query ? 0 : '?');
  add_number(&t, "status", number(PW_STR("response\0code")));
  add_number(&t, "duration_us", number(PW_STR("request\0duration")) / 1000);
  if (pw_get_property(PW_STR("response\0code_details"), &details)) add_text(&t, "details", pw_view(&details));
  pw_free(&details);
  add_headers(&t, s);
  pw_add(&t, PW_STR("}\n"));
  return t;
}
