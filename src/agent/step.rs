//! Rounds until it is all said. One screen.

use std::sync::Arc;

use futures_util::StreamExt;
use tokio::time::Instant;

use super::{
    Agent, Kit, Listener, ModelRef, Turn,
    call::{ARGS_INVALID, call, refuse},
    form::fitted,
    next::{Next, next},
};
use crate::{
    chat::{
        Again, Chunk, Event, FinishKind, Message, ToolCall, ToolCallMade, ToolChoice,
        fold::{Asked, Round},
    },
    error::{Error, ErrorCode},
    meters::CallMeter,
    provider::{ChunkStream, Provider},
    telemetry::trace::{Kind, Span, Value},
};

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

/// Answers the turn's last message. `ear` is told every event as it happens, in batches. The future may be dropped at any
/// moment; `turn` then stands where it was ([`Turn::close`]).
///
/// # Errors
/// The provider's, `output_limit`, and `output_invalid`.
pub async fn answer(
    agent: &Agent,
    candidates: &[Candidate],
    bounds: Bounds,
    kit: &Kit<'_>,
    turn: &mut Turn,
    ear: &mut impl Listener,
) -> Result<(), Error> {
    loop {
        ear.may_go_on()?;
        match next(&turn.request.messages) {
            Next::Stop => break,
            Next::Call(calls) => call(agent, kit, calls, turn, ear).await,
            Next::Ask if turn.tool_rounds > agent.max_tool_rounds => break, // it asked even without tools
            Next::Ask => {
                if turn.rounds > 0 {
                    turn.request.tool_choice = ToolChoice::Auto; // what the client chose was for the first round
                }
                if turn.tool_rounds == agent.max_tool_rounds {
                    turn.forbid_calls(); // one last answer
                }
                ask(candidates, bounds, kit, turn, ear).await?;
            }
        }
    }
    settle(candidates, bounds, kit, turn).await
}

/// Hears what nobody else is to hear.
#[derive(Default)]
struct Aside(String);

impl Listener for Aside {
    fn hear(&mut self, events: &mut Vec<Event>) {
        for event in events.drain(..) {
            if let Event::Text(text) = event {
                self.0.push_str(&text);
            }
        }
    }

    fn heard(&self, bytes: usize) -> Arc<str> {
        let from = self.0.len().saturating_sub(bytes);
        self.0.get(from..).unwrap_or_default().into()
    }
}

/// Reads the answer as data, where a form was asked for. One that does not fit is asked for once more; that answer is not
/// streamed, and stands in the place of the other.
async fn settle(candidates: &[Candidate], bounds: Bounds, kit: &Kit<'_>, turn: &mut Turn) -> Result<(), Error> {
    let Some(form) = turn.form.clone() else { return Ok(()) };
    let mut reading = form.read(turn.last_words()).await;
    if let Err(why) = &reading {
        turn.begin_repair(form.complaint(why));
        ask(candidates, bounds, kit, turn, &mut Aside::default()).await?;
        turn.end_repair();
        reading = form.read(turn.last_words()).await;
    }
    let invalid = |why| {
        Error::new(
            ErrorCode::OutputInvalid,
            "The model's answer does not have the form asked for.",
        )
        .because(why)
    };
    turn.structured = Some(reading.map_err(invalid)?);
    Ok(())
}

/// One model call, from its first chunk to its finish.
async fn ask(
    candidates: &[Candidate],
    bounds: Bounds,
    kit: &Kit<'_>,
    turn: &mut Turn,
    ear: &mut impl Listener,
) -> Result<(), Error> {
    turn.rounds += 1;
    turn.round = Some(Round::default());
    let (mut chunks, mut meter, mut span) = open(candidates, kit, turn).await?;
    let mut events = Vec::new();
    while let Some(batch) = chunks.next().await {
        let batch = batch.inspect_err(|error| {
            kit.meters.call_failed(&error.provider, error.word());
            span.fail(error.word());
        })?;
        let round = turn.round.get_or_insert_default();
        let before = round.size();
        for chunk in batch {
            let taken = round.push(&chunk);
            match chunk {
                _ if !taken => {}
                Chunk::Text(text) => events.push(Event::Text(text)),
                Chunk::Reasoning(text) if bounds.include_reasoning => events.push(Event::Reasoning(text)),
                _ => {}
            }
        }
        if round.size() > before {
            meter.piece();
            turn.first_content.get_or_insert_with(|| {
                let now = Instant::now();
                meter.first_token(now - kit.began);
                now
            });
        }
        if !events.is_empty() {
            ear.hear(&mut events);
        }
        if turn.output() > bounds.max_output {
            return Err(Error::new(
                ErrorCode::OutputLimit,
                "The answer is longer than this gateway allows.",
            ));
        }
        tokio::task::consume_budget().await; // a provider that is always ready must not keep the run from being stopped
    }
    drop((chunks, meter));
    finish(turn, kit, ear)?;
    note(&mut span, turn);
    Ok(())
}

