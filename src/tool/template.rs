//! Addresses and bodies with places for values: `{name}` is the argument of that name, `{context.key}` a member of the
//! request's `context`.
//!
//! Both are taken apart once, at the start, and put together for every call, so that a value can fill its place and
//! nothing else: it never becomes a path segment, a parameter, a member or a host of its own. Where a value cannot be
//! written that way, the call is refused in words for the model.

use serde_json::{Map, Value};

mod address;

pub use address::Address;
use address::Pair;

/// What stands for a value inside a string while a template is checked; no template has it by chance.
const DUMMY: &str = "xSLUICEGATEx";

/// What can stand in the places of a template.
#[derive(Clone, Copy, Debug)]
pub struct Values<'a> {
    /// By `{name}`.
    pub arguments: &'a Map<String, Value>,
    /// By `{context.key}`.
    pub facts: &'a Map<String, Value>,
}

impl Values<'_> {
    /// The value of a place; without one, an optional argument was left out. A fact that is missing is an error
    /// wherever it stands: without it a request could mean everybody's instead of somebody's.
    fn of(&self, source: &Source) -> Result<Option<&Value>, String> {
        match source {
            Source::Argument(name) => Ok(self.arguments.get(name).filter(|value| !value.is_null())),
            Source::Fact(key) => match self.facts.get(key) {
                Some(value) if !value.is_null() => Ok(Some(value)),
                _ => Err(format!(
                    "the request's context has no {key:?}, without which this tool cannot be used"
                )),
            },
        }
    }
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    Argument(String),
    Fact(String),
}

impl Source {
    fn named(name: &str) -> Self {
        match name.strip_prefix("context.") {
            Some(key) => Self::Fact(key.to_owned()),
            None => Self::Argument(name.to_owned()),
        }
    }

    /// What it is called in a template.
    fn name(&self) -> String {
        match self {
            Self::Argument(name) => name.clone(),
            Self::Fact(key) => format!("context.{key}"),
        }
    }
}

/// A piece of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    /// A place, and what is around it.
    Place(Source, Around),
}

/// What is around a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Around {
    /// Text, or an address.
    Nothing,
    /// JSON.
    Json,
    /// The quotes of a JSON string.
    Quotes,
}

/// A JSON Schema's properties: what `{name}` can be.
#[derive(Clone, Copy, Debug)]
pub struct Parameters<'a>(pub &'a Value);

impl Parameters<'_> {
    /// Whether there is such a parameter; facts are known only when somebody asks.
    fn know(&self, source: &Source) -> Result<(), String> {
        let name = match source {
            Source::Argument(name) => name,
            Source::Fact(key) if key.is_empty() => return Err("{context.} needs a key".into()),
            Source::Fact(_) => return Ok(()),
        };
        let properties = self.0.get("properties").and_then(Value::as_object);
        let names = || properties.into_iter().flat_map(Map::keys);
        if names().any(|known| known == name) {
            return Ok(());
        }
        let close = |known: &&String| strsim::jaro_winkler(known, name) > 0.7;
        let near = names().filter(close).max_by(|a, b| {
            let close = |known: &str| strsim::jaro_winkler(known, name);
            close(a).total_cmp(&close(b))
        });
        let hint = near
            .map(|near| format!("; did you mean {{{near}}}?"))
            .unwrap_or_default();
        Err(format!(
            "{{{name}}} is not among the parameters{hint} ({{{{{name}}}}} stands for the text {{{name}}})"
        ))
    }

    /// Whether it can be one word: a list or an object has no form in an address that all servers share.
    fn is_plain(&self, source: &Source) -> Result<(), String> {
        let Source::Argument(name) = source else { return Ok(()) };
        let kind = self
            .0
            .pointer("/properties")
            .and_then(|all| all.get(name)?.get("type")?.as_str());
        match kind {
            Some(kind @ ("array" | "object")) => Err(format!(
                "{{{name}}} is an {kind}; only strings, numbers and booleans can stand here"
            )),
            _ => Ok(()),
        }
    }
}

/// What a body is, which decides how a value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// JSON: a value is JSON, and inside a string it is text, escaped.
    Json,
    /// A form, as browsers send it: a value is percent-encoded.
    Form,
    /// Text that has no syntax: a value is text.
    Plain,
    /// Whatever else, where it is not known how to write a value.
    Other,
}

