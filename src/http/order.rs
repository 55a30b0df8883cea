//! A request for a run, field by field: CONTRACT § 4. What is read here is checked for its form; whether the session,
//! the agent or the model exist is the run's to say.

use std::{collections::BTreeMap, time::Duration};

use axum::http::HeaderMap;
use serde_json::{Map, Value};

use super::{
    auth::{Caller, keys},
    fields::{Fields, has_rounded_integer, no_nul},
    format::sse::Data,
};
use crate::{
    chat::{Image, ResponseFormat, SessionId, Settings, ToolChoice},
    error::{Error, ErrorCode},
    run::{OnBusy, OnDisconnect, Order},
};

/// The longest message, in characters.
const MAX_MESSAGE: usize = 262_144;
/// The longest message in a query, in bytes.
const MAX_QUERY_MESSAGE: usize = 4 << 10;
/// The largest context, in bytes of JSON.
const MAX_CONTEXT: usize = 64 << 10;
/// The largest image, in bytes.
const MAX_IMAGE: usize = 5 << 20;
/// How many pairs `metadata` may have, and how long they may be, in characters.
const MAX_METADATA: (usize, usize, usize) = (16, 64, 512);
/// What models take.
const IMAGES: [&str; 4] = ["image/png", "image/jpeg", "image/webp", "image/gif"];

/// Every field of a request for a run. What is read below decides; these are for suggestions.
const FIELDS: [&str; 26] = [
    "message",
    "session_id",
    "user_id",
    "attachments",
    "agent",
    "model",
    "settings",
    "settings.temperature",
    "settings.top_p",
    "settings.max_output_tokens",
    "settings.stop",
    "settings.seed",
    "settings.reasoning_effort",
    "tool_choice",
    "tool_choice.name",
    "context",
    "response_format",
    "response_format.type",
    "response_format.name",
    "response_format.schema",
    "metadata",
    "on_disconnect",
    "on_busy",
    "format",
    "include_reasoning",
    "store",
];

/// What to do while the session is busy, by its word.
const BUSY: [(&str, OnBusy); 3] = [
    ("reject", OnBusy::Reject),
    ("queue", OnBusy::Queue),
    ("interrupt", OnBusy::Interrupt),
];

/// Which door a request came through: it decides what a disconnect means where the request does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// `/chat`, `/chat/stream`: who hangs up has lost interest.
    Direct,
    /// `/chat/sse`: who hangs up may come back.
    Events,
    /// `POST /runs`: nobody is there to begin with.
    Background,
}

/// Reads a run's order from a body, and in which form events are wanted.
///
/// # Errors
/// The field at fault.
pub fn from_body(
    body: Value,
    key: Option<String>,
    door: Door,
    caller: Caller,
    detach_grace: Duration,
) -> Result<(Order, Option<Data>), Error> {
    let mut fields = Fields::of_body(body)?.among(&FIELDS);
    let data = fields.word("format", &[("raw", Data::Raw), ("json", Data::Json)])?;
    let idempotency = key.map(|key| (key, fingerprint(&fields)));
    let message = match fields.take("message") {
        None => String::new(), // refused below, after what may be its misspelling
        Some(Value::String(message)) => message,
        Some(_) => return Err(fields.invalid("message", "must be a string")),
    };
    let session_id = match fields.take("session_id") {
        None => None,
        Some(Value::String(id)) => Some(session_id(&id)?),
        Some(_) => return Err(fields.invalid("session_id", "must be a string")),
    };
    let user_id = user_id(&mut fields)?;
    let store = fields.truth("store")?.unwrap_or(true);
    if !store && session_id.is_some() {
        return Err(fields.invalid("session_id", "has no meaning with `store: false`"));
    }
    if !store && idempotency.is_some() {
        return Err(fields.invalid("store", "must be true with an idempotency key, which has to be kept"));
    }
    let default = match (door, &idempotency) {
        (Door::Background, _) => OnDisconnect::Continue,
        (Door::Direct, None) => OnDisconnect::Cancel,
        (Door::Events, _) | (_, Some(_)) => OnDisconnect::Grace(detach_grace),
    };
    let policies = [
        ("cancel", OnDisconnect::Cancel),
        ("grace", OnDisconnect::Grace(detach_grace)),
        ("continue", OnDisconnect::Continue),
    ];
    let mut order = Order {
        principal: caller.principal,
        permit: caller.permit,
        message: String::new(),
        attachments: attachments(&mut fields)?,
        session_id,
        user_id,
        agent: fields.text("agent", 128)?,
        model: fields.text("model", 256)?,
        settings: settings(&mut fields)?,
        tool_choice: tool_choice(&mut fields)?,
        context: context(&mut fields)?,
        response_format: response_format(&mut fields)?,
        metadata: metadata(&mut fields)?,
        on_disconnect: fields.word("on_disconnect", &policies)?.unwrap_or(default),
        on_busy: fields.word("on_busy", &BUSY)?.unwrap_or(OnBusy::Reject),
        include_reasoning: fields.truth("include_reasoning")?.unwrap_or(false),
        store,
        idempotency,
        may_name_sessions: !caller.shared,
        trace: None,
        request_id: None,
        memory: None,
    };
    fields.end()?;
    order.message = checked_message(message)?;
    Ok((order, data))
}

