//! What belongs together, across processes: a request's trace, and the spans of what was done for it.
//!
//! A span knows its place in the trace whether it is recorded or not, so that a caller's `traceparent` is passed on also by a
//! gateway that records nothing. The names are OpenTelemetry's for generative AI (semantic conventions 1.41.0, `gen-ai-spans`
//! and `gen-ai-agent-spans`, status "development", read 2026-11). No words of users or models, no arguments, no keys.

use std::fmt;

/// A place in a trace, as W3C writes it (Trace Context, level 1, 2021-11-23). `tracestate` is nobody's here, so none is passed
/// on; nor is `baggage`, which could carry anything to anybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    pub(super) trace: u128,
    pub(super) span: u64,
    pub(super) sampled: Sampled,
}

/// Whether whoever began the trace records it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sampled {
    Yes,
    No,
}

impl TraceContext {
    /// Reads a `traceparent`: also one of a later version, as far as this one goes.
    #[must_use]
    pub fn parse(header: &str) -> Option<Self> {
        let (version, rest) = (header.get(..2)?, header.get(2..55)?);
        let more = header.get(55..)?;
        if version == "ff" || !is_hex(version) || !(more.is_empty() || version != "00" && more.starts_with('-')) {
            return None;
        }
        let mut parts = rest.strip_prefix('-')?.split('-');
        let (trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?);
        let lengths = (trace.len(), span.len(), flags.len()) == (32, 16, 2) && parts.next().is_none();
        if !lengths || ![trace, span, flags].into_iter().all(is_hex) {
            return None;
        }
        let sampled = match u8::from_str_radix(flags, 16).ok()? & 1 {
            0 => Sampled::No,
            _ => Sampled::Yes,
        };
        let context = Self {
            trace: u128::from_str_radix(trace, 16).ok()?,
            span: u64::from_str_radix(span, 16).ok()?,
            sampled,
        };
        (context.trace != 0 && context.span != 0).then_some(context)
    }

    /// A new place below this one.
    fn child(self) -> Self {
        Self {
            span: fastrand::u64(1..),
            ..self
        }
    }

    /// The trace's id, as it is written.
    #[must_use]
    pub fn trace_id(&self) -> String {
        format!("{:032x}", self.trace)
    }
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = u8::from(self.sampled == Sampled::Yes);
        write!(f, "00-{:032x}-{:016x}-{flags:02x}", self.trace, self.span)
    }
}

/// Where spans go: nowhere, or to whoever collects them.
#[derive(Clone, Debug, Default)]
pub struct Tracer {
    #[cfg(feature = "otel")]
    exporter: Option<std::sync::Arc<super::otel::Exporter>>,
}

/// Where traces are sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtlpSettings {
    /// The collector's address, without the path.
    pub endpoint: String,
    /// As whom.
    pub service: String,
}

/// What a span is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A request that was answered here.
    Server,
    /// Work in this process.
    Internal,
    /// A request to somebody else.
    Client,
}

/// A value of a span's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A text.
    Text(String),
    /// A number.
    Number(i64),
    /// Some words.
    Words(Vec<&'static str>),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl Tracer {
    /// Begins to send spans there, from a task of its own. Needs a runtime.
    ///
    /// # Errors
    /// What is wrong with the address, or that this program was built without.
    pub fn begin(settings: &OtlpSettings) -> Result<Self, String> {
        #[cfg(feature = "otel")]
        {
            let exporter = super::otel::Exporter::begin(settings)?;
            Ok(Self {
                exporter: Some(std::sync::Arc::new(exporter)),
            })
        }
        #[cfg(not(feature = "otel"))]
        Err(format!(
            "{} was built without traces (feature otel), so none go to {}",
            settings.service, settings.endpoint
        ))
    }

    /// A span below what the caller is in, or at the beginning of a trace.
    #[must_use]
    pub fn span(&self, parent: Option<TraceContext>, kind: Kind, name: impl FnOnce() -> String) -> Span {
        #[cfg(feature = "otel")]
        if let Some(exporter) = &self.exporter {
            let (context, open) = exporter.open(parent, kind, name());
            let tracer = self.clone();
            return Span {
                context: Some(context),
                tracer,
                open: Some(open),
            };
        }
        let _ = (kind, name);
        Span {
            context: parent.map(TraceContext::child),
            ..Span::default()
        }
    }

    /// How many spans were lost, because there were too many or nobody took them; `None` where none are sent.
    #[must_use]
    pub fn lost(&self) -> Option<u64> {
        #[cfg(feature = "otel")]
        return self.exporter.as_ref().map(|exporter| exporter.lost());
        #[cfg(not(feature = "otel"))]
        None
    }

    /// Sends what waits, and ends. Not for long.
    pub async fn close(&self) {
        #[cfg(feature = "otel")]
        if let Some(exporter) = &self.exporter {
            exporter.close().await;
        }
    }
}

