//! Judging a body while it is read: no value of it is kept, and the first that is wrong
//! ends the reading.

use crate::schema::{self, Schema};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Number, Value};
use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;

/// What is wrong with a body, and where.
#[derive(Debug, PartialEq)]
pub struct Wrong {
    /// A JSON pointer (RFC 6901) to the value; empty: the whole.
    pub pointer: String,
    pub message: String,
    pub line: usize,
    pub column: usize,
}

/// The longest pointer that is told.
const MAX_POINTER: usize = 200;

/// Judges a body. Names that are there twice are wrong, since what is behind the proxy may
/// take the one or the other.
pub fn check(schema: Option<&Schema>, body: &[u8]) -> Result<(), Wrong> {
    let at = RefCell::new(String::new());
    let mut reader = serde_json::Deserializer::from_slice(body);
    let read = Judge { schema, at: &at }.deserialize(&mut reader).and_then(|()| {
        at.borrow_mut().clear();
        reader.end()
    });
    read.map_err(|e| {
        let mut pointer = at.take();
        while pointer.len() > MAX_POINTER {
            pointer.pop();
        }
        let mut message = e.to_string();
        if let Some(place) = message.rfind(" at line ") {
            message.truncate(place);
        }
        Wrong { pointer, message, line: e.line(), column: e.column() }
    })
}

/// Judge reads one value. When it fails, `at` stays at the value that is wrong.
#[derive(Clone, Copy)]
struct Judge<'a> {
    schema: Option<&'a Schema>,
    at: &'a RefCell<String>,
}

impl<'de> DeserializeSeed<'de> for Judge<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_any(self)
    }
}

impl Judge<'_> {
    fn kind<E: Error>(&self, kind: u8) -> Result<(), E> {
        match self.schema {
            Some(s) if s.kinds & kind == 0 => Err(E::custom(format_args!("must be {}", schema::names(s.kinds)))),
            _ => Ok(()),
        }
    }

    /// Judges by the list of values that there may be.
    fn listed<E: Error>(&self, same: impl Fn(&Value) -> bool) -> Result<(), E> {
        match self.schema.and_then(|s| s.one_of.as_ref()) {
            Some(list) if !list.iter().any(same) => Err(E::custom("is none of the values that are allowed")),
            _ => Ok(()),
        }
    }

    fn number<E: Error>(&self, n: f64) -> Result<(), E> {
        self.kind(if n.fract() == 0.0 { schema::INTEGER } else { schema::FRACTION })?;
        self.listed(|v| v.as_f64() == Some(n))?;
        let Some(s) = self.schema else { return Ok(()) };
        match (s.minimum, s.maximum) {
            (Some(least), _) if n < least => Err(E::custom(format_args!("must be at least {}", plain(least)))),
            (_, Some(most)) if n > most => Err(E::custom(format_args!("must be at most {}", plain(most)))),
            _ => Ok(()),
        }
    }

    fn within<E: Error>(&self, n: u64, (least, most): (u64, u64), of: &str) -> Result<(), E> {
        match n {
            _ if n < least => Err(E::custom(format_args!("must have at least {least} {of}"))),
            _ if n > most => Err(E::custom(format_args!("must have at most {most} {of}"))),
            _ => Ok(()),
        }
    }

    /// Goes down to a part of the value; the length to come back to.
    fn down(&self, part: &str) -> usize {
        let mut at = self.at.borrow_mut();
        let before = at.len();
        at.push('/');
        at.push_str(&part.replace('~', "~0").replace('/', "~1"));
        before
    }
}

/// A number without the fraction that it does not have.
fn plain(n: f64) -> Number {
    if n.fract() == 0.0 && n.abs() < 1e15 {
        return Number::from(n as i64);
    }
    Number::from_f64(n).unwrap_or(0.into())
}

