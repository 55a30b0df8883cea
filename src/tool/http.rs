//! Tools that are HTTP requests, declared in the configuration.
//!
//! The model fills places in a request that somebody else wrote: it chooses no host, no header and no method. What comes
//! back is text for the model or a file for the client, of a bounded size. Redirects are not followed and proxies not
//! used: both would lead around the [`Guard`].

use std::{collections::BTreeMap, error::Error, time::Duration};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use reqwest::{
    Client, Method, Request, Response, StatusCode,
    header::{
        ACCEPT, ACCEPT_ENCODING, ACCEPT_LANGUAGE, CONNECTION, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LENGTH,
        CONTENT_TYPE, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
        USER_AGENT,
    },
};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value, json};

use super::{
    File, Guard, Tool, ToolContext, ToolError, ToolOutput,
    guard::{Blocked, Resolver, Unresolved},
    template::{Address, Body, Kind, Parameters, Values},
};
use crate::chat::ToolDefinition;

/// For a connection, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the words of an error may take: its status alone says much.
const ERROR_PATIENCE: Duration = Duration::from_secs(2);
/// How much of an error, or of an answer that is too large, the model is told, in characters.
const MAX_TOLD: usize = 2_000;
/// The most that is read of an error, in bytes: as many characters as are told.
const MAX_ERROR: usize = 4 * MAX_TOLD;
/// How large a file may be, in bytes.
const MAX_FILE: usize = 10 << 20;
/// How long a file's name may be, in characters.
const MAX_NAME: usize = 100;
/// How short a header's value may be to be searched for in answers: shorter ones are no keys, but words.
const MIN_SECRET: usize = 8;
/// Connections kept open for the next call.
const MAX_IDLE: usize = 16;

