//! What somebody seems to ask for, by a few words and no understanding: the time, a sum, a file.

use serde_json::{Value, json};

/// The most things that are looked for in one message.
const MAX_WISHES: usize = 4;

/// Places that people ask the time of.
const CITIES: &[(&str, &str)] = &[
    ("amsterdam", "Europe/Amsterdam"),
    ("athens", "Europe/Athens"),
    ("auckland", "Pacific/Auckland"),
    ("bangkok", "Asia/Bangkok"),
    ("beijing", "Asia/Shanghai"),
    ("berlin", "Europe/Berlin"),
    ("buenos aires", "America/Argentina/Buenos_Aires"),
    ("cairo", "Africa/Cairo"),
    ("chicago", "America/Chicago"),
    ("delhi", "Asia/Kolkata"),
    ("denver", "America/Denver"),
    ("dubai", "Asia/Dubai"),
    ("hong kong", "Asia/Hong_Kong"),
    ("istanbul", "Europe/Istanbul"),
    ("jakarta", "Asia/Jakarta"),
    ("johannesburg", "Africa/Johannesburg"),
    ("kyiv", "Europe/Kyiv"),
    ("lagos", "Africa/Lagos"),
    ("lisbon", "Europe/Lisbon"),
    ("london", "Europe/London"),
    ("los angeles", "America/Los_Angeles"),
    ("madrid", "Europe/Madrid"),
    ("mexico city", "America/Mexico_City"),
    ("moscow", "Europe/Moscow"),
    ("mumbai", "Asia/Kolkata"),
    ("nairobi", "Africa/Nairobi"),
    ("new york", "America/New_York"),
    ("paris", "Europe/Paris"),
    ("rome", "Europe/Rome"),
    ("san francisco", "America/Los_Angeles"),
    ("sao paulo", "America/Sao_Paulo"),
    ("são paulo", "America/Sao_Paulo"),
    ("seoul", "Asia/Seoul"),
    ("shanghai", "Asia/Shanghai"),
    ("singapore", "Asia/Singapore"),
    ("sydney", "Australia/Sydney"),
    ("tokyo", "Asia/Tokyo"),
    ("toronto", "America/Toronto"),
    ("vienna", "Europe/Vienna"),
    ("zurich", "Europe/Zurich"),
];
/// Words by which the time is asked for.
const TIME: &[&str] = &[
    "what time",
    "time is it",
    "current time",
    "time in ",
    "time now",
    "is the time",
    "'s the time",
    "’s the time",
    "me the time",
    "today's date",
    "today’s date",
    "what day is",
    "is the date",
    "date is it",
    "wie spät",
    "uhrzeit",
];
/// Words by which a file is asked for.
const MAKE: &[&str] = &[
    "write", "save", "make", "create", "generate", "export", "put", "store", "produce",
];
/// Words by which a sum is asked for; without one, 24/7 and 555-1234 are no sums.
const ASK: &[&str] = &[
    "what is",
    "what's",
    "what’s",
    "calculate",
    "compute",
    "how much",
    "how many",
    "work out",
    "solve",
];

/// One thing that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// The time in a zone.
    Time(String),
    /// The value of an expression.
    Sum(String),
    /// A file of that name.
    File(String),
}

impl Wish {
    /// The tool for it.
    pub(super) fn tool(&self) -> &'static str {
        match self {
            Wish::Time(_) => "current_time",
            Wish::Sum(_) => "calculator",
            Wish::File(_) => "write_file",
        }
    }

    /// The one for a tool, whatever was said.
    pub(super) fn of(tool: &str, text: &str) -> Option<Self> {
        let said = wishes(text).into_iter().find(|wish| wish.tool() == tool);
        said.or(match tool {
            "current_time" => Some(Wish::Time(zones(text).pop().unwrap_or_else(|| "UTC".into()))),
            "calculator" => Some(Wish::Sum("1 + 1".into())),
            "write_file" => Some(Wish::File("demo.md".into())),
            _ => None,
        })
    }

    /// What is said before the tool is called.
    pub(super) fn words(&self) -> &'static str {
        match self {
            Wish::Time(_) => "I will ask the clock. ",
            Wish::Sum(_) => "I will ask the calculator. ",
            Wish::File(_) => "I will write the file. ",
        }
    }

    /// The tool's arguments; `said` are the user's words.
    pub(super) fn arguments(&self, said: &str) -> Value {
        match self {
            Wish::Time(zone) => json!({"timezone": zone}),
            Wish::Sum(expression) => json!({"expression": expression}),
            Wish::File(name) => json!({"name": name, "content": content(name, said)}),
        }
    }
}