/// What a call came to.
fn note(span: &mut Span, turn: &Turn) {
    if let Some(call) = turn.calls.last() {
        for (name, count) in [
            ("gen_ai.usage.input_tokens", call.usage.input_tokens),
            ("gen_ai.usage.output_tokens", call.usage.output_tokens),
        ] {
            if let Some(count) = count {
                span.note(name, || count);
            }
        }
    }
    if let Some(finish) = turn.finish {
        span.note("gen_ai.response.finish_reasons", || Value::Words(vec![finish.as_str()]));
    }
}

/// Opens the round's stream: at the candidate that has answered so far, or, as long as nobody has, at the next that can. From
/// the run's second call on nothing is sent twice: words were told by then, or a tool has run.
async fn open(
    candidates: &[Candidate],
    kit: &Kit<'_>,
    turn: &mut Turn,
) -> Result<(ChunkStream, CallMeter, Span), Error> {
    loop {
        let Some(Candidate { model, provider }) = candidates.get(turn.candidate) else {
            return Err(Error::internal("a turn without anybody to ask"));
        };
        turn.request.model.clone_from(&model.model);
        turn.model = model.to_string();
        let meter = kit.meters.call(&model.provider, &model.model);
        let mut span = begin(kit, model, &**provider);
        turn.request.trace = span.traceparent();
        turn.request.again = Again {
            unsent_only: turn.rounds > 1,
            until: Some(kit.until),
        };
        let error = match provider.stream(&fitted(&**provider, &turn.request)).await {
            Ok(chunks) => return Ok((chunks, meter, span)),
            Err(error) => error,
        };
        kit.meters.call_failed(&model.provider, error.word());
        span.fail(error.word());
        if error.unsent() {
            turn.round = None; // nothing was sent, so nothing can be billed
        }
        let able = |at: &usize| {
            let provider = &*candidates[*at].provider;
            provider.check(&fitted(provider, &turn.request)).is_ok()
        };
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

/// A call to a model, as part of the run's trace.
fn begin(kit: &Kit<'_>, model: &ModelRef, provider: &dyn Provider) -> Span {
    let mut span = kit.span.child(Kind::Client, || format!("chat {}", model.model));
    span.note("gen_ai.operation.name", || "chat");
    span.note("gen_ai.provider.name", || provider.identity().system);
    span.note("gen_ai.request.model", || model.model.as_str());
    if let Some(server) = provider.identity().server {
        span.note("server.address", || server);
    }
    span
}

/// The round is over: its words and calls become a message.
fn finish(turn: &mut Turn, kit: &Kit<'_>, ear: &mut impl Listener) -> Result<(), Error> {
    let round = turn.round.take().unwrap_or_default();
    let Some((reason, _)) = round.finish() else {
        return Err(Error::new(
            ErrorCode::UpstreamTruncated,
            "The model's answer broke off before its end.",
        ));
    };
    let kind = reason.kind;
    turn.count(&round);
    let text = ear.heard(round.text);
    let (mut asked, carry) = round.complete();
    if turn.repairing() {
        asked.clear(); // there is nothing to call, whatever it asks for
    }
    for one in &mut asked {
        // Arguments that never came cannot be told from arguments that were lost on the way.
        one.parsed |= one.absent && takes_no_arguments(kit, &one.call.name);
    }
    turn.finish = Some(match kind {
        FinishKind::ToolCalls if asked.is_empty() => FinishKind::Stop, // it wants nothing
        kind => kind,
    });
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
    for refused in asked.iter().filter(|a| !a.parsed) {
        let why = match &refused.oversized {
            Some(integer) => format!(
                "The arguments hold the integer {integer}, which does not fit into 64 bits; nothing was called. Pass \
                 such a number as a string if the tool takes one."
            ),
            None if refused.absent => "The call had no arguments; nothing was called. Send a JSON object, {} if it \
                                       is empty."
                .to_owned(),
            None => "The arguments were not a JSON object; nothing was called.".to_owned(),
        };
        refuse(turn, kit, &refused.call, (ARGS_INVALID, why), &mut events);
    }
    ear.hear(&mut events);
    Ok(())
}

/// Whether a tool of this name takes no arguments, so that none can have been lost.
fn takes_no_arguments(kit: &Kit<'_>, name: &str) -> bool {
    let offer = kit.tools.iter().find(|offer| offer.definition.name == name);
    offer.is_some_and(|offer| offer.definition.takes_no_arguments())
}