/// Headers that are the connection's and not the tool's.
const NOT_OURS: [HeaderName; 9] = [
    ACCEPT_ENCODING,
    CONNECTION,
    CONTENT_LENGTH,
    EXPECT,
    HOST,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Headers that hold no secrets, but words that answers hold as well.
const NO_SECRETS: [HeaderName; 4] = [ACCEPT, ACCEPT_LANGUAGE, CONTENT_TYPE, USER_AGENT];

/// A tool that is an HTTP request, as configured.
#[derive(Clone, Debug)]
pub struct HttpToolSettings {
    /// The tool's name.
    pub name: String,
    /// What it does, for the model.
    pub description: String,
    /// A JSON Schema of an object; `null` if there are no parameters.
    pub parameters: Value,
    /// `GET`, `POST`, `PUT`, `PATCH` or `DELETE`.
    pub method: String,
    /// The address, with `{name}` for arguments.
    pub url: String,
    /// Headers of every request.
    pub headers: BTreeMap<String, SecretString>,
    /// The body, with `{name}` for arguments; without one, no body.
    pub body: Option<String>,
    /// How long a call may take; without one, as long as the agent says.
    pub timeout: Option<Duration>,
    /// How much of an answer is read, in bytes.
    pub max_result: usize,
}

/// The client of all HTTP tools.
pub(super) fn client(guard: &Guard) -> Result<Client, String> {
    client_of(Resolver::new(guard.clone()))
}

/// A client that connects to what this resolver says.
fn client_of(resolver: Resolver) -> Result<Client, String> {
    Client::builder()
        .user_agent(concat!("sluicegate/", env!("CARGO_PKG_VERSION")))
        .dns_resolver(resolver)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_max_idle_per_host(MAX_IDLE)
        .build()
        .map_err(|e| e.to_string())
}

/// The tool.
pub(super) struct HttpTool {
    definition: ToolDefinition,
    method: Method,
    address: Address,
    headers: HeaderMap,
    body: Option<Body>,
    timeout: Option<Duration>,
    max_result: usize,
    guard: Guard,
    client: Client,
}

impl HttpTool {
    /// Checks the settings.
    pub(super) fn new(settings: HttpToolSettings, guard: &Guard, client: Client) -> Result<Self, String> {
        let HttpToolSettings {
            name,
            description,
            parameters,
            method,
            url,
            headers,
            body,
            timeout,
            max_result,
        } = settings;
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        if name.is_empty() || name.len() > 64 || !name.chars().all(fits) {
            return Err("a tool's name is up to 64 letters, digits, _ and -".into());
        }
        if max_result == 0 {
            return Err("max_result: an answer needs at least a byte".into());
        }
        let parameters = match parameters {
            Value::Null => json!({"type": "object", "properties": {}, "additionalProperties": false}),
            schema if schema.get("type") == Some(&json!("object")) => schema,
            _ => return Err("parameters: must be a JSON Schema with type \"object\"".into()),
        };
        let methods = [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
        let method = methods
            .into_iter()
            .find(|known| known.as_str().eq_ignore_ascii_case(&method));
        let known = Parameters(&parameters);
        let address = Address::parse(&url, &known).map_err(|e| format!("url: {e}"))?;
        let mut headers = header_map(headers).map_err(|e| format!("headers: {e}"))?;
        let body = match body {
            Some(text) => {
                let json = HeaderValue::from_static("application/json");
                let media_type = headers.entry(CONTENT_TYPE).or_insert(json);
                let kind = Kind::of(media_type.to_str().unwrap_or_default());
                Some(Body::parse(&text, kind, &known).map_err(|e| format!("body: {e}"))?)
            }
            None => None,
        };
        Ok(Self {
            method: method.ok_or("method: must be GET, POST, PUT, PATCH or DELETE")?,
            address,
            headers,
            body,
            timeout,
            max_result,
            guard: guard.clone(),
            client,
            definition: ToolDefinition {
                name,
                description,
                parameters,
            },
        })
    }

    /// Asks, and reads the answer.
    async fn ask(&self, arguments: &Map<String, Value>, context: &ToolContext) -> Result<ToolOutput, ToolError> {
        let values = Values {
            arguments,
            facts: &context.facts,
        };
        let url = self.address.fill(values).map_err(ToolError)?;
        let body = self
            .body
            .as_ref()
            .map(|body| body.fill(values))
            .transpose()
            .map_err(ToolError)?;
        if let Err(blocked) = self.guard.check(&url) {
            return Err(self.blocked(blocked));
        }
        let mut request = Request::new(self.method.clone(), url);
        *request.headers_mut() = self.headers.clone();
        *request.body_mut() = body.map(Into::into);
        let response = self.client.execute(request).await.map_err(|e| self.unanswered(&e))?;
        let status = response.status();
        if status.is_redirection() {
            return Err(ToolError(format!(
                "HTTP {}: a redirect, which is not followed",
                status.as_u16()
            )));
        }
        if !status.is_success() {
            return Err(self.failure(status, response).await);
        }
        self.answer(response).await
    }

    /// Reads an answer that means success.
    async fn answer(&self, mut response: Response) -> Result<ToolOutput, ToolError> {
        let form = Form::of(response.headers())?;
        let limit = if form.is_file() { MAX_FILE } else { self.max_result };
        let (bytes, end) = read(&mut response, limit).await;
        drop(response); // closes the connection, if there is more to come
        match end {
            End::Whole if bytes.is_empty() => Ok(ToolOutput::text("The request succeeded, with an empty answer.")),
            End::Whole if form.is_file() => Ok(self.file(form, bytes)),
            End::Whole if form.media_type.is_empty() && std::str::from_utf8(&bytes).is_err() => {
                Ok(self.file(form, bytes))
            }
            End::Whole => Ok(ToolOutput::text(self.hide(form.text(&bytes)))),
            End::More if form.is_file() => Err(ToolError(format!("the answer is larger than {limit} bytes"))),
            End::More => {
                let begins = cut(self.hide(form.text(&bytes)));
                Err(ToolError(format!(
                    "the answer is larger than {limit} bytes; it begins: {begins}"
                )))
            }
            End::Broken => Err(ToolError::new("the answer broke off")),
        }
    }

    /// An answer that is a file.
    fn file(&self, form: Form, bytes: Vec<u8>) -> ToolOutput {
        let media_type = match form.media_type.as_str() {
            "" => "application/octet-stream".to_owned(),
            _ => form.media_type,
        };
        let name = form.file_name.as_deref().and_then(harmless);
        let name = name.unwrap_or_else(|| format!("{}.{}", self.definition.name, extension(&media_type)));
        ToolOutput {
            content: format!(
                "The request succeeded. The answer is a file: {name} ({media_type}, {} bytes).",
                bytes.len()
            ),
            files: vec![File {
                name,
                media_type,
                bytes: Bytes::from(bytes),
            }],
        }
    }

    /// What a status that means failure says, with what the server says of it.
    async fn failure(&self, status: StatusCode, mut response: Response) -> ToolError {
        let status = status.as_u16();
        let form = Form::of(response.headers()).ok().filter(|form| !form.is_file());
        let Some(form) = form else {
            return ToolError(format!("HTTP {status}"));
        };
        let mut bytes = Vec::new();
        // What has come when the patience ends is told all the same.
        let read = read_into(&mut bytes, &mut response, MAX_ERROR);
        let _: Result<End, _> = tokio::time::timeout(ERROR_PATIENCE, read).await;
        let said = cut(self.hide(form.text(&bytes)));
        match said.trim() {
            "" => ToolError(format!("HTTP {status}")),
            said => ToolError(format!("HTTP {status}: {said}")),
        }
    }

    /// Why there is no answer. Neither the address nor what it resolved to is the model's business.
    fn unanswered(&self, error: &reqwest::Error) -> ToolError {
        let mut cause: Option<&(dyn Error + 'static)> = Some(error);
        while let Some(this) = cause {
            if let Some(blocked) = this.downcast_ref::<Blocked>() {
                return self.blocked(*blocked);
            }
            if this.is::<Unresolved>() {
                return ToolError::new("the server's name has no address");
            }
            cause = this.source();
        }
        ToolError::new(if error.is_connect() && error.is_timeout() {
            "no connection to the server in time"
        } else if error.is_connect() {
            "no connection to the server"
        } else {
            "the connection broke before there was an answer"
        })
    }

    /// Says in the log which address is not admitted, and to the model that there is one.
    fn blocked(&self, Blocked(address): Blocked) -> ToolError {
        let tool = &self.definition.name;
        tracing::warn!(%tool, %address, "a tool may not connect there; tools.guard.allow could allow it");
        ToolError::new("blocked_address: this tool may not connect there")
    }

    /// Takes our keys out of what a server says: some repeat the request.
    fn hide(&self, mut text: String) -> String {
        let secret = self.headers.iter().filter(|(name, _)| !NO_SECRETS.contains(name));
        let values = secret.filter_map(|(_, value)| std::str::from_utf8(value.as_bytes()).ok());
        // `Bearer KEY`: the key alone as well.
        for value in values.flat_map(|value| [value, value.rsplit(' ').next().unwrap_or(value)]) {
            if value.len() >= MIN_SECRET && text.contains(value) {
                text = text.replace(value, "[hidden]");
            }
        }
        text
    }
}

impl Tool for HttpTool {
    fn definition(&self) -> &ToolDefinition {
        &self.definition
    }

    fn timeout(&self) -> Option<Duration> {
        self.timeout
    }

    fn call<'a>(
        &'a self,
        arguments: &'a Map<String, Value>,
        context: &'a ToolContext,
    ) -> BoxFuture<'a, Result<ToolOutput, ToolError>> {
        Box::pin(self.ask(arguments, context))
    }
}

/// Checks the headers of every request, and marks them as nobody's to read.
fn header_map(headers: BTreeMap<String, SecretString>) -> Result<HeaderMap, String> {
    let mut all = HeaderMap::new();
    for (name, value) in headers {
        let header = HeaderName::try_from(&name).map_err(|_| format!("{name:?} is no header"))?;
        if NOT_OURS.contains(&header) {
            return Err(format!("{name} is not a tool's to set"));
        }
        let mut value = HeaderValue::from_str(value.expose_secret())
            .map_err(|_| format!("the value of {name} has a character that no header can hold"))?;
        value.set_sensitive(!NO_SECRETS.contains(&header));
        if all.insert(header, value).is_some() {
            return Err(format!("{name} is there twice"));
        }
    }
    all.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    Ok(all)
}

/// How reading ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// With the body's.
    Whole,
    /// At the limit, with more to come.
    More,
    /// Before either.
    Broken,
}

