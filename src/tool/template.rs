//! Addresses and bodies with places for values: `{name}` is the argument of that name, `{context.key}` a member of the
//! request's `context`.
//!
//! Both are taken apart once, at the start, and put together for every call, so that a value can fill its place and
//! nothing else: it never becomes a path segment, a parameter, a member or a host of its own. Where a value cannot be
//! written that way, the call is refused in words for the model.

use serde_json::{Map, Value};
use url::Url;

/// The longest address that is sent, in bytes.
const MAX_URL: usize = 8 << 10;
/// What stands for a value inside a string while a template is checked; no template has it by chance.
const DUMMY: &str = "xSLUICEGATEx";

/// What can stand in the places of a template.
#[derive(Clone, Copy)]
pub(super) struct Values<'a> {
    /// By `{name}`.
    pub(super) arguments: &'a Map<String, Value>,
    /// By `{context.key}`.
    pub(super) facts: &'a Map<String, Value>,
}

impl Values<'_> {
    /// The value of a place; without one, an optional argument was left out. A fact that is missing is an error
    /// wherever it stands: without it a request could mean everybody's instead of somebody's.
    fn of(&self, source: &Source) -> Result<Option<&Value>, String> {
        match source {
            Source::Argument(name) => Ok(self.arguments.get(name).filter(|value| !value.is_null())),
            Source::Fact(key) => match self.facts.get(key) {
                Some(value @ (Value::String(_) | Value::Number(_) | Value::Bool(_))) => Ok(Some(value)),
                _ => Err(format!(
                    "the request's context has no string, number or boolean {key:?}, without which this tool cannot be used"
                )),
            },
        }
    }
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    Argument(String),
    Fact(String),
}

impl Source {
    fn named(name: &str) -> Self {
        match name.strip_prefix("context.") {
            Some(key) => Self::Fact(key.to_owned()),
            None => Self::Argument(name.to_owned()),
        }
    }

    /// What it is called in a template.
    fn name(&self) -> String {
        match self {
            Self::Argument(name) => name.clone(),
            Self::Fact(key) => format!("context.{key}"),
        }
    }
}

/// A piece of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    /// A place, and what is around it.
    Place(Source, Around),
}

/// What is around a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Around {
    /// Text, or an address.
    Nothing,
    /// JSON.
    Json,
    /// The quotes of a JSON string.
    Quotes,
}

/// A JSON Schema's properties: what `{name}` can be.
pub(super) struct Parameters<'a>(pub(super) &'a Value);

impl Parameters<'_> {
    /// Whether there is such a parameter; facts are known only when somebody asks.
    fn know(&self, source: &Source) -> Result<(), String> {
        let name = match source {
            Source::Argument(name) => name,
            Source::Fact(key) if key.is_empty() => return Err("{context.} needs a key".into()),
            Source::Fact(_) => return Ok(()),
        };
        let properties = self.0.get("properties").and_then(Value::as_object);
        let names = || properties.into_iter().flat_map(Map::keys);
        if names().any(|known| known == name) {
            return Ok(());
        }
        let close = |known: &&String| strsim::jaro_winkler(known, name) > 0.7;
        let near = names().filter(close).max_by(|a, b| {
            let close = |known: &str| strsim::jaro_winkler(known, name);
            close(a).total_cmp(&close(b))
        });
        let hint = near
            .map(|near| format!("; did you mean {{{near}}}?"))
            .unwrap_or_default();
        Err(format!(
            "{{{name}}} is not among the parameters{hint} ({{{{{name}}}}} stands for the text {{{name}}})"
        ))
    }

    /// Whether it can be one word: a list or an object has no form in an address that all servers share.
    fn is_plain(&self, source: &Source) -> Result<(), String> {
        let Source::Argument(name) = source else { return Ok(()) };
        let kind = self
            .0
            .pointer("/properties")
            .and_then(|all| all.get(name)?.get("type")?.as_str());
        match kind {
            Some(kind @ ("array" | "object")) => Err(format!(
                "{{{name}}} is an {kind}; only strings, numbers and booleans can stand here"
            )),
            _ => Ok(()),
        }
    }
}

/// A `name=value` of a query or of a form.
#[derive(Clone, Debug)]
struct Pair(Vec<Piece>);

