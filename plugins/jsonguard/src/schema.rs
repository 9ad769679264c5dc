//! Schemas: the part of JSON Schema that can be judged while a body is read.

use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Kinds of values, as bits. An integer is a number, too.
pub const NULL: u8 = 1;
pub const BOOLEAN: u8 = 2;
pub const INTEGER: u8 = 4;
pub const FRACTION: u8 = 8;
pub const STRING: u8 = 16;
pub const ARRAY: u8 = 32;
pub const OBJECT: u8 = 64;
const NUMBER: u8 = INTEGER | FRACTION;
const ANY: u8 = 127;

const NAMES: [(&str, u8); 7] =
    [("null", NULL), ("boolean", BOOLEAN), ("integer", INTEGER), ("number", NUMBER), ("string", STRING), ("array", ARRAY), ("object", OBJECT)];

/// What a value has to be. What is not said is not asked for.
#[derive(Debug, PartialEq)]
pub struct Schema {
    pub kinds: u8,
    /// Scalars; none: any value.
    pub one_of: Option<Vec<Value>>,
    pub minimum: Option<f64>,
    pub maximum: Option<f64>,
    /// Of strings in characters, of arrays in items.
    pub length: (u64, u64),
    pub items: (u64, u64),
    pub item: Option<Box<Schema>>,
    pub properties: BTreeMap<String, Schema>,
    pub required: Vec<String>,
    /// Whether there may be no other properties.
    pub closed: bool,
}

impl Schema {
    /// Reads a schema. A word that is not known is a mistake: whoever wrote it believes
    /// that it guards something.
    pub fn read(v: &Value) -> Result<Schema, String> {
        let map = v.as_object().ok_or(": must be an object")?;
        let mut s = Schema {
            kinds: ANY,
            one_of: None,
            minimum: None,
            maximum: None,
            length: (0, u64::MAX),
            items: (0, u64::MAX),
            item: None,
            properties: BTreeMap::new(),
            required: Vec::new(),
            closed: false,
        };
        for (word, value) in map {
            s.word(word, value).map_err(|e| format!(".{word}{e}"))?;
        }
        match s.required.iter().find(|name| s.closed && !s.properties.contains_key(*name)) {
            Some(name) => Err(format!(".required: {name} is not among the properties, and there may be no others")),
            None => Ok(s),
        }
    }

    fn word(&mut self, word: &str, v: &Value) -> Result<(), String> {
        match word {
            "$schema" | "$comment" | "title" | "description" | "default" | "examples" => {}
            "type" => self.kinds = kinds(v)?,
            "enum" => self.one_of = Some(scalars(v)?),
            "minimum" => self.minimum = Some(v.as_f64().ok_or(": must be a number")?),
            "maximum" => self.maximum = Some(v.as_f64().ok_or(": must be a number")?),
            "minLength" => self.length.0 = count(v)?,
            "maxLength" => self.length.1 = count(v)?,
            "minItems" => self.items.0 = count(v)?,
            "maxItems" => self.items.1 = count(v)?,
            "items" => self.item = Some(Box::new(Schema::read(v)?)),
            "properties" => self.properties = properties(v.as_object().ok_or(": must be an object")?)?,
            "required" => self.required = texts(v)?,
            "additionalProperties" => self.closed = !v.as_bool().ok_or(": must be true or false")?,
            _ => return Err(": is not supported here".into()),
        }
        Ok(())
    }
}

fn properties(map: &Map<String, Value>) -> Result<BTreeMap<String, Schema>, String> {
    map.iter().map(|(name, v)| Schema::read(v).map(|s| (name.clone(), s)).map_err(|e| format!(".{name}{e}"))).collect()
}

fn kinds(v: &Value) -> Result<u8, String> {
    let all = match v {
        Value::Array(list) if !list.is_empty() => list.as_slice(),
        one => std::slice::from_ref(one),
    };
    let bits = |v: &Value| NAMES.iter().find(|(name, _)| v.as_str() == Some(name)).map(|(_, bits)| *bits);
    all.iter().try_fold(0, |sum, v| bits(v).map(|b| sum | b)).ok_or_else(|| format!(": must be of {}", names(ANY)))
}

/// The names of kinds, for people.
pub fn names(kinds: u8) -> String {
    let number = kinds & NUMBER == NUMBER;
    let told = NAMES.iter().filter(|(name, bits)| kinds & bits == *bits && !(number && *name == "integer"));
    told.map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

fn count(v: &Value) -> Result<u64, String> {
    v.as_u64().ok_or_else(|| ": must be a whole number".into())
}

fn texts(v: &Value) -> Result<Vec<String>, String> {
    let list = v.as_array().ok_or(": must be a list of texts")?;
    list.iter().map(|v| v.as_str().map(Into::into)).collect::<Option<_>>().ok_or_else(|| ": must be a list of texts".into())
}

fn scalars(v: &Value) -> Result<Vec<Value>, String> {
    match v.as_array() {
        Some(list) if !list.is_empty() && !list.iter().any(|v| v.is_array() || v.is_object()) => Ok(list.clone()),
        _ => Err(": must be a list of one or more values that are no lists and no objects".into()),
    }
}
