//! The walls between the rooms: who may know whom. What `src/` really says is compared with a table of reasons.
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A room, the rooms it knows, and why. A room that is not here may not be; a permission that nobody uses is withdrawn.
const WALLS: &[(&str, &str, &str)] = &[
    ("chat", "error", "the words that all share; an event can be an error"),
    ("error", "chat", "an error names the run that stands in the way"),
    ("patience", "", "a timer, and nothing about what is waited for"),
    ("telemetry", "", "a log and traces, and nothing about what is told"),
    ("meters", "", "it knows nobody; everybody may count"),
    (
        "provider",
        "chat error meters patience",
        "theirs becomes ours; it does not know who is asking",
    ),
    (
        "store",
        "chat error meters",
        "it keeps what was said, and does not know who said it to whom",
    ),
    (
        "schema",
        "",
        "one file knows what a JSON Schema is, and fetches nothing",
    ),
    (
        "tool",
        "chat schema",
        "a tool gets arguments and gives back words; it knows neither the model nor who asked",
    ),
    (
        "agent",
        "chat error meters patience provider schema telemetry tool",
        "it asks models in rounds; it is told a history, and does not fetch one",
    ),
    (
        "run",
        "agent chat error limit meters patience provider store telemetry tool",
        "an agent at work, its log, and the turn it leaves; it does not know who reads it",
    ),
    (
        "limit",
        "chat error meters store",
        "it counts callers, and the memory of their requests; it knows neither who they are nor what they ask for",
    ),
    (
        "http",
        "chat error limit meters patience run store telemetry",
        "it reads and writes HTTP; no handler names an agent's inside or a provider",
    ),
    (
        "config",
        "agent chat http provider run store telemetry tool",
        "it makes the settings of all that has some",
    ),
    (
        "app",
        "agent config error http limit meters provider run store telemetry tool",
        "it puts the house together",
    ),
    (
        "shutdown",
        "app config",
        "it stops what was put together, and has its settings read again",
    ),
];

/// Words that only providers' wires have: they are for the rooms of dialects, and for those who speak one of these.
const WIRE: &[&str] = &[
    "chat.completion",
    "chat/completions",
    "choices",
    "prompt_tokens",
    "completion_tokens",
    "reasoning_content",
    "stream_options",
    "image_url",
    "include_usage",
    "Bearer {}",
    "[DONE]",
];

/// What all providers share, and which of those words it may say after all, and why.
const SHARED: &[(&str, &str, &str)] = &[
    ("mod.rs", "", "the table of kinds, and what a provider is"),
    ("dialect.rs", "", "what a dialect is, and no dialect"),
    ("upstream.rs", "Bearer {}", "the one place that sends a key"),
    ("unanswered.rs", "", "how a connection can fail, whosever it is"),
    ("unpack.rs", "", "how bytes are packed, whosever they are"),
    ("payload.rs", "", "a body in pieces, whosever it is"),
    ("retry.rs", "", "when to ask again, whoever is asked"),
    ("breaker.rs", "", "when not to ask, whoever is asked"),
    ("error.rs", "", "what can go wrong with any of them"),
    (
        "frame.rs",
        "[DONE]",
        "an event that is no JSON, and a whole one at the end of a stream",
    ),
    ("bare.rs", "", "how an error can stand in any stream"),
    ("deviations.rs", "", "what was tolerated, of any of them"),
    ("loose.rs", "", "how a field can be written in any JSON"),
    ("content.rs", "", "how words can stand in any content"),
    (
        "finish.rs",
        "",
        "why any model stops: servers borrow each other's words",
    ),
    ("pieces.rs", "", "how arguments can come in pieces"),
    ("adapt.rs", "", "what any model turned out not to take"),
    ("probe.rs", "", "a small question, whoever is asked"),
    ("reporter.rs", "", "how any failure is reported"),
    ("demo.rs", "", "has no wire at all"),
];

/// What is nowhere, and why.
const NOWHERE: &[(&str, &str)] = &[
    (
        "unbounded",
        "every queue has an end (a client that does not read must not fill the memory)",
    ),
    (
        "env::var",
        "only the command line reads the environment, and hands it to the settings",
    ),
    ("println!", "a program that serves speaks through its log"),
    ("process::exit", "a gateway stops in order"),
    (".http2_only", "a stream of a provider's has a connection of its own"),
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every source file, by its path from the root, with its text.
fn sources() -> BTreeMap<String, String> {
    fn gather(folder: &Path, all: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => gather(&path, all),
                false if path.extension().is_some_and(|kind| kind == "rs") => all.push(path),
                false => {}
            }
        }
    }
    let mut files = Vec::new();
    gather(&root().join("src"), &mut files);
    let named = files.into_iter().map(|path| {
        let name = path.strip_prefix(root()).unwrap().to_string_lossy().replace('\\', "/");
        (name, std::fs::read_to_string(path).unwrap())
    });
    named.collect()
}

