// proxy_wasm.hpp: plugins for Envoy and other Proxy-Wasm hosts, in C++.
//
// A thin layer over proxy_wasm.h, which says what the host means by contexts, callbacks
// and bodies; its functions can be used beside these. C++20, without exceptions and RTTI,
// nothing to link but the standard library:
//
//     #define PROXY_WASM_IMPLEMENTATION // in exactly one source file
//     #include "proxy_wasm.hpp"
//
//     struct Request : proxy_wasm::Stream {
//       pw_action on_response_headers(size_t, bool) override {
//         proxy_wasm::response_headers.replace("x-hello", "world");
//         return PW_CONTINUE;
//       }
//     };
//
//     struct Hello : proxy_wasm::Root {
//       std::unique_ptr<proxy_wasm::Stream> stream() override { return std::make_unique<Request>(); }
//     };
//
//     PROXY_WASM_ROOT(Hello)
//
//     zig c++ -target wasm32-wasi -mexec-model=reactor -std=c++20 -fno-exceptions -fno-rtti -O2 -s -o hello.wasm hello.cc
//
// Unlike in C all callbacks are exported, so the host calls each of them for each stream.
// Memory that cannot be had ends the VM.
//
// Licensed under the Apache License, Version 2.0.
#ifndef PROXY_WASM_HPP
#define PROXY_WASM_HPP

#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "proxy_wasm.h"
#include "proxy_wasm_json.h"

namespace proxy_wasm {

using View = std::string_view;

inline pw_str str(View v) { return pw_of(v.data(), v.size()); }
inline View view(pw_str s) { return s.size == 0 ? View() : View(s.data, s.size); }

// Makes a string of what the host gave, and frees that.
inline std::string taken(pw_text &&t) {
  std::string s(view(pw_view(&t)));
  pw_free(&t);
  return s;
}

inline std::optional<std::string> taken_if(bool there, pw_text &&t) {
  if (!there) return std::nullopt;
  return taken(std::move(t));
}

// ---- Logging: info("answered ", status, " in ", path) ----

inline void append(std::string &line, View piece) { line += piece; }
inline void append(std::string &line, std::integral auto n) { line += std::to_string(n); }

template <class... Pieces>
void log(pw_level level, const Pieces &...pieces) {
  std::string line;
  (append(line, pieces), ...);
  pw_log(level, str(line));
}

template <class... Pieces> void debug(const Pieces &...pieces) { log(PW_DEBUG, pieces...); }
template <class... Pieces> void info(const Pieces &...pieces) { log(PW_INFO, pieces...); }
template <class... Pieces> void warn(const Pieces &...pieces) { log(PW_WARN, pieces...); }
template <class... Pieces> void error(const Pieces &...pieces) { log(PW_ERROR, pieces...); }

// ---- Headers ----

// Header is one field of a list that is given to the host.
using Header = std::pair<View, View>;

// Headers are the headers or trailers that the host has in hand now.
class Headers {
 public:
  constexpr explicit Headers(pw_map map) : map_(map) {}
  // The value of a header, of several the first; nothing if it is not there.
  std::optional<std::string> get(View name) const {
    pw_text value;
    bool there = pw_get_header(map_, str(name), &value);
    return taken_if(there, std::move(value));
  }
  std::vector<std::pair<std::string, std::string>> all() const {
    std::vector<std::pair<std::string, std::string>> list;
    pw_pairs pairs;
    pw_pair one;
    if (!pw_get_pairs(map_, &pairs)) return list;
    while (pw_next(&pairs, &one)) list.emplace_back(view(one.name), view(one.value));
    pw_free(&pairs.text);
    return list;
  }
  bool add(View name, View value) const { return pw_add_header(map_, str(name), str(value)) == PW_OK; }
  bool replace(View name, View value) const { return pw_replace_header(map_, str(name), str(value)) == PW_OK; }
  bool remove(View name) const { return pw_remove_header(map_, str(name)) == PW_OK; }

