/* reqlog is a Proxy-Wasm plugin that sends a line of JSON about each request to a
 * service, many of them in one call.
 *
 * A line is made when its request is over and waits in a queue. A tick sends what waits;
 * there is one call at a time, and its lines stay in the queue until the service has said
 * that it has them. Each worker of the proxy has a VM, and so a queue, of its own. */
#define PROXY_WASM_IMPLEMENTATION
#include "reqlog.h"

/* How often a batch is sent before it is given up. */
enum { TRIES = 3 };

/* A root context with what it counts. Its streams only look at it. */
typedef struct {
  uint32_t owner;
  settings settings;
  queue queue;
  size_t sending; /* lines at the head of the queue, in the call under way; 0: none is */
  int tries;      /* of the lines at the head */
  uint32_t logged, sent, dropped, failed;
} logger;

static bool define(const char *name, uint32_t *metric) { return pw_define_metric(PW_COUNTER, pw_of(name, strlen(name)), metric); }

static void give_up(logger *l, size_t lines) {
  queue_drop(&l->queue, lines);
  proxy_increment_metric(l->dropped, (int64_t)lines);
  l->tries = 0;
}

/* The call of the lines at the head has failed. */
static void failed(logger *l, size_t lines) {
  proxy_increment_metric(l->failed, 1);
  if (++l->tries < TRIES) return;
  pw_log(PW_WARN, PW_STR("reqlog: lines were dropped: the service did not take them"));
  give_up(l, lines);
}

/* Sends the lines at the head, if there are any and no call is under way. */
static void send(logger *l) {
  if (l->sending > 0 || l->queue.count == 0) return;
  size_t n = l->queue.count < (size_t)l->settings.batch ? l->queue.count : (size_t)l->settings.batch;
  pw_text body = {NULL, 0, 0};
  for (size_t i = 0; i < n; i++) pw_add(&body, queue_at(&l->queue, i));
  const pw_pair head[] = {
      {PW_STR(":method"), PW_STR("POST")},
      {PW_STR(":path"), pw_view(&l->settings.path)},
      {PW_STR(":authority"), pw_view(&l->settings.authority)},
      {PW_STR("content-type"), PW_STR("application/x-ndjson")},
  };
  uint32_t call;
  if (pw_http_call(pw_view(&l->settings.cluster), head, sizeof head / sizeof *head, pw_view(&body), (uint32_t)l->settings.timeout_ms, &call) == PW_OK) {
    l->sending = n;
  } else {
    failed(l, n); /* the proxy has no such cluster, or none now */
  }
  pw_free(&body);
}

void proxy_on_context_create(uint32_t context, uint32_t parent) {
  logger *l = parent == 0 ? calloc(1, sizeof *l) : pw_kept(parent);
  if (l == NULL) __builtin_trap();
  if (parent == 0) l->owner = context;
  pw_keep(context, l);
}

bool proxy_on_configure(uint32_t root, size_t size) {
  logger *l = pw_kept(root);
  settings given = {0};
  pw_text text;
  bool ok = pw_get_configuration(size, &text) && settings_read(&given, pw_view(&text));
  pw_free(&text);
  ok = ok && define("reqlog.logged", &l->logged) && define("reqlog.sent", &l->sent) && define("reqlog.dropped", &l->dropped) && define("reqlog.failed", &l->failed);
  if (!ok) {
    settings_clear(&given);
    return false;
  }
  if (l->queue.count > 0) give_up(l, l->queue.count);
  l->sending = 0;
  settings_clear(&l->settings);
  queue_clear(&l->queue);
  l->settings = given;
  queue_make(&l->queue, (size_t)given.queue);
  proxy_set_tick_period_milliseconds((uint32_t)given.interval_ms);
  return true;
}

void proxy_on_log(uint32_t stream) {
  logger *l = pw_kept(stream);
  if (l->owner == stream || l->queue.size == 0) return; /* a root context, or none that is configured */
  proxy_increment_metric(l->logged, 1);
  pw_text line = line_make(&l->settings);
  if (queue_push(&l->queue, line)) return;
  pw_free(&line);
  proxy_increment_metric(l->dropped, 1);
}

void proxy_on_tick(uint32_t root) { send(pw_kept(root)); }

/* The service has answered, or did not. After lines that it took, a whole batch does not
 * wait for the next tick. */
void proxy_on_http_call_response(uint32_t root, uint32_t call, size_t headers, size_t body_size, size_t trailers) {
  (void)call, (void)body_size, (void)trailers;
  logger *l = pw_kept(root);
  size_t lines = l->sending;
  l->sending = 0;
  pw_text status = {NULL, 0, 0};
  bool took = headers > 0 && pw_get_header(PW_CALL_HEADERS, PW_STR(":status"), &status) && pw_has_prefix(pw_view(&status), PW_STR("2"));
  pw_free(&status);
  if (!took) {
    failed(l, lines);
    return;
  }
  proxy_increment_metric(l->sent, (int64_t)lines);
  queue_drop(&l->queue, lines);
  l->tries = 0;
  if (l->queue.count >= (size_t)l->settings.batch) send(l);
}

void proxy_on_delete(uint32_t context) {
  logger *l = pw_kept(context);
  pw_keep(context, NULL);
  if (l == NULL || l->owner != context) return;
  settings_clear(&l->settings);
  queue_clear(&l->queue);
  free(l);
}
