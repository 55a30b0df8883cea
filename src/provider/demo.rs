//! The provider that needs no key: it streams word by word, remembers the session, calls the built-in tools, answers in
//! JSON where that is asked for, and says plainly that it is a demo.
//!
//! It exists so that a first `curl` shows what the gateway does. It is not a language model and never pretends to be: what
//! it does is found by a few words (`intent`) or made from a schema (`fill`).

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use super::{ChunkStream, Provider, ProviderError, ProviderSettings, Unsupported};
use crate::chat::{
    ChatRequest, Chunk, FinishKind, FinishReason, Message, ResponseFormat, Role, ToolChoice, ToolDefinition, Usage,
    history, usage,
};

mod facts;
mod fill;
mod intent;
mod tool_reply;

use fill::{Extent, fill};
use intent::{Wish, wishes};
use tool_reply::results;

/// The time between two words.
const PACE: Duration = Duration::from_millis(25);
/// The words of a message that asks for a slow answer.
const SLOW: &str = "take your time";
/// The time that a slow answer takes as a whole.
const SLOW_ANSWER: Duration = Duration::from_secs(20);
/// How much of somebody's words is quoted back, in characters.
const QUOTE: usize = 200;
/// How much of JSON is said at once, in characters.
const PIECE: usize = 12;
/// What it is, in a sentence.
const SELF: &str = "This is Sluicegate's built-in demo, not a language model.";

struct Demo {
    name: String,
}

/// The demo.
pub(super) fn provider(settings: ProviderSettings) -> Result<Arc<dyn Provider>, ProviderError> {
    Ok(Arc::new(Demo { name: settings.name }))
}

impl Provider for Demo {
    fn name(&self) -> &str {
        &self.name
    }

    fn check(&self, request: &ChatRequest) -> Result<(), Unsupported> {
        let settings = &request.settings;
        let fields = [
            ("settings.temperature", settings.temperature.is_some()),
            ("settings.top_p", settings.top_p.is_some()),
            ("settings.stop", !settings.stop.is_empty()),
            ("settings.seed", settings.seed.is_some()),
            ("settings.reasoning_effort", settings.reasoning_effort.is_some()),
            (
                "attachments",
                request.messages.iter().any(|m| !m.attachments.is_empty()),
            ),
        ];
        match fields.iter().find(|(_, asked)| *asked) {
            Some((field, _)) => Err(Unsupported { field }),
            None => Ok(()),
        }
    }

    fn stream<'a>(&'a self, request: &'a ChatRequest) -> BoxFuture<'a, Result<ChunkStream, ProviderError>> {
        let (mut chunks, mut kind) = chunks(request);
        let limit = request
            .settings
            .max_output_tokens
            .map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
        if chunks.len() > limit {
            chunks.truncate(limit);
            kind = FinishKind::Length;
        }
        let size = |chunk: &Chunk| match chunk {
            Chunk::Text(text) | Chunk::ToolCallDelta { arguments: text, .. } => text.len(),
            Chunk::ToolCallStart { name, .. } => name.len(),
            _ => 0,
        };
        let usage = Usage {
            input_tokens: Some(request.messages.iter().map(history::tokens).sum()),
            output_tokens: Some(usage::estimate(chunks.iter().map(size).sum())),
            estimated: true, // there is no tokenizer behind this
            ..Usage::default()
        };
        let pace = pace(last_words(&request.messages), chunks.len());
        let stream = async_stream::stream! {
            for chunk in chunks {
                yield Ok(vec![chunk]);
                tokio::time::sleep(pace).await;
            }
            yield Ok(vec![Chunk::Finish { reason: FinishReason { kind, raw: None }, usage }]);
        };
        Box::pin(std::future::ready(Ok(Box::pin(stream) as ChunkStream)))
    }
}

/// The time between two words of an answer of `count` words.
fn pace(message: &str, count: usize) -> Duration {
    let count = u32::try_from(count.max(1)).unwrap_or(u32::MAX);
    if message.to_lowercase().contains(SLOW) {
        (SLOW_ANSWER / count).max(PACE)
    } else {
        PACE
    }
}