/// Something that was done. It ends when it is dropped.
#[derive(Debug, Default)]
pub struct Span {
    context: Option<TraceContext>,
    #[cfg_attr(not(feature = "otel"), expect(dead_code, reason = "there is nowhere to send it"))]
    tracer: Tracer,
    #[cfg(feature = "otel")]
    open: Option<super::otel::Open>,
}

impl Span {
    /// Where it is in its trace, if it is in one.
    #[must_use]
    pub fn context(&self) -> Option<TraceContext> {
        self.context
    }

    /// What tells others of it.
    #[must_use]
    pub fn traceparent(&self) -> Option<String> {
        self.context.map(|context| context.to_string())
    }

    /// A span below it.
    #[must_use]
    pub fn child(&self, kind: Kind, name: impl FnOnce() -> String) -> Span {
        #[cfg(feature = "otel")]
        return self.tracer.span(self.context, kind, name);
        #[cfg(not(feature = "otel"))]
        Tracer::default().span(self.context, kind, name)
    }

    /// Notes something about it. `value` is asked for only if somebody wants to know.
    pub fn note<V: Into<Value>>(&mut self, name: &'static str, value: impl FnOnce() -> V) {
        #[cfg(feature = "otel")]
        if let Some(open) = &mut self.open {
            open.note(name, value().into());
        }
        #[cfg(not(feature = "otel"))]
        let _ = (name, value);
    }

    /// Notes that it failed, and why in a word.
    pub fn fail(&mut self, word: &'static str) {
        #[cfg(feature = "otel")]
        if let Some(open) = &mut self.open {
            open.fail(word);
        }
        #[cfg(not(feature = "otel"))]
        let _ = word;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_traceparent_is_taken_only_if_it_is_one() {
        let context = TraceContext::parse(GOOD).unwrap();
        assert_eq!(context.to_string(), GOOD);
        assert_eq!(context.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        let flags = |flags: &str| {
            TraceContext::parse(&format!("{}{flags}", &GOOD[..53]))
                .unwrap()
                .to_string()
        };
        assert!(flags("00").ends_with("-00") && flags("ff").ends_with("-01"));
        assert_eq!(TraceContext::parse(&format!("01{}", &GOOD[2..])), Some(context));
        assert_eq!(
            TraceContext::parse(&format!("01{}-what-may-come", &GOOD[2..])),
            Some(context)
        );
        for wrong in [
            "",
            "00",
            &GOOD[..54],
            &format!("{GOOD}0"),
            &format!("{GOOD}-more"),
            &format!("01{}more", &GOOD[2..]),
            &GOOD.to_uppercase(),
            &format!("ff{}", &GOOD[2..]),
            &format!("0g{}", &GOOD[2..]),
            &GOOD.replace('-', "_"),
            &GOOD.replace('f', "+"),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-600f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-\u{e9}",
        ] {
            assert_eq!(TraceContext::parse(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn without_a_collector_a_trace_is_passed_on_and_none_is_begun() {
        let tracer = Tracer::default();
        let name = || unreachable!("nobody wants to know its name");
        assert_eq!(tracer.span(None, Kind::Server, name).context(), None);
        let parent = TraceContext::parse(GOOD);
        let span = tracer.span(parent, Kind::Server, name);
        let child = span.child(Kind::Client, name).traceparent().unwrap();
        assert_eq!(&child[..36], &GOOD[..36]);
        assert_ne!(&child[36..52], &GOOD[36..52]);
        assert_ne!(Some(child), span.traceparent());
    }
}