 private:
  pw_map map_;
};

inline constexpr Headers request_headers{PW_REQUEST_HEADERS};
inline constexpr Headers request_trailers{PW_REQUEST_TRAILERS};
inline constexpr Headers response_headers{PW_RESPONSE_HEADERS};
inline constexpr Headers response_trailers{PW_RESPONSE_TRAILERS};
inline constexpr Headers call_headers{PW_CALL_HEADERS};
inline constexpr Headers call_trailers{PW_CALL_TRAILERS};

inline std::vector<pw_pair> pairs(std::initializer_list<Header> headers) {
  std::vector<pw_pair> list;
  for (const Header &h : headers) list.push_back({str(h.first), str(h.second)});
  return list;
}

// ---- Bodies and data ----

// Buffer is bytes that the host has in hand now.
class Buffer {
 public:
  constexpr explicit Buffer(pw_buffer buffer) : buffer_(buffer) {}
  // At most size bytes from start on.
  std::string read(size_t start, size_t size) const {
    pw_text bytes;
    pw_get_buffer(buffer_, start, size, &bytes);
    return taken(std::move(bytes));
  }
  std::string read() const { return read(0, SIZE_MAX); }
  // Puts bytes in the place of all that is there.
  bool set(View bytes) const { return write(0, SIZE_MAX, bytes); }
  bool append(View bytes) const { return write(SIZE_MAX, 0, bytes); }
  bool prepend(View bytes) const { return write(0, 0, bytes); }

 private:
  bool write(size_t start, size_t size, View bytes) const {
    return proxy_set_buffer_bytes(buffer_, start, size, bytes.data(), bytes.size()) == PW_OK;
  }
  pw_buffer buffer_;
};

inline constexpr Buffer request_body{PW_REQUEST_BODY};
inline constexpr Buffer response_body{PW_RESPONSE_BODY};
inline constexpr Buffer downstream_data{PW_DOWNSTREAM_DATA};
inline constexpr Buffer upstream_data{PW_UPSTREAM_DATA};
inline constexpr Buffer call_body{PW_CALL_BODY};

// ---- Answers, calls, properties ----

struct Response {
  uint32_t status = 200;
  View body = {};
  std::initializer_list<Header> headers = {};
  View details = {};  // for the access log, not the client
};

// Answers in the upstream's stead: return respond({.status = 403, .body = "no"});
inline pw_action respond(const Response &r) {
  std::vector<pw_pair> list = pairs(r.headers);
  pw_respond(r.status, str(r.details), str(r.body), list.data(), list.size());
  return PW_PAUSE;
}

// Calls a cluster of the proxy's. The answer comes to on_http_call_response of the
// context that called, with the number that is given here; nothing: the call could not
// be made. Headers need :method, :path and :authority.
inline std::optional<uint32_t> http_call(View cluster, std::initializer_list<Header> headers, View body, uint32_t timeout_milliseconds) {
  std::vector<pw_pair> list = pairs(headers);
  uint32_t call = 0;
  if (pw_http_call(str(cluster), list.data(), list.size(), str(body), timeout_milliseconds, &call) != PW_OK) return std::nullopt;
  return call;
}

// What the proxy knows: property({"source", "address"}).
inline std::optional<std::string> property(std::initializer_list<View> path) {
  std::string joined;
  for (const View *name = path.begin(); name != path.end(); name++) {
    if (name != path.begin()) joined += '\0';
    joined += *name;
  }
  pw_text value;
  bool there = pw_get_property(str(joined), &value);
  return taken_if(there, std::move(value));
}

// ---- Metrics ----

// Metric is a counter, gauge or histogram, counted over all workers.
class Metric {
 public:
  Metric(pw_metric type, View name) { pw_define_metric(type, str(name), &id_); }
  void add(int64_t by = 1) const { proxy_increment_metric(id_, by); }
  void record(uint64_t value) const { proxy_record_metric(id_, value); }
  uint64_t value() const {
    uint64_t v = 0;
    proxy_get_metric(id_, &v);
    return v;
  }

 private:
  uint32_t id_ = 0;
};

// ---- JSON ----

// Json is a value within a text, which has to live as long. One that is not there is of
// kind PW_JSON_NONE and has nothing in it, so that lookups can be chained.
class Json {
 public:
  Json() = default;
  explicit Json(pw_json v) : v_(v) {}
  // Nothing if the text is not one JSON value.
  static std::optional<Json> parse(View text) {
    pw_json v;
    if (!pw_json_parse(str(text), &v)) return std::nullopt;
    return Json(v);
  }
  pw_json_kind kind() const { return pw_json_kind_of(v_); }
  bool is_object() const { return kind() == PW_JSON_OBJECT; }
  bool is_array() const { return kind() == PW_JSON_ARRAY; }
  explicit operator bool() const { return kind() != PW_JSON_NONE; }
  View raw() const { return view(pw_json_raw(v_)); }

