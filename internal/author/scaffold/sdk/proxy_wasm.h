/* proxy_wasm.h: plugins for Envoy and other Proxy-Wasm hosts, in C.
 *
 * This is the whole SDK: the host's functions and the plugin's callbacks of
 * Proxy-Wasm ABI 0.2.1, and above them a thin layer of functions that start with pw_.
 * C11 with clang or "zig cc", nothing to link. C++ has proxy_wasm.hpp on top of it.
 *
 *     #define PROXY_WASM_IMPLEMENTATION // in exactly one source file
 *     #include "proxy_wasm.h"
 *
 *     pw_action proxy_on_response_headers(uint32_t stream, size_t count, bool end) {
 *       pw_replace_header(PW_RESPONSE_HEADERS, PW_STR("x-hello"), PW_STR("world"));
 *       return PW_CONTINUE;
 *     }
 *
 *     zig cc -target wasm32-wasi -mexec-model=reactor -O2 -s -o hello.wasm hello.c
 *
 * A plugin is the callbacks that it defines: a callback that is not there costs
 * nothing. Their names and types are declared below, so that a wrong one does not
 * compile; being declared here also exports them.
 *
 * Contexts. The host numbers its contexts. A root context is one configured use of the
 * plugin: it is configured, gets ticks and may hold what all its streams share. A stream
 * context is one HTTP request with its response, or one TCP connection; its parent is a
 * root context. A VM can have several root contexts at a time: when a configuration is
 * replaced, the new root context is configured while requests still run under the old
 * one. So nothing of a configuration belongs in a global variable; pw_keep holds it by
 * context.
 *
 * Memory. What the host gives was allocated with malloc and is the plugin's to free:
 * pw_free. What the plugin gives, the host copies.
 *
 * Threads. A VM runs on one thread; each worker thread of the proxy has a VM of its own,
 * and they share nothing but what proxy_set_shared_data and metrics share.
 *
 * Licensed under the Apache License, Version 2.0.
 */
#ifndef PROXY_WASM_H
#define PROXY_WASM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifndef __wasm32__
#error "proxy_wasm.h is for wasm32: build with -target wasm32-wasi"
#endif

#define PW_IMPORT(name) __attribute__((__import_module__("env"), __import_name__(#name)))
#define PW_EXPORT(name) __attribute__((__export_name__(#name)))

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Numbers of the ABI ---- */

/* What a host function answers. */
typedef enum {
  PW_OK = 0,
  PW_NOT_FOUND = 1,     /* no such header, property, key, queue */
  PW_BAD_ARGUMENT = 2,  /* also: not possible in this callback */
  PW_SERIALIZATION_FAILURE = 3,
  PW_PARSE_FAILURE = 4,
  PW_BAD_EXPRESSION = 5,
  PW_INVALID_MEMORY_ACCESS = 6,
  PW_EMPTY = 7,         /* a queue without items */
  PW_CAS_MISMATCH = 8,  /* somebody else wrote the shared data meanwhile */
  PW_RESULT_MISMATCH = 9,
  PW_INTERNAL_FAILURE = 10,
  PW_BROKEN_CONNECTION = 11,
  PW_UNIMPLEMENTED = 12,
} pw_status;

typedef enum { PW_TRACE = 0, PW_DEBUG = 1, PW_INFO = 2, PW_WARN = 3, PW_ERROR = 4, PW_CRITICAL = 5 } pw_level;

/* What a stream's callback wants: go on, or wait. A stream that waits goes on with
 * proxy_continue_stream, or ends with proxy_send_local_response. */
typedef enum { PW_CONTINUE = 0, PW_PAUSE = 1 } pw_action;

typedef enum {
  PW_REQUEST_HEADERS = 0,
  PW_REQUEST_TRAILERS = 1,
  PW_RESPONSE_HEADERS = 2,
  PW_RESPONSE_TRAILERS = 3,
  PW_GRPC_INITIAL_METADATA = 4,  /* in proxy_on_grpc_receive_initial_metadata */
  PW_GRPC_TRAILING_METADATA = 5, /* in proxy_on_grpc_receive_trailing_metadata */
  PW_CALL_HEADERS = 6,           /* in proxy_on_http_call_response */
  PW_CALL_TRAILERS = 7,
} pw_map;