impl Pair {
    /// Takes a query or a form apart.
    fn all(text: &str, parameters: &Parameters<'_>) -> Result<Vec<Self>, String> {
        let pairs = text.split('&').map(|pair| {
            let pieces = strict(pair, parameters)?;
            let named = matches!(pieces.first(), Some(Piece::Text(text)) if text.contains('='));
            if !named && pieces.iter().any(|piece| matches!(piece, Piece::Place(..))) {
                return Err(format!(
                    "{pair:?}: a placeholder can stand only after a parameter's name and ="
                ));
            }
            Ok(Self(pieces))
        });
        pairs.collect()
    }

    /// Puts them together, without those whose argument was left out.
    fn fill(all: &[Self], values: Values<'_>) -> Result<String, String> {
        let mut out = String::new();
        'pairs: for Self(pieces) in all {
            let mut pair = String::new();
            for piece in pieces {
                match piece {
                    Piece::Text(text) => pair.push_str(text),
                    Piece::Place(source, _) => match values.of(source)? {
                        Some(value) => encode(&plain(source, value)?, &mut pair),
                        None => continue 'pairs,
                    },
                }
            }
            if !out.is_empty() {
                out.push('&');
            }
            out.push_str(&pair);
        }
        Ok(out)
    }
}

/// An address with places in its path and in its query.
#[derive(Debug)]
pub(super) struct Address {
    /// The scheme, the host and the port: as they are written, always.
    start: String,
    /// Between the slashes.
    path: Vec<Vec<Piece>>,
    /// Between the ampersands; without a `?`, nothing.
    query: Vec<Pair>,
    /// The address with something harmless in every place: what an address of this template looks like.
    like: Url,
}

impl Address {
    /// Takes an address apart.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse(text: &str, parameters: &Parameters<'_>) -> Result<Self, String> {
        if text.contains(|c: char| c.is_whitespace() || c.is_control() || c == '\\') {
            return Err("there are no spaces, control characters and backslashes in an address".into());
        }
        if text.contains('#') {
            return Err("a fragment (#) is never sent".into());
        }
        let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        let rest = rest.ok_or("an address begins with https:// or http://, without a placeholder")?;
        let (host, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if host.contains(['{', '}']) {
            return Err("no placeholder can stand in the host or in the port".into());
        }
        if host.is_empty() {
            return Err("there is no host".into());
        }
        if host.contains('@') {
            return Err("an address is shown to people and must hold no password; headers are for that".into());
        }
        let (path, query) = match rest.split_once('?') {
            Some((path, query)) => (path, Pair::all(query, parameters)?),
            None => (rest, Vec::new()),
        };
        let path = path.strip_prefix('/').unwrap_or(path);
        let path: Vec<_> = path
            .split('/')
            .map(|segment| strict(segment, parameters))
            .collect::<Result<_, _>>()?;
        let start = text.get(..text.len() - rest.len()).unwrap_or_default().to_owned();
        let segments = path.iter().map(|pieces| sample(pieces));
        let like = format!("{start}/{}", segments.collect::<Vec<_>>().join("/"));
        let like = Url::parse(&like).map_err(|e| e.to_string())?;
        if like.path_segments().map_or(0, Iterator::count) != path.len() {
            return Err("an address has no segments . and ..".into());
        }
        Ok(Self {
            start,
            path,
            query,
            like,
        })
    }

    /// The address with these values.
    ///
    /// # Errors
    /// Which of them cannot stand there, for the model.
    pub(super) fn fill(&self, values: Values<'_>) -> Result<Url, String> {
        let mut out = self.start.clone();
        for pieces in &self.path {
            out.push('/');
            segment(pieces, values, &mut out)?;
        }
        let query = Pair::fill(&self.query, values)?;
        if !query.is_empty() {
            out.push('?');
            out.push_str(&query);
        }
        if out.len() > MAX_URL {
            return Err("the arguments are too long for an address".into());
        }
        // What is written above leaves no way to another place. This asks once more whoever has the last word on it.
        let url = Url::parse(&out).map_err(|_| "the arguments make no address")?;
        let place = |url: &Url| (url.origin(), url.path_segments().map_or(0, Iterator::count));
        if place(&url) != place(&self.like) || url.fragment().is_some() || !url.username().is_empty() {
            return Err("the arguments lead to another address".into());
        }
        Ok(url)
    }
}

