//! `StreamChunk`: the JSON form of an event. A promise (CONTRACT § 7).

use serde::Serialize;
use serde_json::{Map, Value};

use crate::{
    chat::{Answer, Artifact, Done, Event, FinishKind, JsonText, RunId, SessionId, ToolCallMade, ToolResult, Usage},
    http::error::Problem,
    run::{Run, View},
};

#[derive(Serialize)]
struct StreamChunk<'a> {
    chunk_type: &'static str,
    chunk_index: u64,
    content: &'a str,
    delta: &'a str,
    is_final: bool,
    run_id: RunId,
    session_id: Option<&'a SessionId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<&'a str>,
    model: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    finish_reason: Option<FinishKind>,
    /// Not in `content`, which joins to the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_call: Option<ToolCallPart<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_result: Option<ToolResultPart<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    artifact: Option<&'a Artifact>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    done: Option<DonePart<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Problem>,
}

#[derive(Serialize)]
struct ToolCallPart<'a> {
    id: &'a str,
    name: &'a str,
    arguments: &'a Map<String, Value>,
    round: u32,
}

#[derive(Serialize)]
struct ToolResultPart<'a> {
    id: &'a str,
    name: &'a str,
    ok: bool,
    content: &'a str,
    truncated: bool,
    duration_ms: u64,
    round: u32,
}

#[derive(Serialize)]
struct DonePart<'a> {
    metadata: DoneMetadata<'a>,
    structured_data: Option<&'a JsonText>,
    artifact_files: &'a [Artifact],
    response: &'a Answer,
}

#[derive(Serialize)]
struct DoneMetadata<'a> {
    model: &'a str,
    usage: &'a Usage,
    rounds: u32,
    duration_ms: u64,
    first_token_ms: Option<u64>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    history_truncated: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    repaired: bool,
}

/// What an event is called on the wire.
#[must_use]
pub fn name(view: View<'_>) -> &'static str {
    match view {
        View::Text { .. } => "token",
        View::Reasoning(_) => "reasoning",
        View::Other(event) => match event {
            Event::Started => "start",
            Event::Text(_) => "token",
            Event::Reasoning(_) => "reasoning",
            Event::ToolCall(_) => "tool_call",
            Event::ToolResult(_) => "tool_result",
            Event::Artifact(_) => "artifact",
            Event::Done(_) => "done",
            Event::Failed(_) => "error",
        },
    }
}

/// Writes an event as a chunk: one line of JSON, in which U+2028 and U+2029 are escaped.
pub fn write(out: &mut Vec<u8>, run: &Run, request_id: &str, seq: u64, view: View<'_>) {
    let mut chunk = StreamChunk {
        chunk_type: match name(view) {
            "token" => "text",
            other => other,
        },
        chunk_index: seq,
        content: "",
        delta: "",
        is_final: false,
        run_id: run.id,
        session_id: run.session_id.as_ref(),
        agent: None,
        model: &run.model,
        finish_reason: None,
        reasoning: None,
        tool_call: None,
        tool_result: None,
        artifact: None,
        done: None,
        error: None,
    };
    match view {
        View::Text { text, .. } => chunk.content = text,
        View::Reasoning(text) => chunk.reasoning = Some(text),
        View::Other(event) => match event {
            Event::Started => chunk.agent = Some(&run.agent),
            Event::Text(text) => chunk.content = text,
            Event::Reasoning(text) => chunk.reasoning = Some(text),
            Event::ToolCall(call) => put_call(&mut chunk, call),
            Event::ToolResult(result) => put_result(&mut chunk, result),
            Event::Artifact(artifact) => chunk.artifact = Some(artifact),
            Event::Done(done) => put_done(&mut chunk, done),
            Event::Failed(error) => {
                // Not final: what broke never looks finished.
                chunk.error = Some(Problem::new(error, request_id).about(run.id, run.session_id.clone()));
            }
        },
    }
    chunk.delta = chunk.content;
    let mut json = serde_json::Serializer::with_formatter(&mut *out, OneLine);
    // A vector takes everything, and our values have string keys.
    if let Err(error) = chunk.serialize(&mut json) {
        tracing::error!(run_id = %run.id, seq, %error, "an event could not be written");
    }
}

fn put_call<'a>(chunk: &mut StreamChunk<'a>, call: &'a ToolCallMade) {
    let ToolCallMade {
        id,
        name,
        arguments,
        round,
        last,
    } = call;
    chunk.tool_call = Some(ToolCallPart {
        id,
        name,
        arguments,
        round: *round,
    });
    chunk.finish_reason = last.then_some(FinishKind::ToolCalls);
}

fn put_result<'a>(chunk: &mut StreamChunk<'a>, result: &'a ToolResult) {
    let ToolResult {
        id,
        name,
        ok,
        content,
        truncated,
        duration_ms,
        round,
    } = result;
    chunk.tool_result = Some(ToolResultPart {
        id,
        name,
        ok: *ok,
        content,
        truncated: *truncated,
        duration_ms: *duration_ms,
        round: *round,
    });
}

fn put_done<'a>(chunk: &mut StreamChunk<'a>, done: &'a Done) {
    let Done {
        answer,
        duration_ms,
        first_token_ms,
        history_truncated,
        repaired,
    } = done;
    chunk.is_final = true;
    chunk.finish_reason = answer.finish_reason;
    chunk.model = &answer.model;
    chunk.done = Some(DonePart {
        metadata: DoneMetadata {
            model: &answer.model,
            usage: &answer.usage,
            rounds: answer.rounds,
            duration_ms: *duration_ms,
            first_token_ms: *first_token_ms,
            history_truncated: *history_truncated,
            repaired: *repaired,
        },
        structured_data: answer.structured_data.as_ref(),
        artifact_files: &answer.artifact_files,
        response: answer,
    });
}

/// JSON in which every character that some reader takes for the end of a line is escaped.
pub(super) struct OneLine;

impl serde_json::ser::Formatter for OneLine {
    fn write_string_fragment<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> std::io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = memchr::memmem::find(rest.as_bytes(), b"\xE2\x80") {
            let (before, after) = rest.split_at(at);
            let (escape, width) = match after.chars().next() {
                Some('\u{2028}') => ("\\u2028", 3),
                Some('\u{2029}') => ("\\u2029", 3),
                Some(other) => ("", other.len_utf8()),
                None => break,
            };
            writer.write_all(before.as_bytes())?;
            writer.write_all(if escape.is_empty() {
                &after.as_bytes()[..width]
            } else {
                escape.as_bytes()
            })?;
            rest = &after[width..];
        }
        writer.write_all(rest.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_separators_are_escaped_and_nothing_else_is_changed() {
        for text in [
            "plain",
            "a\u{2028}b\u{2029}",
            "“quoted” – dash … \u{2027}\u{202A}",
            "é\n\t\"\\",
            "\u{2028}",
        ] {
            let mut out = Vec::new();
            text.serialize(&mut serde_json::Serializer::with_formatter(&mut out, OneLine))
                .unwrap();
            let out = String::from_utf8(out).unwrap();
            assert!(!out.contains(['\u{2028}', '\u{2029}', '\n']));
            assert_eq!(serde_json::from_str::<String>(&out).unwrap(), text);
        }
    }
}
