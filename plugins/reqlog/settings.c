#include "proxy_wasm_json.h"
#include "reqlog.h"

static bool refuse(pw_str path, const char *reason) {
  pw_logs(PW_ERROR, 3, (pw_str[]){PW_STR("reqlog: configuration refused: "), path, pw_of(reason, strlen(reason))});
  return false;
}

static bool printable(pw_str s) {
  for (size_t i = 0; i < s.size; i++)
    if (s.data[i] < '!' || s.data[i] > '~') return false;
  return s.size > 0;
}

/* Reads text that goes into the head of a call: printable, and something. */
static bool read_word(pw_json v, pw_str path, pw_text *into) {
  into->size = 0;
  if (!pw_json_string(v, into)) return refuse(path, ": must be text");
  if (!printable(pw_view(into))) return refuse(path, ": must be printable ASCII without blanks, and not empty");
  return true;
}

static bool read_number(pw_json v, pw_str path, int64_t least, int64_t most, int64_t *into) {
  if (pw_json_int(v, into) && *into >= least && *into <= most) return true;
  pw_text reason = {NULL, 0, 0};
  pw_add(&reason, PW_STR(": must be a whole number from "));
  pw_add_uint(&reason, (uint64_t)least);
  pw_add(&reason, PW_STR(" to "));
  pw_add_uint(&reason, (uint64_t)most);
  pw_add(&reason, pw_of("", 1));
  refuse(path, reason.data);
  pw_free(&reason);
  return false;
}

/* Reads the names of headers, in lower case. */
static bool read_headers(pw_json v, settings *s) {
  pw_json items = pw_json_items(v), name, value;
  if (pw_json_kind_of(v) != PW_JSON_ARRAY) return refuse(PW_STR("headers"), ": must be a list of names");
  while (pw_json_next(&items, &name, &value)) {
    if (s->header_count == MAX_HEADERS) return refuse(PW_STR("headers"), ": at most 16");
    pw_text *h = &s->headers[s->header_count++];
    if (!read_word(value, PW_STR("headers"), h)) return false;
    for (size_t i = 0; i < h->size; i++)
      if (h->data[i] >= 'A' && h->data[i] <= 'Z') h->data[i] = (char)(h->data[i] - 'A' + 'a');
  }
  return true;
}

static bool read_key(settings *s, pw_json key, pw_json value) {
  if (pw_json_is(key, PW_STR("cluster"))) return read_word(value, PW_STR("cluster"), &s->cluster);
  if (pw_json_is(key, PW_STR("authority"))) return read_word(value, PW_STR("authority"), &s->authority);
  if (pw_json_is(key, PW_STR("path"))) {
    if (!read_word(value, PW_STR("path"), &s->path)) return false;
    return s->path.data[0] == '/' || refuse(PW_STR("path"), ": must begin with /");
  }
  if (pw_json_is(key, PW_STR("interval_ms"))) return read_number(value, PW_STR("interval_ms"), 10, 60000, &s->interval_ms);
  if (pw_json_is(key, PW_STR("timeout_ms"))) return read_number(value, PW_STR("timeout_ms"), 10, 60000, &s->timeout_ms);
  if (pw_json_is(key, PW_STR("batch"))) return read_number(value, PW_STR("batch"), 1, 1000, &s->batch);
  if (pw_json_is(key, PW_STR("queue"))) return read_number(value, PW_STR("queue"), 1, 100000, &s->queue);
  if (pw_json_is(key, PW_STR("headers"))) return read_headers(value, s);
  if (pw_json_is(key, PW_STR("query"))) return pw_json_bool(value, &s->query) || refuse(PW_STR("query"), ": must be true or false");
  return refuse(pw_json_raw(key), ": is not known");
}

bool settings_read(settings *s, pw_str text) {
  pw_json config, items, key, value;
  s->interval_ms = 1000;
  s->timeout_ms = 5000;
  s->batch = 100;
  s->queue = 10000;
  if (!pw_json_parse(text, &config) || pw_json_kind_of(config) != PW_JSON_OBJECT) return refuse(PW_STR(""), "must be a JSON object");
  items = pw_json_items(config);
  while (pw_json_next(&items, &key, &value)) {
    if (pw_json_is(key, PW_STR("headers"))) s->header_count = 0; /* of two the last counts */
    if (!read_key(s, key, value)) return false;
  }
  if (s->cluster.size == 0) return refuse(PW_STR("cluster"), ": is required");
  if (s->authority.size == 0) pw_add(&s->authority, pw_view(&s->cluster));
  if (s->path.size == 0) pw_add(&s->path, PW_STR("/"));
  return true;
}

void settings_clear(settings *s) {
  pw_free(&s->cluster);
  pw_free(&s->authority);
  pw_free(&s->path);
  for (size_t i = 0; i < MAX_HEADERS; i++) pw_free(&s->headers[i]);
}
