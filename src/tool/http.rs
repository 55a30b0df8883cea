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
mod tests {
    use std::{
        net::SocketAddr,
        sync::{
            Arc, Mutex,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;
    use crate::chat::RunId;

    /// A server on loopback that says one thing to everybody, and then the last bit of it again and again if it is told
    /// to go on.
    #[derive(Clone)]
    struct Server {
        address: SocketAddr,
        connections: Arc<AtomicUsize>,
        asked: Arc<Mutex<Vec<u8>>>,
        hung_up: Arc<tokio::sync::Notify>,
    }

    /// What a server does when it has said its piece.
    #[derive(Clone, Copy)]
    enum Then {
        Close,
        /// Goes on with this many bytes at a time, after this pause.
        GoOn(usize, Duration),
    }

    impl Server {
        async fn says(answer: impl Into<Vec<u8>>, then: Then) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let server = Self {
                address: listener.local_addr().unwrap(),
                connections: Arc::default(),
                asked: Arc::default(),
                hung_up: Arc::default(),
            };
            let (this, answer) = (server.clone(), answer.into());
            tokio::spawn(async move {
                loop {
                    let (mut socket, _) = listener.accept().await.unwrap();
                    this.connections.fetch_add(1, Ordering::SeqCst);
                    let (this, answer) = (this.clone(), answer.clone());
                    tokio::spawn(async move {
                        let mut asked = Vec::new();
                        while !whole(&asked) {
                            match socket.read_buf(&mut asked).await {
                                Ok(0) | Err(_) => return,
                                Ok(_) => {}
                            }
                        }
                        *this.asked.lock().unwrap() = asked;
                        let _ = socket.write_all(&answer).await;
                        if let Then::GoOn(bytes, pause) = then {
                            let more = vec![b'x'; bytes];
                            while socket.write_all(&more).await.is_ok() {
                                tokio::time::sleep(pause).await;
                            }
                            this.hung_up.notify_one();
                        }
                    });
                }
            });
            server
        }

        /// An answer with a length.
        async fn answers(status: &str, headers: &str, body: &[u8]) -> Self {
            let mut answer =
                format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n", body.len()).into_bytes();
            answer.extend_from_slice(body);
            Self::says(answer, Then::Close).await
        }

        fn asked(&self) -> String {
            String::from_utf8(self.asked.lock().unwrap().clone()).unwrap()
        }

        fn connections(&self) -> usize {
            self.connections.load(Ordering::SeqCst)
        }
    }

    /// Whether these bytes are a whole request.
    fn whole(asked: &[u8]) -> bool {
        let text = String::from_utf8_lossy(asked).to_ascii_lowercase();
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            return false;
        };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        length.is_none_or(|length| body.len() >= length.parse().unwrap())
    }

    const JSON: &str = "content-type: application/json\r\n";

    fn settings(url: String) -> HttpToolSettings {
        HttpToolSettings {
            name: "look_up".into(),
            description: "Looks things up.".into(),
            parameters: json!({"type": "object", "properties": {"id": {"type": "string"}, "q": {"type": "string"}}}),
            method: "GET".into(),
            url,
            headers: BTreeMap::from([("Authorization".into(), "Bearer sk-very-secret-1".into())]),
            body: None,
            timeout: None,
            max_result: 64 << 10,
        }
    }

    fn guard(allow: &[&str]) -> Guard {
        Guard::new(allow.iter().map(|net| net.parse().unwrap()).collect())
    }

    fn tool(settings: HttpToolSettings, guard: &Guard) -> Result<HttpTool, String> {
        HttpTool::new(settings, guard, client(guard)?)
    }

    async fn call(tool: &HttpTool, arguments: Value) -> Result<ToolOutput, String> {
        let context = ToolContext {
            run_id: RunId::new(),
            facts: Arc::default(),
            trace: None,
        };
        let called = tool.call(arguments.as_object().unwrap(), &context);
        let called = tokio::time::timeout(Duration::from_secs(10), called)
            .await
            .expect("in time");
        called.map_err(|e| e.to_string())
    }

    /// Asks a server for `/things/a%2Fb`.
    async fn ask(server: &Server) -> Result<ToolOutput, String> {
        let settings = settings(format!("http://{}/things/{{id}}?q={{q}}", server.address));
        call(&tool(settings, &guard(&["127.0.0.0/8"])).unwrap(), json!({"id": "a/b"})).await
    }