typedef enum {
  PW_REQUEST_BODY = 0,
  PW_RESPONSE_BODY = 1,
  PW_DOWNSTREAM_DATA = 2,
  PW_UPSTREAM_DATA = 3,
  PW_CALL_BODY = 4,     /* in proxy_on_http_call_response */
  PW_GRPC_MESSAGE = 5,  /* in proxy_on_grpc_receive */
  PW_VM_CONFIGURATION = 6,
  PW_CONFIGURATION = 7, /* in proxy_on_configure, and later */
  PW_FOREIGN_DATA = 8,
} pw_buffer;

typedef enum { PW_REQUEST = 0, PW_RESPONSE = 1, PW_DOWNSTREAM = 2, PW_UPSTREAM = 3 } pw_direction;
typedef enum { PW_PEER_UNKNOWN = 0, PW_PEER_LOCAL = 1, PW_PEER_REMOTE = 2 } pw_peer;
typedef enum { PW_COUNTER = 0, PW_GAUGE = 1, PW_HISTOGRAM = 2 } pw_metric;

/* For proxy_send_local_response: the status follows from the HTTP one. */
#define PW_NO_GRPC_STATUS ((uint32_t)-1)

/* ---- Callbacks: define those that the plugin needs ---- */

/* A context begins. A root context has parent 0. */
PW_EXPORT(proxy_on_context_create) void proxy_on_context_create(uint32_t context, uint32_t parent);
/* The VM starts. False ends it: the plugin is refused. */
PW_EXPORT(proxy_on_vm_start) bool proxy_on_vm_start(uint32_t root, size_t configuration_size);
/* A root context gets its configuration; size 0 is none. False refuses it: whoever
 * brought the configuration is told so, and the one before stays in force. Log why. */
PW_EXPORT(proxy_on_configure) bool proxy_on_configure(uint32_t root, size_t configuration_size);
/* The period that proxy_set_tick_period_milliseconds set has passed. */
PW_EXPORT(proxy_on_tick) void proxy_on_tick(uint32_t root);

/* HTTP. A pause in a headers callback holds the whole message back. After a pause in a
 * body callback the next one sees the whole body so far; the last one has end, and is
 * often empty: a chunked body ends with a chunk of size 0. Trailers come only if there
 * are any, and then no body callback has end. Whoever changes the length of a body has
 * to remove content-length in the headers callback, or the body is cut. */
PW_EXPORT(proxy_on_request_headers) pw_action proxy_on_request_headers(uint32_t stream, size_t count, bool end);
PW_EXPORT(proxy_on_request_body) pw_action proxy_on_request_body(uint32_t stream, size_t size, bool end);
PW_EXPORT(proxy_on_request_trailers) pw_action proxy_on_request_trailers(uint32_t stream, size_t count);
PW_EXPORT(proxy_on_response_headers) pw_action proxy_on_response_headers(uint32_t stream, size_t count, bool end);
PW_EXPORT(proxy_on_response_body) pw_action proxy_on_response_body(uint32_t stream, size_t size, bool end);
PW_EXPORT(proxy_on_response_trailers) pw_action proxy_on_response_trailers(uint32_t stream, size_t count);

/* TCP. */
PW_EXPORT(proxy_on_new_connection) pw_action proxy_on_new_connection(uint32_t stream);
PW_EXPORT(proxy_on_downstream_data) pw_action proxy_on_downstream_data(uint32_t stream, size_t size, bool end);
PW_EXPORT(proxy_on_upstream_data) pw_action proxy_on_upstream_data(uint32_t stream, size_t size, bool end);
PW_EXPORT(proxy_on_downstream_connection_close) void proxy_on_downstream_connection_close(uint32_t stream, pw_peer peer);
PW_EXPORT(proxy_on_upstream_connection_close) void proxy_on_upstream_connection_close(uint32_t stream, pw_peer peer);

