//! The words that every room shares: messages, requests, chunks, events, usage, ids.
//!
//! Pure values. No sockets, no clock, no provider names, no file. A *dialect* turns these into somebody's wire and back,
//! a *format* turns them into what a client reads.

pub mod answer;
pub mod artifact;
pub mod chunk;
pub mod event;
pub mod fold;
pub mod history;
pub mod id;
pub mod message;
pub mod number;
pub mod request;
pub mod usage;

pub use answer::{Answer, Done, JsonText, ToolRecord};
pub use artifact::Artifact;
pub use chunk::{Chunk, FinishKind, FinishReason};
pub use event::{Event, ToolCallMade, ToolResult};
pub use id::{ArtifactId, EventId, Principal, RunId, SessionId};
pub use message::{Carry, Image, Message, Role, ToolCall};
pub use request::{Again, ChatRequest, ResponseFormat, Settings, ToolChoice, ToolDefinition};
pub use usage::{ModelCall, Usage};
