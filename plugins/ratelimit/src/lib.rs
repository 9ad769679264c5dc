//! ratelimit is a Proxy-Wasm plugin that limits how many requests pass in a time.
//!
//! What is decided is in [`bucket`], [`slots`] and [`limits`], which know of no proxy; the plugin
//! itself is the thin shell in `plugin`.

pub mod bucket;
pub mod limits;
pub mod slots;

#[cfg(target_family = "wasm")]
mod plugin;