/// Reads a body, `limit` bytes of it at most.
async fn read(response: &mut Response, limit: usize) -> (Vec<u8>, End) {
    let mut bytes = Vec::new();
    let end = read_into(&mut bytes, response, limit).await;
    (bytes, end)
}

/// Reads a body into `bytes`, which hold what has come even if this is given up.
async fn read_into(bytes: &mut Vec<u8>, response: &mut Response, limit: usize) -> End {
    loop {
        match response.chunk().await {
            Ok(Some(piece)) => {
                let room = limit.saturating_sub(bytes.len());
                bytes.extend_from_slice(piece.get(..room).unwrap_or(&piece));
                if piece.len() > room {
                    return End::More;
                }
            }
            Ok(None) => return End::Whole,
            Err(_) => return End::Broken,
        }
    }
}

/// What an answer's headers say of its body.
struct Form {
    /// `type/subtype` in lower case; empty if it is not said.
    media_type: String,
    /// In lower case.
    charset: Option<String>,
    /// Whether it is text for the model.
    use_as: Use,
    /// As the server calls it.
    file_name: Option<String>,
}

/// What an answer is used as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Text,
    File,
}

impl Form {
    /// Reads them.
    fn of(headers: &HeaderMap) -> Result<Self, ToolError> {
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

    fn is_file(&self) -> bool {
        self.use_as == Use::File
    }

    /// The body as text. Where its charset is not known, what is not UTF-8 becomes `U+FFFD`.
    fn text(&self, bytes: &[u8]) -> String {
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
fn harmless(name: &str) -> Option<String> {
    let name = name.rsplit(['/', '\\']).next().unwrap_or(name);
    let name: String = name.chars().filter(|c| !c.is_control()).take(MAX_NAME).collect();
    let name = name.trim();
    (!name.trim_matches('.').is_empty()).then(|| name.to_owned())
}

/// What a file of a media type is usually called behind its last dot.
fn extension(media_type: &str) -> &'static str {
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

/// As much of a text as a model is told of what went wrong.
fn cut(text: String) -> String {
    match text.char_indices().nth(MAX_TOLD) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or(&text)),
        None => text,
    }
}
