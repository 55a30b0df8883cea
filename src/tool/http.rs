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
        ACCEPT, ACCEPT_ENCODING, ACCEPT_LANGUAGE, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HOST, HeaderMap,
        HeaderName, HeaderValue, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, USER_AGENT,
    },
};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value, json};
use url::form_urlencoded;

use super::{
    File, Guard, Tool, ToolContext, ToolError, ToolOutput,
    answer::{Form, extension, harmless},
    guard::{Blocked, Resolver, Unresolved},
    secrets::{Secrets, is_secret},
    template::{Address, Body, Kind, Parameters, Values},
};
use crate::{chat::ToolDefinition, schema::widened};

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
    /// What no answer may repeat.
    secrets: Secrets,
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
            schema => schema,
        };
        let widened = widened(&parameters)
            .map_err(|why| format!("parameters: must be a JSON Schema with type \"object\": {why}"))?;
        let methods = [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
        let method = methods
            .into_iter()
            .find(|known| known.as_str().eq_ignore_ascii_case(&method));
        let known = Parameters(&widened);
        let address = Address::parse(&url, &known).map_err(|e| format!("url: {e}"))?;
        let mut headers = header_map(headers).map_err(|e| format!("headers: {e}"))?;
        let secrets = secrets(&headers, &url);
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
            secrets,
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
        if let Some(trace) = context
            .trace
            .as_deref()
            .and_then(|trace| HeaderValue::from_str(trace).ok())
        {
            request.headers_mut().insert("traceparent", trace);
        }
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
        self.secrets.sift(self.answer(response).await?)
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
            End::Whole => Ok(ToolOutput::text(form.text(&bytes))),
            End::More if form.is_file() => Err(ToolError(format!("the answer is larger than {limit} bytes"))),
            End::More => {
                let begins = cut(self.secrets.hide_in_beginning(form.text(&bytes)));
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
        let said = cut(self.secrets.hide_in_beginning(form.text(&bytes)));
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

/// What of a request is nobody's to know: the headers that may be keys, and what stands in the address under such a name.
fn secrets(headers: &HeaderMap, url: &str) -> Secrets {
    let headers = headers
        .iter()
        .filter(|(name, _)| !NO_SECRETS.contains(name) && **name != ACCEPT_ENCODING);
    let headers = headers.filter_map(|(_, value)| std::str::from_utf8(value.as_bytes()).ok());
    let query = url.split_once('?').map_or("", |(_, query)| query);
    let query: Vec<_> = form_urlencoded::parse(query.as_bytes())
        .filter(|(name, _)| is_secret(name))
        .collect();
    Secrets::of(headers.chain(query.iter().map(|(_, value)| &**value)))
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

/// As much of a text as a model is told of what went wrong.
fn cut(text: String) -> String {
    match text.char_indices().nth(MAX_TOLD) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or(&text)),
        None => text,
    }
}
#[cfg(test)]
mod tests;