/* Answers to calls, in the context that called. A call that failed has 0 headers. */
PW_EXPORT(proxy_on_http_call_response) void proxy_on_http_call_response(uint32_t context, uint32_t call, size_t headers, size_t body_size, size_t trailers);
PW_EXPORT(proxy_on_grpc_receive_initial_metadata) void proxy_on_grpc_receive_initial_metadata(uint32_t context, uint32_t call, size_t count);
PW_EXPORT(proxy_on_grpc_receive) void proxy_on_grpc_receive(uint32_t context, uint32_t call, size_t size);
PW_EXPORT(proxy_on_grpc_receive_trailing_metadata) void proxy_on_grpc_receive_trailing_metadata(uint32_t context, uint32_t call, size_t count);
PW_EXPORT(proxy_on_grpc_close) void proxy_on_grpc_close(uint32_t context, uint32_t call, uint32_t status);
PW_EXPORT(proxy_on_queue_ready) void proxy_on_queue_ready(uint32_t root, uint32_t queue);
PW_EXPORT(proxy_on_foreign_function) void proxy_on_foreign_function(uint32_t context, uint32_t function, size_t size);

/* A context ends: may it? False keeps it until proxy_done is called. Then it is logged,
 * with all headers still to be read, and deleted. */
PW_EXPORT(proxy_on_done) bool proxy_on_done(uint32_t context);
PW_EXPORT(proxy_on_log) void proxy_on_log(uint32_t context);
PW_EXPORT(proxy_on_delete) void proxy_on_delete(uint32_t context);

/* ---- Functions of the host ---- */

PW_IMPORT(proxy_log) pw_status proxy_log(pw_level level, const char *text, size_t size);
PW_IMPORT(proxy_get_log_level) pw_status proxy_get_log_level(pw_level *level);
PW_IMPORT(proxy_get_current_time_nanoseconds) pw_status proxy_get_current_time_nanoseconds(uint64_t *time);
/* A period of 0 stops the ticks. In a root context only. */
PW_IMPORT(proxy_set_tick_period_milliseconds) pw_status proxy_set_tick_period_milliseconds(uint32_t period);
/* The context that the following calls are about, for instance a stream that waits while
 * the answer to a root context's call has come. */
PW_IMPORT(proxy_set_effective_context) pw_status proxy_set_effective_context(uint32_t context);
PW_IMPORT(proxy_done) pw_status proxy_done(void);

/* Properties: what the proxy knows of a request, a connection, itself. The names of a
 * path are joined with zero bytes: PW_STR("source\0address"). */
PW_IMPORT(proxy_get_property) pw_status proxy_get_property(const char *path, size_t path_size, char **value, size_t *value_size);
PW_IMPORT(proxy_set_property) pw_status proxy_set_property(const char *path, size_t path_size, const char *value, size_t value_size);

/* Headers and trailers. Names are in lower case. In ":method", ":path", ":authority" and
 * ":status" is what HTTP/1 has in its first line. */
PW_IMPORT(proxy_get_header_map_size) pw_status proxy_get_header_map_size(pw_map map, size_t *size);
PW_IMPORT(proxy_get_header_map_pairs) pw_status proxy_get_header_map_pairs(pw_map map, char **pairs, size_t *size);
PW_IMPORT(proxy_set_header_map_pairs) pw_status proxy_set_header_map_pairs(pw_map map, const char *pairs, size_t size);
PW_IMPORT(proxy_get_header_map_value) pw_status proxy_get_header_map_value(pw_map map, const char *name, size_t name_size, char **value, size_t *value_size);
PW_IMPORT(proxy_add_header_map_value) pw_status proxy_add_header_map_value(pw_map map, const char *name, size_t name_size, const char *value, size_t value_size);
PW_IMPORT(proxy_replace_header_map_value) pw_status proxy_replace_header_map_value(pw_map map, const char *name, size_t name_size, const char *value, size_t value_size);
PW_IMPORT(proxy_remove_header_map_value) pw_status proxy_remove_header_map_value(pw_map map, const char *name, size_t name_size);

/* Bodies, connections' data, configurations. A write replaces size bytes from start on:
 * start 0 with size 0 puts in front, with SIZE_MAX takes the place of all, start SIZE_MAX
 * appends. */