/// Reads a run's order from the parameters of a query.
///
/// # Errors
/// The parameter at fault.
pub fn from_query(
    parameters: BTreeMap<String, String>,
    key: Option<String>,
    caller: Caller,
    detach_grace: Duration,
) -> Result<Order, Error> {
    if parameters
        .get("message")
        .is_some_and(|message| message.len() > MAX_QUERY_MESSAGE)
    {
        return Err(Error::field(
            ErrorCode::MessageTooLong,
            "message",
            "may have 4096 bytes in a query; POST takes more",
        ));
    }
    let body = parameters
        .into_iter()
        .map(|(name, value)| (name, Value::String(value)))
        .collect();
    Ok(from_body(Value::Object(body), key, Door::Events, caller, detach_grace)?.0)
}

/// The idempotency key of a request: the header's or the query's.
///
/// # Errors
/// `field_invalid` for what is no key, or for two that differ.
pub fn key(headers: &HeaderMap, query: Option<String>) -> Result<Option<String>, Error> {
    let invalid = |what: &str| Error::field(ErrorCode::FieldInvalid, "Idempotency-Key", what);
    let mut told = headers.get_all("idempotency-key").iter();
    let header = match (told.next(), told.next()) {
        (None, _) => None,
        (Some(value), None) => Some(value.to_str().map_err(|_| invalid("must be visible ASCII"))?.to_owned()),
        _ => return Err(invalid("must be there once")),
    };
    let key = match (header, query) {
        (Some(header), Some(query)) if header != query => return Err(invalid("and `key` differ")),
        (header, query) => header.or(query),
    };
    match key {
        Some(key) if !(1..=128).contains(&key.len()) || !key.bytes().all(|b| b.is_ascii_graphic()) => {
            Err(invalid("must have 1 to 128 visible ASCII characters"))
        }
        key => Ok(key),
    }
}

/// A session's id.
///
/// # Errors
/// `session_id_invalid`.
pub fn session_id(text: &str) -> Result<SessionId, Error> {
    text.parse().map_err(|_| {
        Error::field(
            ErrorCode::SessionIdInvalid,
            "session_id",
            "must have 1 to 128 of the characters A-Z a-z 0-9 . _ : -, and not be . or ..",
        )
    })
}

/// Whom the caller acts for.
///
/// # Errors
/// `field_invalid`, `control_character`.
pub fn user_id(fields: &mut Fields) -> Result<Option<String>, Error> {
    match fields.text("user_id", 256)? {
        Some(user) if user.is_empty() => Err(fields.invalid("user_id", "must not be empty")),
        user => Ok(user),
    }
}

/// Pairs of short strings.
///
/// # Errors
/// `field_invalid`, `control_character`.
pub fn metadata(fields: &mut Fields) -> Result<BTreeMap<String, String>, Error> {
    let (most, key_length, value_length) = MAX_METADATA;
    let invalid = Error::field(
        ErrorCode::FieldInvalid,
        fields.name("metadata"),
        format_args!(
            "must be an object of at most {most} strings (names up to {key_length} characters, values up to {value_length})"
        ),
    );
    let pairs = match fields.take("metadata") {
        None => return Ok(BTreeMap::new()),
        Some(Value::Object(pairs)) if pairs.len() <= most => pairs,
        Some(_) => return Err(invalid),
    };
    let mut all = BTreeMap::new();
    for (name, value) in pairs {
        let Value::String(value) = value else {
            return Err(invalid);
        };
        if name.chars().count() > key_length || value.chars().count() > value_length {
            return Err(invalid);
        }
        no_nul("metadata", &name)?;
        no_nul("metadata", &value)?;
        all.insert(name, value);
    }
    Ok(all)
}

