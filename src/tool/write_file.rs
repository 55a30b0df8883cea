//! Files: texts as they are, tables and data checked, and PDF set from Markdown.
//!
//! What a name or a content says is never opened, read or fetched: an image of a Markdown text is its description. Whether
//! the client may have the file, and where, is not known here.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde_json::{Map, Value, json};

use super::{File, Tool, ToolContext, ToolError, ToolOutput};
use crate::chat::ToolDefinition;

mod font;
mod markdown;
mod page;
mod table;

/// How long a name may be, in characters. Whoever keeps the file makes it shorter, and harmless.
const MAX_NAME: usize = 1000;
/// How large a content may be that is set in type, in bytes.
const MAX_CONTENT: usize = 1 << 20;

/// Makes a file's bytes of a content, and what there is to say of them, or says why not.
type Make = fn(&str) -> Result<(Vec<u8>, String), String>;

/// Every kind of file: its extension, what it is, how it is made.
const KINDS: &[(&str, &str, Make)] = &[
    ("txt", "text/plain; charset=utf-8", plain),
    ("md", "text/markdown; charset=utf-8", plain),
    ("csv", "text/csv; charset=utf-8", csv),
    ("json", "application/json", data),
    ("html", "text/html; charset=utf-8", plain),
    ("pdf", "application/pdf", pdf),
];

/// The tool.
pub(super) fn tool() -> Arc<dyn Tool> {
    Arc::new(WriteFile {
        definition: ToolDefinition {
            name: "write_file".into(),
            description: format!(
                "Makes a file for the user. The name's extension says what it becomes: {}; any other is a text. A PDF is set \
                 from Markdown (headings, lists, tables, code, links; neither images nor HTML); everything else is written \
                 as it is.",
                extensions()
            ),
            parameters: json!({
                "type": "object",
                "properties": {
                    "name": {
                        "type": "string",
                        "description": "The file's name with its extension, without folders: report.pdf",
                        "minLength": 1,
                        "maxLength": MAX_NAME
                    },
                    "content": {"type": "string", "description": "All of its content; for a PDF, Markdown"}
                },
                "required": ["name", "content"],
                "additionalProperties": false
            }),
        },
    })
}

struct WriteFile {
    definition: ToolDefinition,
}

impl Tool for WriteFile {
    fn definition(&self) -> &ToolDefinition {
        &self.definition
    }

    fn call<'a>(
        &'a self,
        arguments: &'a Map<String, Value>,
        _context: &'a ToolContext,
    ) -> BoxFuture<'a, Result<ToolOutput, ToolError>> {
        let text = |name: &str| arguments.get(name).and_then(Value::as_str).unwrap_or_default();
        Box::pin(write(text("name").trim(), text("content")))
    }
}

/// Makes the file.
async fn write(name: &str, content: &str) -> Result<ToolOutput, ToolError> {
    if name.is_empty() {
        return Err(ToolError::new("A file needs a name."));
    }
    let (media_type, make) = kind(name);
    let content = content.to_owned();
    // A panic in a crate that sets type ends its task, and is an error like others.
    let made = tokio::task::spawn_blocking(move || make(&content)).await;
    let made = made.unwrap_or_else(|_| Err("This content cannot be set.".into()));
    let (bytes, note) = made.map_err(|why| ToolError::new(format!("{name} was not written. {why}")))?;
    Ok(ToolOutput {
        content: format!("Wrote {name}: {} bytes{note}.", bytes.len()),
        files: vec![File {
            name: name.to_owned(),
            media_type: media_type.to_owned(),
            bytes: Bytes::from(bytes),
        }],
    })
}

/// What a file of that name is, and how it is made; a name that says nothing is of a text.
fn kind(name: &str) -> (&'static str, Make) {
    let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
    let known = KINDS.iter().find(|(known, ..)| known.eq_ignore_ascii_case(extension));
    known.map_or(("text/plain; charset=utf-8", plain), |(_, media_type, make)| {
        (*media_type, *make)
    })
}