    #[tokio::test]
    async fn a_request_is_what_was_declared_and_its_answer_is_for_the_model() {
        let server = Server::answers("200 OK", JSON, b"{\"degrees\": 21}").await;
        assert_eq!(ask(&server).await, Ok(ToolOutput::text("{\"degrees\": 21}")));
        let asked = server.asked().to_ascii_lowercase();
        assert!(asked.starts_with("get /things/a%2fb http/1.1\r\n"), "{asked}");
        for line in [
            "authorization: bearer sk-very-secret-1",
            "accept-encoding: identity",
            concat!("user-agent: sluicegate/", env!("CARGO_PKG_VERSION")),
        ] {
            assert!(asked.lines().any(|l| l == line), "{line}: {asked}");
        }
    }

    #[tokio::test]
    async fn a_body_is_sent_as_json_unless_a_header_says_otherwise() {
        let server = Server::answers("201 Created", "", b"").await;
        let mut post = settings(format!("http://{}/tickets", server.address));
        post.method = "post".into();
        post.body = Some(r#"{"title": {q}, "from": "agent {id}"}"#.into());
        let made = call(
            &tool(post.clone(), &guard(&["127.0.0.0/8"])).unwrap(),
            json!({"q": "a\"b", "id": "7"}),
        )
        .await;
        assert_eq!(
            made,
            Ok(ToolOutput::text("The request succeeded, with an empty answer."))
        );
        let asked = server.asked();
        assert!(asked.starts_with("POST /tickets "), "{asked}");
        assert!(asked.contains("content-type: application/json\r\n"), "{asked}");
        assert!(
            asked.ends_with("\r\n\r\n{\"title\": \"a\\\"b\", \"from\": \"agent 7\"}"),
            "{asked}"
        );
        post.headers
            .insert("content-type".into(), "application/x-www-form-urlencoded".into());
        post.body = Some("title={q}&id={id}".into());
        call(&tool(post, &guard(&["127.0.0.0/8"])).unwrap(), json!({"q": "a&b"}))
            .await
            .unwrap();
        assert!(server.asked().ends_with("\r\n\r\ntitle=a%26b"), "{}", server.asked());
    }

    #[tokio::test]
    async fn a_failure_is_told_with_what_the_server_says_but_without_our_keys() {
        let server = Server::answers(
            "500 Oh",
            JSON,
            b"{\"why\": \"Bearer sk-very-secret-1 is sk-very-secret-1\"}",
        )
        .await;
        assert_eq!(
            ask(&server).await,
            Err("HTTP 500: {\"why\": \"[hidden] is [hidden]\"}".into())
        );
        let half = Server::answers("500 Oh", "content-type: text/plain\r\n", b"it was sk-very-sec").await;
        assert_eq!(ask(&half).await, Err("HTTP 500: it was [hidden]".into()));
        let server = Server::answers("404 No", "", b"").await;
        assert_eq!(ask(&server).await, Err("HTTP 404".into()));
        let server = Server::answers("502 No", "content-type: image/png\r\n", b"\x89PNG").await;
        assert_eq!(ask(&server).await, Err("HTTP 502".into()));
        let long = Server::answers("503 No", "content-type: text/plain\r\n", "ü".repeat(5000).as_bytes()).await;
        assert_eq!(ask(&long).await, Err(format!("HTTP 503: {}…", "ü".repeat(2000))));
        let dripping = "HTTP/1.1 500 Oh\r\ncontent-type: text/plain\r\n\r\nwait".to_owned();
        let dripping = Server::says(dripping, Then::GoOn(1, Duration::from_millis(500))).await;
        let told = ask(&dripping).await.unwrap_err();
        assert!(told.starts_with("HTTP 500: wait"), "{told}");
    }

    #[tokio::test]
    async fn an_answer_that_repeats_the_request_tells_no_key() {
        let plain = "content-type: text/plain\r\n";
        for (headers, body, told) in [
            (plain, "I got sk-very-secret-1.", "I got [hidden]."),
            (
                plain,
                "its key=query%2Fkey%2B1, or query/key+1",
                "its key=[hidden], or [hidden]",
            ),
            (JSON, r#"{"k": "query\/key+1"}"#, r#"{"k": "[hidden]"}"#),
            (
                plain,
                "units=metric; identity, as was asked",
                "units=metric; identity, as was asked",
            ),
        ] {
            let server = Server::answers("200 OK", headers, body.as_bytes()).await;
            let address = server.address;
            let settings = settings(format!("http://{address}/?units=metric&api_key=query%2Fkey%2B1"));
            let told_now = call(&tool(settings, &guard(&["127.0.0.0/8"])).unwrap(), json!({})).await;
            assert_eq!(told_now, Ok(ToolOutput::text(told)));
        }
        let pdf = "content-type: application/pdf\r\n";
        let named = format!("{pdf}content-disposition: attachment; filename=sk-very-secret-1.pdf\r\n");
        let server = Server::answers("200 OK", &named, b"%PDF").await;
        let output = ask(&server).await.unwrap();
        assert_eq!(output.files[0].name, "[hidden].pdf");
        assert!(!output.content.contains("sk-very"), "{}", output.content);
        let server = Server::answers("200 OK", pdf, b"%PDF\xff Bearer sk-very-secret-1").await;
        assert!(ask(&server).await.unwrap_err().contains("repeats a key"));
    }

    #[tokio::test]
    async fn a_redirect_is_not_followed() {
        let inside = Server::answers("200 OK", JSON, b"{}").await;
        let place = format!("http://{}/latest/meta-data", inside.address);
        let elsewhere = [
            &*place,
            "file:///etc/passwd",
            "gopher://127.0.0.1:1/",
            "data:text/plain,x",
            "//127.0.0.1/",
            "",
        ];
        for status in [
            "300 Many",
            "301 Moved",
            "302 Found",
            "303 See",
            "304 No",
            "307 Temporary",
            "308 Permanent",
        ] {
            for place in elsewhere {
                let server = Server::answers(status, &format!("location: {place}\r\n"), b"").await;
                let told = ask(&server).await.unwrap_err();
                assert_eq!(
                    told,
                    format!("HTTP {}: a redirect, which is not followed", &status[..3])
                );
            }
        }
        // What only a browser follows, and what says that the server is to be had elsewhere.
        let page = format!("<meta http-equiv=\"refresh\" content=\"0; url={place}\">");
        for headers in [
            format!("refresh: 0; url={place}\r\n"),
            format!("link: <{place}>; rel=preload\r\n"),
            format!("alt-svc: h2=\"{0}\"; ma=86400, http/1.1=\"{0}\"\r\n", inside.address),
            format!("content-location: {place}\r\nlocation: {place}\r\n"),
        ] {
            let headers = format!("{headers}content-type: text/html\r\n");
            let server = Server::answers("200 OK", &headers, page.as_bytes()).await;
            for _ in 0..2 {
                assert_eq!(ask(&server).await, Ok(ToolOutput::text(page.clone())));
            }
        }
        assert_eq!(inside.connections(), 0);
    }

    #[tokio::test]
    async fn an_answer_without_end_is_left_at_the_limit() {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 10000000000\r\n\r\n";
        let server = Server::says(head, Then::GoOn(64 << 10, Duration::ZERO)).await;
        let told = ask(&server).await.unwrap_err();
        assert_eq!(
            told,
            format!(
                "the answer is larger than 65536 bytes; it begins: {}…",
                "x".repeat(2000)
            )
        );
        let hung_up = server.hung_up.notified();
        tokio::time::timeout(Duration::from_secs(5), hung_up)
            .await
            .expect("the connection is closed");
        let exact = Server::answers("200 OK", "content-type: text/plain\r\n", &[b'x'; 64 << 10]).await;
        assert_eq!(ask(&exact).await.unwrap().content.len(), 64 << 10);
        let pdf = "HTTP/1.1 200 OK\r\ncontent-type: application/pdf\r\n\r\n";
        let server = Server::says(pdf, Then::GoOn(1 << 20, Duration::ZERO)).await;
        assert_eq!(
            ask(&server).await,
            Err("the answer is larger than 10485760 bytes".into())
        );
    }

    #[tokio::test]
    async fn a_call_that_is_given_up_hangs_up() {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n";
        let server = Server::says(head, Then::GoOn(1, Duration::from_millis(20))).await;
        let asking = ask(&server);
        assert!(tokio::time::timeout(Duration::from_millis(300), asking).await.is_err());
        let hung_up = server.hung_up.notified();
        tokio::time::timeout(Duration::from_secs(5), hung_up)
            .await
            .expect("the connection is closed");
    }

    #[tokio::test]
    async fn an_answer_that_breaks_off_is_no_answer() {
        let half = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{\"half\":";
        let server = Server::says(half, Then::Close).await;
        assert_eq!(ask(&server).await, Err("the answer broke off".into()));
        let server = Server::says("", Then::Close).await;
        assert_eq!(
            ask(&server).await,
            Err("the connection broke before there was an answer".into())
        );
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let tool = tool(settings(format!("http://{gone}/")), &guard(&["127.0.0.0/8"])).unwrap();
        assert_eq!(call(&tool, json!({})).await, Err("no connection to the server".into()));
    }

    #[tokio::test]
    async fn what_is_not_text_is_a_file() {
        for (headers, body, name, media_type) in [
            (
                "content-type: application/pdf\r\n",
                &b"%PDF\xff"[..],
                "look_up.pdf",
                "application/pdf",
            ),
            (
                "content-type: Image/PNG; x=y\r\n",
                b"\x89PNG",
                "look_up.png",
                "image/png",
            ),
            (
                "content-type: image/svg+xml\r\n",
                b"<svg/>",
                "look_up.svg",
                "image/svg+xml",
            ),
            (
                "content-type: nonsense\r\n",
                b"x",
                "look_up.bin",
                "application/octet-stream",
            ),
            ("", b"\xff\xfe\x00", "look_up.bin", "application/octet-stream"),
            (
                "content-type: text/csv\r\ncontent-disposition: attachment; filename=\"../../a \\\"b\\\"; c.csv\"\r\n",
                b"1,2",
                "a \"b\"; c.csv",
                "text/csv",
            ),
            (
                "content-type: application/zip\r\n\
                 content-disposition: attachment; filename=x.zip; filename*=UTF-8''na%C3%AFve%2Fn%C3%A4.zip\r\n",
                b"PK",
                "nä.zip",
                "application/zip",
            ),
            (
                "content-type: application/zip\r\ncontent-disposition: attachment; filename=\"..\"\r\n",
                b"PK",
                "look_up.zip",
                "application/zip",
            ),
        ] {
            let server = Server::answers("200 OK", headers, body).await;
            let output = ask(&server).await.unwrap();
            let file = File {
                name: name.into(),
                media_type: media_type.into(),
                bytes: Bytes::copy_from_slice(body),
            };
            assert_eq!(output.files, [file], "{headers}");
            let said = format!(
                "The request succeeded. The answer is a file: {name} ({media_type}, {} bytes).",
                body.len()
            );
            assert_eq!(output.content, said);
        }
    }

    #[tokio::test]
    async fn text_is_read_in_its_charset() {
        for (headers, body, text) in [
            (
                "content-type: text/plain; charset=ISO-8859-1\r\n",
                &b"Z\xfcrich"[..],
                "Zürich",
            ),
            (
                "content-type: text/plain; charset=\"utf-8\"\r\n",
                "\u{feff}Zürich".as_bytes(),
                "Zürich",
            ),
            ("content-type: text/html\r\n", b"Z\xfcrich", "Z\u{fffd}rich"),
            ("content-type: application/problem+json\r\n", b"{}", "{}"),
            ("", b"plain", "plain"),
        ] {
            let server = Server::answers("200 OK", headers, body).await;
            assert_eq!(ask(&server).await, Ok(ToolOutput::text(text)), "{headers}");
        }
        let server = Server::answers("200 OK", "content-type: text/plain\r\ncontent-encoding: gzip\r\n", b"x").await;
        assert_eq!(
            ask(&server).await,
            Err("the answer is compressed, although that was declined".into())
        );
    }

    #[tokio::test]
    async fn no_spelling_of_loopback_is_connected_to() {
        let server = Server::answers("200 OK", JSON, b"{}").await;
        let port = server.address.port();
        for host in [
            "127.0.0.1",
            "127.1",
            "0x7f.1",
            "2130706433",
            "0",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "[::ffff:169.254.169.254]",
            "localhost",
            "localhost.",
            "LOCALHOST",
            "metadata.localhost",
            "0177.0.0.1",
            "127.0.0.1.",
            "127.0.0.0x1",
            "\u{ff11}\u{ff12}\u{ff17}.\u{ff10}.\u{ff10}.\u{ff11}",
            "127\u{3002}0\u{ff0e}0\u{ff61}1",
            "\u{2460}27.0.0.1",
            "\u{24db}ocal\u{24d7}ost",
            "%6cocalhost",
            "[::]",
            "[::7f00:1]",
            "[::ffff:0:127.0.0.1]",
            "[64:ff9b::127.0.0.1]",
            "[64:ff9b:1::7f00:1]",
            "[2002:7f00:1::]",
            "[2001:0:7f00:1::]",
        ] {
            let blocked = tool(settings(format!("http://{host}:{port}/{{id}}")), &guard(&[])).unwrap();
            let told = call(&blocked, json!({"id": "x"})).await;
            assert_eq!(
                told,
                Err("blocked_address: this tool may not connect there".into()),
                "{host}"
            );
        }
        assert_eq!(server.connections(), 0);
        let allowed = settings(format!("http://localhost.:{port}/{{id}}"));
        let allowed = tool(allowed, &guard(&["127.0.0.0/8"])).unwrap();
        assert_eq!(call(&allowed, json!({"id": "x"})).await, Ok(ToolOutput::text("{}")));
    }

    /// 127.0.0.2 is the public address here, as no packet may leave the machine.
    #[tokio::test]
    async fn a_name_that_changes_its_mind_is_judged_for_every_connection() {
        let server = Server::answers("200 OK", &format!("connection: close\r\n{JSON}"), b"{}").await;
        let port = server.address.port();
        let outside = TcpListener::bind(("127.0.0.2", port)).await.unwrap();
        let accepting = tokio::spawn(async move {
            let (mut socket, _) = outside.accept().await.unwrap();
            let mut asked = Vec::new();
            while !whole(&asked) {
                socket.read_buf(&mut asked).await.unwrap();
            }
            let answer =
                "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\ncontent-type: text/plain\r\n\r\nhi";
            socket.write_all(answer.as_bytes()).await.unwrap();
        });
        let guard = guard(&["127.0.0.2/32"]);
        let asked = AtomicUsize::new(0);
        let resolver = Resolver::of(guard.clone(), move |_| {
            let last = if asked.fetch_add(1, Ordering::SeqCst) == 0 {
                2
            } else {
                1
            };
            Box::pin(async move { Ok(vec![SocketAddr::from(([127, 0, 0, last], 0))]) })
        });
        let settings = settings(format!("http://rebinding.example:{port}/"));
        let tool = HttpTool::new(settings, &guard, client_of(resolver).unwrap()).unwrap();
        assert_eq!(call(&tool, json!({})).await, Ok(ToolOutput::text("hi")));
        accepting.await.unwrap();
        let told = call(&tool, json!({})).await;
        assert_eq!(told, Err("blocked_address: this tool may not connect there".into()));
        assert_eq!(server.connections(), 0);
    }

    #[tokio::test]
    async fn a_name_without_an_address_says_so() {
        let guard = guard(&[]);
        let resolver = Resolver::of(guard.clone(), |_| Box::pin(async { Ok(Vec::new()) }));
        let settings = settings("http://nowhere.example/".into());
        let tool = HttpTool::new(settings, &guard, client_of(resolver).unwrap()).unwrap();
        assert_eq!(
            call(&tool, json!({})).await,
            Err("the server's name has no address".into())
        );
    }

    #[tokio::test]
    async fn settings_that_cannot_be_meant_stop_the_start() {
        type Change = fn(&mut HttpToolSettings);
        let changes: [(&str, Change); 14] = [
            ("a tool's name", |s| s.name = "look up".into()),
            ("a tool's name", |s| s.name = String::new()),
            ("max_result", |s| s.max_result = 0),
            ("parameters", |s| s.parameters = json!([])),
            ("parameters", |s| s.parameters = json!({"type": "string"})),
            ("method", |s| s.method = "HEAD".into()),
            ("method", |s| s.method = "TRACE".into()),
            ("url: {nmae}", |s| s.url = "https://api.example/{nmae}".into()),
            ("url: no placeholder", |s| s.url = "https://{id}.example/".into()),
            ("body: {x}", |s| s.body = Some(r#"{"x": {x}}"#.into())),
            ("headers: Host is not", |s| {
                s.headers = BTreeMap::from([("Host".into(), "x".into())])
            }),
            ("headers: \"a b\"", |s| {
                s.headers = BTreeMap::from([("a b".into(), "x".into())])
            }),
            ("headers: the value of x", |s| {
                s.headers = BTreeMap::from([("x".into(), "a\r\nb: secret".into())])
            }),
            ("headers: x-a is there twice", |s| {
                s.headers = BTreeMap::from([("X-A".into(), "1".into()), ("x-a".into(), "2".into())]);
            }),
        ];
        for (why, change) in changes {
            let mut settings = settings("https://api.example/{id}".into());
            change(&mut settings);
            let refused = tool(settings, &guard(&[])).err().unwrap_or_default();
            assert!(
                refused.starts_with(why) && !refused.contains("secret"),
                "{why}: {refused}"
            );
        }
        let mut plain = settings("https://api.example/".into());
        plain.parameters = Value::Null;
        plain.timeout = Some(Duration::from_secs(3));
        let plain = tool(plain, &guard(&[])).unwrap();
        let nothing = json!({"type": "object", "properties": {}, "additionalProperties": false});
        assert_eq!(plain.definition().parameters, nothing);
        assert_eq!(plain.timeout(), Some(Duration::from_secs(3)));
    }
}
