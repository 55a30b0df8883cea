//! Answers in a form: how a model is asked for JSON that is not asked on its wire, how its answer is read, and what it is
//! told when that does not fit.

use std::{borrow::Cow, sync::Arc, time::Duration};

use serde_json::Value;
use tokio::time::timeout;

use crate::{
    chat::{ChatRequest, ResponseFormat, number::oversized_integer},
    error::{Error, ErrorCode},
    provider::{Provider, Unsupported},
    schema::{CHECKING, COMPILING, Recursion, Schema},
};

/// Up to how many bytes an answer is read where it is.
const SHORT: usize = 16 << 10;
/// How long a schema waits for its turn to be compiled.
const TURN: Duration = Duration::from_secs(5);

/// The form that an answer must have.
#[derive(Clone, Debug)]
pub struct Form {
    format: ResponseFormat,
    schema: Option<Arc<Schema>>,
}

impl Form {
    /// The form that a format asks for; `None` for words.
    ///
    /// # Errors
    /// `schema_invalid`.
    pub fn new(format: &ResponseFormat) -> Result<Option<Self>, Error> {
        let schema = match format {
            ResponseFormat::Text => return Ok(None),
            ResponseFormat::JsonObject => None,
            ResponseFormat::JsonSchema { schema, .. } => {
                let compiled = Schema::compile(schema, Recursion::Refused);
                let wrong = |why: String| {
                    let why = format!("is refused: {why}");
                    Error::field(ErrorCode::SchemaInvalid, "response_format.schema", why)
                };
                Some(Arc::new(compiled.map_err(wrong)?))
            }
        };
        let format = format.clone();
        Ok(Some(Self { format, schema }))
    }

    /// As [`Form::new`], where others do not wait for it: to compile a schema from outside takes some milliseconds, and from
    /// somebody who means harm some hundreds.
    ///
    /// # Errors
    /// `schema_invalid`; `overloaded` where too many others' are being compiled.
    pub async fn compile(format: &ResponseFormat) -> Result<Option<Self>, Error> {
        if !matches!(format, ResponseFormat::JsonSchema { .. }) {
            return Self::new(format);
        }
        let full = |_| {
            let full = Error::new(
                ErrorCode::Overloaded,
                "This gateway is reading as many schemas as it can.",
            );
            full.retry_after(Duration::from_secs(1))
        };
        let place = timeout(TURN, COMPILING.place()).await.map_err(full)?;
        let format = format.clone();
        let compiled = place.run(move || Self::new(&format)).await;
        compiled.ok_or_else(|| Error::internal("a schema could not be compiled"))?
    }

    /// The answer as data. A long one, or one that takes long to check, waits for a place where that can be done.
    ///
    /// # Errors
    /// Why it is not of this form, in words that a model can act on.
    pub async fn read(&self, text: &str) -> Result<Value, String> {
        if text.len() <= SHORT {
            let value = parsed(text)?;
            if self.schema.as_ref().is_none_or(|schema| schema.is_quick(&value)) {
                return fitting(self.schema.as_deref(), value);
            }
        }
        let place = CHECKING.place().await;
        let (schema, text) = (self.schema.clone(), text.to_owned());
        let read = place.run(move || fitting(schema.as_deref(), parsed(&text)?)).await;
        read.unwrap_or_else(|| Err("it could not be checked".to_owned()))
    }

    /// What a model is told whose answer was not of this form.
    #[must_use]
    pub fn complaint(&self, why: &str) -> String {
        format!(
            "Your answer does not have the form that was asked for: {why}.\nAnswer again, with nothing but the whole \
             corrected JSON.\n{}",
            words(&self.format)
        )
    }
}

/// The JSON in an answer: all of the answer, or all but what models put around it.
fn parsed(text: &str) -> Result<Value, String> {
    let text = text.trim();
    let direct = json(text);
    if direct.is_ok() {
        return direct;
    }
    let Some(answer) = past_thinking(text) else {
        return direct;
    };
    match fenced(answer) {
        Some(block) => json(block),
        None if answer.len() < text.len() => json(answer),
        None => direct,
    }
}