PW_IMPORT(proxy_get_buffer_status) pw_status proxy_get_buffer_status(pw_buffer buffer, size_t *size, uint32_t *flags);
PW_IMPORT(proxy_get_buffer_bytes) pw_status proxy_get_buffer_bytes(pw_buffer buffer, size_t start, size_t size, char **bytes, size_t *bytes_size);
PW_IMPORT(proxy_set_buffer_bytes) pw_status proxy_set_buffer_bytes(pw_buffer buffer, size_t start, size_t size, const char *bytes, size_t bytes_size);

PW_IMPORT(proxy_continue_stream) pw_status proxy_continue_stream(pw_direction direction);
PW_IMPORT(proxy_close_stream) pw_status proxy_close_stream(pw_direction direction);
/* Answers in the upstream's stead. The details are for the access log, not the client. */
PW_IMPORT(proxy_send_local_response) pw_status proxy_send_local_response(uint32_t status, const char *details, size_t details_size, const char *body, size_t body_size, const char *headers, size_t headers_size, uint32_t grpc_status);

/* Calls of other services. The upstream is the name of a cluster of the proxy's; headers
 * need :method, :path and :authority. The answer comes to proxy_on_http_call_response. */
PW_IMPORT(proxy_http_call) pw_status proxy_http_call(const char *upstream, size_t upstream_size, const char *headers, size_t headers_size, const char *body, size_t body_size, const char *trailers, size_t trailers_size, uint32_t timeout_milliseconds, uint32_t *call);
PW_IMPORT(proxy_grpc_call) pw_status proxy_grpc_call(const char *upstream, size_t upstream_size, const char *service, size_t service_size, const char *method, size_t method_size, const char *metadata, size_t metadata_size, const char *message, size_t message_size, uint32_t timeout_milliseconds, uint32_t *call);
PW_IMPORT(proxy_grpc_stream) pw_status proxy_grpc_stream(const char *upstream, size_t upstream_size, const char *service, size_t service_size, const char *method, size_t method_size, const char *metadata, size_t metadata_size, uint32_t *call);
PW_IMPORT(proxy_grpc_send) pw_status proxy_grpc_send(uint32_t call, const char *message, size_t message_size, bool end);
PW_IMPORT(proxy_grpc_close) pw_status proxy_grpc_close(uint32_t call);
PW_IMPORT(proxy_grpc_cancel) pw_status proxy_grpc_cancel(uint32_t call);
PW_IMPORT(proxy_get_status) pw_status proxy_get_status(uint32_t *code, char **message, size_t *message_size);

/* What the VMs with one vm_id share. A write with cas 0 always happens; with the cas of
 * a read it happens if nobody wrote since. */
PW_IMPORT(proxy_get_shared_data) pw_status proxy_get_shared_data(const char *key, size_t key_size, char **value, size_t *value_size, uint32_t *cas);
PW_IMPORT(proxy_set_shared_data) pw_status proxy_set_shared_data(const char *key, size_t key_size, const char *value, size_t value_size, uint32_t cas);
PW_IMPORT(proxy_register_shared_queue) pw_status proxy_register_shared_queue(const char *name, size_t name_size, uint32_t *queue);
PW_IMPORT(proxy_resolve_shared_queue) pw_status proxy_resolve_shared_queue(const char *vm_id, size_t vm_id_size, const char *name, size_t name_size, uint32_t *queue);
PW_IMPORT(proxy_enqueue_shared_queue) pw_status proxy_enqueue_shared_queue(uint32_t queue, const char *value, size_t value_size);
PW_IMPORT(proxy_dequeue_shared_queue) pw_status proxy_dequeue_shared_queue(uint32_t queue, char **value, size_t *value_size);

/* Metrics, counted over all workers. To define one again gives the same number. */
PW_IMPORT(proxy_define_metric) pw_status proxy_define_metric(pw_metric type, const char *name, size_t name_size, uint32_t *metric);
PW_IMPORT(proxy_increment_metric) pw_status proxy_increment_metric(uint32_t metric, int64_t by);
PW_IMPORT(proxy_record_metric) pw_status proxy_record_metric(uint32_t metric, uint64_t value);
PW_IMPORT(proxy_get_metric) pw_status proxy_get_metric(uint32_t metric, uint64_t *value);