  Json operator[](View name) const {
    pw_json found;
    pw_json_member(v_, str(name), &found);
    return Json(found);
  }
  std::optional<std::string> string() const {
    pw_text t = {};
    bool there = pw_json_string(v_, &t);
    return taken_if(there, std::move(t));
  }
  std::optional<int64_t> integer() const { return value<int64_t>(pw_json_int); }
  std::optional<double> number() const { return value<double>(pw_json_double); }
  std::optional<bool> boolean() const { return value<bool>(pw_json_bool); }

  // What is in an array or object; the items of an array have no name.
  struct Item;
  std::vector<Item> items() const;

 private:
  template <class T>
  std::optional<T> value(bool (*read)(pw_json, T *)) const {
    T v;
    if (!read(v_, &v)) return std::nullopt;
    return v;
  }
  pw_json v_ = {};
};

struct Json::Item {
  std::string name;
  Json value;
};

inline std::vector<Json::Item> Json::items() const {
  std::vector<Item> list;
  pw_json items = pw_json_items(v_), name, value;
  while (pw_json_next(&items, &name, &value)) list.push_back({Json(name).string().value_or(""), Json(value)});
  return list;
}

// ---- Contexts ----

// Context is what a root context and a stream have in common.
class Context {
 public:
  Context() = default;
  Context(const Context &) = delete;
  Context &operator=(const Context &) = delete;
  virtual ~Context() = default;

  // The host's number; it is there once the constructor has ended.
  uint32_t id() const { return id_; }

  virtual void on_http_call_response(uint32_t /*call*/, size_t /*headers*/, size_t /*body_size*/, size_t /*trailers*/) {}
  virtual void on_grpc_receive_initial_metadata(uint32_t /*call*/, size_t /*count*/) {}
  virtual void on_grpc_receive(uint32_t /*call*/, size_t /*size*/) {}
  virtual void on_grpc_receive_trailing_metadata(uint32_t /*call*/, size_t /*count*/) {}
  virtual void on_grpc_close(uint32_t /*call*/, uint32_t /*status*/) {}
  // False keeps the context until proxy_done is called.
  virtual bool on_done() { return true; }
  virtual void on_log() {}

 private:
  friend void created(uint32_t, uint32_t);
  uint32_t id_ = 0;
};

// Stream is one HTTP request with its response, or one TCP connection.
class Stream : public Context {
 public:
  virtual pw_action on_request_headers(size_t /*count*/, bool /*end*/) { return PW_CONTINUE; }
  virtual pw_action on_request_body(size_t /*size*/, bool /*end*/) { return PW_CONTINUE; }
  virtual pw_action on_request_trailers(size_t /*count*/) { return PW_CONTINUE; }
  virtual pw_action on_response_headers(size_t /*count*/, bool /*end*/) { return PW_CONTINUE; }
  virtual pw_action on_response_body(size_t /*size*/, bool /*end*/) { return PW_CONTINUE; }
  virtual pw_action on_response_trailers(size_t /*count*/) { return PW_CONTINUE; }

  virtual pw_action on_new_connection() { return PW_CONTINUE; }
  virtual pw_action on_downstream_data(size_t /*size*/, bool /*end*/) { return PW_CONTINUE; }
  virtual pw_action on_upstream_data(size_t /*size*/, bool /*end*/) { return PW_CONTINUE; }
  virtual void on_downstream_connection_close(pw_peer) {}
  virtual void on_upstream_connection_close(pw_peer) {}
};

// Root is one configured use of the plugin. It lives longer than its streams, so that
// they may refer to it.
class Root : public Context {
 public:
  virtual bool on_vm_start(size_t /*configuration_size*/) { return true; }
  // Takes the configuration, which may be empty; false refuses it. Log why.
  virtual bool on_configure(View /*configuration*/) { return true; }
  virtual void on_tick() {}
  virtual void on_queue_ready(uint32_t /*queue*/) {}
  // A stream begins.
  virtual std::unique_ptr<Stream> stream() { return std::make_unique<Stream>(); }
};

// Makes the root contexts; PROXY_WASM_ROOT defines it.
std::unique_ptr<Root> make_root();

#define PROXY_WASM_ROOT(type) \
  std::unique_ptr<proxy_wasm::Root> proxy_wasm::make_root() { return std::make_unique<type>(); }

#ifdef PROXY_WASM_IMPLEMENTATION

inline Context *context(uint32_t id) { return static_cast<Context *>(pw_kept(id)); }
inline Root *root(uint32_t id) { return static_cast<Root *>(context(id)); }
inline Stream *stream(uint32_t id) { return static_cast<Stream *>(context(id)); }

inline void created(uint32_t id, uint32_t parent) {
  std::unique_ptr<Context> made;
  if (parent == 0) {
    made = make_root();
  } else {
    made = root(parent)->stream();
  }
  made->id_ = id;
  pw_keep(id, made.release());
}

#endif

}  // namespace proxy_wasm

