//! An event of the log is one line, whatever it holds: what a provider or a tool's server called itself can neither begin a
//! line of its own nor do anything to the terminal that shows it.

/// How lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// JSON, whose escapes are its own.
    Json,
    /// Text.
    Plain,
    /// Text with the log's own colours.
    Coloured,
}

/// An event as one line.
pub(super) fn line(event: &str, look: Look) -> String {
    let mut rest = event.strip_suffix('\n').unwrap_or(event);
    let mut line = String::with_capacity(event.len() + 1);
    while let Some(at) = rest.find(acts) {
        let (before, from) = rest.split_at(at);
        line.push_str(before);
        let colour = if look == Look::Coloured { colour(from) } else { 0 };
        let taken = match from.chars().next() {
            Some(_) if colour > 0 => {
                line.push_str(&from[..colour]);
                colour
            }
            Some(c) => {
                escape(c, look, &mut line);
                c.len_utf8()
            }
            None => break,
        };
        rest = &from[taken..];
    }
    line.push_str(rest);
    line.push('\n');
    line
}

/// Text for a terminal, in lines, that does nothing to it but being there.
#[must_use]
pub fn harmless(text: &str) -> String {
    let lines: Vec<_> = text.split('\n').map(|text| line(text, Look::Plain)).collect();
    let all = lines.concat();
    all.strip_suffix('\n').map(str::to_owned).unwrap_or(all)
}

/// Whether a character does something where it is shown: control characters, ends of lines, what turns the text around it,
/// and what cannot be seen.
fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{AD}' | '\u{61C}' | '\u{180E}' | '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}')
        || matches!(c, '\u{2060}'..='\u{206F}' | '\u{FEFF}' | '\u{FFF9}'..='\u{FFFB}' | '\u{E0000}'..='\u{E007F}')
}

/// How long the colour is that a text begins with, in bytes: the log's own, since what it tells has come here escaped.
fn colour(text: &str) -> usize {
    let Some(rest) = text.strip_prefix("\u{1b}[") else {
        return 0;
    };
    let numbers = rest.bytes().take_while(|b| b.is_ascii_digit() || *b == b';').count();
    if rest[numbers..].starts_with('m') {
        numbers + 3
    } else {
        0
    }
}

fn escape(c: char, look: Look, line: &mut String) {
    use std::fmt::Write as _;
    if look == Look::Json {
        for unit in c.encode_utf16(&mut [0; 2]) {
            let _ = write!(line, "\\u{unit:04x}"); // a string takes everything
        }
    } else {
        line.extend(c.escape_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What others have tried, or could: (what an event holds, what stands in the line).
    const TRIED: &[(&str, &str)] = &[
        ("plain é 漢字 👩‍👩", "plain é 漢字 👩\\u{200d}👩"),
        ("a\nERROR forged", "a\\nERROR forged"),
        ("a\r\nb\rc", "a\\r\\nb\\rc"),
        (
            "\u{85}\u{2028}\u{2029}\u{b}\u{c}",
            "\\u{85}\\u{2028}\\u{2029}\\u{b}\\u{c}",
        ),
        ("\u{1b}[31mred", "\\u{1b}[31mred"),
        ("\u{1b}[2J\u{9b}2J", "\\u{1b}[2J\\u{9b}2J"),
        ("\u{1b}]52;c;ZXZpbA==\u{7}", "\\u{1b}]52;c;ZXZpbA==\\u{7}"),
        (
            "\u{1b}]8;;http://x\u{1b}\\y\u{1b}]8;;\u{1b}\\",
            "\\u{1b}]8;;http://x\\u{1b}\\y\\u{1b}]8;;\\u{1b}\\",
        ),
        ("gpj.\u{202e}exe\u{2066}\u{feff}", "gpj.\\u{202e}exe\\u{2066}\\u{feff}"),
        ("\0\t\u{8}\u{7f}", "\\u{0}\\t\\u{8}\\u{7f}"),
        ("tag\u{e0041}", "tag\\u{e0041}"),
    ];

    #[test]
    fn an_event_is_one_line_that_does_nothing() {
        for (event, expected) in TRIED {
            assert_eq!(line(&format!("{event}\n"), Look::Plain), format!("{expected}\n"));
            assert_eq!(harmless(&format!("{event}\nb")).lines().last(), Some("b"));
            let json = serde_json::json!({ "x": event }).to_string();
            let json = line(&json, Look::Json);
            assert!(!json.trim_end_matches('\n').contains(acts), "{json:?}");
            let read: serde_json::Value = serde_json::from_str(&json).unwrap();
            assert_eq!(read["x"], *event, "escaped, and not changed");
        }
        assert_eq!(line("", Look::Plain), "\n");
        assert_eq!(harmless("a\u{1b}\nb"), "a\\u{1b}\nb");
    }

    #[test]
    fn only_colours_colour() {
        let own = "\u{1b}[2m2026\u{1b}[0m \u{1b}[1;31mERROR\u{1b}[0m x\n";
        assert_eq!(line(own, Look::Coloured), own);
        let foreign = "\u{1b}[31\u{1b}[2J\u{1b}]0;x\u{7}\u{1b}";
        let shown = line(foreign, Look::Coloured);
        assert_eq!(shown, "\\u{1b}[31\\u{1b}[2J\\u{1b}]0;x\\u{7}\\u{1b}\n");
    }
}