/// One JSON value. An integer whose digits would be lost makes it none.
fn json(text: &str) -> Result<Value, String> {
    let value = serde_json::from_str(text).map_err(|e| format!("it is not JSON: {e}"))?;
    match oversized_integer(text) {
        Some(integer) => Err(format!("the integer {integer} does not fit into 64 bits")),
        None => Ok(value),
    }
}

/// A value, if it fits.
fn fitting(schema: Option<&Schema>, value: Value) -> Result<Value, String> {
    match schema {
        Some(schema) => schema.admits(&value)?,
        None if !value.is_object() => return Err("it is not an object".to_owned()),
        None => {}
    }
    Ok(value)
}

/// An answer without the thinking that some servers leave at its beginning. A chat template can have
/// written the opening tag already, so a closing one alone ends thinking too. `None` if thinking does
/// not end, because what looks like data in it is none.
fn past_thinking(text: &str) -> Option<&str> {
    let mut rest = text;
    for tag in ["think", "thinking", "thought", "reasoning"] {
        let (opening, closing) = (format!("<{tag}>"), format!("</{tag}>"));
        while !rest.starts_with(['{', '[', '`'])
            && let Some((before, after)) = rest.split_once(&closing)
            && (before.starts_with(&opening) || !before.contains(&opening))
        {
            rest = after.trim_start();
        }
        if rest.starts_with(&opening) {
            return None;
        }
    }
    Some(rest)
}

/// What stands in the one fenced block of a text. There is no guess among several.
fn fenced(text: &str) -> Option<&str> {
    const FENCE: &str = "```";
    let whole = text.strip_prefix(FENCE).and_then(|rest| rest.strip_suffix(FENCE));
    let mut at = 0;
    let lines = text.split_inclusive('\n').map(|line| {
        at += line.len();
        (at - line.len(), line)
    });
    let fences: Vec<_> = lines.filter(|(_, line)| line.trim_start().starts_with(FENCE)).collect();
    let (opening, end) = match (whole, fences.as_slice()) {
        (Some(_), [opening] | [opening, _]) => (opening, text.len() - FENCE.len()),
        (None, [opening, (end, closing)]) if closing.trim() == FENCE => (opening, *end),
        _ => return None,
    };
    let language = opening.1.trim().strip_prefix(FENCE)?;
    let plain = language.trim().chars().all(char::is_alphanumeric);
    let body = text.get(opening.0 + opening.1.len()..end)?;
    plain.then_some(body.trim())
}

/// The request as this provider can be asked it: the form in words where its wire has no place for it.
#[must_use]
pub fn fitted<'a>(provider: &dyn Provider, request: &'a ChatRequest) -> Cow<'a, ChatRequest> {
    const FIELD: Unsupported = Unsupported {
        field: "response_format",
    };
    let format = match &request.response_format {
        ResponseFormat::Text => return Cow::Borrowed(request),
        _ if provider.check(request) == Err(FIELD) => ResponseFormat::Text,
        // Some providers refuse it unless the conversation itself speaks of JSON.
        ResponseFormat::JsonObject => ResponseFormat::JsonObject,
        ResponseFormat::JsonSchema { .. } => return Cow::Borrowed(request),
    };
    let words = words(&request.response_format);
    let instructions = match &request.instructions {
        Some(instructions) => format!("{instructions}\n\n{words}"),
        None => words,
    };
    Cow::Owned(ChatRequest {
        instructions: Some(instructions),
        response_format: format,
        ..request.clone()
    })
}

