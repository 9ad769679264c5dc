//! The configuration: which requests are guarded, and what their bodies have to be.

use crate::schema::Schema;
use serde_json::{Map, Value};

const MAX_RULES: usize = 64;
const MAX_BYTES: u64 = 16 << 20;
const DEFAULT_BYTES: u64 = 1 << 20;

#[derive(Debug, PartialEq)]
pub struct Rule {
    pub prefix: String,
    pub methods: Vec<String>,
    pub content_types: Vec<String>,
    pub max_bytes: u64,
    /// None: any JSON.
    pub schema: Option<Schema>,
}

impl Rule {
    pub fn guards(&self, method: &[u8], path: &[u8]) -> bool {
        path.starts_with(self.prefix.as_bytes()) && self.methods.iter().any(|m| m.as_bytes() == method)
    }

    /// Tells whether a value of content-type, which may have parameters, is one of ours.
    pub fn takes(&self, content_type: &[u8]) -> bool {
        let media = content_type.split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
        self.content_types.iter().any(|t| t.as_bytes().eq_ignore_ascii_case(media))
    }
}

#[derive(Debug, PartialEq)]
pub struct Rules {
    pub rules: Vec<Rule>,
    /// Whether requests are refused, or only told of.
    pub enforce: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Rules { rules: Vec::new(), enforce: true }
    }
}

impl Rules {
    /// Reads a configuration and says what is wrong with it, with the path.
    pub fn parse(text: &[u8]) -> Result<Rules, String> {
        let config: Map<String, Value> = serde_json::from_slice(text).map_err(|e| format!("must be a JSON object: {e}"))?;
        let mut all = Rules::default();
        for (key, value) in &config {
            match (key.as_str(), value) {
                ("enforce", Value::Bool(b)) => all.enforce = *b,
                ("enforce", _) => return Err("enforce: must be true or false".into()),
                ("rules", Value::Array(list)) if list.len() <= MAX_RULES => {
                    for (i, item) in list.iter().enumerate() {
                        all.rules.push(rule(item).map_err(|e| format!("rules[{i}]{e}"))?);
                    }
                }
                ("rules", _) => return Err(format!("rules: must be a list of at most {MAX_RULES}")),
                _ => return Err(format!("{key}: is not known")),
            }
        }
        match all.rules.is_empty() {
            true => Err("rules: there must be at least one".into()),
            false => Ok(all),
        }
    }

    /// The first rule that guards a request: that one counts, and no other.
    pub fn of(&self, method: &[u8], path: &[u8]) -> Option<&Rule> {
        self.rules.iter().find(|r| r.guards(method, path))
    }
}

fn rule(item: &Value) -> Result<Rule, String> {
    let map = item.as_object().ok_or(": must be an object")?;
    let mut r = Rule {
        prefix: "/".into(),
        methods: ["POST", "PUT", "PATCH"].map(Into::into).into(),
        content_types: vec!["application/json".into()],
        max_bytes: DEFAULT_BYTES,
        schema: None,
    };
    for (key, value) in map {
        let read = match key.as_str() {
            "prefix" => value.as_str().filter(|p| p.starts_with('/')).map(|p| r.prefix = p.into()).ok_or("must be text that begins with /".into()),
            "methods" => texts(value).map(|l| r.methods = l),
            "content_types" => texts(value).map(|l| r.content_types = l),
            "max_bytes" => {
                value.as_u64().filter(|n| (1..=MAX_BYTES).contains(n)).map(|n| r.max_bytes = n).ok_or(format!("must be a whole number from 1 to {MAX_BYTES}"))
            }
            "schema" => {
                r.schema = Some(Schema::read(value).map_err(|e| format!(".schema{e}"))?);
                Ok(())
            }
            _ => Err("is not known".into()),
        };
        read.map_err(|e| format!(".{key}: {e}"))?;
    }
    Ok(r)
}

fn texts(v: &Value) -> Result<Vec<String>, String> {
    let list = v.as_array().filter(|l| !l.is_empty()).map(Vec::as_slice).unwrap_or_default();
    let texts = list.iter().map(|v| v.as_str().filter(|s| !s.is_empty()).map(Into::into));
    texts.collect::<Option<Vec<_>>>().filter(|l| !l.is_empty()).ok_or_else(|| "must be a list of one or more texts".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rule_counts() {
        let text = br#"{"rules":[{"prefix":"/a/b","max_bytes":1},{"prefix":"/a","methods":["POST"]}]}"#;
        let rules = Rules::parse(text).unwrap();
        assert_eq!(rules.of(b"POST", b"/a/bc").map(|r| r.max_bytes), Some(1));
        assert_eq!(rules.of(b"POST", b"/a").map(|r| r.max_bytes), Some(1 << 20));
        assert_eq!(rules.of(b"PUT", b"/a"), None);
        assert_eq!(rules.of(b"GET", b"/a/b"), None);
    }

    #[test]
    fn content_types_may_have_parameters() {
        let rules = Rules::parse(br#"{"rules":[{}]}"#).unwrap();
        for (value, want) in [
            ("application/json", true),
            ("Application/JSON; charset=utf-8", true),
            (" application/json ;a=b", true),
            ("application/jsonx", false),
            ("text/plain; application/json", false),
            ("", false),
        ] {
            assert_eq!(rules.rules[0].takes(value.as_bytes()), want, "{value}");
        }
    }
}