PW_IMPORT(proxy_call_foreign_function) pw_status proxy_call_foreign_function(const char *name, size_t name_size, const char *argument, size_t argument_size, char **result, size_t *result_size);

/* ---- Text ---- */

/* Bytes that belong to somebody else. They do not end with a zero byte. */
typedef struct {
  const char *data;
  size_t size;
} pw_str;

/* A literal as a pw_str; zero bytes within it count. */
#define PW_STR(literal) (pw_of("" literal, sizeof(literal) - 1))

static inline pw_str pw_of(const char *data, size_t size) {
  pw_str s = {data, size};
  return s;
}

static inline bool pw_equal(pw_str a, pw_str b) {
  return a.size == b.size && (a.size == 0 || memcmp(a.data, b.data, a.size) == 0);
}

static inline bool pw_has_prefix(pw_str s, pw_str prefix) {
  return s.size >= prefix.size && pw_equal(pw_of(s.data, prefix.size), prefix);
}

static inline bool pw_has_suffix(pw_str s, pw_str suffix) {
  return s.size >= suffix.size && pw_equal(pw_of(s.data + s.size - suffix.size, suffix.size), suffix);
}

/* Bytes that belong to the plugin, to read and to append to. All zero is empty.
 * Memory that cannot be had ends the VM. */
typedef struct {
  char *data;
  size_t size, capacity;
} pw_text;

static inline pw_str pw_view(const pw_text *t) { return pw_of(t->data, t->size); }

static inline void pw_free(pw_text *t) {
  free(t->data);
  t->data = NULL;
  t->size = t->capacity = 0;
}

static inline void pw_add(pw_text *t, pw_str s) {
  size_t need = t->size + s.size;
  if (need < s.size) __builtin_trap();
  if (need > t->capacity) {
    size_t more = t->capacity + t->capacity / 2 + 16;
    t->capacity = need > more ? need : more;
    t->data = (char *)realloc(t->data, t->capacity);
    if (t->data == NULL) __builtin_trap();
  }
  if (s.size > 0) memcpy(t->data + t->size, s.data, s.size);
  t->size = need;
}

/* Appends a number in decimal digits. */
static inline void pw_add_uint(pw_text *t, uint64_t n) {
  char digits[20];
  size_t at = sizeof digits;
  do {
    digits[--at] = (char)('0' + n % 10);
  } while (n /= 10);
  pw_add(t, pw_of(digits + at, sizeof digits - at));
}

/* ---- Logging ---- */

static inline void pw_log(pw_level level, pw_str text) { proxy_log(level, text.data, text.size); }

/* Logs several pieces as one line: pw_logs(PW_INFO, 2, (pw_str[]){a, b}). */
static inline void pw_logs(pw_level level, size_t n, const pw_str *pieces) {
  pw_text line = {NULL, 0, 0};
  for (size_t i = 0; i < n; i++) pw_add(&line, pieces[i]);
  pw_log(level, pw_view(&line));
  pw_free(&line);
}

/* ---- Reading from the host: true if it was there. Free what was read. ---- */

static inline bool pw_took(pw_status status, char *data, size_t size, pw_text *into) {
  if (status != PW_OK) data = NULL, size = 0;
  into->data = data;
  into->size = into->capacity = data == NULL ? 0 : size;
  return status == PW_OK;
}

static inline bool pw_get_header(pw_map map, pw_str name, pw_text *value) {
  char *data = NULL;
  size_t size = 0;
  pw_status status = proxy_get_header_map_value(map, name.data, name.size, &data, &size);
  return pw_took(status, data, size, value);
}

static inline bool pw_get_property(pw_str path, pw_text *value) {
  char *data = NULL;
  size_t size = 0;
  pw_status status = proxy_get_property(path.data, path.size, &data, &size);
  return pw_took(status, data, size, value);
}

/* At most size bytes from start on. An empty buffer is there, and empty. */
static inline bool pw_get_buffer(pw_buffer buffer, size_t start, size_t size, pw_text *bytes) {
  char *data = NULL;
  size_t got = 0;
  if (size == 0) return pw_took(PW_OK, NULL, 0, bytes);
  pw_status status = proxy_get_buffer_bytes(buffer, start, size, &data, &got);
  return pw_took(status, data, got, bytes);
}

