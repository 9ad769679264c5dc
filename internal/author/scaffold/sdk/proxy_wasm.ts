// proxy_wasm.ts: plugins for Envoy and other Proxy-Wasm hosts, in AssemblyScript.
//
// A small layer over Proxy-Wasm ABI 0.2.1: what a plugin for HTTP needs most. Another
// function of the host is one more line below. A plugin exports the callbacks that it
// needs from its index.ts, together with the two functions by which the host knows it:
//
//     export { proxy_abi_version_0_2_1, proxy_on_memory_allocate } from "./proxy_wasm";
//     export function proxy_on_response_headers(stream: u32, count: u32, end: bool): Action {
//       replaceHeader(HeaderMap.Response, "x-hello", "world");
//       return Action.Continue;
//     }
//
// The compiler's options are in asconfig.json: the module has to start with _initialize,
// and to abort with the function below.
//
// Licensed under the Apache License, Version 2.0.

export enum Level { Trace, Debug, Info, Warn, Error, Critical }
export enum Action { Continue, Pause }
export enum HeaderMap { Request, RequestTrailers, Response, ResponseTrailers, CallHeaders = 6, CallTrailers = 7 }
export enum Buffer { RequestBody, ResponseBody, CallBody = 4, Configuration = 7 }
export enum Metric { Counter, Gauge, Histogram }

// ---- Functions of the host. 0 is success. ----

@external("env", "proxy_log")
declare function proxy_log(level: u32, text: usize, size: usize): u32;
@external("env", "proxy_get_current_time_nanoseconds")
declare function proxy_get_current_time_nanoseconds(time: usize): u32;
@external("env", "proxy_set_tick_period_milliseconds")
declare function proxy_set_tick_period_milliseconds(period: u32): u32;
@external("env", "proxy_get_property")
declare function proxy_get_property(path: usize, pathSize: usize, value: usize, valueSize: usize): u32;
@external("env", "proxy_get_header_map_value")
declare function proxy_get_header_map_value(map: u32, name: usize, nameSize: usize, value: usize, valueSize: usize): u32;
@external("env", "proxy_add_header_map_value")
declare function proxy_add_header_map_value(map: u32, name: usize, nameSize: usize, value: usize, valueSize: usize): u32;
@external("env", "proxy_replace_header_map_value")
declare function proxy_replace_header_map_value(map: u32, name: usize, nameSize: usize, value: usize, valueSize: usize): u32;
@external("env", "proxy_remove_header_map_value")
declare function proxy_remove_header_map_value(map: u32, name: usize, nameSize: usize): u32;
@external("env", "proxy_get_buffer_bytes")
declare function proxy_get_buffer_bytes(buffer: u32, start: usize, size: usize, bytes: usize, bytesSize: usize): u32;
@external("env", "proxy_set_buffer_bytes")
declare function proxy_set_buffer_bytes(buffer: u32, start: usize, size: usize, bytes: usize, bytesSize: usize): u32;
@external("env", "proxy_send_local_response")
declare function proxy_send_local_response(status: u32, details: usize, detailsSize: usize, body: usize, bodySize: usize, headers: usize, headersSize: usize, grpcStatus: u32): u32;
@external("env", "proxy_define_metric")
declare function proxy_define_metric(type: u32, name: usize, nameSize: usize, metric: usize): u32;
@external("env", "proxy_increment_metric")
declare function proxy_increment_metric(metric: u32, by: i64): u32;

// ---- What the host asks of every module ----

export function proxy_abi_version_0_2_1(): void {}

// Memory for what the host gives; it is freed where it is read.
export function proxy_on_memory_allocate(size: usize): usize {
  return heap.alloc(size);
}

// Failed assertions and the like: the reason is logged, then the VM ends.
export function abort(message: string | null, file: string | null, line: u32, column: u32): void {
  log(Level.Critical, (message ? message : "aborted") + " at " + (file ? file : "?") + ":" + line.toString());
  unreachable();
}

