//! A round's calls: checked, made side by side, each with a deadline and exactly one result.

use std::{panic::AssertUnwindSafe, time::Duration};

use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use tokio::time::Instant;

use super::{Agent, Kit, Listener, Turn};
use crate::{
    chat::{Artifact, Event, ToolCall, ToolResult},
    patience::timeout,
    telemetry::trace::Kind,
    tool::{File, Offer, ToolContext, ToolError, ToolOutput},
};

/// The most calls of one round that are made; the rest get an error as their result.
const MAX_CALLS: usize = 16;
/// The most that a tool may give back, in bytes.
const MAX_RESULT: usize = 256 << 10;
/// What is shown of a result that is larger than that, in bytes.
const HEAD: usize = 8 << 10;
/// The most of a call's id that is told to those who watch: it is the provider's.
const MAX_ID: usize = 128;
/// What the meters call arguments that no tool can take.
pub(super) const ARGS_INVALID: &str = "args_invalid";

/// What came of a call.
struct Outcome {
    ok: bool,
    content: String,
    truncated: bool,
    took: Duration,
    /// It in a word, for meters.
    word: &'static str,
}

/// Answers a round's calls. Each result is told when it is there; the model gets them in the order of its calls.
pub(super) async fn call(agent: &Agent, kit: &Kit<'_>, calls: Vec<ToolCall>, turn: &mut Turn, ear: &mut impl Listener) {
    let mut events = Vec::new();
    let (mut under_way, mut begun) = (FuturesUnordered::new(), Vec::new());
    for (at, call) in calls.iter().enumerate() {
        let offer = kit.tools.iter().find(|offer| offer.definition.name == call.name);
        let allowed = match offer {
            _ if turn.tool_rounds > agent.max_tool_rounds => Err((
                "limit",
                "The limit of tool rounds was reached; nothing was called.".to_owned(),
            )),
            _ if at >= MAX_CALLS => Err((
                "limit",
                "Too many calls in one round; this one was not made.".to_owned(),
            )),
            None if kit.denied.contains(&call.name) => {
                tracing::warn!(run_id = %kit.context.run_id, tool = call.name, "a tool was refused to this caller");
                let why = "Whoever asks may not use this tool; nothing was called.".to_owned();
                Err(("policy_denied", why))
            }
            None => Err(("unknown", "There is no tool of this name.".to_owned())),
            Some(offer) => match offer.admits(&call.arguments).await {
                Ok(()) => Ok(offer),
                Err(why) => {
                    let why = format!("The arguments do not fit the tool's parameters; nothing was called: {why}");
                    Err((ARGS_INVALID, why))
                }
            },
        };
        match allowed {
            Ok(offer) => {
                under_way.push(make(offer, call, kit, agent.tool_timeout));
                begun.push(call.id.clone());
            }
            Err((word, why)) => refuse(turn, kit, call, (word, why), &mut events),
        }
    }
    if !events.is_empty() {
        ear.hear(&mut events);
    }
    turn.begun = begun; // and not before: until here nothing was waited for but the check of arguments
    while let Some((call, files, outcome)) = under_way.next().await {
        count(kit, call, outcome.word);
        events.extend(files.into_iter().map(Event::Artifact));
        record(turn, call, outcome, &mut events);
        ear.hear(&mut events);
    }
    turn.begun.clear();
}

/// Counts a call, under its tool's name if there is one.
fn count(kit: &Kit<'_>, call: &ToolCall, word: &'static str) {
    let offer = kit.tools.iter().find(|offer| offer.definition.name == call.name);
    kit.meters.tool_called(offer.map_or("", Offer::counted_as), word);
}