/// What a message asks for, in this order: times, a sum, a file.
pub(super) fn wishes(text: &str) -> Vec<Wish> {
    let lower = text.to_lowercase();
    let mut all = Vec::new();
    if TIME.iter().any(|words| lower.contains(words)) {
        let zones = zones(text);
        let zones = if zones.is_empty() {
            vec!["UTC".to_owned()]
        } else {
            zones
        };
        all.extend(zones.into_iter().map(Wish::Time));
    }
    let file = file(text, &lower);
    all.extend(sum(text, &lower).map(Wish::Sum));
    all.extend(file.map(Wish::File));
    all.truncate(MAX_WISHES);
    all
}

/// The zones that a text names, by their cities or by themselves.
fn zones(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    let mut all: Vec<String> = Vec::new();
    let part = |c: char| c.is_alphanumeric() || matches!(c, '/' | '_' | '-' | '+');
    let database = jiff::tz::TimeZoneDatabase::bundled();
    for word in text
        .split(|c| !part(c))
        .filter(|word| word.contains('/') && word.len() < 64)
    {
        let zone = database.get(word).ok();
        all.extend(zone.and_then(|zone| zone.iana_name().map(str::to_owned)));
    }
    let cities = CITIES
        .iter()
        .filter(|(city, _)| has_word(&lower, city) && all.is_empty());
    let cities: Vec<String> = cities.map(|(_, zone)| (*zone).to_owned()).collect();
    all.extend(cities);
    all.dedup();
    all
}

/// Whether words stand in a text, and not inside of others.
pub(super) fn has_word(text: &str, words: &str) -> bool {
    text.match_indices(words).any(|(at, _)| {
        let before = text[..at].chars().next_back().is_none_or(|c| !c.is_alphanumeric());
        before
            && text[at + words.len()..]
                .chars()
                .next()
                .is_none_or(|c| !c.is_alphanumeric())
    })
}

/// The first expression in a text: a run of numbers and signs with a sign between two numbers.
fn sum(text: &str, lower: &str) -> Option<String> {
    let asked = ASK.iter().any(|words| lower.contains(words));
    let mut runs = vec![String::new()];
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let word: &str = rest.split(|c: char| !c.is_alphabetic()).next().unwrap_or_default();
        let run = runs.last_mut()?;
        if word.is_empty() {
            let sign = c.is_ascii_digit()
                || matches!(
                    c,
                    '+' | '-' | '*' | '/' | '^' | '%' | '(' | ')' | '×' | '÷' | '−' | '.' | ',' | ' '
                );
            let list = c == ',' && !rest[1..].starts_with(|c: char| c.is_ascii_digit());
            if sign && !list {
                run.push(c)
            } else {
                runs.push(String::new())
            }
            rest = &rest[c.len_utf8()..];
            continue;
        }
        let after_number = run
            .trim_end()
            .ends_with(|c: char| c.is_ascii_digit() || c == ')' || c == '%');
        let exponent = run.ends_with(|c: char| c.is_ascii_digit())
            && rest[word.len()..].starts_with(|c: char| c.is_ascii_digit() || c == '-' || c == '+');
        match word.to_lowercase().as_str() {
            // 1e300: the calculator knows no such numbers, and the rest would be another sum.
            "e" if exponent => return None,
            "of" if run.trim_end().ends_with('%') => run.push_str("of"),
            "plus" if after_number => run.push('+'),
            "minus" if after_number => run.push('-'),
            "times" | "x" if after_number => run.push('*'),
            "divided" if after_number => run.push('/'),
            "multiplied" if after_number => run.push('*'),
            "by" if run.trim_end().ends_with(['*', '/']) => {}
            "sqrt" => run.push_str("sqrt"),
            _ => runs.push(String::new()),
        }
        rest = &rest[word.len()..];
    }
    let tidy = |run: &String| {
        let run = run.trim_matches([' ', '.', ',', '*', '/', '+', '^']);
        let run = run.trim_end_matches([' ', '-', '−', '.', ',']);
        run.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let all = text.trim().trim_end_matches(['?', '=', ' ', '.']);
    runs.iter().map(tidy).find(|run| is_sum(run, asked || all == run))
}

