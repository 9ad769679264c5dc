#include "reqlog.h"

void queue_make(queue *q, size_t size) {
  q->lines = calloc(size, sizeof *q->lines);
  if (q->lines == NULL) __builtin_trap();
  q->size = size;
  q->first = q->count = 0;
}

static pw_text *slot(const queue *q, size_t n) { return &q->lines[(q->first + n) % q->size]; }

bool queue_push(queue *q, pw_text line) {
  if (q->count == q->size) return false;
  *slot(q, q->count++) = line;
  return true;
}

pw_str queue_at(const queue *q, size_t n) { return pw_view(slot(q, n)); }

void queue_drop(queue *q, size_t n) {
  for (; n > 0 && q->count > 0; n--, q->count--) {
    pw_free(slot(q, 0));
    q->first = (q->first + 1) % q->size;
  }
}

void queue_clear(queue *q) {
  queue_drop(q, q->count);
  free(q->lines);
  q->lines = NULL;
  q->size = 0;
}