impl Kind {
    /// What a media type says.
    #[must_use]
    pub fn of(media_type: &str) -> Self {
        match media_type
            .split(';')
            .next()
            .unwrap_or("")
            .trim()
            .to_ascii_lowercase()
            .as_str()
        {
            "application/json" => Self::Json,
            other if other.ends_with("+json") => Self::Json,
            "application/x-www-form-urlencoded" => Self::Form,
            "text/plain" => Self::Plain,
            _ => Self::Other,
        }
    }
}

/// A body with places.
#[derive(Debug)]
pub struct Body(Parts);

#[derive(Debug)]
enum Parts {
    Form(Vec<Pair>),
    Pieces(Vec<Piece>),
}

impl Body {
    /// Takes a body apart. A brace that does not stand for a place is a brace: JSON is full of them.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str, kind: Kind, parameters: &Parameters<'_>) -> Result<Self, String> {
        if kind == Kind::Form {
            return Ok(Self(Parts::Form(Pair::all(text.trim(), parameters)?)));
        }
        let pieces = loose(text, kind);
        for piece in &pieces {
            if let Piece::Place(source, _) = piece {
                if kind == Kind::Other {
                    return Err(format!(
                        "it is not known how to write {{{}}} into such a body; with the header content-type it can be JSON, \
                         application/x-www-form-urlencoded or text/plain",
                        source.name()
                    ));
                }
                parameters.know(source)?;
            }
        }
        if kind == Kind::Json {
            let value = serde_json::from_str(&sample(&pieces)).map_err(|e| {
                format!("not JSON with a value in every place ({e}); another body needs a header content-type")
            })?;
            if names_hold(&value, DUMMY) {
                return Err("a placeholder can stand in a value, but not in the name of a member".into());
            }
        }
        Ok(Self(Parts::Pieces(pieces)))
    }

    /// The body with these values. What was left out is `null`, in a string nothing, and in a form not there.
    ///
    /// # Errors
    /// Which of them cannot stand there, for the model.
    pub fn fill(&self, values: Values<'_>) -> Result<String, String> {
        let pieces = match &self.0 {
            Parts::Form(pairs) => return Pair::fill(pairs, values),
            Parts::Pieces(pieces) => pieces,
        };
        let mut out = String::new();
        for piece in pieces {
            match piece {
                Piece::Text(text) => out.push_str(text),
                Piece::Place(source, around) => {
                    let value = values.of(source)?;
                    match around {
                        Around::Json => out.push_str(&value.unwrap_or(&Value::Null).to_string()),
                        Around::Quotes => {
                            let quoted = Value::String(value.map(text).unwrap_or_default()).to_string();
                            out.push_str(quoted.get(1..quoted.len() - 1).unwrap_or_default());
                        }
                        Around::Nothing => out.push_str(&value.map(text).unwrap_or_default()),
                    }
                }
            }
        }
        Ok(out)
    }
}

/// Whether a member's name somewhere in a value holds a word.
fn names_hold(value: &Value, word: &str) -> bool {
    match value {
        Value::Object(members) => members
            .iter()
            .any(|(name, value)| name.contains(word) || names_hold(value, word)),
        Value::Array(values) => values.iter().any(|value| names_hold(value, word)),
        _ => false,
    }
}

/// A template with something harmless in every place.
fn sample(pieces: &[Piece]) -> String {
    let texts = pieces.iter().map(|piece| match piece {
        Piece::Text(text) => text,
        Piece::Place(_, Around::Json) => "null",
        Piece::Place(..) => DUMMY,
    });
    texts.collect()
}

/// Takes a body apart, where most braces are braces: `{name}` is a place, `{{name}}` the text `{name}`.
fn loose(text: &str, kind: Kind) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut around = if kind == Kind::Json {
        Around::Json
    } else {
        Around::Nothing
    };
    let mut rest = text;
    while let Some(at) = rest.find(['{', '"', '\\']) {
        let (before, from) = rest.split_at(at);
        push(&mut pieces, before);
        let escaped = from
            .strip_prefix('{')
            .and_then(place)
            .filter(|(_, after)| after.starts_with('}'));
        if let Some((name, after)) = escaped {
            push(&mut pieces, &format!("{{{name}}}"));
            rest = after.strip_prefix('}').unwrap_or(after);
        } else if let Some((name, after)) = place(from) {
            pieces.push(Piece::Place(Source::named(name), around));
            rest = after;
        } else {
            around = match (around, from.starts_with('"')) {
                (Around::Json, true) => Around::Quotes,
                (Around::Quotes, true) => Around::Json,
                _ => around,
            };
            // What a backslash makes harmless goes with it.
            let taken = if around == Around::Quotes && from.starts_with('\\') {
                2
            } else {
                1
            };
            let end = from.char_indices().nth(taken).map_or(from.len(), |(at, _)| at);
            let (this, after) = from.split_at(end);
            push(&mut pieces, this);
            rest = after;
        }
    }
    push(&mut pieces, rest);
    pieces
}

