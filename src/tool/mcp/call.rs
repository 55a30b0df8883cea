//! One call of a server's tool, and what its answer is to the model and to the client.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use rmcp::{
    Peer, RoleClient,
    model::{
        CallToolRequest, CallToolRequestParams, CallToolResult, CancelledNotificationParam, ClientRequest, RequestId,
        ServerResult,
    },
    service::{PeerRequestOptions, ServiceError},
    transport::streamable_http_client::StreamableHttpError,
};
use serde_json::{Map, Value, json};
use tokio::sync::{Notify, watch};

use super::output::{bounded, lenient, output};
use crate::{
    chat::ToolDefinition,
    tool::{Tool, ToolContext, ToolError, ToolOutput, secrets::Secrets},
};

/// How long a call waits for a server that is just coming back.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long a call waits for a new session after the server forgot the old one.
const RECONNECT: Duration = Duration::from_secs(5);

/// What a model is told of a tool whose server is down.
const NOT_AVAILABLE: &str = "the tool server is not available at the moment";
/// What a model is told of a tool that is no longer what it was.
const DRIFTED: &str = "tool_drift: this tool changed while the gateway was running and is switched off";

/// What a model is told of an answer that is none.
const NO_RESULT: &str = "the tool server's answer is not what the protocol says";

/// The conversation with a server, while there is one.
pub(super) type Line = Option<Connection>;

/// A conversation with a server, from its first word to its last.
#[derive(Clone)]
pub(super) struct Connection {
    /// Counted from 1.
    pub(super) number: u64,
    pub(super) peer: Peer<RoleClient>,
}

/// A tool of a server's, as it was listed first.
pub(super) struct McpTool {
    pub(super) definition: ToolDefinition,
    /// Whether the server lists it otherwise now: for good.
    pub(super) drifted: AtomicBool,
    /// The conversation with its server.
    pub(super) line: watch::Receiver<Line>,
    /// Told when a call makes it doubtful that the server is there.
    pub(super) doubt: Arc<Notify>,
    /// The newest connection whose session the server was found to have forgotten.
    pub(super) lost: Arc<watch::Sender<u64>>,
    /// What no answer may repeat.
    pub(super) secrets: Arc<Secrets>,
}

impl Tool for McpTool {
    fn definition(&self) -> &ToolDefinition {
        &self.definition
    }

    fn call<'a>(
        &'a self,
        arguments: &'a Map<String, Value>,
        context: &'a ToolContext,
    ) -> BoxFuture<'a, Result<ToolOutput, ToolError>> {
        Box::pin(async move {
            let connection = self.connection(0, PATIENCE).await?;
            let mut request =
                CallToolRequestParams::new(self.definition.name.clone()).with_arguments(arguments.clone());
            request.meta = meta(context).map(Into::into);
            let mut answer = ask(&connection.peer, request.clone()).await;
            if answer.as_ref().is_err_and(is_session_lost) {
                // The call was not run: it is sent once more, in a new session.
                self.lost.send_if_modified(|lost| {
                    let is_news = *lost < connection.number;
                    *lost = connection.number.max(*lost);
                    is_news
                });
                let again = self.connection(connection.number, RECONNECT).await?;
                answer = ask(&again.peer, request).await;
            }
            match answer {
                Ok(ServerResult::CallToolResult(result)) => self.output(result).await,
                Ok(ServerResult::CustomResult(result)) => match lenient(result.0) {
                    Some(result) => self.output(result).await,
                    None => Err(ToolError::new(NO_RESULT)),
                },
                Ok(ServerResult::InputRequiredResult(_) | ServerResult::CreateTaskResult(_)) => Err(ToolError::new(
                    "the tool asks for something that this gateway does not do",
                )),
                Err(ServiceError::McpError(e)) => Err(ToolError(self.secrets.hide(bounded(&e.message).to_owned()))),
                Err(ServiceError::TransportClosed | ServiceError::TransportSend(_)) => {
                    self.doubt.notify_one();
                    Err(ToolError::new(NOT_AVAILABLE))
                }
                Ok(_) | Err(_) => Err(ToolError::new(NO_RESULT)),
            }
        })
    }
}

/// Sends a call and waits for its answer. Dropped before the answer is there, the future tells the
/// server that nobody waits for it any more. The library's own method gives no answer that it does
/// not know.
async fn ask(peer: &Peer<RoleClient>, params: CallToolRequestParams) -> Result<ServerResult, ServiceError> {
    let request = ClientRequest::CallToolRequest(CallToolRequest::new(params));
    let handle = peer
        .send_request_with_option(request, PeerRequestOptions::no_options())
        .await?;
    let mut abandoned = Abandoned {
        peer,
        id: Some(handle.id.clone()),
    };
    let answer = handle.await_response().await;
    abandoned.id = None;
    answer
}

/// Tells the server of a request that nobody waits for any more, when it is dropped.
struct Abandoned<'a> {
    peer: &'a Peer<RoleClient>,
    /// `None` once there is an answer.
    id: Option<RequestId>,
}

impl Drop for Abandoned<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            let why = "nobody waits for it any more".to_owned();
            let cancelled = CancelledNotificationParam::new(Some(id), Some(why));
            // Asked once, it is in the queue of what is sent, if that has room.
            let _ = self.peer.notify_cancelled(cancelled).now_or_never();
        }
    }
}

/// Whether a request was refused because the server does not know the session.
fn is_session_lost(error: &ServiceError) -> bool {
    let ServiceError::TransportSend(error) = error else {
        return false;
    };
    let mut at: Option<&(dyn std::error::Error + 'static)> = Some(error.error.as_ref());
    while let Some(error) = at {
        if let Some(StreamableHttpError::<reqwest::Error>::SessionExpired) = error.downcast_ref() {
            return true;
        }
        at = error.source();
    }
    false
}

impl McpTool {
    /// An answer, without what it may not repeat. Files of many megabytes are decoded and searched here, so it is done
    /// where others do not wait for it.
    async fn output(&self, result: CallToolResult) -> Result<ToolOutput, ToolError> {
        let (name, secrets) = (self.definition.name.clone(), self.secrets.clone());
        let work = move || match output(&name, result) {
            Ok(output) => secrets.sift(output),
            Err(ToolError(why)) => Err(ToolError(secrets.hide(why))),
        };
        let done = tokio::task::spawn_blocking(work).await;
        done.unwrap_or_else(|_| Err(ToolError::new("the tool server's answer cannot be read")))
    }

    /// A connection with its server that is newer than `after`, should it be there or just be coming
    /// back.
    async fn connection(&self, after: u64, patience: Duration) -> Result<Connection, ToolError> {
        let mut line = self.line.clone();
        let is_there = |line: &Line| line.as_ref().is_some_and(|connection| connection.number > after);
        let there = tokio::time::timeout(patience, line.wait_for(is_there)).await;
        let connection = there.ok().and_then(|line| line.ok()?.clone());
        // Only now: a server that comes back is looked at before it can be called.
        if self.drifted.load(Ordering::Acquire) {
            return Err(ToolError::new(DRIFTED));
        }
        connection.ok_or_else(|| ToolError::new(NOT_AVAILABLE))
    }
}

/// What a server is told of whom the call is for, where anything is to be told.
fn meta(context: &ToolContext) -> Option<Map<String, Value>> {
    if context.facts.is_empty() {
        return None;
    }
    let mut meta = Map::new();
    meta.insert("sluicegate/context".into(), Value::Object((*context.facts).clone()));
    meta.insert("sluicegate/run_id".into(), json!(context.run_id.to_string()));
    Some(meta)
}