// ---- Text to and from the host ----

// Where the host writes results: two words, or one number of 64 bits.
const out = memory.data(8, 8);

// The bytes that the host has just given, as text.
function taken(): string {
  const at = load<usize>(out), size = load<usize>(out, 4);
  if (size == 0) return "";
  const text = String.UTF8.decodeUnsafe(at, size);
  heap.free(at);
  return text;
}

function at(b: ArrayBuffer): usize {
  return changetype<usize>(b);
}

// ---- For plugins ----

export function log(level: Level, text: string): void {
  const b = String.UTF8.encode(text);
  proxy_log(level, at(b), b.byteLength);
}

// Nanoseconds since 1970.
export function now(): u64 {
  proxy_get_current_time_nanoseconds(out);
  return load<u64>(out);
}

// Ticks come to proxy_on_tick; a period of 0 stops them. In a root context only.
export function setTickPeriod(milliseconds: u32): void {
  proxy_set_tick_period_milliseconds(milliseconds);
}

// The configuration, in proxy_on_configure; size is what that was called with.
export function configuration(size: u32): string {
  return size == 0 ? "" : bufferText(Buffer.Configuration, 0, size);
}

// At most size bytes of a body from start on, as text.
export function bufferText(buffer: Buffer, start: u32, size: u32): string {
  return proxy_get_buffer_bytes(buffer, start, size, out, out + 4) == 0 ? taken() : "";
}

// Puts text in the place of all that is in a buffer. The length of a body may change
// only if content-length was removed with the headers.
export function setBuffer(buffer: Buffer, text: string): bool {
  const b = String.UTF8.encode(text);
  return proxy_set_buffer_bytes(buffer, 0, u32.MAX_VALUE, at(b), b.byteLength) == 0;
}

// The value of a header, or null if it is not there.
export function getHeader(map: HeaderMap, name: string): string | null {
  const n = String.UTF8.encode(name);
  return proxy_get_header_map_value(map, at(n), n.byteLength, out, out + 4) == 0 ? taken() : null;
}

export function addHeader(map: HeaderMap, name: string, value: string): bool {
  const n = String.UTF8.encode(name), v = String.UTF8.encode(value);
  return proxy_add_header_map_value(map, at(n), n.byteLength, at(v), v.byteLength) == 0;
}

// Sets the one value of a header, whether it was there or not.
export function replaceHeader(map: HeaderMap, name: string, value: string): bool {
  const n = String.UTF8.encode(name), v = String.UTF8.encode(value);
  return proxy_replace_header_map_value(map, at(n), n.byteLength, at(v), v.byteLength) == 0;
}

export function removeHeader(map: HeaderMap, name: string): bool {
  const n = String.UTF8.encode(name);
  return proxy_remove_header_map_value(map, at(n), n.byteLength) == 0;
}

// What the proxy knows: property(["source", "address"]).
export function property(path: string[]): string | null {
  const p = String.UTF8.encode(path.join("\0"));
  return proxy_get_property(at(p), p.byteLength, out, out + 4) == 0 ? taken() : null;
}

// Answers in the upstream's stead: return respond(403, "no", "not_allowed"). The details
// are for the access log, not the client.
export function respond(status: u32, body: string, details: string): Action {
  const b = String.UTF8.encode(body), d = String.UTF8.encode(details);
  proxy_send_local_response(status, at(d), d.byteLength, at(b), b.byteLength, 0, 0, u32.MAX_VALUE);
  return Action.Pause;
}

// A metric's number; to define one again gives the same.
export function defineMetric(type: Metric, name: string): u32 {
  const n = String.UTF8.encode(name);
  return proxy_define_metric(type, at(n), n.byteLength, out) == 0 ? load<u32>(out) : 0;
}

export function incrementMetric(metric: u32, by: i64): void {
  proxy_increment_metric(metric, by);
}
