//! jsonguard is a Proxy-Wasm plugin that lets only requests pass whose bodies are JSON of
//! a shape that is laid down.
//!
//! What is decided is in [`schema`], [`check`] and [`rules`], which know of no proxy; the
//! plugin itself is the thin shell in `plugin`.

pub mod check;
pub mod rules;
pub mod schema;

#[cfg(target_family = "wasm")]
mod plugin;
