//! The configuration: which requests are limited, by what, and how many of them pass.

use crate::bucket::Rate;
use serde_json::{Map, Value};
use std::collections::HashSet;

const MAX_LIMITS: usize = 32;
const MAX_REQUESTS: u64 = 1_000_000;

/// What requests share a bucket.
#[derive(Debug, PartialEq)]
pub enum Key {
    All,
    Source,
    Path,
    Header(String),
}

/// One limit.
#[derive(Debug, PartialEq)]
pub struct Limit {
    pub name: String,
    pub rate: Rate,
    pub key: Key,
    /// Empty: all.
    pub methods: Vec<String>,
    pub prefix: String,
}

impl Limit {
    /// Tells whether a request counts here. Methods and paths are compared as they are.
    pub fn counts(&self, method: &[u8], path: &[u8]) -> bool {
        path.starts_with(self.prefix.as_bytes()) && (self.methods.is_empty() || self.methods.iter().any(|m| m.as_bytes() == method))
    }
}

#[derive(Debug, Default, PartialEq)]
pub struct Limits {
    pub limits: Vec<Limit>,
    /// Whether responses tell how much is left.
    pub headers: bool,
}

impl Limits {
    /// Reads a configuration and says what is wrong with it, with the path.
    pub fn parse(text: &[u8]) -> Result<Limits, String> {
        let config: Map<String, Value> = serde_json::from_slice(text).map_err(|e| format!("must be a JSON object: {e}"))?;
        let mut all = Limits::default();
        for (key, value) in &config {
            match (key.as_str(), value) {
                ("headers", Value::Bool(b)) => all.headers = *b,
                ("headers", _) => return Err("headers: must be true or false".into()),
                ("limits", Value::Array(list)) if list.len() > MAX_LIMITS => return Err(format!("limits: at most {MAX_LIMITS}")),
                ("limits", Value::Array(list)) => {
                    for (i, item) in list.iter().enumerate() {
                        all.limits.push(limit(item).map_err(|e| format!("limits[{i}]{e}"))?);
                    }
                }
                ("limits", _) => return Err("limits: must be a list".into()),
                _ => return Err(format!("{key}: is not known")),
            }
        }
        if all.limits.is_empty() {
            return Err("limits: there must be at least one".into());
        }
        let mut names = HashSet::new();
        match all.limits.iter().find(|l| !names.insert(&l.name)) {
            Some(twice) => Err(format!("limits: there are two of the name {}", twice.name)),
            None => Ok(all),
        }
    }
}

fn limit(item: &Value) -> Result<Limit, String> {
    let map = item.as_object().ok_or(": must be an object")?;
    let known = ["name", "requests", "per", "burst", "key", "methods", "prefix"];
    if let Some(key) = map.keys().find(|k| !known.contains(&k.as_str())) {
        return Err(format!(".{key}: is not known"));
    }
    let requests = count(map, "requests")?.ok_or(".requests: is required")?;
    let per = duration(text(map, "per")?.unwrap_or("1s")).ok_or(".per: must be a time such as 500ms, 1s, 5m or 1h")?;
    Ok(Limit {
        name: name(text(map, "name")?)?,
        rate: Rate { interval: (per / requests).max(1), burst: count(map, "burst")?.unwrap_or(requests) },
        key: key(text(map, "key")?.unwrap_or("all"))?,
        methods: methods(map.get("methods"))?,
        prefix: match text(map, "prefix")?.unwrap_or("/") {
            p if p.starts_with('/') => p.into(),
            _ => return Err(".prefix: must begin with /".into()),
        },
    })
}

fn text<'a>(map: &'a Map<String, Value>, key: &str) -> Result<Option<&'a str>, String> {
    match map.get(key) {
        None => Ok(None),
        Some(Value::String(s)) => Ok(Some(s)),
        Some(_) => Err(format!(".{key}: must be text")),
    }
}

fn count(map: &Map<String, Value>, key: &str) -> Result<Option<u64>, String> {
    match map.get(key).map(Value::as_u64) {
        None => Ok(None),
        Some(Some(n)) if (1..=MAX_REQUESTS).contains(&n) => Ok(Some(n)),
        _ => Err(format!(".{key}: must be a whole number from 1 to {MAX_REQUESTS}")),
    }
}

/// A name goes into metrics and keys.
fn name(given: Option<&str>) -> Result<String, String> {
    let name = given.ok_or(".name: is required")?;
    match name.len() {
        1..=64 if name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_') => Ok(name.into()),
        _ => Err(".name: must be lower-case letters, digits, hyphens and underscores, at most 64".into()),
    }
}

fn key(given: &str) -> Result<Key, String> {
    match given {
        "all" => Ok(Key::All),
        "source" => Ok(Key::Source),
        "path" => Ok(Key::Path),
        _ => match given.strip_prefix("header:") {
            Some(name) if !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) => {
                Ok(Key::Header(name.to_ascii_lowercase()))
            }
            _ => Err(".key: must be all, source, path or header:NAME".into()),
        },
    }
}

fn methods(given: Option<&Value>) -> Result<Vec<String>, String> {
    let Some(value) = given else { return Ok(Vec::new()) };
    let list = value.as_array().filter(|l| !l.is_empty()).ok_or(".methods: must be a list of one or more")?;
    list.iter().map(|m| m.as_str().filter(|m| !m.is_empty()).map(Into::into)).collect::<Option<_>>().ok_or_else(|| ".methods: must be texts such as GET".into())
}

/// The nanoseconds of a time such as 500ms; none of nothing, or of more than a day.
fn duration(s: &str) -> Option<u64> {
    let digits = s.bytes().take_while(u8::is_ascii_digit).count();
    let unit = match &s[digits..] {
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    };
    let all = s[..digits].parse::<u64>().ok()?.checked_mul(unit)?;
    (1..=86_400_000_000_000).contains(&all).then_some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        for (s, want) in [
            ("1ms", Some(1_000_000)),
            ("90s", Some(90_000_000_000)),
            ("5m", Some(300_000_000_000)),
            ("24h", Some(86_400_000_000_000)),
            ("25h", None),
            ("0s", None),
            ("1", None),
            ("s", None),
            ("1.5s", None),
            ("-1s", None),
            ("99999999999999999999s", None),
            ("9999999999999h", None),
        ] {
            assert_eq!(duration(s), want, "{s}");
        }
    }

    #[test]
    fn what_is_not_said_is_usual() {
        let all = Limits::parse(br#"{"limits":[{"name":"a","requests":5}]}"#).unwrap();
        let want = Limit { name: "a".into(), rate: Rate { interval: 200_000_000, burst: 5 }, key: Key::All, methods: vec![], prefix: "/".into() };
        assert_eq!(all, Limits { limits: vec![want], headers: false });
    }

    #[test]
    fn a_limit_counts_what_it_is_for() {
        let text = br#"{"limits":[{"name":"a","requests":1,"prefix":"/login","methods":["POST"]}]}"#;
        let l = &Limits::parse(text).unwrap().limits[0];
        assert!(l.counts(b"POST", b"/login?next=/"));
        assert!(!l.counts(b"GET", b"/login"));
        assert!(!l.counts(b"post", b"/login"));
        assert!(!l.counts(b"POST", b"/logi"));
        assert!(!l.counts(b"POST", b"\xff"));
    }
}
