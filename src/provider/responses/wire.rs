//! The fields of the Responses API's events that we read; all others are ignored (`sequence_number`, `obfuscation`, …).
//! What differs from event to event stays raw until the event's type says what it is.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};

use crate::provider::loose::{LooseInt, LooseList, LooseStruct, LooseText};

/// Any event of a stream.
#[derive(Deserialize)]
pub(super) struct Event<'a> {
    #[serde(borrow, default, rename = "type")]
    pub(super) kind: Option<Cow<'a, str>>,
    /// Which item: what events are told apart by, for the items' ids may change on the way.
    #[serde(default)]
    pub(super) output_index: Option<LooseInt>,
    #[serde(borrow, default)]
    pub(super) item_id: Option<LooseText<'a>>,
    /// Which part of an item's content.
    #[serde(default)]
    pub(super) content_index: Option<LooseInt>,
    /// Which part of a summary.
    #[serde(default)]
    pub(super) summary_index: Option<LooseInt>,
    #[serde(borrow, default)]
    pub(super) delta: Option<&'a RawValue>,
    /// Of `response.output_text.done`, `response.reasoning_text.done` and `response.reasoning_summary_text.done`.
    #[serde(borrow, default)]
    pub(super) text: Option<&'a RawValue>,
    /// Of `response.refusal.done`.
    #[serde(borrow, default)]
    pub(super) refusal: Option<&'a RawValue>,
    /// Of `response.function_call_arguments.done`.
    #[serde(borrow, default)]
    pub(super) arguments: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) item: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) response: Option<&'a RawValue>,
    /// Of an error, where it is nested.
    #[serde(borrow, default)]
    pub(super) error: Option<&'a RawValue>,
}

/// The response itself: in the last event, and as a whole answer.
#[derive(Default, Deserialize)]
pub(super) struct Response<'a> {
    #[serde(borrow, default)]
    pub(super) status: Option<LooseText<'a>>,
    #[serde(borrow, default)]
    pub(super) incomplete_details: Option<LooseStruct<Incomplete<'a>>>,
    #[serde(borrow, default)]
    pub(super) error: Option<&'a RawValue>,
    /// Often empty in a stream, which has given all items before.
    #[serde(borrow, default)]
    pub(super) output: Option<LooseList<&'a RawValue>>,
    #[serde(borrow, default)]
    pub(super) usage: Option<&'a RawValue>,
}

/// The response in the event that begins it.
#[derive(Deserialize)]
pub(super) struct Created<'a> {
    #[serde(borrow, default)]
    pub(super) id: Option<LooseText<'a>>,
}

#[derive(Deserialize)]
pub(super) struct Incomplete<'a> {
    #[serde(borrow, default)]
    pub(super) reason: Option<LooseText<'a>>,
}

/// Which item it is, before more of it is read.
#[derive(Deserialize)]
pub(super) struct ItemKind<'a> {
    #[serde(borrow, default, rename = "type")]
    pub(super) kind: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub(super) id: Option<LooseText<'a>>,
}

/// An item of type `message`.
#[derive(Deserialize)]
pub(super) struct MessageItem<'a> {
    /// Parts of type `output_text` or `refusal`.
    #[serde(borrow, default)]
    pub(super) content: Option<&'a RawValue>,
    /// `commentary` or `final_answer`: newer models want it back.
    #[serde(borrow, default)]
    pub(super) phase: Option<LooseText<'a>>,
}

/// An item of type `function_call` or `custom_tool_call`.
#[derive(Deserialize)]
pub(super) struct CallItem<'a> {
    /// What an answer names; the item's own id is another.
    #[serde(borrow, default)]
    pub(super) call_id: Option<LooseText<'a>>,
    #[serde(borrow, default)]
    pub(super) name: Option<LooseText<'a>>,
    /// JSON in a string.
    #[serde(borrow, default)]
    pub(super) arguments: Option<&'a RawValue>,
    /// Of a custom call: free text.
    #[serde(borrow, default)]
    pub(super) input: Option<&'a RawValue>,
    /// `in_progress`, `completed` or `incomplete`.
    #[serde(borrow, default)]
    pub(super) status: Option<LooseText<'a>>,
}

/// An item of type `reasoning`.
#[derive(Deserialize)]
pub(super) struct ReasoningItem<'a> {
    /// Parts of type `summary_text`.
    #[serde(borrow, default)]
    pub(super) summary: Option<&'a RawValue>,
    /// Parts of type `reasoning_text`.
    #[serde(borrow, default)]
    pub(super) content: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) encrypted_content: Option<LooseText<'a>>,
}

/// What we carry: in which order an answer's items came, and whatever of them our own words do not hold.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Layout {
    /// The configured provider that it came from.
    pub(super) provider: String,
    /// The items.
    pub(super) items: Vec<Place>,
}

/// One item of an answer.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Place {
    /// The reasoning item, whole.
    Reasoning(Value),
    /// A message: so many bytes of the answer's text.
    Text {
        bytes: usize,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        phase: Option<String>,
    },
    /// The call of this number.
    Call(usize),
}