fn is_sum(run: &str, asked: bool) -> bool {
    let numbers = run
        .split(|c: char| !c.is_ascii_digit() && c != '.' && c != ',')
        .filter(|part| !part.is_empty())
        .count();
    let balanced = run.matches('(').count() == run.matches(')').count();
    let clear = run.contains(['+', '*', '^', '×', '÷']) || run.contains("% of") || run.contains("sqrt");
    let spaced = run.contains(" - ") || run.contains(" / ") || run.contains('−');
    let dashed = run.contains(['-', '/']) && (asked || spaced) && !is_date(run);
    let enough = numbers >= 2 || (numbers == 1 && run.contains("sqrt"));
    // Numbers beside each other with nothing between them are a list.
    let words: Vec<&str> = run.split(' ').collect();
    let ends = |word: &str| word.ends_with(|c: char| c.is_ascii_digit());
    let begins = |word: &str| word.starts_with(|c: char| c.is_ascii_digit());
    let list = words.windows(2).any(|pair| ends(pair[0]) && begins(pair[1]));
    run.len() <= 300 && balanced && enough && !list && (clear || dashed)
}

/// 2026-11-21, 1/2/2026.
fn is_date(run: &str) -> bool {
    let parts: Vec<&str> = run.split(['-', '/']).collect();
    parts.len() == 3 && parts.iter().any(|part| part.len() == 4) && !run.contains(' ')
}

/// The name of the file that a text asks for.
fn file(text: &str, lower: &str) -> Option<String> {
    if !MAKE
        .iter()
        .any(|verb| has_word(lower, verb) || has_word(lower, &format!("{verb}s")))
    {
        return None;
    }
    let part = |c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '-');
    let known = ["txt", "md", "csv", "json", "html", "pdf"];
    let named = text
        .split(|c| !part(c))
        .map(|word| word.trim_matches(['.', '-']))
        .find(|word| {
            let end = word.rsplit_once('.').filter(|(stem, _)| !stem.is_empty());
            end.is_some_and(|(_, end)| known.iter().any(|known| known.eq_ignore_ascii_case(end)))
                && word.chars().count() <= 100
        });
    if let Some(name) = named {
        return Some(name.to_owned());
    }
    let file = ["file", "document", "page", "download"]
        .iter()
        .any(|word| has_word(lower, word));
    let kinds = [
        ("pdf", "pdf", true),
        ("csv", "csv", true),
        ("spreadsheet", "csv", true),
        ("json", "json", file),
        ("html", "html", file),
        ("web", "html", file),
        ("markdown", "md", file),
        ("text", "txt", file),
        ("file", "md", true),
    ];
    let kind = kinds.iter().find(|(word, _, enough)| *enough && has_word(lower, word));
    kind.map(|(_, extension, _)| format!("demo.{extension}"))
}

