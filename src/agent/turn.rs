//! One turn under way: what was said before, what this run adds, and how far it is. Whatever happens to the loop, a
//! turn can be closed into well-formed messages.

use std::sync::Arc;

use serde_json::Value;
use tokio::time::Instant;

use super::Form;
use crate::chat::{
    ChatRequest, FinishKind, Message, ModelCall, Role, ToolCall, ToolChoice, ToolRecord, Usage, fold::Round, history,
    usage,
};

/// What the model is told of a call that the run's end came before.
const NOT_MADE: &str = "The run was stopped before this call was made.";
/// What it is told of one that the run's end came in the middle of: whoever was called may have done it.
const UNDER_WAY: &str = "The run was stopped while this call was under way; whether it took effect is not known.";

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
    /// What the rounds before weigh, in bytes.
    produced: usize,
    /// What they cost.
    pub usage: Usage,
    /// Each model call by itself.
    pub calls: Vec<ModelCall>,
    /// The ids of this round's calls that have been begun, while calls are under way.
    pub(super) begun: Vec<String>,
    /// The tools that were called.
    pub tools: Vec<ToolRecord>,
    /// Why the last round ended.
    pub finish: Option<FinishKind>,
    /// When the first content came.
    pub first_content: Option<Instant>,
    /// The form that the answer must have, where one was asked for.
    pub(super) form: Option<Form>,
    /// The answer as data, once it is known to fit.
    pub structured: Option<Value>,
    /// Whether the answer is another than what was said, because that did not fit.
    pub repaired: bool,
    /// While the answer is asked for once more: where the question stands, which is no part of the conversation.
    repair: Option<usize>,
}