/* For proxy_on_configure: pw_get_configuration(configuration_size, &text). */
static inline bool pw_get_configuration(size_t size, pw_text *text) {
  return pw_get_buffer(PW_CONFIGURATION, 0, size, text);
}

/* cas may be NULL. */
static inline bool pw_get_shared(pw_str key, pw_text *value, uint32_t *cas) {
  char *data = NULL;
  size_t size = 0;
  uint32_t version = 0;
  pw_status status = proxy_get_shared_data(key.data, key.size, &data, &size, &version);
  if (cas != NULL) *cas = version;
  return pw_took(status, data, size, value);
}

static inline pw_status pw_set_shared(pw_str key, pw_str value, uint32_t cas) {
  return proxy_set_shared_data(key.data, key.size, value.data, value.size, cas);
}

static inline uint64_t pw_now(void) {
  uint64_t nanoseconds = 0;
  proxy_get_current_time_nanoseconds(&nanoseconds);
  return nanoseconds;
}

/* ---- Writing ---- */

static inline pw_status pw_add_header(pw_map map, pw_str name, pw_str value) {
  return proxy_add_header_map_value(map, name.data, name.size, value.data, value.size);
}

/* Sets the one value of a header, whether it was there or not. */
static inline pw_status pw_replace_header(pw_map map, pw_str name, pw_str value) {
  return proxy_replace_header_map_value(map, name.data, name.size, value.data, value.size);
}

static inline pw_status pw_remove_header(pw_map map, pw_str name) {
  return proxy_remove_header_map_value(map, name.data, name.size);
}

/* Puts bytes in the place of all that is in a buffer. */
static inline pw_status pw_set_buffer(pw_buffer buffer, pw_str bytes) {
  return proxy_set_buffer_bytes(buffer, 0, SIZE_MAX, bytes.data, bytes.size);
}

static inline bool pw_define_metric(pw_metric type, pw_str name, uint32_t *metric) {
  return proxy_define_metric(type, name.data, name.size, metric) == PW_OK;
}

/* ---- Lists of headers ---- */

typedef struct {
  pw_str name, value;
} pw_pair;

/* Appends a list of headers as the ABI has it: the number, all the sizes, then all the
 * texts, each with a zero byte behind it. */
static inline void pw_add_pairs(pw_text *t, const pw_pair *pairs, size_t n) {
  uint32_t count = (uint32_t)n;
  pw_add(t, pw_of((const char *)&count, sizeof count));
  for (size_t i = 0; i < n; i++) {
    uint32_t sizes[2] = {(uint32_t)pairs[i].name.size, (uint32_t)pairs[i].value.size};
    pw_add(t, pw_of((const char *)sizes, sizeof sizes));
  }
  for (size_t i = 0; i < n; i++) {
    pw_add(t, pairs[i].name);
    pw_add(t, pw_of("", 1));
    pw_add(t, pairs[i].value);
    pw_add(t, pw_of("", 1));
  }
}

/* All headers of a map, read one after the other:
 *     pw_pairs all;
 *     pw_pair one;
 *     if (pw_get_pairs(PW_REQUEST_HEADERS, &all))
 *       while (pw_next(&all, &one)) ...
 *     pw_free(&all.text); */
typedef struct {
  pw_text text;
  size_t index, count, at;
} pw_pairs;

static inline uint32_t pw_u32(const char *at) {
  uint32_t n;
  memcpy(&n, at, sizeof n);
  return n;
}

static inline bool pw_get_pairs(pw_map map, pw_pairs *all) {
  char *data = NULL;
  size_t size = 0;
  pw_status status = proxy_get_header_map_pairs(map, &data, &size);
  all->index = all->count = all->at = 0;
  bool ok = pw_took(status, data, size, &all->text);
  if (ok && size >= 4) {
    all->count = pw_u32(data);
    all->at = 4 + 8 * all->count;
  }
  return ok;
}