/// The name of the place that a text begins with, and what comes after it.
fn place(text: &str) -> Option<(&str, &str)> {
    let (name, after) = text.strip_prefix('{')?.split_once('}')?;
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let begins = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    (begins && name.chars().all(fits)).then_some((name, after))
}

/// Adds a text to the pieces.
fn push(pieces: &mut Vec<Piece>, text: &str) {
    match pieces.last_mut() {
        _ if text.is_empty() => {}
        Some(Piece::Text(last)) => last.push_str(text),
        _ => pieces.push(Piece::Text(text.to_owned())),
    }
}

/// A value as the text it is, or else as JSON.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// A value that is one word.
fn plain(source: &Source, value: &Value) -> Result<String, String> {
    match value {
        Value::Array(_) | Value::Object(_) | Value::Null => {
            Err(format!("{:?} must be a string, a number or a boolean", source.name()))
        }
        value => Ok(text(value)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn schema() -> Value {
        json!({"type": "object", "properties": {
            "name": {"type": "string"}, "id": {}, "q": {"type": "string"}, "lang": {"type": "string"},
            "count": {"type": "integer"}, "tags": {"type": "array"}, "where": {"type": "object"}, "user-id": {},
        }})
    }

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    fn address(template: &str, arguments: Value) -> Result<String, String> {
        let address = Address::parse(template, &Parameters(&schema())).map_err(|e| format!("start: {e}"))?;
        let (arguments, facts) = (
            object(arguments),
            object(json!({"tenant": "a/b", "plan": 3, "deep": {}})),
        );
        let values = Values {
            arguments: &arguments,
            facts: &facts,
        };
        address.fill(values).map(String::from)
    }

    fn body(template: &str, media_type: &str, arguments: Value) -> Result<String, String> {
        let body = Body::parse(template, Kind::of(media_type), &Parameters(&schema()));
        let (arguments, facts) = (object(arguments), object(json!({"tenant": "a\"b", "plan": 3})));
        let values = Values {
            arguments: &arguments,
            facts: &facts,
        };
        body.map_err(|e| format!("start: {e}"))?.fill(values)
    }

    #[test]
    fn a_value_in_a_path_stays_in_its_segment() {
        for (value, written) in [
            (json!("42"), "42"),
            (json!(42), "42"),
            (json!(-1.5), "-1.5"),
            (json!(true), "true"),
            (json!("a b"), "a%20b"),
            (json!("a/b"), "a%2Fb"),
            (json!("a\\b"), "a%5Cb"),
            (json!("?x=1"), "%3Fx%3D1"),
            (json!("x#y"), "x%23y"),
            (json!("a&b=c;d"), "a%26b%3Dc%3Bd"),
            (json!("a\r\nHost: evil"), "a%0D%0AHost%3A%20evil"),
            (json!("\t\0"), "%09%00"),
            (json!("@evil.example:80"), "%40evil.example%3A80"),
            (json!("//evil.example"), "%2F%2Fevil.example"),
            (json!("Zürich"), "Z%C3%BCrich"),
            (json!("日本"), "%E6%97%A5%E6%9C%AC"),
            (json!("50%"), "50%25"),
            (json!("%41"), "%2541"),
            (json!("..."), "..."),
            (json!("v1..2"), "v1..2"),
            (json!("{name}"), "%7Bname%7D"),
            (json!("a-b_c~d.e"), "a-b_c~d.e"),
        ] {
            let made = address("https://api.example/notes/{id}/full", json!({"id": value}));
            assert_eq!(made, Ok(format!("https://api.example/notes/{written}/full")), "{value}");
        }
    }

    #[test]
    fn no_value_climbs_out_of_its_segment() {
        for value in [
            ".",
            "..",
            "../..",
            "a/../../b",
            "..\\x",
            "%2e%2e",
            "%2E.",
            ".%2e",
            "x%2f..%2fy",
            "x/./y",
            "..%5cx",
            "",
        ] {
            let made = address("https://api.example/notes/{id}", json!({"id": value}));
            assert!(
                made.as_ref().is_err_and(|e| e.starts_with("\"id\" must not be")),
                "{value}: {made:?}"
            );
        }
        let made = address("https://api.example/{id}{name}/x", json!({"id": ".", "name": "."}));
        assert!(made.is_err(), "{made:?}");
        let made = address("https://api.example/.{id}/x", json!({"id": "."}));
        assert!(made.is_err(), "{made:?}");
        assert_eq!(
            address("https://api.example/v{id}", json!({"id": "."})),
            Ok("https://api.example/v.".into())
        );
    }

    #[test]
    fn a_query_leaves_out_what_was_left_out() {
        let template = "https://api.example/find?q={q}&lang={lang}&from={count}-{count}&v=2";
        let find = |arguments| address(template, arguments).unwrap();
        assert_eq!(find(json!({})), "https://api.example/find?v=2");
        assert_eq!(
            find(json!({"lang": "de", "q": null})),
            "https://api.example/find?lang=de&v=2"
        );
        assert_eq!(
            find(json!({"q": "a&admin=1#x+y z", "count": 7})),
            "https://api.example/find?q=a%26admin%3D1%23x%2By%20z&from=7-7&v=2"
        );
        assert_eq!(find(json!({"q": ""})), "https://api.example/find?q=&v=2");
        assert_eq!(
            address("https://api.example?q={q}", json!({})),
            Ok("https://api.example/".into())
        );
        let made = address("https://api.example/?q={q}", json!({"q": "../.."}));
        assert_eq!(made, Ok("https://api.example/?q=..%2F..".into()));
    }

    #[test]
    fn what_an_address_cannot_do_without_is_asked_for() {
        let missing = address("https://api.example/notes/{id}", json!({}));
        assert_eq!(missing, Err("\"id\" is needed here".into()));
        let list = address("https://api.example/?q={id}", json!({"id": [1]}));
        assert_eq!(list, Err("\"id\" must be a string, a number or a boolean".into()));
        let long = address("https://api.example/?q={q}", json!({"q": "x".repeat(9000)}));
        assert_eq!(long, Err("the arguments are too long for an address".into()));
    }

    #[test]
    fn facts_stand_like_arguments_but_may_not_be_missing() {
        let made = address("https://api.example/{context.tenant}?plan={context.plan}", json!({}));
        assert_eq!(made, Ok("https://api.example/a%2Fb?plan=3".into()));
        for (template, why) in [
            ("https://api.example/?t={context.nobody}", "request's context has no"),
            (
                "https://api.example/{context.deep}",
                "must be a string, a number or a boolean",
            ),
        ] {
            let made = address(template, json!({"nobody": "me"}));
            assert!(made.as_ref().is_err_and(|e| e.contains(why)), "{made:?}");
        }
        let made = body(
            r#"{"t": {context.tenant}, "p": "{context.plan}"}"#,
            "application/json",
            json!({}),
        );
        assert_eq!(made, Ok(r#"{"t": "a\"b", "p": "3"}"#.into()));
        assert!(body(r#"{"t": {context.nobody}}"#, "application/json", json!({})).is_err());
    }

    #[test]
    fn an_address_that_cannot_be_meant_stops_the_start() {
        for (template, why) in [
            ("{id}://api.example/", "begins with https:// or http://"),
            ("ftp://api.example/", "begins with https:// or http://"),
            ("//api.example/{id}", "begins with https:// or http://"),
            ("https://{id}/", "host"),
            ("https://{id}.example/", "host"),
            ("https://api.example{id}/", "host"),
            ("https://api.example:{id}/", "host"),
            ("https://{id}@api.example/", "host"),
            ("https://me:secret@api.example/", "password"),
            ("https:///{id}", "no host"),
            ("https://", "no host"),
            ("https://api.example:99999/", "port"),
            ("https://api.example/#{id}", "fragment"),
            ("https://api.example/a b", "spaces"),
            ("https://api.example\\{id}", "backslashes"),
            ("https://api.example/a/../{id}", "segments"),
            ("https://api.example/%2e%2e/{id}", "segments"),
            ("https://api.example/{id", "a placeholder is {name}"),
            ("https://api.example/}", "a placeholder is {name}"),
            ("https://api.example/{}", "a placeholder is {name}"),
            ("https://api.example/{a b}", "spaces"),
            ("https://api.example/?{q}=1", "after a parameter's name"),
            ("https://api.example/?{q}", "after a parameter's name"),
            ("https://api.example/?x{q}=1", "after a parameter's name"),
            ("https://api.example/{tags}", "{tags} is an array"),
            ("https://api.example/?w={where}", "{where} is an object"),
            ("https://api.example/{context.}", "needs a key"),
            (
                "https://api.example/{nmae}",
                "{nmae} is not among the parameters; did you mean {name}?",
            ),
            ("https://api.example/{zzz}", "{zzz} is not among the parameters ("),
        ] {
            let made = address(template, json!({}));
            assert!(
                made.as_ref()
                    .is_err_and(|e| e.starts_with("start: ") && e.contains(why)),
                "{template}: {made:?}"
            );
        }
        let braces = address(
            "https://api.example/{{x}}/{{{id}}}/{user-id}",
            json!({"id": 1, "user-id": 2}),
        );
        assert_eq!(braces, Ok("https://api.example/%7Bx%7D/%7B1%7D/2".into()));
    }

    #[test]
    fn a_value_in_json_is_json_and_in_a_string_it_is_text() {
        let template =
            r#"{"q": {q}, "n": {count}, "tags": {tags}, "deep": {"a": [{where}]}, "text": "Hi \"{name}\" {tags}!"}"#;
        let made = |arguments| {
            let made = body(template, "application/json; charset=utf-8", arguments).unwrap();
            serde_json::from_str::<Value>(&made).unwrap_or_else(|e| panic!("{made}: {e}"))
        };
        assert_eq!(
            made(
                json!({"q": "a\", \"admin\": true, \"x\": \"", "count": 3, "tags": ["x", 1], "where": {"b": null},
                        "name": "\"},\\ \n\u{1}{q}"})
            ),
            json!({"q": "a\", \"admin\": true, \"x\": \"", "n": 3, "tags": ["x", 1], "deep": {"a": [{"b": null}]},
                   "text": "Hi \"\"},\\ \n\u{1}{q}\" [\"x\",1]!"})
        );
        assert_eq!(
            made(json!({})),
            json!({"q": null, "n": null, "tags": null, "deep": {"a": [null]}, "text": "Hi \"\" !"})
        );
    }

    #[test]
    fn braces_of_a_body_are_braces() {
        for (template, written) in [
            (r#"{}"#, r#"{}"#),
            (r#"{"a":{"b":{"c":{id}}}}"#, r#"{"a":{"b":{"c":1}}}"#),
            (r#"[{id},{id}]"#, r#"[1,1]"#),
            (r#"{"query": "{ user { name } }"}"#, r#"{"query": "{ user { name } }"}"#),
            (
                r#"{"query": "{user{{name}}}", "x": "{}{{}}"}"#,
                r#"{"query": "{user{name}}", "x": "{}{{}}"}"#,
            ),
            (r#"{"re": "\\{id} \"{id}\" \\\"{id}"}"#, r#"{"re": "\\1 \"1\" \\\"1"}"#),
        ] {
            assert_eq!(
                body(template, "application/json", json!({"id": 1})),
                Ok(written.into()),
                "{template}"
            );
        }
    }

    #[test]
    fn a_body_that_cannot_be_meant_stops_the_start() {
        for (template, media_type, why) in [
            (r#"{"q": {q}"#, "application/json", "not JSON"),
            (r#"{"q": 1{q}}"#, "application/json", "not JSON"),
            (r#"{"q": {q}{q}}"#, "application/json", "not JSON"),
            (r#"{{q}: 1}"#, "application/json", "not JSON"),
            ("hello {q}", "application/vnd.api+json", "not JSON"),
            (r#"{"{q}": 1}"#, "application/json", "name of a member"),
            (r#"{"a": [{"x{q}": 1}]}"#, "application/json", "name of a member"),
            (
                r#"{"q": "{nmae}"}"#,
                "application/json",
                "{nmae} is not among the parameters; did you mean {name}?",
            ),
            ("<q>{q}</q>", "application/xml", "not known how to write {q}"),
            ("{q}=1", "application/x-www-form-urlencoded", "after a parameter's name"),
            ("a={tags}", "application/x-www-form-urlencoded", "{tags} is an array"),
        ] {
            let made = body(template, media_type, json!({}));
            assert!(
                made.as_ref()
                    .is_err_and(|e| e.starts_with("start: ") && e.contains(why)),
                "{template}: {made:?}"
            );
        }
    }

    #[test]
    fn forms_and_plain_text_have_their_own_way() {
        let form = "application/x-www-form-urlencoded";
        let made = body("to={name}&text={q}&v=1\n", form, json!({"q": "a&to=b c"}));
        assert_eq!(made, Ok("text=a%26to%3Db%20c&v=1".into()));
        let made = body(
            "\"{name}: {tags} \\{q}",
            "text/plain",
            json!({"name": "a\"b", "tags": [1]}),
        );
        assert_eq!(made, Ok("\"a\"b: [1] \\".into()));
        let made = body("<a>{ }</a>", "application/xml", json!({}));
        assert_eq!(made, Ok("<a>{ }</a>".into()));
    }
}