impl<'de> Visitor<'de> for Judge<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.kind(schema::NULL)?;
        self.listed(Value::is_null)
    }

    fn visit_bool<E: Error>(self, b: bool) -> Result<(), E> {
        self.kind(schema::BOOLEAN)?;
        self.listed(|v| v.as_bool() == Some(b))
    }

    fn visit_i64<E: Error>(self, n: i64) -> Result<(), E> {
        self.number(n as f64)
    }

    fn visit_u64<E: Error>(self, n: u64) -> Result<(), E> {
        self.number(n as f64)
    }

    fn visit_f64<E: Error>(self, n: f64) -> Result<(), E> {
        self.number(n)
    }

    fn visit_str<E: Error>(self, s: &str) -> Result<(), E> {
        self.kind(schema::STRING)?;
        self.listed(|v| v.as_str() == Some(s))?;
        self.schema.map_or(Ok(()), |schema| self.within(s.chars().count() as u64, schema.length, "characters"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        self.kind(schema::ARRAY)?;
        self.listed(|_| false)?;
        let bounds = self.schema.map_or((0, u64::MAX), |s| s.items);
        let item = self.schema.and_then(|s| s.item.as_deref());
        let mut n = 0;
        loop {
            let before = self.down(&n.to_string());
            if list.next_element_seed(Judge { schema: item, at: self.at })?.is_none() {
                self.at.borrow_mut().truncate(before);
                return self.within(n, bounds, "items");
            }
            self.at.borrow_mut().truncate(before);
            n += 1;
            self.within(n, (0, bounds.1), "items")?;
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        self.kind(schema::OBJECT)?;
        self.listed(|_| false)?;
        let mut seen = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            let known = self.schema.and_then(|s| s.properties.get(&name));
            let before = self.down(&name);
            if known.is_none() && self.schema.is_some_and(|s| s.closed) {
                return Err(Error::custom("is not known"));
            }
            if !seen.insert(name) {
                return Err(Error::custom("is there twice"));
            }
            map.next_value_seed(Judge { schema: known, at: self.at })?;
            self.at.borrow_mut().truncate(before);
        }
        match self.schema.and_then(|s| s.required.iter().find(|name| !seen.contains(*name))) {
            Some(name) => {
                self.down(name);
                Err(Error::custom("is required"))
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn judged(schema: Value, body: &str) -> String {
        let schema = Schema::read(&schema).unwrap();
        match check(Some(&schema), body.as_bytes()) {
            Ok(()) => "ok".into(),
            Err(w) => format!("{}: {} ({}:{})", w.pointer, w.message, w.line, w.column),
        }
    }

    #[test]
    fn values_are_judged_where_they_are() {
        let order = json!({
            "type": "object", "required": ["id", "items"], "additionalProperties": false,
            "properties": {
                "id": {"type": "integer", "minimum": 1},
                "note": {"type": ["string", "null"], "maxLength": 3},
                "items": {"type": "array", "minItems": 1, "maxItems": 2, "items": {"type": "object", "required": ["sku"]}},
                "state": {"enum": ["new", 2, null]}
            }
        });
        for (body, want) in [
            (r#"{"id":1,"items":[{"sku":1}]}"#, "ok"),
            (r#"{"id":1.0,"items":[{"sku":1}],"note":null,"state":2.0}"#, "ok"),
            (r#"{"id":1,"items":[{"sku":1}],"note":"żół"}"#, "ok"),
            (r#"{"id":1.5,"items":[{"sku":1}]}"#, "/id: must be integer (1:9)"),
            (r#"{"id":0,"items":[{"sku":1}]}"#, "/id: must be at least 1 (1:7)"),
            ("{\"id\":1,\n \"items\":[{\"sku\":1},{\"skv\":1}]}", "/items/1/sku: is required (2:29)"),
            (r#"{"id":1,"items":[]}"#, "/items: must have at least 1 items (1:18)"),
            (r#"{"id":1,"items":[{"sku":1},{"sku":1},{"sku":1}]}"#, "/items: must have at most 2 items (1:47)"),
            (r#"{"id":1,"items":[{"sku":1}],"note":"four"}"#, "/note: must have at most 3 characters (1:41)"),
            (r#"{"id":1,"items":[{"sku":1}],"note":7}"#, "/note: must be null, string (1:36)"),
            (r#"{"id":1,"items":[{"sku":1}],"state":"old"}"#, "/state: is none of the values that are allowed (1:41)"),
            (r#"{"id":1,"items":[{"sku":1}],"a/b~":1}"#, "/a~1b~0: is not known (1:34)"),
            (r#"{"id":1,"id":2,"items":[{"sku":1}]}"#, "/id: is there twice (1:12)"),
            (r#"[]"#, ": must be object (1:2)"),
        ] {
            assert_eq!(judged(order.clone(), body), want, "{body}");
        }
    }

    #[test]
    fn what_is_no_json_is_told_with_its_place() {
        for (body, want) in [
            ("", ": EOF while parsing a value (1:0)"),
            ("{\"a\":[1,]}", "/a/1: trailing comma (1:9)"),
            ("{} {}", ": trailing characters (1:4)"),
            ("{\"a\":1e999}", "/a: number out of range (1:10)"),
        ] {
            assert_eq!(judged(json!({}), body), want, "{body}");
        }
    }

    #[test]
    fn deep_bodies_end_the_reading_and_not_the_stack() {
        let wrong = check(None, "[".repeat(100_000).as_bytes()).unwrap_err();
        assert_eq!(wrong.message, "recursion limit exceeded");
        assert!(wrong.pointer.len() <= MAX_POINTER);
    }
}