/// A piece of Rust: a word, or a sign.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Sign(char),
}

/// The words and signs of a source, without comments, texts and characters.
fn tokens(source: &str) -> Vec<Token> {
    let mut all = Vec::new();
    let text: Vec<char> = source.chars().collect();
    let at = |place: usize| text.get(place).copied().unwrap_or('\0');
    let mut here = 0;
    while here < text.len() {
        let c = at(here);
        let raw = {
            let hashes = text[here..].iter().skip(1).take_while(|c| **c == '#').count();
            (c == 'r' && at(here + 1 + hashes) == '"').then_some(hashes)
        };
        if c == '/' && at(here + 1) == '/' {
            here += text[here..].iter().take_while(|c| **c != '\n').count();
        } else if c == '/' && at(here + 1) == '*' {
            let mut depth = 1;
            here += 2;
            while depth > 0 && here < text.len() {
                match (at(here), at(here + 1)) {
                    ('/', '*') => (depth, here) = (depth + 1, here + 2),
                    ('*', '/') => (depth, here) = (depth - 1, here + 2),
                    _ => here += 1,
                }
            }
        } else if let Some(hashes) = raw {
            let end = format!("\"{}", "#".repeat(hashes));
            let body = here + hashes + 2;
            let rest: String = text[body..].iter().collect();
            here = body + rest[..rest.find(&end).unwrap_or(rest.len())].chars().count() + end.len();
        } else if c == '"' {
            here += 1;
            while here < text.len() && at(here) != '"' {
                here += if at(here) == '\\' { 2 } else { 1 };
            }
            here += 1;
        } else if c == '\'' && (at(here + 1) == '\\' || at(here + 2) == '\'') {
            here += 2; // a character, not a lifetime
            while here < text.len() && at(here) != '\'' {
                here += 1;
            }
            here += 1;
        } else if c.is_alphanumeric() || c == '_' {
            let word: String = text[here..]
                .iter()
                .take_while(|c| c.is_alphanumeric() || **c == '_')
                .collect();
            here += word.chars().count();
            all.push(Token::Word(word));
        } else {
            if !c.is_whitespace() {
                all.push(Token::Sign(c));
            }
            here += 1;
        }
    }
    all
}

/// The rooms that a file names: in `use crate::…` with its whole tree, in paths inside the code, and by `super` as far
/// as the root. `depth` is how many modules the file stands below the root.
fn rooms_named(source: &str, depth: usize) -> BTreeSet<String> {
    let tokens = tokens(source);
    let word = |place: usize, text: &str| matches!(tokens.get(place), Some(Token::Word(word)) if word == text);
    let sign = |place: usize, c: char| tokens.get(place) == Some(&Token::Sign(c));
    let path = |place: usize| sign(place, ':') && sign(place + 1, ':');
    let (mut found, mut inner) = (BTreeSet::new(), 0);
    for place in 0..tokens.len() {
        if word(place, "mod") && sign(place + 2, '{') {
            inner = 1; // `mod tests`, to the end of the file
        }
        let mut after = place;
        if word(place, "crate") && path(place + 1) {
            after = place + 3;
        } else if word(place, "super") && !(place >= 3 && path(place - 2) && word(place - 3, "super")) {
            let mut steps = 0;
            while word(after, "super") && path(after + 1) {
                (steps, after) = (steps + 1, after + 3);
            }
            if steps < depth + inner {
                continue;
            }
        } else {
            continue;
        }
        if !sign(after, '{') {
            if let Some(Token::Word(room)) = tokens.get(after) {
                found.insert(room.clone());
            }
            continue;
        }
        // A tree: the first word after `{` and after each comma of this level.
        let (mut level, mut first) = (0, true);
        for token in &tokens[after..] {
            match token {
                Token::Sign('{') => (level, first) = (level + 1, level == 0),
                Token::Sign('}') => level -= 1,
                Token::Sign(',') if level == 1 => first = true,
                Token::Word(room) if level == 1 && first => {
                    found.insert(room.clone());
                    first = false;
                }
                _ => {}
            }
            if level == 0 {
                break;
            }
        }
    }
    found
}

/// The room of a file, and how many modules it stands below the root.
fn room_of(name: &str) -> (String, usize) {
    let inside = name.strip_prefix("src/").unwrap().strip_suffix(".rs").unwrap();
    let parts: Vec<&str> = inside.split('/').filter(|part| *part != "mod").collect();
    (parts[0].to_owned(), parts.len())
}

