//! What callers send.

use std::{collections::BTreeMap, time::Duration};

use serde_json::Value;
use sluicegate::{
    chat::{ArtifactId, EventId, Principal, RunId, SessionId},
    error::ErrorCode,
    http::{
        artifacts::disposition,
        auth::{Caller, Proof},
        body,
        order::{self, Door},
        query::Query,
    },
    run::plain_name,
};

use super::{has_fractions, unescaped};

/// What is taken for an id is written as it was read, and is none of the forms that lead elsewhere.
pub(crate) fn ids(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(id) = text.parse::<RunId>() {
        assert_eq!(id.to_string(), text);
    }
    if let Ok(id) = text.parse::<ArtifactId>() {
        assert_eq!(id.to_string(), text);
    }
    if let Ok(EventId { run, seq }) = text.parse::<EventId>() {
        let (told, digits) = text.split_once(':').expect("two parts");
        assert_eq!((run.to_string().as_str(), digits.parse()), (told, Ok(seq)));
        assert!(
            digits.len() <= 20 && digits.bytes().all(|b| b.is_ascii_digit()),
            "{text}"
        );
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._:-".contains(&b);
    let is_path = text == "." || text == ".."; // no URL can name these
    let fits = (1..=128).contains(&text.len()) && text.bytes().all(allowed) && !is_path;
    assert_eq!(text.parse::<SessionId>().is_ok(), fits, "{text:?}");
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(all) => 1 + all.iter().map(depth).max().unwrap_or(0),
        Value::Object(all) => 1 + all.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// A body is JSON as another reader reads it, and an order that is taken keeps every promise about its fields.
pub(crate) fn bodies(bytes: &[u8]) {
    let Ok(value) = body::parse(bytes) else { return };
    assert_eq!(serde_json::from_slice::<Value>(bytes).ok().as_ref(), Some(&value));
    assert!(depth(&value) <= 64, "{} deep", depth(&value));
    let ask = |value: Value| {
        let caller = Caller {
            principal: Principal::anonymous(),
            shared: false,
            permit: std::sync::Arc::default(),
            requests_per_minute: 0,
            proof: Proof::Nobody,
        };
        order::from_body(
            value,
            Some("key".to_owned()),
            Door::Direct,
            caller,
            Duration::from_secs(30),
        )
    };
    let order = match ask(value.clone()) {
        Ok((order, _)) => order,
        Err(error) => {
            assert!(
                error.message.ends_with(['.', '?']) && error.message.len() < 2000,
                "{}",
                error.message
            );
            assert!(!matches!(error.code, ErrorCode::Internal), "{}", error.message);
            return;
        }
    };
    assert!(!order.message.trim().is_empty() && order.message.chars().count() <= 262_144);
    assert!(order.store && order.attachments.len() <= 4 && order.metadata.len() <= 16);
    let texts = [
        Some(&order.message),
        order.user_id.as_ref(),
        order.agent.as_ref(),
        order.model.as_ref(),
    ];
    assert!(texts.into_iter().flatten().all(|text| !text.contains('\0')));
    assert!(order.settings.temperature.is_none_or(|it| (0.0..=2.0).contains(&it)));
    // However it is written down, it is the same request.
    let again = body::parse(serde_json::to_string_pretty(&value).expect("JSON").as_bytes()).expect("JSON");
    let again = ask(again).expect("the same order").0;
    assert_eq!(again.message, order.message);
    if !has_fractions(&value) {
        assert_eq!(again.idempotency, order.idempotency);
    }
}

/// A query is read as it was meant, or refused.
pub(crate) fn queries(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let known = ["message", "a", "b", "", "\u{e9}"];
    if let Ok(query) = Query::read(Some(&text), &known) {
        let all = query.rest();
        assert!(all.keys().all(|name| known.contains(&name.as_str())), "{all:?}");
        round_trip(&all, &known);
    }
    // And what is spelled out is what is read.
    let mut parts = text.splitn(2, '&');
    let mut values = || parts.next().unwrap_or_default().to_owned();
    let spelled = BTreeMap::from([("message".to_owned(), values()), ("a".to_owned(), values())]);
    round_trip(&spelled, &known);
}

fn round_trip(all: &BTreeMap<String, String>, known: &[&str]) {
    let spell = |text: &str| text.bytes().map(|byte| format!("%{byte:02x}")).collect::<String>();
    let pairs: Vec<String> = all
        .iter()
        .map(|(name, value)| format!("{}={}", spell(name), spell(value)))
        .collect();
    let read = Query::read(Some(&pairs.join("&")), known).expect("a query");
    assert_eq!(&read.rest(), all);
}

/// Whatever a file is called, its name is one harmless header line that means the harmless name.
pub(crate) fn file_names(bytes: &[u8]) {
    let told = String::from_utf8_lossy(bytes);
    let name = plain_name(&told);
    assert!((1..=128).contains(&name.chars().count()), "{name:?}");
    assert!(
        !name.contains(['/', '\\']) && !name.chars().any(char::is_control),
        "{name:?}"
    );
    assert!(!matches!(name.as_str(), "." | ".."));
    assert_eq!(plain_name(&name), name, "once is enough");
    // Also of what was kept before names were made harmless.
    for name in [name.as_str(), &told] {
        let line = disposition(name);
        assert!(line.bytes().all(|b| (b' '..=b'~').contains(&b)), "{line}");
        let rest = line.strip_prefix("attachment; filename=\"").expect("a name");
        let (plain, spelled) = rest.split_once("\"; filename*=UTF-8''").expect("both names");
        assert!(!plain.contains(['"', '\\', '%']), "{line}");
        assert_eq!(unescaped(spelled).as_deref(), Some(name.as_bytes()), "{line}");
    }
}