fn checked_message(message: String) -> Result<String, Error> {
    no_nul("message", &message)?;
    let invisible = |c: char| c.is_whitespace() || matches!(c, '\u{200B}'..='\u{200D}' | '\u{2060}' | '\u{FEFF}');
    if message.chars().all(invisible) {
        return Err(message_empty());
    }
    if message.len() > MAX_MESSAGE && message.chars().nth(MAX_MESSAGE).is_some() {
        return Err(Error::field(
            ErrorCode::MessageTooLong,
            "message",
            "may have at most 262144 characters",
        ));
    }
    Ok(message)
}

fn message_empty() -> Error {
    Error::field(ErrorCode::MessageEmpty, "message", "is missing or empty")
}

fn attachments(fields: &mut Fields) -> Result<Vec<Image>, Error> {
    let invalid = |at: usize, what: &str| Error::field(ErrorCode::FieldInvalid, format!("attachments[{at}]"), what);
    let list = match fields.take("attachments") {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) if list.len() <= 4 => list,
        Some(_) => return Err(fields.invalid("attachments", "must be a list of at most 4 images")),
    };
    let mut images = Vec::with_capacity(list.len());
    for (at, one) in list.into_iter().enumerate() {
        let mut image = match one {
            Value::Object(image) => Fields::at(format!("attachments[{at}]."), image).among(&FIELDS),
            _ => return Err(invalid(at, "must be an object")),
        };
        let (media_type, data) = (image.take("media_type"), image.take("data"));
        image.end()?;
        let (Some(Value::String(media_type)), Some(Value::String(data))) = (media_type, data) else {
            return Err(invalid(at, "must have a `media_type` and `data` in base64"));
        };
        if !IMAGES.contains(&media_type.as_str()) {
            return Err(invalid(at, "must be image/png, image/jpeg, image/webp or image/gif"));
        }
        match decoded_length(&data) {
            Some(bytes) if bytes == 0 || bytes > MAX_IMAGE as u64 => {
                return Err(invalid(at, "must have 1 byte to 5 MiB"));
            }
            Some(_) => {
                let data = data.into();
                images.push(Image { media_type, data });
            }
            None => return Err(invalid(at, "must be in base64: standard alphabet, padded")),
        }
    }
    Ok(images)
}

/// How many bytes a text in base64 stands for; `None` if it is none. They are not gathered, because nobody needs them.
fn decoded_length(data: &str) -> Option<u64> {
    let engine = &base64::engine::general_purpose::STANDARD;
    let mut bytes = base64::read::DecoderReader::new(data.as_bytes(), engine);
    std::io::copy(&mut bytes, &mut std::io::sink()).ok()
}

fn settings(fields: &mut Fields) -> Result<Settings, Error> {
    let Some(mut fields) = fields.object("settings")? else {
        return Ok(Settings::default());
    };
    let stop = match fields.take("stop") {
        None => Vec::new(),
        Some(Value::Array(list)) if list.len() <= 4 => {
            let texts = list.into_iter().map(|stop| match stop {
                Value::String(text) if !text.is_empty() && text.chars().count() <= 256 && !text.contains('\0') => {
                    Some(text)
                }
                _ => None,
            });
            texts
                .collect::<Option<Vec<_>>>()
                .ok_or_else(|| fields.invalid("stop", "must hold strings of 1 to 256 characters"))?
        }
        Some(_) => return Err(fields.invalid("stop", "must be a list of at most 4 strings")),
    };
    let whole = |number: f64| number.fract() == 0.0;
    let settings = Settings {
        temperature: fields.number("temperature", "must be a number from 0 to 2", |n| {
            (0.0..=2.0).contains(&n)
        })?,
        top_p: fields.number("top_p", "must be a number above 0, at most 1", |n| n > 0.0 && n <= 1.0)?,
        max_output_tokens: fields
            .number("max_output_tokens", "must be a whole number from 1 to 10000000", |n| {
                (1.0..=1e7).contains(&n)
            })?
            .map(|n| {
                if whole(n) {
                    Ok(n as u64)
                } else {
                    Err(fields.invalid("max_output_tokens", "must be whole"))
                }
            })
            .transpose()?,
        stop,
        seed: fields
            .number("seed", "must be a whole number below 2^53", |n| {
                n.abs() < 9_007_199_254_740_992.0
            })?
            .map(|n| {
                if whole(n) {
                    Ok(n as i64)
                } else {
                    Err(fields.invalid("seed", "must be whole"))
                }
            })
            .transpose()?,
        reasoning_effort: fields.text("reasoning_effort", 16)?,
    };
    if settings
        .reasoning_effort
        .as_ref()
        .is_some_and(|e| e.is_empty() || !e.bytes().all(|b| b.is_ascii_lowercase()))
    {
        return Err(fields.invalid("reasoning_effort", "must be a provider's word, such as `low` or `high`"));
    }
    fields.end()?;
    Ok(settings)
}