#[test]
fn no_room_knows_more_than_it_must() {
    let mut known: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for (name, source) in sources() {
        let (room, depth) = room_of(&name);
        if matches!(room.as_str(), "lib" | "main") {
            continue;
        }
        let rooms = known.entry(room.clone()).or_default();
        for other in rooms_named(&source, depth) {
            if other != room {
                rooms.entry(other).or_insert_with(|| name.clone());
            }
        }
    }
    let mut failed = Vec::new();
    for (room, rooms) in &known {
        let Some((_, allowed, reason)) = WALLS.iter().find(|(name, ..)| name == room) else {
            failed.push(format!("{room} is a room without a row: who may it know, and why?"));
            continue;
        };
        let allowed: BTreeSet<&str> = allowed.split_whitespace().collect();
        for (other, file) in rooms.iter().filter(|(other, _)| !allowed.contains(other.as_str())) {
            failed.push(format!("{room} knows {other} ({file}): {reason}"));
        }
        for unused in allowed.iter().filter(|other| !rooms.contains_key(**other)) {
            failed.push(format!("{room} may know {unused} and does not: take it off the table"));
        }
    }
    for (room, _, reason) in WALLS {
        assert!(!reason.is_empty());
        if !known.contains_key(*room) {
            failed.push(format!("{room} is on the table and not in src/"));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn every_room_is_told_of_in_lib() {
    let lib = std::fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let told: BTreeSet<_> = lib
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'))
        .collect();
    assert_eq!(told, WALLS.iter().map(|(room, ..)| *room).collect());
}

#[test]
fn what_providers_say_on_the_wire_stays_in_their_rooms() {
    let sources = sources();
    let mut failed = Vec::new();
    for word in WIRE {
        if !sources
            .iter()
            .any(|(name, text)| name.starts_with("src/provider/") && text.contains(word))
        {
            failed.push(format!("{word:?} is not said by any provider any more"));
        }
        for (name, _) in sources.iter().filter(|(_, text)| text.contains(word)) {
            let Some(inside) = name.strip_prefix("src/provider/") else {
                failed.push(format!("{name} says {word:?}, which is for src/provider/"));
                continue;
            };
            let shared = SHARED.iter().find(|(file, ..)| *file == inside);
            if let Some((_, _, reason)) = shared.filter(|(_, allowed, _)| allowed != word) {
                failed.push(format!("{name} says {word:?}: {reason}"));
            }
        }
    }
    for (file, allowed, reason) in SHARED {
        let text = sources.get(&format!("src/provider/{file}"));
        if !text.is_some_and(|text| text.contains(allowed)) || reason.is_empty() {
            failed.push(format!(
                "src/provider/{file} does not say {allowed:?}: take it off the table"
            ));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn some_things_are_nowhere() {
    let mut failed = Vec::new();
    for (name, text) in sources() {
        for (word, reason) in NOWHERE {
            let allowed = *word == "env::var" && name == "src/main.rs";
            if text.contains(word) && !allowed {
                failed.push(format!("{name} says {word:?}: {reason}"));
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// The reader of the walls, tested by itself: one that sees nothing would find no fault.
#[test]
fn rooms_are_seen_however_they_are_named() {
    let named = |source: &str, depth: usize| rooms_named(source, depth).into_iter().collect::<Vec<_>>().join(" ");
    assert_eq!(named("use crate::store::Store;", 2), "store");
    assert_eq!(
        named("use crate::{chat::{A, b::{C, D}}, error, run::*};", 2),
        "chat error run"
    );
    assert_eq!(
        named("use crate::{\n    a::X, // b::Y\n    /* c::Z, */ d,\n};", 2),
        "a d"
    );
    assert_eq!(
        named(
            "fn f() -> crate::error::Result<crate::chat::Event> { crate :: run :: go() }",
            2
        ),
        "chat error run"
    );
    assert_eq!(named("pub(in crate::http) fn f() {}", 2), "http");
    assert_eq!(
        named(
            "//! [`crate::store`]\nlet s = \"crate::run\"; let r = r#\"crate::a \" \"#; let c = '\"'; use crate::b;",
            2
        ),
        "b"
    );
    assert_eq!(named("use super::x; use super::super::store::Y;", 2), "store");
    assert_eq!(named("use super::store;", 1), "store");
    assert_eq!(named("use super::{store, chat::Z};", 1), "chat store");
    assert_eq!(
        named(
            "use super::a;\nmod tests { use super::super::b; use super::super::super::c; }",
            2
        ),
        "c"
    );
    assert_eq!(
        named("fn f<'a>(x: &'a str) { let y = '\\''; crate::run::go() }", 2),
        "run"
    );
}
