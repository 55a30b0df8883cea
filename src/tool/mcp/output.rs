//! What an answer of a server's is to the model and to the client.

use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use rmcp::model::{CallToolResult, ContentBlock, ResourceContents};
use serde_json::{Value, json};

use crate::tool::{File, ToolError, ToolOutput};

/// How much text of an answer is kept, in bytes.
const MAX_TEXT: usize = 1 << 20;
/// Base64 as servers write it: some leave out the padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
/// How much of the type of an unknown block a model is told, in characters.
const MAX_TYPE: usize = 40;
/// What a model is told in the place of a resource of a kind that is not known.
const UNKNOWN: &str = "[a resource of a kind that this gateway does not know]";

/// Reads a result that the library does not know as one, because a block of it is of an unknown type
/// or not as it should be: such a block becomes a note. `None` if it is no result of a call at all.
pub(super) fn lenient(mut result: Value) -> Option<CallToolResult> {
    let blocks = result.get_mut("content").and_then(Value::as_array_mut);
    for block in blocks.into_iter().flatten() {
        if serde_json::from_value::<ContentBlock>(block.clone()).is_err() {
            let kind = block.get("type").and_then(Value::as_str).unwrap_or("none");
            let kind: String = kind.chars().take(MAX_TYPE).collect();
            let note = format!("[a block of the type {kind:?}, which this gateway cannot read]");
            *block = json!({"type": "text", "text": note});
        }
    }
    serde_json::from_value(result).ok()
}

/// An answer as the gateway knows it.
pub(super) fn output(tool: &str, mut result: CallToolResult) -> Result<ToolOutput, ToolError> {
    let structured = result
        .structured_content
        .take()
        .filter(|data| !is_repeated(data, &result.content));
    let mut words: Vec<String> = Vec::new();
    let mut files: Vec<File> = Vec::new();
    let mut file = |name: Option<&str>, media_type: &str, data: &str, words: &mut Vec<String>| {
        let name = match name {
            Some(name) if name.contains('.') => name.to_owned(),
            Some(name) => format!("{name}.{}", extension(media_type)),
            None if files.is_empty() => format!("{tool}.{}", extension(media_type)),
            None => format!("{tool}-{}.{}", files.len() + 1, extension(media_type)),
        };
        let data: String = data.split_ascii_whitespace().collect();
        match BASE64.decode(data) {
            Ok(bytes) => files.push(File {
                name,
                media_type: media_type.to_owned(),
                bytes: bytes.into(),
            }),
            Err(_) => words.push(format!("[{name} is not valid base64]")),
        }
    };
    for block in result.content {
        match block {
            ContentBlock::Text(text) => words.push(text.text),
            ContentBlock::Image(image) => file(None, &image.mime_type, &image.data, &mut words),
            ContentBlock::Audio(audio) => file(None, &audio.mime_type, &audio.data, &mut words),
            ContentBlock::ResourceLink(link) => words.push(format!("{}: {}", link.name, link.uri)),
            ContentBlock::Resource(resource) => match resource.resource {
                ResourceContents::TextResourceContents { text, .. } => words.push(text),
                ResourceContents::BlobResourceContents {
                    uri, mime_type, blob, ..
                } => {
                    let media_type = mime_type.as_deref().unwrap_or("application/octet-stream");
                    file(last_segment(&uri), media_type, &blob, &mut words);
                }
                _ => words.push(UNKNOWN.into()),
            },
            _ => words.push(UNKNOWN.into()),
        }
    }
    words.extend(structured.map(|data| data.to_string()));
    let content = words.join("\n");
    let content = bounded(&content).to_owned();
    if result.is_error == Some(true) {
        let said = if content.is_empty() {
            "the tool failed and did not say why".to_owned()
        } else {
            content
        };
        return Err(ToolError(said));
    }
    Ok(ToolOutput { content, files })
}

/// Whether structured content says nothing that the blocks do not say: a text block is that JSON, or
/// it holds the bytes of a file again.
fn is_repeated(data: &Value, blocks: &[ContentBlock]) -> bool {
    data.is_null()
        || blocks.iter().any(|block| match block {
            ContentBlock::Text(text) => serde_json::from_str::<Value>(&text.text).is_ok_and(|told| told == *data),
            ContentBlock::Image(image) => holds(data, &image.data),
            ContentBlock::Audio(audio) => holds(data, &audio.data),
            ContentBlock::Resource(resource) => match &resource.resource {
                ResourceContents::BlobResourceContents { blob, .. } => holds(data, blob),
                _ => false,
            },
            _ => false,
        })
}

/// Whether a text is one of the values in some data.
fn holds(data: &Value, text: &str) -> bool {
    match data {
        Value::String(one) => one == text,
        Value::Array(all) => all.iter().any(|one| holds(one, text)),
        Value::Object(all) => all.values().any(|one| holds(one, text)),
        _ => false,
    }
}

/// As much of a text as is kept.
pub(super) fn bounded(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT)]
}

/// What a URI ends with, if that can be a name.
fn last_segment(uri: &str) -> Option<&str> {
    let path = uri.split(['?', '#']).next()?;
    let name = path.rsplit('/').next()?;
    (!name.is_empty() && !name.ends_with(':')).then_some(name)
}

