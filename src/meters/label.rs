//! The values of labels: a closed set, whoever calls.

use std::{
    fmt::{self, Write},
    sync::Arc,
};

use prometheus_client::encoding::{EncodeLabelValue, LabelValueEncoder};

/// The value of a label.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Label {
    /// A word of ours.
    Word(&'static str),
    /// A name of the configuration's.
    Name(Arc<str>),
    /// An HTTP status.
    Number(u16),
}

impl Label {
    /// What is not configured.
    pub(super) const OTHER: Self = Self::Word("other");
}

impl EncodeLabelValue for Label {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> Result<(), fmt::Error> {
        match self {
            Self::Word(word) => encoder.write_str(word),
            Self::Name(name) => encoder.write_str(name),
            Self::Number(number) => write!(encoder, "{number}"),
        }
    }
}

macro_rules! words {
    ($($(#[$doc:meta])* $name:ident { $($(#[$about:meta])* $variant:ident = $word:literal,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$about])* $variant,)*
        }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The word for it, in metrics and logs.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }

            pub(super) fn label(self) -> Label {
                Label::Word(self.as_str())
            }
        }
    )*};
}

words! {
    /// How a run ended.
    Outcome {
        /// It is complete.
        Completed = "completed",
        /// Something went wrong.
        Failed = "failed",
        /// Somebody stopped it.
        Cancelled = "cancelled",
        /// The gateway went down under it.
        Interrupted = "interrupted",
    }

    /// How a run is written to a client.
    Format {
        /// One object.
        Json = "json",
        /// The answer's text.
        Text = "text",
        /// Every event.
        Sse = "sse",
    }

    /// When a client went.
    Disconnect {
        /// Before the model had said anything.
        FirstToken = "ttft",
        /// After that.
        Stream = "stream",
        /// It did not go: it was not heard of again.
        Lost = "lost",
    }

    /// What a reader found that came back.
    Resume {
        /// The run's log, here, while the run goes on.
        Hit = "hit",
        /// The run goes on at another gateway, and could be followed there.
        Remote = "remote",
        /// The run had ended; the rest of its events, its last, or that there are no more.
        Finished = "finished",
        /// The log is gone, its time being over.
        Expired = "expired",
        /// The log is gone before its time, or out of reach.
        Lost = "lost",
        /// No such run, or event.
        Unknown = "unknown",
    }

    /// Which limit of the gateway's was reached.
    Shed {
        /// `limits.max_runs`.
        Runs = "max_runs",
        /// `runs.memory_limit`.
        Memory = "memory_limit",
        /// `limits.memory`: a request's body found no room.
        Bodies = "body_memory",
        /// `limits.memory`: what was to be read from the store found no room.
        Budget = "memory",
        /// `server.max_connections`: a connection, before it was asked anything.
        Connections = "max_connections",
        /// It goes down.
        Draining = "shutting_down",
    }

    /// What became of settings that were read again.
    Reload {
        /// They are in force.
        Applied = "applied",
        /// They were wrong, and changed nothing.
        Refused = "refused",
    }

    /// What was wrong with an answer that was taken all the same.
    Tolerated {
        /// It ended with its finish, and without the mark that is to follow.
        NoMark = "missing_done",
        /// More came after its end: words, another end, or an error.
        Late = "dup_terminal",
        /// A byte of it was no UTF-8.
        NotUtf8 = "invalid_utf8",
        /// It had an end, and nothing else.
        Empty = "empty",
        /// It came whole, though a stream was asked for.
        Whole = "not_a_stream",
        /// A field had another JSON type than the dialect documents.
        FieldType = "field_type",
        /// A part of the content had a type that no dialect documents, and was skipped.
        UnknownPart = "unknown_part",
        /// Words, arguments or an event came a second time.
        Repeated = "repeated",
        /// The finish had a word that the dialect does not document.
        FinishWord = "finish_word",
        /// Usage was counted, written or placed in another way than the dialect documents.
        UsageForm = "usage_form",
    }

    /// Which way tokens went.
    Direction {
        /// To the model.
        Input = "input",
        /// From it.
        Output = "output",
        /// Of the input: from the provider's cache.
        Cached = "cached",
        /// Of the output: thinking.
        Reasoning = "reasoning",
    }
}
