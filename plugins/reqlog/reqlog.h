/* What the parts of reqlog share: the settings that a configuration gives, and the queue
 * of lines that wait to be sent. */
#ifndef REQLOG_H
#define REQLOG_H

#include "proxy_wasm.h"

enum { MAX_HEADERS = 16 };

/* A configuration. config.schema.json says the same to others. */
typedef struct {
  pw_text cluster, authority, path;
  int64_t interval_ms, timeout_ms; /* from one tick to the next; for an answer */
  int64_t batch, queue;            /* lines: in one call, and waiting at most */
  bool query;
  pw_text headers[MAX_HEADERS];
  size_t header_count;
} settings;

/* Reads a configuration. Of a wrong one the log tells what is wrong, with the path. */
bool settings_read(settings *s, pw_str text);
void settings_clear(settings *s);

/* The lines that wait, first in first out, in a ring of fixed size. */
typedef struct {
  pw_text *lines;
  size_t size, first, count;
} queue;

void queue_make(queue *q, size_t size);
/* Takes a line over; false if there is no room for it. */
bool queue_push(queue *q, pw_text line);
/* The line with n before it. */
pw_str queue_at(const queue *q, size_t n);
void queue_drop(queue *q, size_t n);
void queue_clear(queue *q);

/* The line of the request that is in hand: JSON with a line feed. */
pw_text line_make(const settings *s);

#endif