static inline bool pw_next(pw_pairs *all, pw_pair *one) {
  if (all->index == all->count) return false;
  const char *sizes = all->text.data + 4 + 8 * all->index++;
  one->name = pw_of(all->text.data + all->at, pw_u32(sizes));
  one->value = pw_of(one->name.data + one->name.size + 1, pw_u32(sizes + 4));
  all->at += one->name.size + one->value.size + 2;
  return true;
}

/* ---- Answers and calls ---- */

/* Answers in the upstream's stead; the callback has to return PW_PAUSE then. The
 * details are for the access log. */
static inline pw_status pw_respond(uint32_t status, pw_str details, pw_str body, const pw_pair *headers, size_t n) {
  pw_text list = {NULL, 0, 0};
  if (n > 0) pw_add_pairs(&list, headers, n);
  pw_status result = proxy_send_local_response(status, details.data, details.size, body.data, body.size, list.data, list.size, PW_NO_GRPC_STATUS);
  pw_free(&list);
  return result;
}

/* Calls a cluster of the proxy's over HTTP; the call's number is for
 * proxy_on_http_call_response. */
static inline pw_status pw_http_call(pw_str cluster, const pw_pair *headers, size_t n, pw_str body, uint32_t timeout_milliseconds, uint32_t *call) {
  pw_text list = {NULL, 0, 0};
  pw_add_pairs(&list, headers, n);
  pw_text none = {NULL, 0, 0};
  pw_add_pairs(&none, NULL, 0);
  pw_status result = proxy_http_call(cluster.data, cluster.size, list.data, list.size, body.data, body.size, none.data, none.size, timeout_milliseconds, call);
  pw_free(&list);
  pw_free(&none);
  return result;
}

/* ---- What belongs to a context ---- */

/* Holds a pointer by context, in the place of what was held before; NULL forgets it. */
void pw_keep(uint32_t context, void *state);
/* The pointer that is held, or NULL. */
void *pw_kept(uint32_t context);

#ifdef PROXY_WASM_IMPLEMENTATION

/* By these two the host knows a module of ABI 0.2.1, and gets memory to put into what
 * it gives. */
PW_EXPORT(proxy_abi_version_0_2_1) void proxy_abi_version_0_2_1(void) {}
PW_EXPORT(proxy_on_memory_allocate) void *proxy_on_memory_allocate(size_t size) { return malloc(size); }

/* An open hash table: slots are a power of two and at most three quarters full. */
static struct pw_slot {
  uint32_t context; /* 0: never used; a context is never 0 */
  void *state;      /* NULL: forgotten */
} *pw_slots;
static size_t pw_slot_count, pw_slots_used;

static struct pw_slot *pw_find(uint32_t context) {
  size_t i = (context * 2654435761u) & (pw_slot_count - 1);
  while (pw_slots[i].context != 0 && pw_slots[i].context != context) i = (i + 1) & (pw_slot_count - 1);
  return &pw_slots[i];
}

static void pw_grow(void) {
  struct pw_slot *old = pw_slots;
  size_t n = pw_slot_count, live = 0;
  for (size_t i = 0; i < n; i++) live += old[i].state != NULL;
  pw_slot_count = n == 0 ? 16 : live * 2 >= n ? n * 2 : n;
  pw_slots = (struct pw_slot *)calloc(pw_slot_count, sizeof *pw_slots);
  if (pw_slots == NULL) __builtin_trap();
  pw_slots_used = live;
  for (size_t i = 0; i < n; i++)
    if (old[i].state != NULL) *pw_find(old[i].context) = old[i];
  free(old);
}

void pw_keep(uint32_t context, void *state) {
  if (state == NULL && pw_slot_count == 0) return;
  if (pw_slots_used * 4 >= pw_slot_count * 3) pw_grow();
  struct pw_slot *slot = pw_find(context);
  if (slot->context == 0) {
    if (state == NULL) return;
    slot->context = context;
    pw_slots_used++;
  }
  slot->state = state;
}

void *pw_kept(uint32_t context) { return pw_slot_count == 0 ? NULL : pw_find(context)->state; }

#endif /* PROXY_WASM_IMPLEMENTATION */

#ifdef __cplusplus
}
#endif

#endif /* PROXY_WASM_H */