#ifdef PROXY_WASM_IMPLEMENTATION

extern "C" {

void proxy_on_context_create(uint32_t id, uint32_t parent) { proxy_wasm::created(id, parent); }

bool proxy_on_vm_start(uint32_t id, size_t size) { return proxy_wasm::root(id)->on_vm_start(size); }

bool proxy_on_configure(uint32_t id, size_t size) {
  pw_text configuration;
  if (!pw_get_configuration(size, &configuration)) return false;
  return proxy_wasm::root(id)->on_configure(proxy_wasm::taken(static_cast<pw_text &&>(configuration)));
}

void proxy_on_tick(uint32_t id) { proxy_wasm::root(id)->on_tick(); }
void proxy_on_queue_ready(uint32_t id, uint32_t queue) { proxy_wasm::root(id)->on_queue_ready(queue); }

pw_action proxy_on_request_headers(uint32_t id, size_t count, bool end) { return proxy_wasm::stream(id)->on_request_headers(count, end); }
pw_action proxy_on_request_body(uint32_t id, size_t size, bool end) { return proxy_wasm::stream(id)->on_request_body(size, end); }
pw_action proxy_on_request_trailers(uint32_t id, size_t count) { return proxy_wasm::stream(id)->on_request_trailers(count); }
pw_action proxy_on_response_headers(uint32_t id, size_t count, bool end) { return proxy_wasm::stream(id)->on_response_headers(count, end); }
pw_action proxy_on_response_body(uint32_t id, size_t size, bool end) { return proxy_wasm::stream(id)->on_response_body(size, end); }
pw_action proxy_on_response_trailers(uint32_t id, size_t count) { return proxy_wasm::stream(id)->on_response_trailers(count); }

pw_action proxy_on_new_connection(uint32_t id) { return proxy_wasm::stream(id)->on_new_connection(); }
pw_action proxy_on_downstream_data(uint32_t id, size_t size, bool end) { return proxy_wasm::stream(id)->on_downstream_data(size, end); }
pw_action proxy_on_upstream_data(uint32_t id, size_t size, bool end) { return proxy_wasm::stream(id)->on_upstream_data(size, end); }
void proxy_on_downstream_connection_close(uint32_t id, pw_peer peer) { proxy_wasm::stream(id)->on_downstream_connection_close(peer); }
void proxy_on_upstream_connection_close(uint32_t id, pw_peer peer) { proxy_wasm::stream(id)->on_upstream_connection_close(peer); }

void proxy_on_http_call_response(uint32_t id, uint32_t call, size_t headers, size_t body_size, size_t trailers) {
  proxy_wasm::context(id)->on_http_call_response(call, headers, body_size, trailers);
}
void proxy_on_grpc_receive_initial_metadata(uint32_t id, uint32_t call, size_t count) { proxy_wasm::context(id)->on_grpc_receive_initial_metadata(call, count); }
void proxy_on_grpc_receive(uint32_t id, uint32_t call, size_t size) { proxy_wasm::context(id)->on_grpc_receive(call, size); }
void proxy_on_grpc_receive_trailing_metadata(uint32_t id, uint32_t call, size_t count) { proxy_wasm::context(id)->on_grpc_receive_trailing_metadata(call, count); }
void proxy_on_grpc_close(uint32_t id, uint32_t call, uint32_t status) { proxy_wasm::context(id)->on_grpc_close(call, status); }

bool proxy_on_done(uint32_t id) { return proxy_wasm::context(id)->on_done(); }
void proxy_on_log(uint32_t id) { proxy_wasm::context(id)->on_log(); }
void proxy_on_delete(uint32_t id) {
  delete proxy_wasm::context(id);
  pw_keep(id, nullptr);
}

}  // extern "C"

#endif

#endif  // PROXY_WASM_HPP