fn tool_choice(fields: &mut Fields) -> Result<ToolChoice, Error> {
    const WHAT: &str = "must be `auto`, `none`, `required` or {\"name\": …}";
    match fields.take("tool_choice") {
        None => Ok(ToolChoice::Auto),
        Some(Value::String(word)) => match word.as_str() {
            "auto" => Ok(ToolChoice::Auto),
            "none" => Ok(ToolChoice::None),
            "required" => Ok(ToolChoice::Required),
            _ => Err(fields.invalid("tool_choice", WHAT)),
        },
        Some(Value::Object(choice)) => {
            let mut choice = Fields::at("tool_choice.".to_owned(), choice).among(&FIELDS);
            let name = choice.take("name");
            choice.end()?;
            match name {
                Some(Value::String(name)) => Ok(ToolChoice::Named(name)),
                _ => Err(fields.invalid("tool_choice", WHAT)),
            }
        }
        Some(_) => Err(fields.invalid("tool_choice", WHAT)),
    }
}

fn context(fields: &mut Fields) -> Result<Option<Map<String, Value>>, Error> {
    match fields.take("context") {
        None => Ok(None),
        Some(Value::Object(context)) => {
            let json = Value::Object(context.clone()).to_string();
            if json.len() > MAX_CONTEXT {
                return Err(fields.invalid("context", "may have 64 KiB as JSON"));
            }
            if json.contains("\\u0000") {
                return Err(Error::field(
                    ErrorCode::ControlCharacter,
                    "context",
                    "holds a character U+0000",
                ));
            }
            if context.values().any(has_rounded_integer) {
                let what = "holds an integer that does not fit into 64 bits; send it as a string";
                return Err(fields.invalid("context", what));
            }
            Ok(Some(context))
        }
        Some(_) => Err(fields.invalid("context", "must be an object")),
    }
}

fn response_format(fields: &mut Fields) -> Result<Option<ResponseFormat>, Error> {
    let Some(mut format) = fields.object("response_format")? else {
        return Ok(None);
    };
    let kind = format.take("type");
    let found = match kind.as_ref().and_then(Value::as_str) {
        Some("text") => ResponseFormat::Text,
        Some("json_object") => ResponseFormat::JsonObject,
        Some("json_schema") => {
            let name = format.text("name", 64)?.unwrap_or_else(|| "answer".to_owned());
            let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
            if name.is_empty() || !name.bytes().all(fits) {
                return Err(format.invalid("name", "must have 1 to 64 of the characters A-Z a-z 0-9 _ -"));
            }
            match format.take("schema") {
                Some(schema @ Value::Object(_)) => ResponseFormat::JsonSchema { name, schema },
                _ => return Err(format.invalid("schema", "must be a JSON Schema, an object")),
            }
        }
        _ => return Err(format.invalid("type", "must be `text`, `json_object` or `json_schema`")),
    };
    format.end()?;
    Ok(Some(found))
}

/// The same of the parameters of a query, with its key.
pub fn fingerprint_of(parameters: &BTreeMap<String, String>, key: Option<&str>) -> String {
    let text = serde_json::json!([parameters, key]).to_string();
    keys::hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes()).as_ref())
}

/// SHA-256 of the request's fields, in hex: the names are in order, so that it does not matter how they were sent.
fn fingerprint(fields: &Fields) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, fields.canonical().as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