/// A PDF of Markdown.
fn pdf(content: &str) -> Result<(Vec<u8>, String), String> {
    if content.len() > MAX_CONTENT {
        return Err(format!(
            "The content has {} bytes; a PDF may be set from {MAX_CONTENT}.",
            content.len()
        ));
    }
    markdown::pdf(content)
}

fn extensions() -> String {
    let all: Vec<String> = KINDS.iter().map(|(extension, ..)| format!(".{extension}")).collect();
    all.join(", ")
}

/// As it is.
fn plain(content: &str) -> Result<(Vec<u8>, String), String> {
    Ok((content.as_bytes().to_vec(), String::new()))
}

/// As it is, if all rows are equally long.
fn csv(content: &str) -> Result<(Vec<u8>, String), String> {
    let mut rows = 0_usize;
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .from_reader(content.as_bytes());
    for record in reader.byte_records() {
        match record {
            Ok(_) => rows += 1,
            Err(error) => {
                return Err(match error.kind() {
                    csv::ErrorKind::UnequalLengths { pos, expected_len, len } => format!(
                        "Line {} has {len} fields where the first has {expected_len}; fields with commas need quotes.",
                        pos.as_ref().map_or(0, csv::Position::line)
                    ),
                    _ => format!("It is not CSV: {error}."),
                });
            }
        }
    }
    Ok((content.as_bytes().to_vec(), format!(", {rows} rows")))
}

