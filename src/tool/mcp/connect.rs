//! How a server is reached, and the first words with it.

use std::{
    collections::{BTreeMap, HashMap},
    error::Error,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use reqwest::header::{ACCEPT_LANGUAGE, HeaderName, HeaderValue, USER_AGENT};
use rmcp::{
    ClientHandler, ErrorData, RoleClient,
    model::{
        ClientCapabilities, ClientConfig, ElicitRequestParams, ElicitResult, ErrorCode, Implementation, ProtocolVersion,
    },
    service::{
        ClientInitializeError, ClientLifecycleMode, NotificationContext, RequestContext, RunningService,
        serve_client_with_lifecycle,
    },
    transport::{
        StreamableHttpClientTransport,
        streamable_http_client::{StreamableHttpClientTransportConfig, StreamableHttpError},
    },
};
use secrecy::{ExposeSecret, SecretString};
use tokio::{
    process::{ChildStdin, ChildStdout},
    sync::Notify,
};

use super::{McpTransport, child::Child, http::HttpClient, message::MAX_MESSAGE, pipes::Pipes, plain};
use crate::tool::secrets::{Secrets, is_secret};

/// How many calls may wait for their answer over HTTP.
const MAX_CALLS: usize = 256;
/// How long a TCP connection may take, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Headers that belong to the protocol.
const RESERVED: [&str; 6] = [
    "accept",
    "content-type",
    "content-length",
    "last-event-id",
    "mcp-protocol-version",
    "mcp-session-id",
];

/// How a server is reached, checked.
pub(super) enum Way {
    /// A child process.
    Child {
        command: PathBuf,
        args: Vec<String>,
        env: BTreeMap<String, SecretString>,
    },
    /// Streamable HTTP.
    Http {
        client: HttpClient,
        url: Arc<str>,
        headers: HashMap<HeaderName, HeaderValue>,
    },
}

/// A way that is open.
pub(super) enum Wire {
    /// What a child says and hears.
    Pipes(ChildStdout, ChildStdin),
    /// The client of a server.
    Http(StreamableHttpClientTransport<HttpClient>),
}

/// How a conversation begins. Servers of 2026-07-28 and later need not know the handshake that all before them had.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Opening {
    /// `initialize`.
    Handshake,
    /// `server/discover`.
    Discovery,
}

/// Why a conversation did not begin.
pub(super) enum Unopened {
    /// The server refused that opening: another may do.
    Refused(String),
    /// Anything else.
    Failed(String),
}

impl Way {
    /// Checks it.
    ///
    /// # Errors
    /// What is wrong with it, with the name of the setting.
    pub(super) fn new(transport: McpTransport) -> Result<Self, String> {
        match transport {
            McpTransport::Child { command, args, env } => {
                if command.as_os_str().is_empty() {
                    return Err("command: is empty".into());
                }
                if let Some(name) = env.keys().find(|name| name.is_empty() || name.contains(['=', '\0'])) {
                    return Err(format!("env: {name:?} is no name of a variable"));
                }
                Ok(Self::Child { command, args, env })
            }
            McpTransport::Http { url, headers } => {
                if !matches!(url.scheme(), "http" | "https") {
                    return Err("url: must begin with http:// or https://".into());
                }
                if !url.username().is_empty() || url.password().is_some() {
                    return Err(
                        "url: an address is shown to people and must hold no password; headers are for that".into(),
                    );
                }
                let mut client = reqwest::Client::builder()
                    .redirect(reqwest::redirect::Policy::none())
                    .connect_timeout(CONNECT_TIMEOUT)
                    .user_agent(concat!("sluicegate/", env!("CARGO_PKG_VERSION")));
                if is_loopback(&url) {
                    client = client.no_proxy();
                }
                Ok(Self::Http {
                    client: HttpClient::new(client.build().map_err(|e| format!("no HTTP client: {e}"))?),
                    url: url.as_str().into(),
                    headers: checked(headers)?,
                })
            }
        }
    }

