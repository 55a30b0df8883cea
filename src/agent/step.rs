//! Rounds until it is all said. One screen.

use std::sync::Arc;

use futures_util::StreamExt;
use tokio::time::Instant;

use super::{
    Agent, ModelRef, Turn,
    next::{Next, next},
};
use crate::{
    chat::{
        Chunk, Event, Message, ToolCall, ToolCallMade, ToolChoice, ToolResult,
        fold::{Asked, Round},
    },
    error::{Error, ErrorCode},
    provider::{ChunkStream, Provider},
};

/// The most calls of one round that are looked at; the rest get an error as their result.
const MAX_CALLS: usize = 16;

/// One who can be asked.
#[derive(Clone)]
pub struct Candidate {
    /// Which model.
    pub model: ModelRef,
    /// At whom.
    pub provider: Arc<dyn Provider>,
}

/// What limits a turn and what it shows.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Of all that the model says, in bytes.
    pub max_output: usize,
    /// Whether thinking is told.
    pub include_reasoning: bool,
}

/// Answers the turn's last message. `say` is given every event as it happens, in batches. The future may be dropped at
/// any moment; `turn` then stands where it was ([`Turn::close`]).
///
/// # Errors
/// The provider's, and `output_limit`.
pub async fn answer(
    agent: &Agent,
    candidates: &[Candidate],
    bounds: Bounds,
    turn: &mut Turn,
    say: &mut (impl FnMut(&mut Vec<Event>) + Send),
) -> Result<(), Error> {
    loop {
        match next(&turn.request.messages) {
            Next::Stop => return Ok(()),
            Next::Call(calls) => call(agent, calls, turn, say),
            Next::Ask if turn.tool_rounds > agent.max_tool_rounds => return Ok(()), // it asked even without tools
            Next::Ask => {
                if turn.rounds > 0 {
                    turn.request.tool_choice = ToolChoice::Auto; // what the client chose was for the first round
                }
                if turn.tool_rounds == agent.max_tool_rounds {
                    turn.request.tools.clear(); // one last answer, without tools
                }
                ask(candidates, bounds, turn, say).await?;
            }
        }
    }
}

/// One model call, from its first chunk to its finish.
async fn ask(
    candidates: &[Candidate],
    bounds: Bounds,
    turn: &mut Turn,
    say: &mut (impl FnMut(&mut Vec<Event>) + Send),
) -> Result<(), Error> {
    turn.rounds += 1;
    turn.round = Some(Round::default());
    let mut chunks = open(candidates, turn).await?;
    let mut events = Vec::new();
    while let Some(batch) = chunks.next().await {
        let round = turn.round.get_or_insert_default();
        for chunk in batch? {
            round.push(&chunk);
            match chunk {
                Chunk::Text(text) => events.push(Event::Text(text)),
                Chunk::Reasoning(text) if bounds.include_reasoning => events.push(Event::Reasoning(text)),
                _ => {}
            }
        }
        if round.size() > 0 {
            turn.first_content.get_or_insert_with(Instant::now);
        }
        if !events.is_empty() {
            say(&mut events);
        }
        if turn.output() > bounds.max_output {
            return Err(Error::new(
                ErrorCode::OutputLimit,
                "The answer is longer than this gateway allows.",
            ));
        }
    }
    drop(chunks);
    finish(turn, say)
}

/// Opens the round's stream: at the candidate that has answered so far, or, as long as nobody has, at the next that can.
async fn open(candidates: &[Candidate], turn: &mut Turn) -> Result<ChunkStream, Error> {
    loop {
        let Some(Candidate { model, provider }) = candidates.get(turn.candidate) else {
            return Err(Error::internal("a turn without anybody to ask"));
        };
        turn.request.model.clone_from(&model.model);
        turn.model = model.to_string();
        let error = match provider.stream(&turn.request).await {
            Ok(chunks) => return Ok(chunks),
            Err(error) => error,
        };
        if error.unsent() {
            turn.round = None; // nothing was sent, so nothing can be billed
        }
        let able = |at: &usize| candidates[*at].provider.check(&turn.request).is_ok();
        let next = (turn.candidate + 1..candidates.len()).find(able);
        match next.filter(|_| turn.rounds == 1 && error.elsewhere()) {
            Some(next) => {
                tracing::warn!(model = turn.model, instead = %candidates[next].model, %error, "another model is asked instead");
                turn.candidate = next;
                turn.round = Some(Round::default());
            }
            None => return Err(error.into()),
        }
    }
}

/// The round is over: its words and calls become a message.
fn finish(turn: &mut Turn, say: &mut impl FnMut(&mut Vec<Event>)) -> Result<(), Error> {
    let round = turn.round.take().unwrap_or_default();
    let Some((reason, _)) = round.finish() else {
        return Err(Error::new(
            ErrorCode::UpstreamTruncated,
            "The model's answer broke off before its end.",
        ));
    };
    turn.finish = Some(reason.kind);
    turn.count(&round);
    let (text, asked, carry) = round.complete();
    let calls = asked.iter().map(|a| a.call.clone()).collect();
    turn.request
        .messages
        .push(Message::assistant(text, calls).carrying(carry));
    if asked.is_empty() {
        return Ok(());
    }
    turn.tool_rounds += 1;
    let mut events = Vec::new();
    let last = asked.iter().rposition(|a| a.parsed);
    for (at, Asked { call, .. }) in asked.iter().enumerate().filter(|(_, a)| a.parsed) {
        let ToolCall { id, name, arguments } = call.clone();
        events.push(Event::ToolCall(ToolCallMade {
            id,
            name,
            arguments,
            round: turn.rounds,
            last: Some(at) == last,
        }));
    }
    for Asked { call, .. } in asked.iter().filter(|a| !a.parsed) {
        refuse(
            turn,
            call,
            "The arguments were not a JSON object; nothing was called.",
            &mut events,
        );
    }
    say(&mut events);
    Ok(())
}

/// Answers a round's calls.
fn call(agent: &Agent, calls: Vec<ToolCall>, turn: &mut Turn, say: &mut impl FnMut(&mut Vec<Event>)) {
    let mut events = Vec::new();
    for (at, call) in calls.iter().enumerate() {
        let why = match at {
            _ if turn.tool_rounds > agent.max_tool_rounds => {
                "The limit of tool rounds was reached; nothing was called."
            }
            0..MAX_CALLS => "There is no tool of this name.",
            _ => "Too many calls in one round; this one was not made.",
        };
        refuse(turn, call, why, &mut events);
    }
    say(&mut events);
}

/// An error as a call's result: for the model, for the answer, and as an event.
fn refuse(turn: &mut Turn, call: &ToolCall, why: &str, events: &mut Vec<Event>) {
    turn.answer_call(call, false, why.to_owned());
    events.push(Event::ToolResult(ToolResult {
        id: call.id.clone(),
        name: call.name.clone(),
        ok: false,
        content: why.to_owned(),
        truncated: false,
        duration_ms: 0,
        round: turn.rounds,
    }));
}