/// Writes a segment of a path.
fn segment(pieces: &[Piece], values: Values<'_>, out: &mut String) -> Result<(), String> {
    let mut raw = String::new(); // as a server reads it
    for piece in pieces {
        match piece {
            Piece::Text(text) => {
                raw.push_str(text);
                out.push_str(text);
            }
            Piece::Place(source, _) => {
                let value = values.of(source)?;
                let value = value.ok_or_else(|| format!("{:?} is needed here", source.name()))?;
                let value = plain(source, value)?;
                if value.is_empty() {
                    // `DELETE /notes/{id}` without an id would be all of them.
                    return Err(format!("{:?} must not be empty", source.name()));
                }
                raw.push_str(&value);
                encode(&value, out);
            }
        }
    }
    let places = pieces.iter().find_map(|piece| match piece {
        Piece::Place(source, _) => Some(source),
        Piece::Text(_) => None,
    });
    // Parsers take %2e for a dot, and many a server takes %2f for a slash before it takes `..` away.
    let raw = raw
        .to_ascii_lowercase()
        .replace("%2e", ".")
        .replace("%2f", "/")
        .replace("%5c", "\\");
    match places {
        Some(source) if raw.split(['/', '\\']).any(|part| matches!(part, "." | "..")) => {
            Err(format!("{:?} must not be or hold the segments . and ..", source.name()))
        }
        _ => Ok(()),
    }
}

/// What a body is, which decides how a value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// JSON: a value is JSON, and inside a string it is text, escaped.
    Json,
    /// A form, as browsers send it: a value is percent-encoded.
    Form,
    /// Text that has no syntax: a value is text.
    Plain,
    /// Whatever else, where it is not known how to write a value.
    Other,
}

impl Kind {
    /// What a media type says.
    pub(super) fn of(media_type: &str) -> Self {
        match media_type
            .split(';')
            .next()
            .unwrap_or("")
            .trim()
            .to_ascii_lowercase()
            .as_str()
        {
            "application/json" => Self::Json,
            other if other.ends_with("+json") => Self::Json,
            "application/x-www-form-urlencoded" => Self::Form,
            "text/plain" => Self::Plain,
            _ => Self::Other,
        }
    }
}

/// A body with places.
#[derive(Debug)]
pub(super) struct Body(Parts);

#[derive(Debug)]
enum Parts {
    Form(Vec<Pair>),
    Pieces(Vec<Piece>),
}

impl Body {
    /// Takes a body apart. A brace that does not stand for a place is a brace: JSON is full of them.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse(text: &str, kind: Kind, parameters: &Parameters<'_>) -> Result<Self, String> {
        if kind == Kind::Form {
            return Ok(Self(Parts::Form(Pair::all(text.trim(), parameters)?)));
        }
        let pieces = loose(text, kind);
        for piece in &pieces {
            if let Piece::Place(source, _) = piece {
                if kind == Kind::Other {
                    return Err(format!(
                        "it is not known how to write {{{}}} into such a body; with the header content-type it can be JSON, \
                         application/x-www-form-urlencoded or text/plain",
                        source.name()
                    ));
                }
                parameters.know(source)?;
            }
        }
        if kind == Kind::Json {
            let value = serde_json::from_str(&sample(&pieces)).map_err(|e| {
                format!("not JSON with a value in every place ({e}); another body needs a header content-type")
            })?;
            if names_hold(&value, DUMMY) {
                return Err("a placeholder can stand in a value, but not in the name of a member".into());
            }
        }
        Ok(Self(Parts::Pieces(pieces)))
    }

    /// The body with these values. What was left out is `null`, in a string nothing, and in a form not there.
    ///
    /// # Errors
    /// Which of them cannot stand there, for the model.
    pub(super) fn fill(&self, values: Values<'_>) -> Result<String, String> {
        let pieces = match &self.0 {
            Parts::Form(pairs) => return Pair::fill(pairs, values),
            Parts::Pieces(pieces) => pieces,
        };
        let mut out = String::new();
        for piece in pieces {
            match piece {
                Piece::Text(text) => out.push_str(text),
                Piece::Place(source, around) => {
                    let value = values.of(source)?;
                    match around {
                        Around::Json => out.push_str(&value.unwrap_or(&Value::Null).to_string()),
                        Around::Quotes => {
                            let quoted = Value::String(value.map(text).unwrap_or_default()).to_string();
                            out.push_str(quoted.get(1..quoted.len() - 1).unwrap_or_default());
                        }
                        Around::Nothing => out.push_str(&value.map(text).unwrap_or_default()),
                    }
                }
            }
        }
        Ok(out)
    }
}