    /// What the server is given and nobody else is to hear from it: the headers, and what stands in its environment, among
    /// its arguments or in its address under the name of a key. The rest is paths and words.
    pub(super) fn secrets(&self) -> Secrets {
        match self {
            Self::Child { args, env, .. } => {
                let keys = env.iter().map(|(name, value)| (name, value.expose_secret()));
                let keys =
                    keys.filter(|(name, value)| is_secret(name) || (value.contains("://") && value.contains('@')));
                let is_flag =
                    |arg: &&String| arg.starts_with('-') && is_secret(arg.split('=').next().unwrap_or_default());
                let joined = args
                    .iter()
                    .filter(is_flag)
                    .filter_map(|arg| Some(arg.split_once('=')?.1));
                let beside = args.iter().zip(args.iter().skip(1)).filter(|(flag, _)| is_flag(flag));
                let beside = beside
                    .filter(|(flag, _)| !flag.contains('='))
                    .map(|(_, arg)| arg.as_str());
                Secrets::of(keys.map(|(_, value)| value).chain(joined).chain(beside))
            }
            Self::Http { url, headers, .. } => {
                let headers = headers
                    .iter()
                    .filter(|(name, _)| **name != USER_AGENT && **name != ACCEPT_LANGUAGE);
                let headers = headers.filter_map(|(_, value)| std::str::from_utf8(value.as_bytes()).ok());
                let query = url.split_once('?').map_or("", |(_, query)| query);
                let query: Vec<_> = url::form_urlencoded::parse(query.as_bytes())
                    .filter(|(name, _)| is_secret(name))
                    .collect();
                Secrets::of(headers.chain(query.iter().map(|(_, value)| &**value)))
            }
        }
    }

    /// Opens it: starts the child, if there is one.
    ///
    /// # Errors
    /// Why it cannot be opened.
    pub(super) fn open(&self, server: &Arc<str>, secrets: &Arc<Secrets>) -> Result<(Wire, Option<Child>), String> {
        match self {
            Self::Child { command, args, env } => {
                let (child, stdout, stdin) = Child::start(server, command, args, env, secrets.clone())?;
                Ok((Wire::Pipes(stdout, stdin), Some(child)))
            }
            Self::Http { client, url, headers } => {
                let config = StreamableHttpClientTransportConfig::with_uri(url.clone())
                    .custom_headers(headers.clone())
                    .max_concurrent_requests(MAX_CALLS)
                    .max_sse_event_size(MAX_MESSAGE)
                    // A server that forgot its session may have other tools now: it is looked at again first, and then
                    // the call is sent once more (`call.rs`).
                    .reinit_on_expired_session(false);
                let transport = StreamableHttpClientTransport::with_client(client.clone(), config);
                Ok((Wire::Http(transport), None))
            }
        }
    }

    /// A reason as it may stand in a log: an address can hold a secret.
    pub(super) fn veil(&self, why: &str) -> String {
        match self {
            Self::Child { .. } => plain(why, 300),
            Self::Http { url, .. } => plain(&why.replace(&**url, "its address"), 300),
        }
    }
}

/// Whether it is this machine.
fn is_loopback(url: &url::Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// Headers as they are sent, their values kept out of logs.
fn checked(headers: BTreeMap<String, SecretString>) -> Result<HashMap<HeaderName, HeaderValue>, String> {
    let mut checked = HashMap::new();
    for (name, value) in headers {
        let wrong = |what: &str| format!("headers.{name}: {what}");
        let key = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong("is no name of a header"))?;
        if RESERVED.contains(&key.as_str()) {
            return Err(wrong("is set by the protocol"));
        }
        let mut value =
            HeaderValue::from_str(value.expose_secret()).map_err(|_| wrong("has a value that no header can have"))?;
        value.set_sensitive(true);
        checked.insert(key, value);
    }
    Ok(checked)
}

/// Begins the conversation.
pub(super) async fn greet(
    wire: Wire,
    host: Host,
    opening: Opening,
) -> Result<RunningService<RoleClient, Host>, Unopened> {
    let mode = match opening {
        Opening::Handshake => ClientLifecycleMode::Initialize,
        Opening::Discovery => ClientLifecycleMode::Discover {
            preferred_versions: vec![ProtocolVersion::LATEST],
        },
    };
    let greeted = match wire {
        Wire::Pipes(stdout, stdin) => serve_client_with_lifecycle(host, Pipes::new(stdout, stdin), mode).await,
        Wire::Http(transport) => serve_client_with_lifecycle(host, transport, mode).await,
    };
    greeted.map_err(|e| match e {
        ClientInitializeError::JsonRpcError(e) => Unopened::Refused(format!("it refused to begin: {}", e.message)),
        ClientInitializeError::ConnectionClosed(_) => Unopened::Failed("it ended the connection".into()),
        ClientInitializeError::TransportError { error, .. } => Unopened::Failed(deepest(error.error.as_ref())),
        // The others hold whole messages of the server's.
        _ => Unopened::Failed("its first answer is not what the protocol says".into()),
    })
}

