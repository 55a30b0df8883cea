//! One call of a server's tool, and what its answer is to the model and to the client.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use futures_util::future::BoxFuture;
use rmcp::{
    Peer, RoleClient,
    model::{CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, ResourceContents},
    service::ServiceError,
};
use serde_json::{Map, Value, json};
use tokio::sync::{Notify, watch};

use crate::{
    chat::ToolDefinition,
    tool::{File, Tool, ToolContext, ToolError, ToolOutput, secrets::Secrets},
};

/// How long a call waits for a server that is just coming back.
const PATIENCE: Duration = Duration::from_secs(1);
/// How much text of an answer is kept, in bytes.
const MAX_TEXT: usize = 1 << 20;
/// Base64 as servers write it: some leave out the padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What a model is told of a tool whose server is down.
const NOT_AVAILABLE: &str = "the tool server is not available at the moment";
/// What a model is told of a tool that is no longer what it was.
const DRIFTED: &str = "tool_drift: this tool changed while the gateway was running and is switched off";
/// What a model is told in the place of a kind of content that came after this was written.
const UNKNOWN: &str = "[something that this gateway does not know]";

/// The conversation with a server, while there is one.
pub(super) type Line = Option<Peer<RoleClient>>;

/// A tool of a server's, as it was listed first.
pub(super) struct McpTool {
    pub(super) definition: ToolDefinition,
    /// Whether the server lists it otherwise now: for good.
    pub(super) drifted: AtomicBool,
    /// The conversation with its server.
    pub(super) line: watch::Receiver<Line>,
    /// Told when a call makes it doubtful that the server is there.
    pub(super) doubt: Arc<Notify>,
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
            let peer = self.peer().await;
            // Only now: a server that comes back is looked at before it can be called.
            if self.drifted.load(Ordering::Acquire) {
                return Err(ToolError::new(DRIFTED));
            }
            let peer = peer.ok_or_else(|| ToolError::new(NOT_AVAILABLE))?;
            let mut request =
                CallToolRequestParams::new(self.definition.name.clone()).with_arguments(arguments.clone());
            request.meta = meta(context).map(Into::into);
            // Dropped before the answer is there, this tells the server that nobody waits for it any more.
            match peer.call_tool_once(request).await {
                Ok(CallToolResponse::Complete(result)) => self.output(result).await,
                Ok(_) => Err(ToolError::new(
                    "the tool asks for something that this gateway does not do",
                )),
                Err(ServiceError::McpError(e)) => Err(ToolError(self.secrets.hide(bounded(&e.message).to_owned()))),
                Err(ServiceError::TransportClosed | ServiceError::TransportSend(_)) => {
                    self.doubt.notify_one();
                    Err(ToolError::new(NOT_AVAILABLE))
                }
                Err(_) => Err(ToolError::new("the tool server's answer is not what the protocol says")),
            }
        })
    }
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

    /// Its server, should it be there or just be coming back.
    async fn peer(&self) -> Line {
        let mut line = self.line.clone();
        let there = tokio::time::timeout(PATIENCE, line.wait_for(Option::is_some)).await;
        there.ok()?.ok()?.clone()
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

/// An answer as the gateway knows it.
fn output(tool: &str, result: CallToolResult) -> Result<ToolOutput, ToolError> {
    let mut words: Vec<String> = Vec::new();
    let mut files: Vec<File> = Vec::new();
    let mut file = |name: Option<&str>, media_type: &str, data: &str, words: &mut Vec<String>| {
        let name = match name {
            Some(name) if name.contains('.') => name.to_owned(),
            Some(name) => format!("{name}.{}", extension(media_type)),
            None if files.is_empty() => format!("{tool}.{}", extension(media_type)),
            None => format!("{tool}-{}.{}", files.len() + 1, extension(media_type)),
        };
        let data: String = data.split_ascii_whitespace().collect();
        match BASE64.decode(data) {
            Ok(bytes) => files.push(File {
                name,
                media_type: media_type.to_owned(),
                bytes: bytes.into(),
            }),
            Err(_) => words.push(format!("[{name} is not valid base64]")),
        }
    };
    for block in result.content {
        match block {
            ContentBlock::Text(text) => words.push(text.text),
            ContentBlock::Image(image) => file(None, &image.mime_type, &image.data, &mut words),
            ContentBlock::Audio(audio) => file(None, &audio.mime_type, &audio.data, &mut words),
            ContentBlock::ResourceLink(link) => words.push(format!("{}: {}", link.name, link.uri)),
            ContentBlock::Resource(resource) => match resource.resource {
                ResourceContents::TextResourceContents { text, .. } => words.push(text),
                ResourceContents::BlobResourceContents {
                    uri, mime_type, blob, ..
                } => {
                    let media_type = mime_type.as_deref().unwrap_or("application/octet-stream");
                    file(last_segment(&uri), media_type, &blob, &mut words);
                }
                _ => words.push(UNKNOWN.into()),
            },
            _ => words.push(UNKNOWN.into()),
        }
    }
    let mut content = words.join("\n");
    // Beside a file it holds that same file again.
    if content.is_empty()
        && files.is_empty()
        && let Some(structured) = result.structured_content
    {
        content = structured.to_string();
    }
    let content = bounded(&content).to_owned();
    if result.is_error == Some(true) {
        let said = if content.is_empty() {
            "the tool failed and did not say why".to_owned()
        } else {
            content
        };
        return Err(ToolError(said));
    }
    Ok(ToolOutput { content, files })
}

/// As much of a text as is kept.
fn bounded(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT)]
}

