/* A plugin for the tests of the header: what it is configured with says what to do, and
 * what came of it is logged. */
#define PROXY_WASM_IMPLEMENTATION
#include "proxy_wasm.h"
#include "proxy_wasm_json.h"

static void add_hex(pw_text *out, pw_str s) {
  static const char digits[] = "0123456789abcdef";
  for (size_t i = 0; i < s.size; i++) {
    pw_add(out, pw_of(&digits[(unsigned char)s.data[i] >> 4], 1));
    pw_add(out, pw_of(&digits[s.data[i] & 15], 1));
  }
}

static void add_string(pw_text *out, pw_json v) {
  pw_text text = {NULL, 0, 0};
  if (!pw_json_string(v, &text)) __builtin_trap();
  pw_add(out, PW_STR("s"));
  add_hex(out, pw_view(&text));
  pw_free(&text);
}

/* Writes a value in a form of the test's own. */
static void dump(pw_text *out, pw_json v) {
  pw_json items = pw_json_items(v), name, value;
  bool object = pw_json_kind_of(v) == PW_JSON_OBJECT, truth = false;
  int64_t number = 0;
  switch (pw_json_kind_of(v)) {
    case PW_JSON_NULL: pw_add(out, PW_STR("z")); break;
    case PW_JSON_BOOL:
      if (!pw_json_bool(v, &truth)) __builtin_trap();
      pw_add(out, truth ? PW_STR("t") : PW_STR("f"));
      break;
    case PW_JSON_STRING: add_string(out, v); break;
    case PW_JSON_NUMBER:
      pw_add(out, PW_STR("n"));
      pw_add(out, pw_json_raw(v));
      if (pw_json_int(v, &number)) {
        pw_add(out, PW_STR("="));
        if (number < 0) pw_add(out, PW_STR("-"));
        pw_add_uint(out, number < 0 ? -(uint64_t)number : (uint64_t)number);
      }
      break;
    default:
      pw_add(out, object ? PW_STR("{") : PW_STR("["));
      while (pw_json_next(&items, &name, &value)) {
        if (object) add_string(out, name);
        dump(out, value);
        pw_add(out, PW_STR(","));
      }
      pw_add(out, object ? PW_STR("}") : PW_STR("]"));
  }
}

static bool read_json(pw_str text) {
  pw_json v;
  if (!pw_json_parse(text, &v)) return false;
  pw_text out = {NULL, 0, 0};
  dump(&out, v);
  pw_log(PW_INFO, pw_view(&out));
  pw_free(&out);
  return true;
}

/* [context, state] keeps, state 0 forgets, [context] asks. */
static bool keep(pw_str text) {
  pw_json v, items, none, step;
  if (!pw_json_parse(text, &v)) return false;
  pw_text out = {NULL, 0, 0};
  items = pw_json_items(v);
  while (pw_json_next(&items, &none, &step)) {
    pw_json parts = pw_json_items(step), part;
    int64_t context = 0, state = 0;
    if (!pw_json_next(&parts, &none, &part) || !pw_json_int(part, &context)) return false;
    if (pw_json_next(&parts, &none, &part)) {
      if (!pw_json_int(part, &state)) return false;
      pw_keep((uint32_t)context, (void *)(uintptr_t)state);
    } else {
      pw_add_uint(&out, (uintptr_t)pw_kept((uint32_t)context));
      pw_add(&out, PW_STR(" "));
    }
  }
  pw_log(PW_INFO, pw_view(&out));
  pw_free(&out);
  return true;
}

bool proxy_on_configure(uint32_t root, size_t size) {
  (void)root;
  pw_text text;
  bool ok = pw_get_configuration(size, &text) && text.size > 0;
  if (ok) {
    pw_str rest = pw_of(text.data + 1, text.size - 1);
    ok = text.data[0] == 'j' ? read_json(rest) : keep(rest);
  }
  pw_free(&text);
  return ok;
}