/// What is at the bottom of an error: what those above say is that something failed. Of an answer, only its status.
pub(super) fn deepest(error: &(dyn Error + 'static)) -> String {
    let mut deepest = error;
    while let Some(below) = deepest.source() {
        deepest = below;
    }
    match deepest.downcast_ref() {
        Some(StreamableHttpError::<reqwest::Error>::Client(e)) if e.source().is_some() => self::deepest(e),
        Some(StreamableHttpError::UnexpectedServerResponse(answer)) => {
            format!("it answered {}", answer.split(':').next().unwrap_or_default())
        }
        _ => deepest.to_string(),
    }
}

/// What the gateway is to a server: somebody who calls tools and does nothing else.
pub(super) struct Host {
    /// The server's name.
    pub(super) server: Arc<str>,
    /// Told when its tools should be looked at again.
    pub(super) doubt: Arc<Notify>,
    /// What is not to be logged, whatever it logs.
    pub(super) secrets: Arc<Secrets>,
}

impl ClientHandler for Host {
    fn get_info(&self) -> ClientConfig {
        let mut own = Implementation::default();
        own.name = "sluicegate".into();
        own.version = env!("CARGO_PKG_VERSION").into();
        ClientConfig::new(ClientCapabilities::default(), own)
            .with_protocol_version(ProtocolVersion::LATEST_WITH_INITIALIZE)
    }

    async fn on_tool_list_changed(&self, _context: NotificationContext<RoleClient>) {
        self.doubt.notify_one();
    }

    async fn create_elicitation(
        &self,
        _request: ElicitRequestParams,
        _context: RequestContext<RoleClient>,
    ) -> Result<ElicitResult, ErrorData> {
        Err(ErrorData::new(ErrorCode::METHOD_NOT_FOUND, "elicitation/create", None))
    }

    #[expect(deprecated, reason = "servers of before 2026-07-28 ask")]
    async fn list_roots(
        &self,
        _context: RequestContext<RoleClient>,
    ) -> Result<rmcp::model::ListRootsResult, ErrorData> {
        Err(ErrorData::new(ErrorCode::METHOD_NOT_FOUND, "roots/list", None))
    }

    #[expect(deprecated, reason = "servers of before 2026-07-28 send it")]
    async fn on_logging_message(
        &self,
        said: rmcp::model::LoggingMessageNotificationParam,
        _context: NotificationContext<RoleClient>,
    ) {
        let server = &*self.server;
        let said = self.secrets.hide(said.data.to_string());
        tracing::debug!(server, "An MCP server logs: {}", plain(&said, 500));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_key_is_told_by_its_name() {
        let child = |args: &[&str], env: &[(&str, &str)]| McpTransport::Child {
            command: "x".into(),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            env: env
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).into()))
                .collect(),
        };
        let http = McpTransport::Http {
            url: "https://mcp.example/?room=the-first-room&key=key-in-address"
                .parse()
                .unwrap(),
            headers: BTreeMap::from([("x-a".into(), "Bearer key-in-header".into())]),
        };
        let env = [
            ("GITHUB_TOKEN", "key-in-variable"),
            ("HOME", "/home/somebody"),
            ("DATABASE", "postgres://ada:secret@host/x"),
        ];
        let args = [
            "--api-key=key-in-argument",
            "--token",
            "key-behind-argument",
            "--root",
            "/some/where",
        ];
        let said = "key-in-variable /home/somebody postgres://ada:secret@host/x key-in-argument key-behind-argument \
            /some/where key-in-address the-first-room key-in-header";
        for (transport, told) in [
            (
                child(&args, &env),
                "[hidden] /home/somebody [hidden] [hidden] [hidden] /some/where key-in-address the-first-room key-in-header",
            ),
            (
                http,
                "key-in-variable /home/somebody postgres://ada:secret@host/x key-in-argument key-behind-argument \
                 /some/where [hidden] the-first-room [hidden]",
            ),
        ] {
            assert_eq!(Way::new(transport).unwrap().secrets().hide(said.into()), told);
        }
    }

    #[test]
    fn an_address_that_holds_a_secret_does_not_get_into_the_log() {
        let way = Way::new(McpTransport::Http {
            url: "http://localhost:1/mcp?key=secret".parse().unwrap(),
            headers: BTreeMap::new(),
        })
        .unwrap();
        let veiled = way.veil("error sending request for url (http://localhost:1/mcp?key=secret)\n");
        assert_eq!(veiled, "error sending request for url (its address)");
    }
}
