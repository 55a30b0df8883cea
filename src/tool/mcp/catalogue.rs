//! What a server's tools are, and that they stay what they were.
//!
//! A tool's description is words to the model: whoever can change it while the gateway runs can tell the model what to
//! do. So the first listing holds, for as long as the process lives.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use rmcp::{
    Peer, RoleClient,
    model::{ClientRequest, ErrorCode, ListToolsRequest, PaginatedRequestParams, ServerResult},
    service::ServiceError,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::{Notify, watch};

use super::{
    call::{Line, McpTool},
    connect::deepest,
    message::TASK_SUPPORT,
    plain,
};
use crate::{
    chat::ToolDefinition,
    tool::{Offer, secrets::Secrets},
};

/// How many tools of a server are taken.
const MAX_TOOLS: usize = 200;
/// How many pages a listing may have.
const MAX_PAGES: usize = 50;
/// How long a tool's name may be, in bytes.
const MAX_NAME: usize = 128;
/// How much of a description a model is told, in characters.
const MAX_DESCRIPTION: usize = 4000;

/// A tool as a server lists it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Listed {
    name: String,
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    input_schema: Map<String, Value>,
    #[serde(rename = "_meta", default)]
    meta: Option<Value>,
}

/// Asks a server for all its tools.
///
/// # Errors
/// Why there is no list.
pub(super) async fn list(server: &str, peer: &Peer<RoleClient>) -> Result<Vec<Listed>, String> {
    let mut all: Vec<Listed> = Vec::new();
    let (mut page, mut cursors) = (None, BTreeSet::new());
    let mut names = BTreeSet::new();
    for _ in 0..MAX_PAGES {
        let request = ListToolsRequest::with_param(PaginatedRequestParams::default().with_cursor(page.take()));
        // Not by way of rmcp's own method, which remembers answers and gives an old one when the server is gone.
        let answer = peer.send_request(ClientRequest::ListToolsRequest(request)).await;
        // A list with one tool that is not as it should be is no list to rmcp, so both shapes are read here.
        let answer = match answer {
            Ok(ServerResult::ListToolsResult(list)) => json!(list),
            Ok(ServerResult::CustomResult(list)) => list.0,
            Ok(_) => return Err("its list of tools is not what the protocol says".into()),
            Err(ServiceError::McpError(e)) if e.code == ErrorCode::METHOD_NOT_FOUND => return Ok(all),
            Err(ServiceError::McpError(e)) => return Err(format!("it does not list its tools: {}", e.message)),
            Err(ServiceError::TransportSend(e)) => return Err(deepest(e.error.as_ref())),
            Err(_) => return Err("it ended the connection".into()),
        };
        let Some(tools) = answer.get("tools").and_then(Value::as_array) else {
            return Err("its list of tools is not what the protocol says".into());
        };
        let before = names.len();
        for tool in tools {
            names.extend(tool.get("name").and_then(Value::as_str).map(str::to_owned));
            if all.len() == MAX_TOOLS {
                tracing::warn!(
                    server,
                    "The MCP server {server} has more than {MAX_TOOLS} tools: the others are left out"
                );
                return Ok(all);
            }
            match Listed::deserialize(tool) {
                Ok(tool) if !tool.name.is_empty() && tool.name.len() <= MAX_NAME => all.push(tool),
                _ => tracing::debug!(
                    server,
                    "A tool of the MCP server {server} is left out: it is not what the protocol says"
                ),
            }
        }
        page = answer
            .get("nextCursor")
            .and_then(Value::as_str)
            .filter(|c| !c.is_empty())
            .map(str::to_owned);
        // Some servers hand out cursors without end.
        let is_new = page.as_ref().is_some_and(|cursor| cursors.insert(cursor.clone()));
        if !is_new || names.len() == before {
            return Ok(all);
        }
    }
    tracing::warn!(
        server,
        "The MCP server {server} has more than {MAX_PAGES} pages of tools: the others are left out"
    );
    Ok(all)
}

impl Listed {
    /// Whether every call of it must be made as a task.
    fn needs_task(&self) -> bool {
        let support = self.meta.as_ref().and_then(|meta| meta.get(TASK_SUPPORT));
        support.is_some_and(|support| support == "required")
    }

    /// What tells it from what it was: SHA-256 of all that a model could see of it. The order of
    /// keys is left out, because some servers list their tools from unordered maps.
    fn print(&self) -> Vec<u8> {
        let mut all = json!([self.name, self.description, self.input_schema]);
        all.sort_all_objects();
        let all = all.to_string();
        aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, all.as_bytes())
            .as_ref()
            .to_vec()
    }

    /// What a model is told of it.
    fn definition(self, secrets: &Secrets) -> ToolDefinition {
        let mut description = secrets.hide(self.description.unwrap_or_default());
        if let Some((cut, _)) = description.char_indices().nth(MAX_DESCRIPTION) {
            description.truncate(cut);
        }
        ToolDefinition {
            name: self.name,
            description,
            parameters: Value::Object(self.input_schema),
        }
    }
}

/// A tool as it was at first.
struct Pin {
    name: String,
    print: Vec<u8>,
    /// Nothing where it cannot be used.
    offer: Option<(Offer, Arc<McpTool>)>,
    drifted: bool,
}