/// An error as a call's result, without a call: in a word, and in a sentence for the model.
pub(super) fn refuse(
    turn: &mut Turn,
    kit: &Kit<'_>,
    call: &ToolCall,
    (word, why): (&'static str, String),
    events: &mut Vec<Event>,
) {
    count(kit, call, word);
    let outcome = Outcome {
        ok: false,
        content: why,
        truncated: false,
        took: Duration::ZERO,
        word,
    };
    record(turn, call, outcome, events);
}

/// A result: for the model, for the answer, and as an event.
fn record(turn: &mut Turn, call: &ToolCall, outcome: Outcome, events: &mut Vec<Event>) {
    let Outcome {
        ok,
        content,
        truncated,
        took,
        word: _,
    } = outcome;
    let duration_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    turn.answer_call(call, ok, content.clone(), duration_ms);
    events.push(Event::ToolResult(ToolResult {
        id: call.id.clone(),
        name: call.name.clone(),
        ok,
        content,
        truncated,
        duration_ms,
        round: turn.rounds,
    }));
}

/// Makes one call. Whatever the tool does, there is an outcome.
async fn make<'a>(
    offer: &'a Offer,
    call: &'a ToolCall,
    kit: &'a Kit<'_>,
    usual: Duration,
) -> (&'a ToolCall, Vec<Artifact>, Outcome) {
    let began = Instant::now();
    let patience = offer.tool().timeout().unwrap_or(usual);
    let mut span = kit.span.child(Kind::Internal, || format!("execute_tool {}", call.name));
    span.note("gen_ai.operation.name", || "execute_tool");
    span.note("gen_ai.tool.name", || call.name.as_str());
    span.note("gen_ai.tool.call.id", || {
        &call.id[..call.id.floor_char_boundary(MAX_ID)]
    });
    let context = ToolContext {
        trace: span.traceparent(),
        ..kit.context.clone()
    };
    let work = async { offer.tool().call(&call.arguments, &context).await };
    let mut word = "ok";
    let output = match timeout(patience, AssertUnwindSafe(work).catch_unwind()).await {
        Ok(Ok(output)) => output,
        Ok(Err(_)) => {
            tracing::error!(run_id = %kit.context.run_id, tool = call.name, "a tool panicked");
            Err(ToolError::new("The tool failed; it is a fault of the gateway's."))
        }
        Err(_) => {
            word = "timeout";
            Err(ToolError::new(format!("The tool did not answer within {patience:?}.")))
        }
    };
    let (ok, ToolOutput { mut content, files }) = match output {
        Ok(output) => (true, output),
        Err(error) => {
            if word == "ok" {
                word = error.word();
            }
            (false, ToolOutput::text(error.0))
        }
    };
    let (mut ok, mut truncated) = (ok, false);
    if content.len() > MAX_RESULT {
        let size = content.len();
        content.truncate(content.floor_char_boundary(HEAD));
        content = format!("The result has {size} bytes, which is more than {MAX_RESULT}; it begins so:\n{content}");
        (ok, truncated) = (false, true);
    }
    let mut kept = Vec::new();
    for file in files {
        ok &= keep(file, kit, &mut content, &mut kept).await;
    }
    let outcome = Outcome {
        ok,
        content,
        truncated,
        took: began.elapsed(),
        word: if ok || word != "ok" { word } else { "failed" },
    };
    if !ok {
        span.fail(outcome.word);
    }
    (call, kept, outcome)
}

/// Keeps a file, and tells the model where it is, or why it is not.
async fn keep(file: File, kit: &Kit<'_>, content: &mut String, kept: &mut Vec<Artifact>) -> bool {
    let name = file.name.clone();
    let (ok, line) = match kit.shelf.keep(file).await {
        Ok(artifact) => {
            let Artifact {
                name,
                media_type,
                size,
                url,
                ..
            } = &artifact;
            let line = format!("{name:?} ({media_type}, {size} bytes) can be downloaded at {url}");
            kept.push(artifact);
            (true, line)
        }
        Err(why) => (false, format!("{name:?} could not be kept: {why}")),
    };
    if !content.is_empty() {
        content.push('\n');
    }
    content.push_str(&line);
    ok
}