/// As it is, if it is JSON.
fn data(content: &str) -> Result<(Vec<u8>, String), String> {
    match serde_json::from_str::<serde::de::IgnoredAny>(content) {
        Ok(_) => plain(content),
        Err(error) => Err(format!("The content is not JSON: {error}.")),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    async fn written(name: &str, content: &str) -> File {
        let output = write(name, content).await.unwrap();
        let [file] = <[File; 1]>::try_from(output.files).unwrap();
        file
    }

    async fn refused(name: &str, content: &str) -> String {
        write(name, content).await.unwrap_err().0
    }

    #[tokio::test]
    async fn every_kind_has_its_media_type() {
        for (name, content, media_type) in [
            ("a.txt", "x", "text/plain; charset=utf-8"),
            ("Bericht 1.MD", "# x", "text/markdown; charset=utf-8"),
            ("a.csv", "a,b\n1,2\n", "text/csv; charset=utf-8"),
            ("a.json", "{\"a\": [1]}", "application/json"),
            ("a.b.html", "<p>x</p>", "text/html; charset=utf-8"),
        ] {
            let file = written(name, content).await;
            assert_eq!(
                (file.media_type.as_str(), &file.bytes[..]),
                (media_type, content.as_bytes())
            );
            assert_eq!(file.name, name);
        }
        let pdf = written("a.pdf", "# Hello").await;
        assert!(pdf.media_type == "application/pdf" && pdf.bytes.starts_with(b"%PDF-"));
        assert_eq!(
            write("t.csv", "a,b\n1,2\n").await.unwrap().content,
            "Wrote t.csv: 8 bytes, 2 rows."
        );
    }

    #[tokio::test]
    async fn a_name_says_what_a_file_is_and_nothing_else() {
        for (name, media_type) in [
            ("../a.txt", "text/plain; charset=utf-8"),
            ("a \"b\".MD", "text/markdown; charset=utf-8"),
            ("CON", "text/plain; charset=utf-8"),
            ("main.rs", "text/plain; charset=utf-8"),
            ("a.pdf.html", "text/html; charset=utf-8"),
        ] {
            assert_eq!(written(name, "x").await.media_type, media_type, "{name:?}");
        }
        assert!(refused("", "x").await.contains("name"));
        assert!(refused("a.pdf", &"x".repeat(MAX_CONTENT + 1)).await.contains("1048576"));
    }

    #[tokio::test]
    async fn data_that_is_none_is_refused_with_its_place() {
        assert!(refused("a.json", "{\"a\": }").await.contains("line 1 column 7"));
        assert!(refused("a.json", "").await.contains("not JSON"));
        assert!(
            written("deep.json", &format!("{}{}", "[".repeat(400_000), "]".repeat(400_000)))
                .await
                .bytes
                .len()
                == 800_000
        );
        let why = refused("a.csv", "a,b\n1,2\n\"x\ny\",2\n1,2,3\n").await;
        assert!(why.contains("Line 5 has 3 fields where the first has 2"), "{why}");
    }

    #[tokio::test]
    async fn a_pdf_holds_the_words_on_many_pages() {
        let mut text =
            String::from("# Übersicht\n\nΑλφάβητο и **кириллица** [link](https://example.com/x) 漢字 שלום\n\n");
        for number in 0..150 {
            text.push_str(&format!("{number}. item *number* `{number}`\n\n"));
        }
        let output = write("a.pdf", &text).await.unwrap();
        assert!(
            output.content.ends_with("; 6 characters could not be shown."),
            "{}",
            output.content
        );
        let bytes = &output.files[0].bytes;
        let document = lopdf::Document::load_mem(bytes).unwrap();
        let pages: Vec<u32> = document.get_pages().into_keys().collect();
        assert!(pages.len() > 2, "{}", output.content);
        let words = document.extract_text(&pages).unwrap();
        for word in ["Übersicht", "Αλφάβητο", "кириллица", "item", "number", "149"] {
            assert!(words.contains(word), "{word} in {words}");
        }
        assert!(bytes.windows(21).any(|w| w == b"(https://example.com/"));
    }

    #[tokio::test]
    async fn nothing_is_read_or_fetched() {
        let text = "![secret](/etc/passwd) ![x](http://127.0.0.1:9/x.png) <img src=\"file:///etc/passwd\"> [f](file:///etc/passwd)\n\n<script src=\"http://127.0.0.1:9/\">1</script>";
        let file = written("a.pdf", text).await;
        let document = lopdf::Document::load_mem(&file.bytes).unwrap();
        let words = document.extract_text(&[1]).unwrap();
        assert!(words.contains("[image: secret]") && !words.contains("root:"), "{words}");
        assert!(!file.bytes.windows(6).any(|w| w == b"(file:"));
    }

    #[tokio::test]
    async fn a_nasty_document_takes_no_longer_than_others() {
        let size = MAX_CONTENT - 100;
        let nasty = [
            ("quotes", ">".repeat(size)),
            ("lists", "- ".repeat(size / 2)),
            (
                "deep list",
                (0..1400).map(|depth| format!("{}- x\n", " ".repeat(depth))).collect(),
            ),
            ("emphasis", "*a **a ".repeat(size / 7)),
            (
                "closers",
                format!("{}{}", "*a ".repeat(size / 6), "a* ".repeat(size / 6)),
            ),
            ("brackets", "[".repeat(size)),
            ("links", "[a](b)".repeat(size / 6)),
            ("real links", "[a](http://b) ".repeat(size / 14)),
            ("images", "![a](".repeat(size / 5)),
            ("one word", "x".repeat(size)),
            ("paragraphs", "x\n\n".repeat(size / 3)),
            ("rules", "---\n\n".repeat(size / 5)),
            ("backticks", "`a``".repeat(size / 4)),
            ("table", format!("|a|b|\n|-|-|\n{}", "|c|d|\n".repeat(size / 6))),
            (
                "wide table",
                format!(
                    "{}\n{}\n{}",
                    "|a".repeat(size / 8),
                    "|-".repeat(size / 8),
                    "|c".repeat(size / 8)
                ),
            ),
            ("long cell", format!("|a|b|\n|-|-|\n|{}|d|\n", "word ".repeat(size / 6))),
            ("html", "<a ".repeat(size / 3)),
            ("comments", "<!--".repeat(size / 4)),
            (
                "references",
                format!("[x]: /{}\n\n{}", "u".repeat(9_000), "[x]".repeat((size - 10_000) / 3)),
            ),
            ("entities", "&amp;".repeat(size / 5)),
            ("combining", "a\u{301}\u{302}".repeat(size / 5)),
        ];
        for (what, text) in nasty {
            assert!(text.len() <= MAX_CONTENT, "{what}");
            let started = Instant::now();
            let _ = write("a.pdf", &text).await;
            let took = started.elapsed();
            assert!(took < Duration::from_secs(60), "{what} took {took:?}"); // without optimisation, on a busy machine
        }
    }
}
