//! Addresses with places for values. A value is percent-encoded, and stays in its segment or in its parameter.

use url::Url;

use super::{Around, Parameters, Piece, Source, Values, place, plain, push, sample};

/// The longest address that is sent, in bytes.
const MAX_URL: usize = 8 << 10;

/// An address with places in its path and in its query.
#[derive(Debug)]
pub struct Address {
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
    pub fn parse(text: &str, parameters: &Parameters<'_>) -> Result<Self, String> {
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
    pub fn fill(&self, values: Values<'_>) -> Result<Url, String> {
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

/// A `name=value` of a query or of a form.
#[derive(Clone, Debug)]
pub(super) struct Pair(Vec<Piece>);

impl Pair {
    /// Takes a query or a form apart.
    pub(super) fn all(text: &str, parameters: &Parameters<'_>) -> Result<Vec<Self>, String> {
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
    pub(super) fn fill(all: &[Self], values: Values<'_>) -> Result<String, String> {
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