impl Turn {
    /// A turn at its beginning: `request` ends with the message to answer, which is to be done in `form`.
    #[must_use]
    pub fn new(request: ChatRequest, form: Option<Form>) -> Self {
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
            begun: Vec::new(),
            tools: Vec::new(),
            finish: None,
            first_content: None,
            form,
            structured: None,
            repaired: false,
            repair: None,
        }
    }

    /// Puts what was said before in front of the turn.
    pub fn follow_on(&mut self, before: Vec<Message>) {
        self.before += before.len();
        self.request.messages.splice(0..0, before);
    }

    /// What this run adds to its session, the user's message first.
    #[must_use]
    pub fn added(&self) -> &[Message] {
        let end = self.repair.unwrap_or(self.request.messages.len());
        &self.request.messages[self.before..end]
    }

    /// The text of all rounds that are over.
    #[must_use]
    pub fn content(&self) -> Arc<str> {
        let added = self.added().iter().filter(|m| m.role == Role::Assistant);
        let said: Vec<&Arc<str>> = added.map(|m| &m.content).filter(|text| !text.is_empty()).collect();
        match said[..] {
            [only] => only.clone(),
            _ => said.iter().map(|text| &***text).collect::<String>().into(),
        }
    }

    /// What the model said last: its answer, if it is one.
    pub(super) fn last_words(&self) -> &str {
        match self.request.messages.last() {
            Some(last) if last.role == Role::Assistant => &last.content,
            _ => "",
        }
    }

    /// Lets the model call nothing from here on. The tools stay where calls have been made, because
    /// some servers refuse a conversation with calls that comes without any.
    pub(super) fn forbid_calls(&mut self) {
        let called = self
            .request
            .messages
            .iter()
            .any(|message| !message.tool_calls.is_empty());
        if !called {
            self.request.tools.clear();
        }
        self.request.tool_choice = ToolChoice::None;
    }

    /// Asks for the answer once more: from here on what is said is not part of the conversation, until
    /// [`Turn::end_repair`].
    pub(super) fn begin_repair(&mut self, complaint: String) {
        self.repair = Some(self.request.messages.len());
        self.forbid_calls();
        self.request.messages.push(Message::user(complaint, Vec::new()));
    }

    /// Whether the answer is being asked for once more.
    pub(super) fn repairing(&self) -> bool {
        self.repair.is_some()
    }

    /// Puts the new answer in the place of the one that did not fit.
    pub(super) fn end_repair(&mut self) {
        let Some(question) = self.repair.take() else { return };
        let mut answer = self.request.messages.split_off(question);
        let answer = answer.pop().filter(|m| m.role == Role::Assistant);
        if self.request.messages.last().is_some_and(|m| m.role == Role::Assistant) {
            self.request.messages.pop();
        }
        self.request.messages.extend(answer);
        self.repaired = true;
    }

    /// What the model's answer weighs so far, over all rounds, in bytes.
    #[must_use]
    pub(super) fn output(&self) -> usize {
        self.produced + self.round.as_ref().map_or(0, Round::weight)
    }

    /// Ends a turn wherever it is, so that its messages are well-formed: what the model said so far is kept (`heard`
    /// gives that many of the last bytes), calls that were not complete are dropped, complete ones without a result are
    /// answered with how far they were: begun, or not.
    pub fn close(&mut self, heard: impl FnOnce(usize) -> Arc<str>) {
        if let Some(round) = self.round.take() {
            self.count(&round);
            if round.text > 0 && self.repair.is_none() {
                let words = heard(round.text);
                self.request.messages.push(Message::assistant(words, Vec::new()));
            }
        }
        if let Some(question) = self.repair.take() {
            self.request.messages.truncate(question);
        }
        if let super::next::Next::Call(calls) = super::next::next(&self.request.messages) {
            for call in calls {
                let why = if self.begun.contains(&call.id) {
                    UNDER_WAY
                } else {
                    NOT_MADE
                };
                self.answer_call(&call, false, why.to_owned(), 0);
            }
        }
    }

    /// Adds a round's cost, estimating what the provider did not say.
    pub(super) fn count(&mut self, round: &Round) {
        self.produced += round.weight();
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

    /// Records a call's result, for the model and for the answer: in the order of the calls, whichever came first.
    pub(super) fn answer_call(&mut self, call: &ToolCall, ok: bool, result: String, duration_ms: u64) {
        let messages = &mut self.request.messages;
        let asked = messages.iter().rposition(|m| m.role != Role::Tool).unwrap_or(0);
        let place = |id: Option<&str>| {
            messages[asked]
                .tool_calls
                .iter()
                .position(|c| Some(c.id.as_str()) == id)
        };
        let own = place(Some(&call.id));
        let later = |m: &Message| place(m.tool_call_id.as_deref()) > own;
        let answers = &messages[asked + 1..];
        let behind = answers.iter().rev().take_while(|m| later(m)).count();
        let result: Arc<str> = result.into();
        let message = if ok {
            Message::tool(&call.id, result.clone())
        } else {
            Message::failure(&call.id, result.clone())
        };
        messages.insert(messages.len() - behind, message);
        let record = ToolRecord {
            id: call.id.clone(),
            name: call.name.clone(),
            arguments: call.arguments.clone(),
            round: self.rounds,
            ok,
            result,
            duration_ms,
        };
        self.tools.insert(self.tools.len() - behind, record);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        agent::next::{Next, next},
        chat::{Again, Chunk, ResponseFormat, Settings, ToolChoice},
    };

    fn turn() -> Turn {
        let request = ChatRequest {
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
            trace: None,
            again: Again::default(),
        };
        Turn::new(request, None)
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
        turn.close(|bytes| "Half"[..bytes].into());
        assert_eq!(&*turn.content(), "Half");
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
            .push(Message::assistant("", ["a", "b", "c", "d"].map(call).to_vec()));
        turn.begun = vec!["c".into(), "b".into()];
        turn.answer_call(&call("b"), true, "1".into(), 7);
        turn.close(|_| unreachable!());
        let told = [
            Message::failure("a", NOT_MADE),
            Message::tool("b", "1"),
            Message::failure("c", UNDER_WAY),
            Message::failure("d", NOT_MADE),
        ];
        assert_eq!(turn.added()[2..], told);
        assert_eq!(next(&turn.request.messages), Next::Ask);
        let went_well: Vec<_> = turn.tools.iter().map(|t| t.ok).collect();
        assert_eq!(went_well, [false, true, false, false]);
    }

    #[test]
    fn results_stand_in_the_order_of_the_calls() {
        let mut turn = turn();
        let call = |id: &str| ToolCall {
            id: id.into(),
            name: "f".into(),
            arguments: serde_json::Map::new(),
        };
        let calls = ["a", "b", "c", "d"].map(call);
        turn.request.messages.push(Message::assistant("", calls.to_vec()));
        for id in ["c", "a", "d", "b"] {
            turn.answer_call(&call(id), true, id.into(), 0);
        }
        let told: String = turn.added()[2..].iter().map(|m| &*m.content).collect();
        let recorded: String = turn.tools.iter().map(|t| &*t.result).collect();
        assert_eq!((told.as_str(), recorded.as_str()), ("abcd", "abcd"));
    }

    #[test]
    fn a_repair_leaves_one_answer_and_no_question() {
        let mut turn = turn();
        turn.request.messages.push(Message::assistant("wrong", vec![]));
        turn.begin_repair("Again!".into());
        assert_eq!((&*turn.content(), turn.added().len()), ("wrong", 2));
        let mut cut = Turn::new(turn.request.clone(), None);
        (cut.before, cut.repair) = (turn.before, turn.repair);
        cut.round = Some(Round::default());
        cut.round.as_mut().unwrap().push(&Chunk::Text("ri".into()));
        cut.close(|_| unreachable!());
        assert_eq!((&*cut.content(), cut.added().len()), ("wrong", 2));

        turn.request.messages.push(Message::assistant("right", vec![]));
        turn.end_repair();
        assert_eq!(
            (&*turn.content(), turn.added().len(), turn.repaired),
            ("right", 2, true)
        );
        assert_eq!(turn.last_words(), "right");
    }

    #[test]
    fn a_turn_that_never_began_costs_nothing() {
        let mut turn = turn();
        turn.close(|_| unreachable!());
        assert_eq!((turn.added().len(), turn.usage.input_tokens), (1, None));
    }
}
