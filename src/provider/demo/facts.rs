//! Values that a message states: names, places, numbers, an e-mail address, a date. The demo fills a schema with them.

use std::cell::RefCell;

use serde_json::{Number, Value};

/// Capitalised words that begin a sentence and are no names.
const OPENERS: &[&str] = &[
    "a", "an", "and", "are", "can", "create", "describe", "extract", "fill", "find", "give", "he", "hello", "hey",
    "hi", "how", "i", "in", "is", "it", "list", "make", "my", "name", "of", "our", "please", "read", "say", "she",
    "show", "tell", "thanks", "the", "their", "there", "these", "they", "this", "those", "we", "what", "when", "where",
    "which", "who", "why", "write", "you", "your",
];
/// Words that stand before a place.
const BEFORE_PLACES: &[&str] = &["at", "from", "in", "near", "to"];
/// Parts of the names of properties that hold a place.
const PLACES: &[&str] = &[
    "city", "country", "home", "location", "origin", "place", "region", "state", "town",
];

/// The values of one message that are not used yet. Each is used once, in the order of the message.
#[derive(Debug, Default)]
pub(super) struct Facts {
    names: RefCell<Vec<String>>,
    places: RefCell<Vec<String>>,
    numbers: RefCell<Vec<Number>>,
    email: Option<String>,
    date: Option<String>,
    lower: String,
}

impl Facts {
    /// Reads a message.
    pub(super) fn of(message: &str) -> Self {
        let mut facts = Self {
            lower: message.to_lowercase(),
            ..Self::default()
        };
        let mut run: Vec<&str> = Vec::new();
        let mut after_place_word = false;
        for token in message.split_whitespace() {
            let word = token.trim_matches(|c: char| !c.is_alphanumeric() && c != '-');
            let is_name = word.starts_with(char::is_uppercase) && !is_opener(word);
            if is_name {
                run.push(word);
            }
            if !is_name || !token.ends_with(char::is_alphanumeric) {
                facts.add_name(&mut run, after_place_word);
                after_place_word = BEFORE_PLACES.contains(&word.to_lowercase().as_str());
            }
            if is_date(word) {
                facts.date.get_or_insert_with(|| word.to_owned());
            } else if let Some(number) = number(word) {
                facts.numbers.get_mut().push(number);
            } else if is_email(word) {
                facts.email.get_or_insert_with(|| word.to_owned());
            }
        }
        facts.add_name(&mut run, after_place_word);
        facts
    }

    fn add_name(&mut self, run: &mut Vec<&str>, is_place: bool) {
        if run.is_empty() {
            return;
        }
        let all = if is_place { &mut self.places } else { &mut self.names };
        all.get_mut().push(run.join(" "));
        run.clear();
    }

    /// Returns the next number that `fits`.
    pub(super) fn take_number(&self, fits: impl Fn(&Number) -> bool) -> Option<Number> {
        let mut numbers = self.numbers.borrow_mut();
        let at = numbers.iter().position(fits)?;
        Some(numbers.remove(at))
    }

    /// Returns the next name or, for a property that holds a place, the next place.
    pub(super) fn take_name(&self, property: &str) -> Option<String> {
        let property = property.to_lowercase();
        let is_place = PLACES.iter().any(|part| property.contains(part));
        let mut all = if is_place {
            self.places.borrow_mut()
        } else {
            self.names.borrow_mut()
        };
        (!all.is_empty()).then(|| all.remove(0))
    }

    /// Returns the first of `choices` that the message mentions.
    pub(super) fn mentioned<'a>(&self, choices: &'a [Value]) -> Option<&'a Value> {
        choices.iter().find(|choice| {
            let text = choice.as_str().unwrap_or_default();
            !text.is_empty() && super::intent::has_word(&self.lower, &text.to_lowercase())
        })
    }

    /// Returns the e-mail address that the message has.
    pub(super) fn email(&self) -> Option<String> {
        self.email.clone()
    }

    /// Returns the date that the message has, as `YYYY-MM-DD`.
    pub(super) fn date(&self) -> Option<String> {
        self.date.clone()
    }
}

fn is_opener(word: &str) -> bool {
    OPENERS.contains(&word.to_lowercase().as_str())
}

fn is_date(word: &str) -> bool {
    word.len() == 10 && word.parse::<jiff::civil::Date>().is_ok()
}

fn is_email(word: &str) -> bool {
    word.split_once('@')
        .is_some_and(|(user, host)| !user.is_empty() && host.contains('.') && !host.contains('@'))
}

fn number(word: &str) -> Option<Number> {
    match word.parse::<i64>() {
        Ok(whole) => Some(whole.into()),
        Err(_) if word.starts_with(|c: char| c.is_ascii_digit() || c == '-') => {
            word.parse().ok().and_then(Number::from_f64)
        }
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_places_and_numbers_are_found() {
        let facts =
            Facts::of("Ada Lovelace, 36, from London, writes to ada@example.com since 1843-07-10 for 2.5 hours.");
        assert_eq!(facts.take_name("name").as_deref(), Some("Ada Lovelace"));
        assert_eq!(facts.take_name("home_town").as_deref(), Some("London"));
        assert_eq!(facts.take_name("name"), None);
        assert_eq!(facts.take_number(|n| n.is_f64()), Number::from_f64(2.5));
        assert_eq!(facts.take_number(|_| true), Some(36.into()));
        assert_eq!(facts.take_number(|_| true), None);
        assert_eq!(facts.email().as_deref(), Some("ada@example.com"));
        assert_eq!(facts.date().as_deref(), Some("1843-07-10"));
    }

    #[test]
    fn words_that_begin_a_sentence_are_no_names() {
        let facts = Facts::of("Hello! My name is Ada. I am 36 and live in New York.");
        assert_eq!(facts.take_name("name").as_deref(), Some("Ada"));
        assert_eq!(facts.take_name("city").as_deref(), Some("New York"));
        assert_eq!(facts.take_name("name"), None);
        let choices = [Value::from("red"), Value::from("green")];
        assert_eq!(Facts::of("A Green door").mentioned(&choices), Some(&choices[1]));
        assert_eq!(Facts::of("hundred").mentioned(&choices), None);
    }
}