/// What a server is held to.
pub(super) struct Catalogue {
    pub(super) server: Arc<str>,
    pub(super) line: watch::Receiver<Line>,
    pub(super) doubt: Arc<Notify>,
    lost: Arc<watch::Sender<u64>>,
    secrets: Arc<Secrets>,
    /// In the order of the first listing, once there was one: a model's prompt stays the same.
    pins: Option<Vec<Pin>>,
    /// New tools that were mentioned.
    mentioned: BTreeSet<String>,
}

impl Catalogue {
    /// An empty one.
    pub(super) fn new(
        server: Arc<str>,
        line: watch::Receiver<Line>,
        doubt: Arc<Notify>,
        lost: Arc<watch::Sender<u64>>,
        secrets: Arc<Secrets>,
    ) -> Self {
        Self {
            server,
            line,
            doubt,
            lost,
            secrets,
            pins: None,
            mentioned: BTreeSet::new(),
        }
    }

    /// Whether there was no listing yet.
    pub(super) fn is_new(&self) -> bool {
        self.pins.is_none()
    }

    /// What is on offer after a listing. The first is what all others are held to.
    pub(super) fn take(&mut self, tools: Vec<Listed>) -> Arc<[Offer]> {
        let pins = match self.pins.take() {
            None => self.pin(tools),
            Some(pins) => self.compare(pins, tools),
        };
        let (pins, present) = pins;
        let there = pins.iter().filter(|pin| !pin.drifted && present.contains(&pin.name));
        let offers = there
            .filter_map(|pin| pin.offer.as_ref().map(|(offer, _)| offer.clone()))
            .collect();
        self.pins = Some(pins);
        offers
    }

    /// The first listing.
    fn pin(&self, tools: Vec<Listed>) -> (Vec<Pin>, BTreeSet<String>) {
        let mut present = BTreeSet::new();
        let mut pins = Vec::new();
        for tool in tools {
            if !present.insert(tool.name.clone()) {
                continue;
            }
            let (name, print) = (tool.name.clone(), tool.print());
            let offer = self.offer(tool).map_err(|why| {
                let (server, tool, why) = (&*self.server, plain(&name, MAX_NAME), plain(&why, 300));
                tracing::warn!(
                    server,
                    tool,
                    "The tool {tool} of the MCP server {server} is left out: {why}"
                );
            });
            pins.push(Pin {
                name,
                print,
                offer: offer.ok(),
                drifted: false,
            });
        }
        (pins, present)
    }

    /// Makes a tool of it.
    fn offer(&self, tool: Listed) -> Result<(Offer, Arc<McpTool>), String> {
        if tool.needs_task() {
            return Err("it can only be called as a task, which this gateway does not do".into());
        }
        let tool = Arc::new(McpTool {
            definition: tool.definition(&self.secrets),
            drifted: AtomicBool::new(false),
            line: self.line.clone(),
            doubt: self.doubt.clone(),
            lost: self.lost.clone(),
            secrets: self.secrets.clone(),
        });
        Ok((Offer::new(tool.clone(), Some(self.server.clone()))?, tool))
    }

    /// A later listing.
    fn compare(&mut self, mut pins: Vec<Pin>, tools: Vec<Listed>) -> (Vec<Pin>, BTreeSet<String>) {
        let server = &*self.server;
        let mut present = BTreeSet::new();
        for tool in tools {
            if !present.insert(tool.name.clone()) {
                continue;
            }
            let name = plain(&tool.name, MAX_NAME);
            match pins.iter_mut().find(|pin| pin.name == tool.name) {
                Some(pin) if pin.drifted || pin.print == tool.print() => {}
                Some(pin) => {
                    pin.drifted = true;
                    if let Some((_, tool)) = &pin.offer {
                        tool.drifted.store(true, Ordering::Release);
                    }
                    tracing::warn!(
                        server,
                        tool = name,
                        "The tool {name} of the MCP server {server} changed while the gateway was running and is switched \
                         off; restart the gateway to take it as it is now"
                    );
                }
                None if self.mentioned.len() < MAX_TOOLS && self.mentioned.insert(tool.name) => tracing::info!(
                    server,
                    tool = name,
                    "The MCP server {server} has a new tool {name}: restart the gateway to take it"
                ),
                None => {}
            }
        }
        (pins, present)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(tool: &str) -> Listed {
        serde_json::from_str(tool).unwrap()
    }

    #[test]
    fn the_order_of_keys_reaches_the_model_and_is_no_drift() {
        let listed_first = r#"{"name":"t","inputSchema":{"type":"object","properties":{"thoughts":{},"answer":{}}}}"#;
        let sorted = r#"{"inputSchema":{"properties":{"answer":{},"thoughts":{}},"type":"object"},"name":"t"}"#;
        let other = r#"{"name":"t","inputSchema":{"type":"object","properties":{"thoughts":{},"reply":{}}}}"#;
        assert_eq!(listed(listed_first).print(), listed(sorted).print());
        assert_ne!(listed(listed_first).print(), listed(other).print());
        let definition = listed(listed_first).definition(&Secrets::default());
        let parameters = definition.parameters.to_string();
        assert!(
            parameters.contains(r#""properties":{"thoughts":{},"answer":{}}"#),
            "{parameters}"
        );
    }
}
