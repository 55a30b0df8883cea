//! What models and operators say of tools.

use std::time::{Duration, Instant};

use serde_json::{Map, Value};
use sluicegate::{
    schema::{Recursion, Schema},
    tool::template::{Address, Body, Kind, Parameters, Values},
};

use super::{has_fractions, unescaped};

/// An address stays at its host and in its segments, a JSON body in its form, a form in its pairs, whatever fills them.
/// The template is of ours, or, if it is one, the first line.
pub(crate) fn templates(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (line, rest) = text.split_once('\n').unwrap_or((&text, &text));
    let schema = serde_json::json!({"properties": {"a": {"type": "string"}, "b": {}}});
    let parameters = Parameters(&schema);
    let (a, b) = rest.split_once('\n').unwrap_or((rest, ""));
    let told = serde_json::from_str::<Value>(b).unwrap_or_else(|_| b.into());
    let arguments = Map::from_iter([("a".to_owned(), Value::from(a)), ("b".to_owned(), told.clone())]);
    let facts = Map::from_iter([("user".to_owned(), Value::from(b))]);
    let values = Values {
        arguments: &arguments,
        facts: &facts,
    };
    let own = "https://api.example:8443/v1/{a}/x-{b}.json?q={a}&f={context.user}";
    for template in [own, line, &format!("https://api.example:8443/{line}")] {
        let Ok(address) = Address::parse(template, &parameters) else {
            continue;
        };
        let Ok(url) = address.fill(values) else { continue };
        let start = template.split(['/', '?']).nth(2).expect("a host");
        let like =
            url::Url::parse(&format!("{}//{start}/", template.split('/').next().expect("a scheme"))).expect("a place");
        assert_eq!(url.origin(), like.origin(), "{template} with {arguments:?}");
        assert!(
            url.username().is_empty() && url.password().is_none() && url.fragment().is_none(),
            "{url}"
        );
        assert!(url.as_str().is_ascii() && !url.path().contains('\\'), "{url}");
        if template == own {
            let segments: Vec<&str> = url.path_segments().expect("a path").collect();
            assert_eq!((segments.len(), segments[0]), (3, "v1"), "{url}");
            assert_eq!(unescaped(segments[1]).as_deref(), Some(a.as_bytes()), "{url}");
            let pairs: Vec<(String, String)> = url.query_pairs().into_owned().collect();
            assert_eq!(
                pairs,
                [("q".to_owned(), a.to_owned()), ("f".to_owned(), b.to_owned())],
                "{url}"
            );
        }
    }
    let own = r#"{"text": "-{a}-", "any": {b}, "list": [{a}, "{context.user}"]}"#;
    for template in [own, line] {
        let Ok(body) = Body::parse(template, Kind::Json, &parameters) else {
            continue;
        };
        let Ok(filled) = body.fill(values) else { continue };
        let value: Value =
            serde_json::from_str(&filled).unwrap_or_else(|error| panic!("{error}: {template} is {filled}"));
        if template == own && !has_fractions(&told) {
            let is = serde_json::json!({"text": format!("-{a}-"), "any": told, "list": [a, b]});
            assert_eq!(value, is);
        }
    }
    for template in ["x={a}&y={a}", line] {
        let Ok(body) = Body::parse(template, Kind::Form, &parameters) else {
            continue;
        };
        let Ok(filled) = body.fill(values) else { continue };
        assert!(
            filled.matches('&').count() <= template.matches('&').count(),
            "{template} is {filled}"
        );
    }
}

/// How much of a processor's time looking at a schema of some kilobytes may take; a trap takes years.
const PATIENT: Duration = Duration::from_secs(5);

/// The time that this thread has had of a processor: what others do beside it does not count. Where the kernel does not
/// tell, the time that has passed.
fn worked(since: Instant) -> Duration {
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanos = told.and_then(|told| told.split(' ').next()?.parse().ok());
    nanos.map_or_else(|| since.elapsed(), Duration::from_nanos)
}

/// A schema from outside is compiled or refused, and applied, in a time that its size bounds. The first line is the schema,
/// the rest what it is applied to.
pub(crate) fn schemas(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (schema, value) = text.split_once('\n').unwrap_or((&text, "null"));
    let Ok(schema) = serde_json::from_str::<Value>(schema) else {
        return;
    };
    let now = Instant::now();
    let began = worked(now);
    if let Ok(schema) = Schema::compile(&schema, Recursion::Refused) {
        let value = serde_json::from_str(value).unwrap_or_else(|_| value.into());
        if let Err(told) = schema.admits(&value) {
            assert!(
                !told.is_empty() && told.len() < 16 << 10,
                "{} bytes of advice",
                told.len()
            );
        }
    }
    let took = worked(now).saturating_sub(began);
    assert!(took < PATIENT, "{took:?} for {text}");
}
