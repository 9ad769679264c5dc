//! The plugin: what a proxy calls, and what is asked of it.

use crate::bucket::Verdict;
use crate::limits::{Key, Limit, Limits};
use crate::slots::{self, Entry};
use log::{error, warn};
use proxy_wasm::hostcalls::{define_metric, increment_metric};
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType, LogLevel, MetricType};
use std::collections::hash_map::{DefaultHasher, RandomState};
use std::hash::{BuildHasher, Hasher};
use std::rc::Rc;
use std::time::UNIX_EPOCH;

proxy_wasm::main! {{
    proxy_wasm::set_log_level(LogLevel::Info);
    proxy_wasm::set_root_context(|_| -> Box<dyn RootContext> { Box::new(Plugin::default()) });
}}

/// How often a bucket is tried for that other workers write to at the same time.
const TRIES: usize = 16;

/// The version of shared data that nothing has: a write under it makes what is not there,
/// and does not replace what another worker made meanwhile.
const NEW: u32 = u32::MAX;

const SEED: &str = "ratelimit/seed";

/// One configured use of the module. A VM may hold several, for instance while one
/// configuration takes the place of another, so nothing of it is global.
#[derive(Default)]
struct Plugin {
    rules: Rc<Rules>,
}

/// The limits with what belongs to them in the proxy.
#[derive(Default)]
struct Rules {
    limits: Vec<(Limit, Metrics)>,
    headers: bool,
    seed: u64,
}

/// Metrics are counters that all workers share.
struct Metrics {
    passed: u32,
    limited: u32,
    busy: u32,
}

impl Metrics {
    fn define(name: &str) -> Result<Metrics, String> {
        let counter =
            |what| define_metric(MetricType::Counter, &format!("ratelimit.{name}.{what}")).map_err(|s| format!("no metric ratelimit.{name}.{what}: {s:?}"));
        Ok(Metrics { passed: counter("passed")?, limited: counter("limited")?, busy: counter("busy")? })
    }
}

impl Context for Plugin {}

impl RootContext for Plugin {
    fn on_configure(&mut self, _size: usize) -> bool {
        match self.rules() {
            Ok(rules) => self.rules = Rc::new(rules),
            Err(reason) => {
                error!("ratelimit: configuration refused: {reason}");
                return false;
            }
        }
        true
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }

    fn create_http_context(&self, _id: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Request { rules: self.rules.clone(), tightest: None }))
    }
}

impl Plugin {
    fn rules(&self) -> Result<Rules, String> {
        let config = Limits::parse(&self.get_plugin_configuration().unwrap_or_default())?;
        let limits = config.limits.into_iter().map(|l| Metrics::define(&l.name).map(|m| (l, m))).collect::<Result<_, _>>()?;
        Ok(Rules { limits, headers: config.headers, seed: self.seed()? })
    }

    /// The number by which all workers hash keys. It is drawn anew for each proxy, so that
    /// nobody can choose keys that share a bucket with somebody else's.
    fn seed(&self) -> Result<u64, String> {
        for _ in 0..TRIES {
            if let (Some(bytes), _) = self.get_shared_data(SEED) {
                return number(&bytes).ok_or_else(|| format!("{SEED} in the shared data is not ours"));
            }
            let drawn = RandomState::new().build_hasher().finish();
            let _ = self.set_shared_data(SEED, Some(&drawn.to_le_bytes()), Some(NEW));
            // or another was first
        }
        Err("the shared data cannot be written".into())
    }
}

fn number(bytes: &[u8]) -> Option<u64> {
    bytes.try_into().ok().map(u64::from_le_bytes)
}

struct Request {
    rules: Rc<Rules>,
    /// Of the limits that the request counted for: the one with the fewest requests left.
    tightest: Option<(u64, u64)>, // its burst, what is left
}

impl Context for Request {}

impl HttpContext for Request {
    fn on_http_request_headers(&mut self, _count: usize, _end: bool) -> Action {
        let rules = self.rules.clone();
        let method = self.get_http_request_header_bytes(":method").unwrap_or_default();
        let path = self.get_http_request_header_bytes(":path").unwrap_or_default();
        let now = self.get_current_time().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
        for (limit, metrics) in rules.limits.iter().filter(|(l, _)| l.counts(&method, &path)) {
            match self.take(limit, self.hash(limit, &path), now) {
                Some(Verdict::Pass { left, .. }) => {
                    let _ = increment_metric(metrics.passed, 1);
                    if self.tightest.is_none_or(|(_, least)| left < least) {
                        self.tightest = Some((limit.rate.burst, left));
                    }
                }
                Some(Verdict::Wait(nanoseconds)) => {
                    let _ = increment_metric(metrics.limited, 1);
                    self.tightest = Some((limit.rate.burst, 0));
                    let seconds = nanoseconds.div_ceil(1_000_000_000).to_string();
                    self.send_http_response(429, vec![("retry-after", &seconds), ("content-type", "text/plain")], Some(b"too many requests\n"));
                    return Action::Pause;
                }
                // To let a request pass is better than to turn away those that are within
                // their limit.
                None => {
                    let _ = increment_metric(metrics.busy, 1);
                    warn!("ratelimit: the bucket of a request for {} could not be written; it passes", limit.name);
                }
            }
        }
        Action::Continue
    }

    /// This runs for responses of the plugin's own, too.
    fn on_http_response_headers(&mut self, _count: usize, _end: bool) -> Action {
        if let (true, Some((burst, left))) = (self.rules.headers, self.tightest) {
            self.set_http_response_header("x-ratelimit-limit", Some(&burst.to_string()));
            self.set_http_response_header("x-ratelimit-remaining", Some(&left.to_string()));
        }
        Action::Continue
    }
}

impl Request {
    /// The hash of what a request is counted by.
    fn hash(&self, limit: &Limit, path: &[u8]) -> u64 {
        let key = match &limit.key {
            Key::All => Vec::new(),
            Key::Path => path.split(|b| *b == b'?').next().unwrap_or_default().to_vec(),
            Key::Header(name) => self.get_http_request_header_bytes(name).unwrap_or_default(),
            Key::Source => host(self.get_property(vec!["source", "address"]).unwrap_or_default()),
        };
        let mut hash = DefaultHasher::new();
        hash.write_u64(self.rules.seed);
        hash.write(&key);
        hash.finish()
    }

    /// Takes a token of a bucket that other workers take from, too; none: they always came
    /// in between.
    fn take(&self, limit: &Limit, hash: u64, now: u64) -> Option<Verdict> {
        for _ in 0..TRIES {
            let bucket = slots::find(hash, now, |slot| {
                let (bytes, version) = self.get_shared_data(&name(limit, slot));
                bytes.map(|b| (Entry::read(&b), version))
            });
            let verdict = limit.rate.take(bucket.entry.full, now);
            let Verdict::Pass { full, .. } = verdict else { return Some(verdict) };
            let entry = Entry { full, ..bucket.entry };
            if self.set_shared_data(&name(limit, bucket.slot), Some(&entry.bytes()), Some(bucket.version.unwrap_or(NEW))).is_ok() {
                return Some(verdict);
            }
        }
        None
    }
}

/// A slot's key in the shared data.
fn name(limit: &Limit, slot: u64) -> String {
    format!("ratelimit/{}/{slot}", limit.name)
}

/// The address without its port, which is another for each connection.
fn host(mut address: Vec<u8>) -> Vec<u8> {
    if let Some(colon) = address.iter().rposition(|b| *b == b':') {
        address.truncate(colon);
    }
    address
}
