//! One turn under way: what was said before, what this run adds, and how far it is. Whatever happens to the loop, a
//! turn can be closed into well-formed messages.

use tokio::time::Instant;

use crate::chat::{
    ChatRequest, FinishKind, Message, ModelCall, ToolCall, ToolRecord, Usage, fold::Round, history, usage,
};

/// A turn.
#[derive(Debug)]
pub struct Turn {
    /// Which of the candidates is asked.
    pub(super) candidate: usize,
    /// `provider/model` that was asked last: the one that answered, if anybody did.
    pub model: String,
    /// What the model is asked; its messages grow with the turn.
    pub request: ChatRequest,
    /// How many of the messages were there before this run.
    pub(super) before: usize,
    /// The model call under way.
    pub(super) round: Option<Round>,
    /// Model calls so far.
    pub rounds: u32,
    /// Rounds of tools so far.
    pub(super) tool_rounds: u32,
    /// Bytes that the model produced in the rounds before.
    produced: usize,
    /// What they cost.
    pub usage: Usage,
    /// Each model call by itself.
    pub calls: Vec<ModelCall>,
    /// The tools that were called.
    pub tools: Vec<ToolRecord>,
    /// Why the last round ended.
    pub finish: Option<FinishKind>,
    /// When the first content came.
    pub first_content: Option<Instant>,
}

impl Turn {
    /// A turn at its beginning: `request` ends with the message to answer.
    #[must_use]
    pub fn new(request: ChatRequest) -> Self {
        Self {
            candidate: 0,
            model: String::new(),
            before: request.messages.len().saturating_sub(1),
            request,
            round: None,
            rounds: 0,
            tool_rounds: 0,
            produced: 0,
            usage: Usage::default(),
            calls: Vec::new(),
            tools: Vec::new(),
            finish: None,
            first_content: None,
        }
    }

    /// What this run adds to its session, the user's message first.
    #[must_use]
    pub fn added(&self) -> &[Message] {
        &self.request.messages[self.before..]
    }

    /// The text so far, over all rounds.
    #[must_use]
    pub fn content(&self) -> String {
        let mut content: String = self
            .added()
            .iter()
            .filter(|m| m.role == crate::chat::Role::Assistant)
            .map(|m| m.content.as_str())
            .collect();
        if let Some(round) = &self.round {
            content.push_str(&round.text);
        }
        content
    }

    /// Bytes that the model produced so far, over all rounds.
    #[must_use]
    pub(super) fn output(&self) -> usize {
        self.produced + self.round.as_ref().map_or(0, Round::size)
    }

    /// Ends a turn wherever it is, so that its messages are well-formed: what the model said so far is kept, calls that
    /// were not complete are dropped, complete ones without a result get `why` as theirs.
    pub fn close(&mut self, why: &str) {
        if let Some(round) = self.round.take() {
            self.count(&round);
            if !round.text.is_empty() {
                self.request.messages.push(Message::assistant(round.text, Vec::new()));
            }
        }
        if let super::next::Next::Call(calls) = super::next::next(&self.request.messages) {
            for call in calls {
                self.answer_call(&call, false, why.to_owned());
            }
        }
    }

    /// Adds a round's cost, estimating what the provider did not say.
    pub(super) fn count(&mut self, round: &Round) {
        self.produced += round.size();
        let mut cost = round.finish().map(|(_, usage)| usage.clone()).unwrap_or_default();
        let asked = usage::estimate(self.request.instructions.as_ref().map_or(0, String::len));
        let input = asked + self.request.messages.iter().map(history::tokens).sum::<u64>();
        cost.fill(input, usage::estimate(round.size()));
        self.usage.add(&cost);
        self.calls.push(ModelCall {
            round: self.rounds,
            model: self.model.clone(),
            usage: cost,
        });
    }

    /// Records a call's result, for the model and for the answer.
    pub(super) fn answer_call(&mut self, call: &ToolCall, ok: bool, result: String) {
        self.request.messages.push(Message::tool(&call.id, &result));
        self.tools.push(ToolRecord {
            id: call.id.clone(),
            name: call.name.clone(),
            arguments: call.arguments.clone(),
            round: self.rounds,
            ok,
            result,
            duration_ms: 0,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        agent::next::{Next, next},
        chat::{Chunk, ResponseFormat, Settings, ToolChoice},
    };

    fn turn() -> Turn {
        Turn::new(ChatRequest {
            model: "m".into(),
            instructions: None,
            messages: vec![
                Message::user("Before", vec![]),
                Message::assistant("Yes", vec![]),
                Message::user("Now", vec![]),
            ],
            tools: vec![],
            tool_choice: ToolChoice::Auto,
            settings: Settings::default(),
            response_format: ResponseFormat::Text,
        })
    }

    #[test]
    fn a_turn_that_is_cut_in_its_words_keeps_them() {
        let mut turn = turn();
        let mut round = Round::default();
        round.push(&Chunk::Text("Half".into()));
        round.push(&Chunk::ToolCallStart {
            index: 0,
            id: "a".into(),
            name: "f".into(),
        });
        turn.round = Some(round);
        assert_eq!(turn.content(), "Half");
        turn.close("cut");
        assert_eq!(
            turn.added(),
            [Message::user("Now", vec![]), Message::assistant("Half", vec![])]
        );
        assert!(
            turn.usage.estimated && turn.usage.output_tokens == Some(2),
            "{:?}",
            turn.usage
        );
    }

    #[test]
    fn a_turn_that_is_cut_among_its_calls_answers_them() {
        let mut turn = turn();
        let call = |id: &str| ToolCall {
            id: id.into(),
            name: "f".into(),
            arguments: serde_json::Map::new(),
        };
        turn.request
            .messages
            .push(Message::assistant("", vec![call("a"), call("b")]));
        turn.answer_call(&call("a"), true, "1".into());
        turn.close("cut");
        assert_eq!(turn.added().last(), Some(&Message::tool("b", "cut")));
        assert_eq!(next(&turn.request.messages), Next::Ask);
        assert_eq!(turn.tools.iter().map(|t| t.ok).collect::<Vec<_>>(), [true, false]);
    }

    #[test]
    fn a_turn_that_never_began_costs_nothing() {
        let mut turn = turn();
        turn.close("cut");
        assert_eq!((turn.added().len(), turn.usage.input_tokens), (1, None));
    }
}