/// A small content for a file of that name.
fn content(name: &str, said: &str) -> String {
    let extension = name.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
    let said = super::quote(said);
    let note = "Written by Sluicegate's built-in demo, which is not a language model.";
    let poem = "Words come one by one,\nthe gate lets each of them through:\nno model is here.";
    match extension.as_str() {
        "csv" => format!(
            "row,what,value\n1,asked,\"{}\"\n2,note,\"{note}\"\n",
            said.replace('"', "\"\"")
        ),
        "json" => format!(
            "{:#}\n",
            json!({"asked": said, "note": note, "rows": [{"id": 1, "value": "demo"}]})
        ),
        "html" => {
            let said = said.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
            format!(
                "<!doctype html>\n<meta charset=\"utf-8\">\n<title>Demo</title>\n<h1>Demo</h1>\n<blockquote>{said}</blockquote>\n<p>{note}</p>\n"
            )
        }
        "txt" => format!("{poem}\n\nAsked for by: {said}\n{note}\n"),
        _ => {
            let lines = poem.replace('\n', "  \n");
            let quoted = said.replace('\n', "\n> ");
            let table = "| What | Value |\n|------|------:|\n| first | 1 |\n| second | 2 |";
            format!("# Demo\n\n{lines}\n\nYou asked:\n\n> {quoted}\n\n{table}\n\n*{note}*\n")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(text: &str) -> Option<String> {
        sum(text, &text.to_lowercase())
    }

    #[test]
    fn the_time_is_asked_for_in_many_ways() {
        let time = |zone: &str| vec![Wish::Time(zone.into())];
        assert_eq!(wishes("What time is it in Tokyo?"), time("Asia/Tokyo"));
        assert_eq!(wishes("what's the time in new york"), time("America/New_York"));
        assert_eq!(wishes("Tell me the time"), time("UTC"));
        assert_eq!(wishes("current time in america/denver, please"), time("America/Denver"));
        assert_eq!(wishes("I had the time of my life in Romeo's"), []);
        assert_eq!(wishes("My name is Ada."), []);
        for (_, zone) in CITIES {
            assert!(jiff::tz::TimeZoneDatabase::bundled().get(zone).is_ok(), "{zone}");
        }
    }

    #[test]
    fn a_sum_is_found_in_a_sentence() {
        for (text, expected) in [
            ("What is 17 * 23?", Some("17 * 23")),
            ("2+2", Some("2+2")),
            ("12% of 250", Some("12% of 250")),
            ("Please compute (1.5 + 2)^3 - 4.", Some("(1.5 + 2)^3 - 4")),
            ("what's 1,000 divided by 8", Some("1,000 / 8")),
            ("What is 3 times 4?", Some("3 * 4")),
            ("how much is sqrt(16)", Some("sqrt(16)")),
            ("10-3", Some("10-3")),
            ("What is 10 / 4?", Some("10 / 4")),
            ("Are you open 24/7?", None),
            ("call 555-1234", None),
            ("What is on 2026-11-21?", None),
            ("I am 10!", None),
            ("1, 2, 3", None),
            ("3 * 2 * 1e300", None),
            ("My name is Ada.", None),
            ("50% - really?", None),
            ("héllo wörld ✓ – and", None),
        ] {
            assert_eq!(sums(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn a_file_has_the_name_that_was_said() {
        for (text, expected) in [
            ("Write a haiku to poem.md", Some("poem.md")),
            ("save this as \"Data 1.csv\", please.", Some("1.csv")),
            ("Make a PDF report", Some("demo.pdf")),
            ("create an html page", Some("demo.html")),
            ("write me a letter", None),
            ("what is in poem.md?", None),
        ] {
            assert_eq!(file(text, &text.to_lowercase()).as_deref(), expected, "{text}");
        }
        let both = wishes("What time is it in Berlin, and what is 2 + 2?");
        assert_eq!(both, [Wish::Time("Europe/Berlin".into()), Wish::Sum("2 + 2".into())]);
    }

    #[test]
    fn contents_quote_what_was_said_and_fit_their_kind() {
        let said = "Save \"this\" <b>\nas a file";
        let json: Value = serde_json::from_str(&content("a.json", said)).unwrap();
        assert_eq!(json["asked"], said);
        let csv = content("a.csv", said);
        assert_eq!(
            csv::Reader::from_reader(csv.as_bytes())
                .records()
                .filter_map(Result::ok)
                .count(),
            2
        );
        assert!(content("a.html", said).contains("&lt;b&gt;"));
        for kind in ["md", "txt", "pdf", "html", "csv", "json"] {
            assert!(content(&format!("a.{kind}"), said).contains("not a language model"));
        }
    }
}