fn words(format: &ResponseFormat) -> String {
    match format {
        ResponseFormat::Text => String::new(),
        ResponseFormat::JsonObject => {
            "Your final answer must be one JSON object and nothing else: no code block, no words around it.".to_owned()
        }
        ResponseFormat::JsonSchema { schema, .. } => format!(
            "Your final answer must be JSON and nothing else, no code block, no words around it, and it must fit this \
             JSON Schema:\n{schema}"
        ),
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use serde_json::json;

    use super::*;

    fn form(schema: Value) -> Result<Form, Error> {
        let name = "x".into();
        Form::new(&ResponseFormat::JsonSchema { name, schema }).map(Option::unwrap)
    }

    /// Nothing else of these tests compiles there: as many places are free as there are.
    #[tokio::test(start_paused = true)]
    async fn a_schema_waits_for_its_turn_and_not_for_ever() {
        let mut taken = Vec::new();
        while let Some(place) = COMPILING.place().now_or_never() {
            taken.push(place);
        }
        let (name, schema) = ("x".to_owned(), json!({"type": "object"}));
        let format = ResponseFormat::JsonSchema { name, schema };
        let began = tokio::time::Instant::now();
        let full = Form::compile(&format).await.unwrap_err();
        assert_eq!((full.code, began.elapsed()), (ErrorCode::Overloaded, TURN));
        // Others are read all the while, and it, when it is its turn.
        assert!(matches!(Form::compile(&ResponseFormat::JsonObject).await, Ok(Some(_))));
        let waits = Form::compile(&format);
        let goes = async {
            tokio::time::sleep(TURN / 2).await;
            taken.pop();
        };
        assert!(matches!(tokio::join!(waits, goes), (Ok(Some(_)), ())));
    }

    #[tokio::test]
    async fn an_answer_is_read_strictly_but_for_its_wrapping() {
        let form =
            form(json!({"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}})).unwrap();
        for fine in [
            "{\"n\":1}",
            " \n{\"n\": 1}\n",
            "```json\n{\"n\":1}\n```",
            "```\n{\"n\":1}```",
            "<think>One, says {\"n\": 2}.\n</think>\n\n{\"n\":1}",
            "<think></think>{\"n\":1}",
            "<think>\n\n</think>\n```json\n{\"n\":1}\n```",
            "<thinking>a</thinking><thinking>b</thinking> {\"n\":1}",
            "One it is.\n</think>\n{\"n\":1}",
            "Here it is:\n\n```json\n{\"n\":1}\n```\nAnything else?",
            "Here it is:\n  ```\n{\n\"n\":1}\n  ```",
            "<think>Hm</think>Sure!\n```json\n{\"n\":1}\n```",
        ] {
            assert_eq!(form.read(fine).await, Ok(json!({"n": 1})), "{fine}");
        }
        for wrong in [
            "",
            "Sure! {\"n\":1}",
            "{\"n\":1}{\"n\":1}",
            "{\"n\":1,}",
            "{\"n\":1.5}",
            "{\"n\":1e999}",
            "[1]",
            "```json\n{\"n\":1}",
            "{}",
            "<think>{\"n\":1}",
            "<think>\n{\"n\":1}\n",
            "<think>Hm</think>",
            "<think>```json\n{\"n\":1}\n```",
            "<think>\n```json\n{\"n\":1}\n```",
            "<think>Hm</think>It is {\"n\":1}",
            "```json\n{\"n\":1}\n```\nor\n```json\n{\"n\":2}\n```",
            "```json\n{\"n\":1}\n```\n```json\n{\"n\":1}\n```",
            "{\"n\":123456789012345678901234}",
        ] {
            assert!(form.read(wrong).await.is_err(), "{wrong}");
        }
        let any = Form::new(&ResponseFormat::JsonObject).unwrap().unwrap();
        assert_eq!(any.read("{}").await, Ok(json!({})));
        assert!(any.read("[]").await.is_err());
    }

    #[tokio::test]
    async fn tags_and_fences_inside_of_data_are_data() {
        let any = Form::new(&ResponseFormat::JsonObject).unwrap().unwrap();
        for text in ["<think>a</think>{}", "```json\n{}\n```", "a\n```\nb"] {
            let data = json!({ "text": text });
            assert_eq!(any.read(&data.to_string()).await, Ok(data.clone()));
            let fenced = format!("```json\n{data}\n```");
            assert_eq!(any.read(&fenced).await, Ok(data.clone()));
            assert_eq!(any.read(&format!("So:\n{fenced}\n")).await, Ok(data));
        }
    }

    #[test]
    fn a_schema_that_is_a_trap_is_the_requests_fault() {
        let error = form(json!({"$ref": "http://127.0.0.1/x"})).unwrap_err();
        assert_eq!(
            (error.code, error.field.as_deref()),
            (ErrorCode::SchemaInvalid, Some("response_format.schema"))
        );
    }
}
