//! The mock's bytes: OpenAI's streaming chunks as they look on the wire, made once and patched in place.
//!
//! The fields and their order are those of a real `chat.completion.chunk` (seen 2026), so that a relay parses
//! what it would parse in earnest; about 330 bytes a token with HTTP's chunk frame.

use crate::ask::Ask;
use crate::token::{LEN, Token};

/// The answer's head; what follows is chunked.
pub(super) const STREAM_HEAD: &str = "HTTP/1.1 200 OK\r\n\
    Content-Type: text/event-stream; charset=utf-8\r\n\
    Cache-Control: no-cache\r\n\
    openai-organization: bench\r\n\
    openai-processing-ms: 1\r\n\
    openai-version: 2020-10-01\r\n\
    x-request-id: req_0123456789abcdef0123456789abcdef\r\n\
    Transfer-Encoding: chunked\r\n\r\n";

/// The events that are one answer, ready to be written.
pub(super) struct Events {
    stream: u32,
    /// As many token chunks as go into one write, digits to be patched.
    ready: Vec<u8>,
    /// Bytes of one token chunk, frame and all.
    one: usize,
    /// Where the tokens' digits begin in each.
    at: usize,
    /// Tokens in each.
    per_event: usize,
}

impl Events {
    /// For one answer.
    #[must_use]
    pub(super) fn new(ask: &Ask) -> Self {
        let Ask { stream, per_write, .. } = *ask;
        let per_event = ask.per_event as usize;
        let place = "#".repeat(LEN * per_event);
        let one = framed(&event(stream, &format!(r#"{{"content":"{place}"}}"#), "null"));
        let at = one.find('#').unwrap_or(0);
        Self {
            stream,
            ready: one.repeat(per_write as usize).into_bytes(),
            one: one.len(),
            at,
            per_event,
        }
    }

    /// The head and the chunk that only names the role.
    #[must_use]
    pub(super) fn opening(&self) -> Vec<u8> {
        let role = event(
            self.stream,
            r#"{"role":"assistant","content":"","refusal":null}"#,
            "null",
        );
        format!("{STREAM_HEAD}{}", framed(&role)).into_bytes()
    }

    /// The next `count` tokens (whole events) from `number` on, stamped with `sent`.
    pub(super) fn tokens(&mut self, number: u32, count: u32, sent: u64) -> &[u8] {
        let events = (count as usize / self.per_event).min(self.ready.len() / self.one);
        let (at, per_event) = (self.at, self.per_event);
        let places = self.ready.chunks_exact_mut(self.one).take(events);
        let places = places.flat_map(|chunk| chunk[at..].chunks_exact_mut(LEN).take(per_event));
        for (place, number) in places.zip(number..) {
            Token {
                stream: self.stream,
                number,
                sent,
            }
            .write(place);
        }
        &self.ready[..events * self.one]
    }

    /// The finish, the usage if asked for, `[DONE]` and HTTP's last chunk: one write, as providers do it.
    #[must_use]
    pub(super) fn closing(&self, tokens: u32, include_usage: bool) -> Vec<u8> {
        let mut all = framed(&event(self.stream, "{}", r#""stop""#));
        if include_usage {
            all += &framed(&format!(
                "data: {{{},\"choices\":[],\"usage\":{}}}\n\n",
                opening_fields(self.stream, "chat.completion.chunk"),
                usage(tokens)
            ));
        }
        all += &framed("data: [DONE]\n\n");
        all += "0\r\n\r\n";
        all.into_bytes()
    }
}

/// A streamed answer that asks for the tool `slow`, and nothing else.
#[must_use]
pub(super) fn tool_call(ask: &Ask) -> Vec<u8> {
    let (stream, us) = (ask.stream, ask.tool_us);
    let call = format!(
        r#"{{"role":"assistant","content":null,"tool_calls":[{{"index":0,"id":"call_{stream}","type":"function","function":{{"name":"slow","arguments":"{{\"us\":{us}}}"}}}}]}}"#
    );
    let mut all = STREAM_HEAD.to_owned();
    all += &framed(&event(stream, &call, "null"));
    all += &framed(&event(stream, "{}", r#""tool_calls""#));
    all += &framed("data: [DONE]\n\n");
    all += "0\r\n\r\n";
    all.into_bytes()
}

/// What the tool `slow` says.
#[must_use]
pub(super) fn tool_result() -> Vec<u8> {
    json("200 OK", r#"{"waited":true}"#)
}

/// A whole answer, for a client that did not ask for a stream.
#[must_use]
pub(super) fn whole(stream: u32, tokens: u32, sent: u64) -> Vec<u8> {
    let mut text = vec![0; tokens as usize * LEN];
    for (place, number) in text.chunks_exact_mut(LEN).zip(0..) {
        Token { stream, number, sent }.write(place);
    }
    let body = format!(
        r#"{{{},"choices":[{{"index":0,"message":{{"role":"assistant","content":"{}","refusal":null,"annotations":[]}},"logprobs":null,"finish_reason":"stop"}}],"usage":{}}}"#,
        opening_fields(stream, "chat.completion"),
        String::from_utf8_lossy(&text),
        usage(tokens)
    );
    json("200 OK", &body)
}

/// A refusal in OpenAI's shape.
#[must_use]
pub(super) fn refusal(status: &str, message: &str) -> Vec<u8> {
    let message = serde_json::Value::from(message);
    json(
        status,
        &format!(r#"{{"error":{{"message":{message},"type":"invalid_request_error","param":null,"code":null}}}}"#),
    )
}

fn json(status: &str, body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn opening_fields(stream: u32, object: &str) -> String {
    format!(
        r#""id":"chatcmpl-Bench{stream:024}","object":"{object}","created":1767225600,"model":"bench","service_tier":"default","system_fingerprint":"fp_0123456789""#
    )
}

fn event(stream: u32, delta: &str, finish: &str) -> String {
    format!(
        "data: {{{},\"choices\":[{{\"index\":0,\"delta\":{delta},\"logprobs\":null,\"finish_reason\":{finish}}}],\"usage\":null}}\n\n",
        opening_fields(stream, "chat.completion.chunk")
    )
}

fn usage(tokens: u32) -> String {
    format!(
        r#"{{"prompt_tokens":12,"completion_tokens":{tokens},"total_tokens":{},"prompt_tokens_details":{{"cached_tokens":0,"audio_tokens":0}},"completion_tokens_details":{{"reasoning_tokens":0,"audio_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}}}}"#,
        tokens + 12
    )
}

fn framed(event: &str) -> String {
    format!("{:x}\r\n{event}\r\n", event.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_may_carry_several_tokens() {
        let ask = Ask {
            per_event: 2,
            ..Ask::new(17, 4)
        };
        let bytes = String::from_utf8(Events::new(&ask).tokens(2, 2, 6).to_vec()).unwrap();
        let both = r#"{"content":" 00017:00002:000000000000000006 00017:00003:000000000000000006"}"#;
        assert!(bytes.contains(both), "{bytes}");
    }

    #[test]
    fn every_event_is_json_and_carries_its_token() {
        let ask = Ask {
            per_write: 2,
            ..Ask::new(17, 3)
        };
        let mut events = Events::new(&ask);
        let mut text = String::from_utf8(events.opening()).unwrap();
        text += std::str::from_utf8(events.tokens(0, 2, 5)).unwrap();
        text += std::str::from_utf8(events.tokens(2, 1, 6)).unwrap();
        text += std::str::from_utf8(&events.closing(3, true)).unwrap();
        let values: Vec<serde_json::Value> = text
            .lines()
            .filter_map(|line| line.strip_prefix("data: {"))
            .map(|rest| serde_json::from_str(&format!("{{{rest}")).unwrap())
            .collect();
        assert_eq!(values.len(), 6);
        assert_eq!(
            values[3]["choices"][0]["delta"]["content"],
            " 00017:00002:000000000000000006"
        );
        assert_eq!(values[4]["choices"][0]["finish_reason"], "stop");
        assert_eq!(values[5]["usage"]["completion_tokens"], 3);
        assert!(text.ends_with("data: [DONE]\n\n\r\n0\r\n\r\n"));
    }
}