/// What the names of such files end with.
fn extension(media_type: &str) -> &'static str {
    let essence = media_type.split(';').next().unwrap_or_default().trim();
    match essence {
        "image/png" => "png",
        "image/jpeg" => "jpg",
        "image/gif" => "gif",
        "image/webp" => "webp",
        "image/svg+xml" => "svg",
        "audio/wav" | "audio/x-wav" => "wav",
        "audio/mpeg" | "audio/mp3" => "mp3",
        "audio/ogg" => "ogg",
        "audio/flac" => "flac",
        "video/mp4" => "mp4",
        "application/pdf" => "pdf",
        "application/zip" => "zip",
        "application/json" => "json",
        "text/csv" => "csv",
        "text/html" => "html",
        "text/markdown" => "md",
        "text/plain" => "txt",
        _ => "bin",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(result: Value) -> Result<ToolOutput, ToolError> {
        output("t", serde_json::from_value(result).unwrap())
    }

    #[test]
    fn text_is_for_the_model_and_bytes_are_for_the_client() {
        let output = read(json!({"content": [
            {"type": "text", "text": "one"},
            {"type": "image", "data": "AQID", "mimeType": "image/png"},
            {"type": "resource", "resource": {"uri": "file:///a/b.txt", "text": "two"}},
            {"type": "resource", "resource": {"uri": "x://a/b?x", "mimeType": "application/pdf", "blob": "AQ\nI"}},
            {"type": "audio", "data": "AQ==", "mimeType": "audio/wav"},
            {"type": "resource_link", "uri": "https://example.com/x", "name": "X"},
            {"type": "image", "data": "?", "mimeType": "image/png"},
        ], "structuredContent": {"n": 1}}))
        .unwrap();
        assert_eq!(
            output.content,
            "one\ntwo\nX: https://example.com/x\n[t-4.png is not valid base64]\n{\"n\":1}"
        );
        let files: Vec<_> = output
            .files
            .iter()
            .map(|f| (&*f.name, &*f.media_type, f.bytes.len()))
            .collect();
        assert_eq!(
            files,
            [
                ("t.png", "image/png", 3),
                ("b.pdf", "application/pdf", 2),
                ("t-3.wav", "audio/wav", 1)
            ]
        );
    }

    #[test]
    fn a_structured_answer_without_words_is_told_as_json() {
        assert_eq!(
            read(json!({"content": [], "structuredContent": {"n": 1}}))
                .unwrap()
                .content,
            r#"{"n":1}"#
        );
    }

    #[test]
    fn text_and_data_are_both_told_unless_the_text_is_the_data() {
        let told = |text: &str, data: Value| {
            let blocks = json!([{"type": "text", "text": text}, {"type": "text", "text": "End."}]);
            read(json!({"content": blocks, "structuredContent": data}))
                .unwrap()
                .content
        };
        assert_eq!(
            told("Two cities.", json!({"z": "Oslo", "a": "Rome"})),
            "Two cities.\nEnd.\n{\"z\":\"Oslo\",\"a\":\"Rome\"}"
        );
        let same = "{\n  \"a\": \"Rome\", \"z\": \"Oslo\"}";
        assert_eq!(told(same, json!({"z": "Oslo", "a": "Rome"})), format!("{same}\nEnd."));
        assert_eq!(told("Nothing.", Value::Null), "Nothing.\nEnd.");
        let failed =
            json!({"content": [{"type": "text", "text": "no"}], "structuredContent": {"code": 7}, "isError": true});
        assert_eq!(read(failed), Err(ToolError::new("no\n{\"code\":7}")));
    }

    #[test]
    fn a_block_of_an_unknown_type_is_a_note_and_the_rest_is_kept() {
        let result = json!({"content": [
            {"type": "text", "text": "one"},
            {"type": "hologram", "data": "AQID"},
            {"type": "image", "mimeType": "image/png"},
            {"text": "typeless"},
            "bare",
            {"type": "image", "data": "AQID", "mimeType": "image/png"},
        ], "structuredContent": {"n": 1}});
        let output = output("t", lenient(result).unwrap()).unwrap();
        let note = |kind: &str| format!("[a block of the type {kind:?}, which this gateway cannot read]");
        let notes = [note("hologram"), note("image"), note("none"), note("none")].join("\n");
        assert_eq!(output.content, format!("one\n{notes}\n{{\"n\":1}}"));
        assert_eq!(output.files.len(), 1);
        let failed = json!({"content": [{"type": "hologram"}], "isError": true});
        assert!(super::output("t", lenient(failed).unwrap()).is_err());
        for nothing in [
            json!({}),
            json!("text"),
            json!({"content": "text"}),
            json!({"task": {}}),
        ] {
            assert!(lenient(nothing.clone()).is_none(), "{nothing}");
        }
    }

    #[test]
    fn a_file_is_not_told_to_the_model_as_json() {
        let file = json!({"type": "image", "data": "AQID", "mimeType": "image/png"});
        let output = read(json!({"content": [file], "structuredContent": {"content": [file]}})).unwrap();
        assert_eq!((&*output.content, output.files.len()), ("", 1));
    }

    #[test]
    fn a_tool_that_failed_is_an_error_for_the_model() {
        let failed = json!({"content": [{"type": "text", "text": "no such city"}], "isError": true});
        assert_eq!(read(failed), Err(ToolError::new("no such city")));
        assert_eq!(
            read(json!({"content": [], "isError": true})),
            Err(ToolError::new("the tool failed and did not say why"))
        );
    }

    #[test]
    fn an_answer_that_is_too_long_is_cut() {
        let long = json!({"content": [{"type": "text", "text": "ä".repeat(MAX_TEXT)}]});
        assert_eq!(read(long).unwrap().content.len(), MAX_TEXT);
    }
}
