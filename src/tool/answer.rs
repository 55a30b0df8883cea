//! What an HTTP tool's answer says of itself: whether it is text for the model or a file for the client, and what the
//! file is called. A server's word is taken for neither safe nor true.

use reqwest::header::{CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};

use super::ToolError;

/// How long a file's name may be, in characters.
const MAX_NAME: usize = 100;

/// What an answer's headers say of its body.
pub(super) struct Form {
    /// `type/subtype` in lower case; empty if it is not said.
    pub(super) media_type: String,
    /// In lower case.
    charset: Option<String>,
    /// Whether it is text for the model.
    use_as: Use,
    /// As the server calls it.
    pub(super) file_name: Option<String>,
}

/// What an answer is used as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Text,
    File,
}

impl Form {
    /// Reads them.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, ToolError> {
        // A server that was told `identity` and compresses all the same could fill the memory with a few bytes.
        let encoding = headers.get(CONTENT_ENCODING).map_or(&b""[..], HeaderValue::as_bytes);
        if !encoding.is_empty() && !encoding.eq_ignore_ascii_case(b"identity") {
            return Err(ToolError::new("the answer is compressed, although that was declined"));
        }
        let (media_type, parameters) = header(headers, CONTENT_TYPE);
        let token = |c: char| c.is_ascii_alphanumeric() || "!#$&-^_.+".contains(c);
        let valid = media_type.split_once('/').is_some_and(|(a, b)| {
            let part = |part: &str| !part.is_empty() && part.len() < 128 && part.chars().all(token);
            part(a) && part(b)
        });
        let media_type = match media_type {
            media_type if valid => media_type,
            nothing if nothing.is_empty() => nothing,
            _ => "application/octet-stream".to_owned(),
        };
        let (disposition, names) = header(headers, CONTENT_DISPOSITION);
        let text = disposition != "attachment" && (media_type.is_empty() || is_text(&media_type));
        let parameter = |all: &[(String, String)], wanted: &str| {
            let found = all.iter().find(|(name, _)| name == wanted);
            found.map(|(_, value)| value.clone())
        };
        let extended = parameter(&names, "filename*").and_then(|value| extended(&value));
        Ok(Self {
            charset: parameter(&parameters, "charset").map(|charset| charset.to_ascii_lowercase()),
            use_as: if text { Use::Text } else { Use::File },
            file_name: extended.or_else(|| parameter(&names, "filename")),
            media_type,
        })
    }

    /// Whether it is a file for the client.
    pub(super) fn is_file(&self) -> bool {
        self.use_as == Use::File
    }

    /// The body as text. Where its charset is not known, what is not UTF-8 becomes `U+FFFD`.
    pub(super) fn text(&self, bytes: &[u8]) -> String {
        match self.charset.as_deref() {
            Some("iso-8859-1" | "latin1") => bytes.iter().map(|byte| char::from(*byte)).collect(),
            _ => {
                let text = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
                String::from_utf8_lossy(text).into_owned()
            }
        }
    }
}

/// Whether a media type is for models to read.
fn is_text(media_type: &str) -> bool {
    if media_type.starts_with("image/") {
        return false; // image/svg+xml is for eyes
    }
    media_type.starts_with("text/")
        || media_type.ends_with("+json")
        || media_type.ends_with("+xml")
        || matches!(
            media_type.strip_prefix("application/"),
            Some(
                "json"
                    | "x-ndjson"
                    | "ndjson"
                    | "jsonl"
                    | "xml"
                    | "yaml"
                    | "x-yaml"
                    | "toml"
                    | "javascript"
                    | "sql"
                    | "x-www-form-urlencoded"
            )
        )
}

/// A header's word in lower case, and its parameters, their names in lower case.
fn header(headers: &HeaderMap, name: HeaderName) -> (String, Vec<(String, String)>) {
    let value = headers.get(name).map(HeaderValue::as_bytes).unwrap_or_default();
    let value = String::from_utf8_lossy(value);
    let (word, mut rest) = value.split_once(';').unwrap_or((&value, ""));
    let mut parameters = Vec::new();
    while let Some((name, after)) = rest.split_once('=') {
        let mut value = String::new();
        let after = after.trim_start();
        rest = if let Some(quoted) = after.strip_prefix('"') {
            let mut letters = quoted.char_indices();
            let mut end = quoted.len();
            while let Some((at, letter)) = letters.next() {
                match letter {
                    '"' => {
                        end = at + 1;
                        break;
                    }
                    '\\' => value.extend(letters.next().map(|(_, letter)| letter)),
                    letter => value.push(letter),
                }
            }
            let after = quoted.get(end..).unwrap_or("");
            after.split_once(';').map_or("", |(_, rest)| rest)
        } else {
            let (plain, rest) = after.split_once(';').unwrap_or((after, ""));
            value.push_str(plain.trim());
            rest
        };
        parameters.push((name.trim().to_ascii_lowercase(), value));
    }
    (word.trim().to_ascii_lowercase(), parameters)
}

/// A parameter in the extended form, `UTF-8''na%C3%AFve.txt` (RFC 8187).
fn extended(value: &str) -> Option<String> {
    let (charset, rest) = value.split_once('\'')?;
    let (_language, text) = rest.split_once('\'')?;
    if !charset.eq_ignore_ascii_case("utf-8") {
        return None;
    }
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        let byte = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (first, byte) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = after.get(2..).unwrap_or_default();
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).ok()
}

/// A file's name without a path, control characters and excess; nothing, if nothing is left.
pub(super) fn harmless(name: &str) -> Option<String> {
    let name = name.rsplit(['/', '\\']).next().unwrap_or(name);
    let name: String = name.chars().filter(|c| !c.is_control()).take(MAX_NAME).collect();
    let name = name.trim();
    (!name.trim_matches('.').is_empty()).then(|| name.to_owned())
}

/// What a file of a media type is usually called behind its last dot.
pub(super) fn extension(media_type: &str) -> &'static str {
    match media_type {
        "application/pdf" => "pdf",
        "application/zip" => "zip",
        "application/gzip" => "gz",
        "application/json" => "json",
        "application/xml" | "text/xml" => "xml",
        "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet" => "xlsx",
        "application/vnd.openxmlformats-officedocument.wordprocessingml.document" => "docx",
        "text/csv" => "csv",
        "text/html" => "html",
        "text/plain" => "txt",
        "image/png" => "png",
        "image/jpeg" => "jpg",
        "image/gif" => "gif",
        "image/webp" => "webp",
        "image/svg+xml" => "svg",
        "audio/mpeg" => "mp3",
        "audio/wav" => "wav",
        "video/mp4" => "mp4",
        _ => "bin",
    }
}