/// All that it says and asks for, and how that ends.
fn chunks(request: &ChatRequest) -> (Vec<Chunk>, FinishKind) {
    let messages = &request.messages;
    let words = |text: &str| {
        text.split_inclusive(' ')
            .map(|word| Chunk::Text(word.to_owned()))
            .collect::<Vec<_>>()
    };
    let (said, calls) = calls(request);
    if !calls.is_empty() {
        // Beside an answer in JSON there is no place for other words.
        let said = if request.response_format == ResponseFormat::Text {
            said
        } else {
            String::new()
        };
        let mut all = words(&said);
        for (index, (name, arguments)) in calls.into_iter().enumerate() {
            let id = format!("demo_{}", uuid::Uuid::new_v4().simple());
            all.push(Chunk::ToolCallStart { index, id, name });
            let pieces = pieces(&arguments.to_string());
            all.extend(
                pieces
                    .into_iter()
                    .map(|arguments| Chunk::ToolCallDelta { index, arguments }),
            );
        }
        return (all, FinishKind::ToolCalls);
    }
    let json = |value: Value| pieces(&value.to_string()).into_iter().map(Chunk::Text).collect();
    let user = quote(last_words(messages));
    let all = match &request.response_format {
        ResponseFormat::Text => words(&results(messages).unwrap_or_else(|| answer(messages))),
        ResponseFormat::JsonObject => match results(messages) {
            Some(results) => json(json!({"answer": results, "you_said": user})),
            None => json(json!({"answer": SELF, "you_said": user})),
        },
        ResponseFormat::JsonSchema { schema, .. } => json(fill(schema, &user, Extent::All)),
    };
    (all, FinishKind::Stop)
}

/// Which tools it asks for with what, and what it says before.
fn calls(request: &ChatRequest) -> (String, Vec<(String, Value)>) {
    let nothing = (String::new(), Vec::new());
    let text = last_words(&request.messages);
    if request.messages.last().is_none_or(|last| last.role != Role::User) {
        return nothing;
    }
    let wishes: Vec<Wish> = wishes(text)
        .into_iter()
        .filter(|wish| request.tools.iter().any(|tool| suits(tool, wish)))
        .collect();
    let named = match &request.tool_choice {
        ToolChoice::None => return nothing,
        ToolChoice::Named(name) => request.tools.iter().find(|tool| tool.name == *name),
        ToolChoice::Required if wishes.is_empty() => request.tools.first(),
        ToolChoice::Auto | ToolChoice::Required => None,
    };
    let Some(tool) = named else {
        let said = wishes.iter().fold(String::new(), |said, wish| {
            if said.contains(wish.words()) {
                said
            } else {
                said + wish.words()
            }
        });
        let calls = wishes.iter().map(|wish| (wish.tool().to_owned(), wish.arguments(text)));
        return (said, calls.collect());
    };
    let wish = Wish::of(&tool.name, text).filter(|wish| suits(tool, wish));
    let said = wish.as_ref().map_or_else(
        || format!("I will call {}. ", tool.name),
        |wish| wish.words().to_owned(),
    );
    let arguments = wish.map_or_else(
        || fill(&tool.parameters, &quote(text), Extent::Required),
        |wish| wish.arguments(text),
    );
    (said, vec![(tool.name.clone(), arguments)])
}

/// Whether a tool is the one for a wish: another of the same name takes other arguments.
fn suits(tool: &ToolDefinition, wish: &Wish) -> bool {
    let takes = |name: &String| {
        tool.parameters
            .pointer("/properties")
            .is_some_and(|all| all.get(name).is_some())
    };
    tool.name == wish.tool() && wish.arguments("").as_object().is_some_and(|all| all.keys().all(takes))
}

/// The user's last words.
fn last_words(messages: &[Message]) -> &str {
    let said = messages.iter().rev().find(|m| m.role == Role::User);
    said.map_or("", |message| &message.content)
}

/// JSON in pieces, at least two, as a model would send it.
fn pieces(text: &str) -> Vec<String> {
    let all: Vec<char> = text.chars().collect();
    let piece = PIECE.min(all.len().div_ceil(2)).max(1);
    all.chunks(piece).map(|piece| piece.iter().collect()).collect()
}