/// What a URI ends with, if that can be a name.
fn last_segment(uri: &str) -> Option<&str> {
    let path = uri.split(['?', '#']).next()?;
    let name = path.rsplit('/').next()?;
    (!name.is_empty() && !name.ends_with(':')).then_some(name)
}

/// What the names of such files end with.
fn extension(media_type: &str) -> &'static str {
    let essence = media_type.split(';').next().unwrap_or_default().trim();
    match essence {
        "image/png" => "png",
        "image/jpeg" => "jpg",
        "image/gif" => "gif",
        "image/webp" => "webp",
        "image/svg+xml" => "svg",
        "audio/wav" | "audio/x-wav" => "wav",
        "audio/mpeg" | "audio/mp3" => "mp3",
        "audio/ogg" => "ogg",
        "audio/flac" => "flac",
        "video/mp4" => "mp4",
        "application/pdf" => "pdf",
        "application/zip" => "zip",
        "application/json" => "json",
        "text/csv" => "csv",
        "text/html" => "html",
        "text/markdown" => "md",
        "text/plain" => "txt",
        _ => "bin",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(result: Value) -> Result<ToolOutput, ToolError> {
        output("t", serde_json::from_value(result).unwrap())
    }

    #[test]
    fn text_is_for_the_model_and_bytes_are_for_the_client() {
        let output = read(json!({"content": [
            {"type": "text", "text": "one"},
            {"type": "image", "data": "AQID", "mimeType": "image/png"},
            {"type": "resource", "resource": {"uri": "file:///a/b.txt", "text": "two"}},
            {"type": "resource", "resource": {"uri": "x://a/b?x", "mimeType": "application/pdf", "blob": "AQ\nI"}},
            {"type": "audio", "data": "AQ==", "mimeType": "audio/wav"},
            {"type": "resource_link", "uri": "https://example.com/x", "name": "X"},
            {"type": "image", "data": "?", "mimeType": "image/png"},
        ], "structuredContent": {"n": 1}}))
        .unwrap();
        assert_eq!(
            output.content,
            "one\ntwo\nX: https://example.com/x\n[t-4.png is not valid base64]"
        );
        let files: Vec<_> = output
            .files
            .iter()
            .map(|f| (&*f.name, &*f.media_type, f.bytes.len()))
            .collect();
        assert_eq!(
            files,
            [
                ("t.png", "image/png", 3),
                ("b.pdf", "application/pdf", 2),
                ("t-3.wav", "audio/wav", 1)
            ]
        );
    }

    #[test]
    fn a_structured_answer_without_words_is_told_as_json() {
        assert_eq!(
            read(json!({"content": [], "structuredContent": {"n": 1}}))
                .unwrap()
                .content,
            r#"{"n":1}"#
        );
    }

    #[test]
    fn a_file_is_not_told_to_the_model_as_json() {
        let file = json!({"type": "image", "data": "AQID", "mimeType": "image/png"});
        let output = read(json!({"content": [file], "structuredContent": {"content": [file]}})).unwrap();
        assert_eq!((&*output.content, output.files.len()), ("", 1));
    }

    #[test]
    fn a_tool_that_failed_is_an_error_for_the_model() {
        let failed = json!({"content": [{"type": "text", "text": "no such city"}], "isError": true});
        assert_eq!(read(failed), Err(ToolError::new("no such city")));
        assert_eq!(
            read(json!({"content": [], "isError": true})),
            Err(ToolError::new("the tool failed and did not say why"))
        );
    }

    #[test]
    fn an_answer_that_is_too_long_is_cut() {
        let long = json!({"content": [{"type": "text", "text": "ä".repeat(MAX_TEXT)}]});
        assert_eq!(read(long).unwrap().content.len(), MAX_TEXT);
    }
}
