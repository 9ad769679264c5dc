//! The plugin: what a proxy calls, and what is asked of it.

use crate::check::{check, Wrong};
use crate::rules::{Rule, Rules};
use log::{error, warn};
use proxy_wasm::hostcalls::{define_metric, increment_metric};
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType, LogLevel, MetricType};
use serde_json::json;
use std::rc::Rc;

proxy_wasm::main! {{
    proxy_wasm::set_log_level(LogLevel::Info);
    proxy_wasm::set_root_context(|_| -> Box<dyn RootContext> { Box::new(Plugin::default()) });
}}

/// One configured use of the module. A VM may hold several, for instance while one
/// configuration takes the place of another, so nothing of it is global.
#[derive(Default)]
struct Plugin {
    guard: Rc<Guard>,
}

/// The rules with the counters that all workers share.
#[derive(Default)]
struct Guard {
    rules: Rules,
    passed: u32,
    refused: u32,
}

impl Context for Plugin {}

impl RootContext for Plugin {
    fn on_configure(&mut self, _size: usize) -> bool {
        match Rules::parse(&self.get_plugin_configuration().unwrap_or_default()).and_then(guard) {
            Ok(g) => self.guard = Rc::new(g),
            Err(reason) => {
                error!("jsonguard: configuration refused: {reason}");
                return false;
            }
        }
        true
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }

    fn create_http_context(&self, _id: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Request { guard: self.guard.clone(), rule: None, buffered: 0 }))
    }
}

fn guard(rules: Rules) -> Result<Guard, String> {
    let counter = |name: &str| define_metric(MetricType::Counter, name).map_err(|s| format!("no metric {name}: {s:?}"));
    Ok(Guard { rules, passed: counter("jsonguard.passed")?, refused: counter("jsonguard.refused")? })
}

struct Request {
    guard: Rc<Guard>,
    /// Which rule guards it, until it has been judged.
    rule: Option<usize>,
    /// How much of its body is in the proxy's buffer.
    buffered: usize,
}

/// Why a request is refused: the status, and what is told.
struct Refusal {
    status: u32,
    title: &'static str,
    wrong: Wrong,
}

fn refusal(status: u32, title: &'static str, message: String) -> Refusal {
    Refusal { status, title, wrong: Wrong { pointer: String::new(), message, line: 0, column: 0 } }
}

impl Context for Request {}

impl HttpContext for Request {
    fn on_http_request_headers(&mut self, _count: usize, end: bool) -> Action {
        let guard = self.guard.clone();
        let method = self.get_http_request_header_bytes(":method").unwrap_or_default();
        let path = self.get_http_request_header_bytes(":path").unwrap_or_default();
        self.rule = guard.rules.rules.iter().position(|r| r.guards(&method, &path));
        match self.rule {
            Some(i) => match self.head(&guard.rules.rules[i], end) {
                Ok(()) => Action::Continue,
                Err(r) => self.refuse(r),
            },
            None => Action::Continue,
        }
    }

    fn on_http_request_body(&mut self, size: usize, end: bool) -> Action {
        let Some(i) = self.rule else { return Action::Continue };
        let max = self.guard.rules.rules[i].max_bytes;
        self.buffered = size;
        match (size as u64 > max, end) {
            (true, _) => self.refuse(too_large(max)),
            (false, false) => Action::Pause,
            (false, true) => self.judge(i),
        }
    }

    /// With trailers, they are the end, and no body callback was the last.
    fn on_http_request_trailers(&mut self, _count: usize) -> Action {
        match self.rule {
            Some(i) => self.judge(i),
            None => Action::Continue,
        }
    }
}

fn too_large(max: u64) -> Refusal {
    refusal(413, "the body is too large", format!("must have at most {max} bytes"))
}

impl Request {
    /// Judges what can be known before the body.
    fn head(&self, rule: &Rule, end: bool) -> Result<(), Refusal> {
        let types = || rule.content_types.join(", ");
        match self.get_http_request_header_bytes("content-type") {
            _ if end => return Err(refusal(400, "there is no body", "must be JSON".into())),
            Some(t) if rule.takes(&t) => {}
            _ => return Err(refusal(415, "the body is of another type", format!("content-type must be {}", types()))),
        }
        match self.get_http_request_header_bytes("content-encoding") {
            Some(e) if !e.eq_ignore_ascii_case(b"identity") => return Err(refusal(415, "the body is encoded", "there must be no content-encoding".into())),
            _ => {}
        }
        let length = self.get_http_request_header_bytes("content-length").unwrap_or_default();
        match std::str::from_utf8(&length).ok().and_then(|s| s.parse::<u64>().ok()) {
            Some(n) if n > rule.max_bytes => Err(too_large(rule.max_bytes)),
            _ => Ok(()),
        }
    }

    /// Judges the whole body, which is in the proxy's buffer.
    fn judge(&mut self, rule: usize) -> Action {
        let body = match self.buffered {
            0 => Vec::new(), // of an empty buffer nothing can be read
            n => self.get_http_request_body(0, n).unwrap_or_default(),
        };
        match check(self.guard.rules.rules[rule].schema.as_ref(), &body) {
            Ok(()) => {
                let _ = increment_metric(self.guard.passed, 1);
                self.rule = None;
                Action::Continue
            }
            Err(wrong) => self.refuse(Refusal { status: 400, title: "the body is not as it should be", wrong }),
        }
    }

    /// Answers in the upstream's stead, as RFC 9457 has it, or only tells of it.
    fn refuse(&mut self, r: Refusal) -> Action {
        let _ = increment_metric(self.guard.refused, 1);
        self.rule = None;
        let Wrong { pointer, message, line, column } = r.wrong;
        if !self.guard.rules.enforce {
            warn!("jsonguard: would have answered {}: {}: {pointer}: {message}", r.status, r.title);
            return Action::Continue;
        }
        let mut problem = json!({"title": r.title, "status": r.status, "detail": message});
        if line > 0 {
            problem["pointer"] = pointer.into();
            problem["line"] = line.into();
            problem["column"] = column.into();
        }
        self.send_http_response(r.status, vec![("content-type", "application/problem+json")], Some(problem.to_string().as_bytes()));
        Action::Pause
    }
}