/// What the demo says: who it is, what was said now, and what was said before.
fn answer(messages: &[Message]) -> String {
    let said: Vec<&Message> = messages.iter().filter(|m| m.role == Role::User).collect();
    let Some((now, before)) = said.split_last() else {
        return "This is a demo.".to_owned();
    };
    let mut text = format!("{SELF} You said: “{}” ", quote(&now.content));
    match before {
        [] => text.push_str(
            "It is the first message of this session; send another with the same session_id and I will remember it. ",
        ),
        [.., last] => text.push_str(&format!(
            "It is message {} of this session; before it you said: “{}” ",
            said.len(),
            quote(&last.content)
        )),
    }
    text.push_str("Start the gateway with OPENAI_API_KEY set to put a real model here.");
    text
}

fn quote(text: &str) -> String {
    match text.char_indices().nth(QUOTE) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;

    use super::*;
    use crate::chat::{Again, Settings, ToolCall, fold::words};

    fn tool(name: &str, parameters: Value) -> ToolDefinition {
        ToolDefinition {
            name: name.into(),
            description: String::new(),
            parameters,
        }
    }

    fn request(text: &str) -> ChatRequest {
        let takes = |names: &[&str]| {
            let properties: serde_json::Map<String, Value> = names
                .iter()
                .map(|name| ((*name).to_owned(), json!({"type": "string"})))
                .collect();
            json!({"type": "object", "properties": properties, "required": names})
        };
        ChatRequest {
            model: "guide".into(),
            instructions: None,
            messages: vec![Message::user(text, vec![])],
            tools: vec![
                tool("calculator", takes(&["expression"])),
                tool("current_time", takes(&["timezone"])),
                tool("write_file", takes(&["name", "content"])),
                tool("lookup", takes(&["query"])),
            ],
            tool_choice: ToolChoice::Auto,
            settings: Settings::default(),
            response_format: ResponseFormat::Text,
            trace: None,
            again: Again::default(),
        }
    }

    /// What the calls of a request are, put together from their pieces, and how it ends.
    fn asked(request: &ChatRequest) -> (String, Vec<(String, Value)>, FinishKind) {
        let (chunks, kind) = chunks(request);
        let (mut said, mut calls) = (String::new(), Vec::<(String, Vec<String>)>::new());
        for chunk in chunks {
            match chunk {
                Chunk::Text(text) => said.push_str(&text),
                Chunk::ToolCallStart { index, name, .. } => {
                    assert_eq!(index, calls.len());
                    calls.push((name, vec![]));
                }
                Chunk::ToolCallDelta { index, arguments } => calls[index].1.push(arguments),
                other => panic!("{other:?}"),
            }
        }
        let calls = calls.into_iter().map(|(name, pieces)| {
            assert!(pieces.len() >= 2);
            (name, serde_json::from_str(&pieces.concat()).unwrap())
        });
        (said, calls.collect(), kind)
    }

    #[test]
    fn it_says_what_it_is_and_what_was_said_before() {
        let first = answer(&[Message::user("My name is Ada.", vec![])]);
        assert!(first.contains("demo, not a language model") && first.contains("“My name is Ada.”"));
        let talk = [
            Message::user("My name is Ada.", vec![]),
            Message::assistant(first, vec![]),
            Message::user("And?", vec![]),
        ];
        assert!(answer(&talk).contains("message 2 of this session; before it you said: “My name is Ada.”"));
        assert_eq!(quote(&"é".repeat(201)).chars().count(), 201);
    }

    #[test]
    fn it_asks_two_tools_in_one_round() {
        let (said, calls, kind) = asked(&request("What time is it in Tokyo, and what is 17 * 23?"));
        assert_eq!(
            (said.as_str(), kind),
            (
                "I will ask the clock. I will ask the calculator. ",
                FinishKind::ToolCalls
            )
        );
        assert_eq!(calls[0], ("current_time".into(), json!({"timezone": "Asia/Tokyo"})));
        assert_eq!(calls[1], ("calculator".into(), json!({"expression": "17 * 23"})));
        assert_eq!(calls.len(), 2);
        let (_, calls, _) = asked(&request("Write a haiku to poem.md"));
        assert_eq!(calls[0].1["name"], "poem.md");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_slow_where_the_message_asks_for_it() {
        let demo = Demo { name: "demo".into() };
        let mut took = Vec::new();
        for message in ["Hello!", "Take your time."] {
            let begun = tokio::time::Instant::now();
            let request = request(message);
            let mut stream = demo.stream(&request).await.unwrap();
            while stream.next().await.is_some() {}
            took.push(begun.elapsed());
        }
        assert!(took[0] < Duration::from_secs(2), "{took:?}");
        assert!(
            took[1] > Duration::from_secs(19) && took[1] < Duration::from_secs(22),
            "{took:?}"
        );
    }

    #[test]
    fn it_calls_what_it_must_and_nothing_that_it_may_not() {
        let mut one = request("rust");
        one.tool_choice = ToolChoice::Named("lookup".into());
        assert_eq!(asked(&one).1, [("lookup".to_owned(), json!({"query": "rust"}))]);
        one.tool_choice = ToolChoice::Required;
        assert_eq!(asked(&one).1[0].1, json!({"expression": "1 + 1"}));
        let mut none = request("2+2");
        none.tool_choice = ToolChoice::None;
        assert!(asked(&none).1.is_empty());
        let mut other = request("2+2");
        other.tools = vec![tool(
            "calculator",
            json!({"type": "object", "properties": {"sum": {"type": "string"}}}),
        )];
        assert!(asked(&other).1.is_empty(), "another tool of that name");
    }

    #[test]
    fn it_tells_what_the_tools_gave_back() {
        let call = |id: &str, name: &str, arguments: Value| ToolCall {
            id: id.into(),
            name: name.into(),
            arguments: arguments.as_object().unwrap().clone(),
        };
        let mut one = request("Many things: 2+2");
        one.messages.push(Message::assistant(
            "",
            vec![
                call("a", "current_time", json!({"timezone": "Europe/Berlin"})),
                call("b", "calculator", json!({"expression": "17 * 23"})),
                call("c", "write_file", json!({"name": "poem.md", "content": "x"})),
                call("d", "lookup", json!({"query": "x"})),
                call("e", "calculator", json!({"expression": "1/0"})),
            ],
        ));
        let time = json!({"time": "2026-11-21T13:00:00+01:00", "timezone": "Europe/Berlin", "weekday": "Saturday"});
        one.messages.extend([
            Message::tool("a", time.to_string()),
            Message::tool("b", "391"),
            Message::tool("c", "Wrote poem.md: 3 bytes."),
            Message::tool("d", "nothing"),
            Message::failure("e", "division by zero"),
        ]);
        let (said, calls, kind) = asked(&one);
        assert!(calls.is_empty() && kind == FinishKind::Stop);
        assert_eq!(
            said,
            "It is 13:00 in Europe/Berlin (Saturday, 2026-11-21). 17 * 23 = 391. I wrote poem.md; download it at the \
             address in the tool's result: Wrote poem.md: 3 bytes. The tool lookup says: nothing The tool calculator \
             failed: division by zero This is Sluicegate's built-in demo, not a language model."
        );
    }

    #[tokio::test(start_paused = true)]
    async fn it_answers_in_json_that_fits() {
        let schema = json!({
            "type": "object",
            "properties": {"answer": {"type": "string"}, "score": {"type": "integer", "minimum": 3}},
            "required": ["answer"],
            "additionalProperties": false
        });
        let mut one = request("Hello");
        one.response_format = ResponseFormat::JsonSchema {
            name: "it".into(),
            schema,
        };
        let demo = Demo { name: "demo".into() };
        assert_eq!(demo.check(&one), Ok(()));
        let mut said = String::new();
        let mut stream = demo.stream(&one).await.unwrap();
        while let Some(batch) = stream.next().await {
            said += &words(&batch.unwrap());
        }
        assert_eq!(
            serde_json::from_str::<Value>(&said).unwrap(),
            json!({"answer": "Hello", "score": 3})
        );
        one.response_format = ResponseFormat::JsonObject;
        let value: Value = serde_json::from_str(&asked(&one).0).unwrap();
        assert_eq!(value, json!({"answer": SELF, "you_said": "Hello"}));
    }
}
