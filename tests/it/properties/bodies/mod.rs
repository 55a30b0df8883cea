//! What must hold of whatever bytes come: each is a function of bytes that panics if it does not. The ordinary suite calls
//! them with bytes that proptest makes up, `fuzz/` with what libFuzzer finds.

mod answers;
mod requests;
mod tools;

use serde_json::Value;

pub(crate) use self::{
    answers::{decode, decoders, dialects, encoder, frames},
    requests::{bodies, file_names, ids, queries},
    tools::{schemas, templates},
};

/// Whether a value has a number that its text need not spell exactly.
fn has_fractions(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.is_f64(),
        Value::Array(all) => all.iter().any(has_fractions),
        Value::Object(all) => all.values().any(has_fractions),
        _ => false,
    }
}

/// Percent-encoding, undone; `None` if it is none, or holds what ends a header's value.
fn unescaped(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            b if b.is_ascii_alphanumeric() || b"-._~".contains(&b) => b,
            _ => return None,
        });
    }
    Some(bytes)
}