/// Whether a member's name somewhere in a value holds a word.
fn names_hold(value: &Value, word: &str) -> bool {
    match value {
        Value::Object(members) => members
            .iter()
            .any(|(name, value)| name.contains(word) || names_hold(value, word)),
        Value::Array(values) => values.iter().any(|value| names_hold(value, word)),
        _ => false,
    }
}

/// A template with something harmless in every place.
fn sample(pieces: &[Piece]) -> String {
    let texts = pieces.iter().map(|piece| match piece {
        Piece::Text(text) => text,
        Piece::Place(_, Around::Json) => "null",
        Piece::Place(..) => DUMMY,
    });
    texts.collect()
}

/// Takes a part of an address apart, where every brace means something: `{name}` is a place, `{{` and `}}` are braces.
fn strict(text: &str, parameters: &Parameters<'_>) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(['{', '}']) {
        let (before, from) = rest.split_at(at);
        push(&mut pieces, before);
        if let Some(after) = from.strip_prefix("{{") {
            push(&mut pieces, "%7B");
            rest = after;
        } else if let Some(after) = from.strip_prefix("}}") {
            push(&mut pieces, "%7D");
            rest = after;
        } else if let Some((name, after)) = place(from) {
            let source = Source::named(name);
            parameters.know(&source)?;
            parameters.is_plain(&source)?;
            pieces.push(Piece::Place(source, Around::Nothing));
            rest = after;
        } else {
            return Err(format!(
                "{text:?}: a placeholder is {{name}}, and {{{{ and }}}} stand for braces"
            ));
        }
    }
    push(&mut pieces, rest);
    Ok(pieces)
}

/// Takes a body apart, where most braces are braces: `{name}` is a place, `{{name}}` the text `{name}`.
fn loose(text: &str, kind: Kind) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut around = if kind == Kind::Json {
        Around::Json
    } else {
        Around::Nothing
    };
    let mut rest = text;
    while let Some(at) = rest.find(['{', '"', '\\']) {
        let (before, from) = rest.split_at(at);
        push(&mut pieces, before);
        let escaped = from
            .strip_prefix('{')
            .and_then(place)
            .filter(|(_, after)| after.starts_with('}'));
        if let Some((name, after)) = escaped {
            push(&mut pieces, &format!("{{{name}}}"));
            rest = after.strip_prefix('}').unwrap_or(after);
        } else if let Some((name, after)) = place(from) {
            pieces.push(Piece::Place(Source::named(name), around));
            rest = after;
        } else {
            around = match (around, from.starts_with('"')) {
                (Around::Json, true) => Around::Quotes,
                (Around::Quotes, true) => Around::Json,
                _ => around,
            };
            // What a backslash makes harmless goes with it.
            let taken = if around == Around::Quotes && from.starts_with('\\') {
                2
            } else {
                1
            };
            let end = from.char_indices().nth(taken).map_or(from.len(), |(at, _)| at);
            let (this, after) = from.split_at(end);
            push(&mut pieces, this);
            rest = after;
        }
    }
    push(&mut pieces, rest);
    pieces
}

/// The name of the place that a text begins with, and what comes after it.
fn place(text: &str) -> Option<(&str, &str)> {
    let (name, after) = text.strip_prefix('{')?.split_once('}')?;
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let begins = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    (begins && name.chars().all(fits)).then_some((name, after))
}

/// Adds a text to the pieces.
fn push(pieces: &mut Vec<Piece>, text: &str) {
    match pieces.last_mut() {
        _ if text.is_empty() => {}
        Some(Piece::Text(last)) => last.push_str(text),
        _ => pieces.push(Piece::Text(text.to_owned())),
    }
}

/// A value as the text it is, or else as JSON.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// A value that is one word.
fn plain(source: &Source, value: &Value) -> Result<String, String> {
    match value {
        Value::Array(_) | Value::Object(_) | Value::Null => {
            Err(format!("{:?} must be a string, a number or a boolean", source.name()))
        }
        value => Ok(text(value)),
    }
}

/// Writes a text so that it means nothing in a URL but itself.
fn encode(text: &str, out: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            let digit = |nibble: u8| {
                char::from_digit(u32::from(nibble), 16)
                    .unwrap_or('0')
                    .to_ascii_uppercase()
            };
            out.extend(['%', digit(byte >> 4), digit(byte & 15)]);
        }
    }
}
