//! Everything that is wrong with settings, at once: each problem with its key and, where the key is
//! written in the file, with the line and the column.

use std::{collections::BTreeMap, fmt, ops::Range};

use toml::de::{DeTable, DeValue};

use super::{PREFIX, path};

/// The most problems that are told.
pub(super) const MAX_PROBLEMS: usize = 20;

/// Settings that do not make a gateway: sentences for whoever starts it, without secrets.
#[derive(Debug)]
pub struct ConfigError(Vec<String>);

impl ConfigError {
    /// Each thing that is wrong.
    #[must_use]
    pub fn problems(&self) -> &[String] {
        &self.0
    }

    /// The same problems, each with the place where its key is written.
    pub(super) fn located(self, file: Option<&(String, String)>, environment: &BTreeMap<String, String>) -> Self {
        let located = self.0.into_iter().map(|problem| {
            let key = key_of(&problem);
            if let Some(name) = variable_of(key, environment) {
                return format!("{problem} (from {name})");
            }
            let place = file.and_then(|(name, text)| {
                let (line, column) = position(text, key, problem.ends_with(" is missing"))?;
                Some(format!("{name}:{line}:{column}: {problem}"))
            });
            place.unwrap_or(problem)
        });
        Self(located.collect())
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [one] => f.write_str(one),
            all => {
                write!(f, "{} settings are wrong:", all.len())?;
                all.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
            }
        }
    }
}

impl std::error::Error for ConfigError {}

/// A problem that begins with its key: `runs.deadline: must be more than nothing`.
pub(super) fn wrong(what: impl Into<String>) -> ConfigError {
    ConfigError(vec![what.into()])
}

/// The problems that were found so far.
#[derive(Default)]
pub(super) struct Problems(Vec<String>);

impl Problems {
    /// Adds one.
    pub(super) fn add(&mut self, what: impl Into<String>) {
        if self.0.len() < MAX_PROBLEMS {
            self.0.push(what.into());
        }
    }

    /// Adds all that an error has.
    pub(super) fn add_all(&mut self, error: ConfigError) {
        error.0.into_iter().for_each(|problem| self.add(problem));
    }

    /// The value of a part that is right; the problems of one that is wrong are added.
    pub(super) fn take<T>(&mut self, part: Result<T, ConfigError>) -> Option<T> {
        part.map_err(|error| self.add_all(error)).ok()
    }

    /// The values of all parts, if all are right.
    pub(super) fn take_each<T>(parts: impl Iterator<Item = Result<T, ConfigError>>) -> Result<Vec<T>, ConfigError> {
        let mut problems = Self::default();
        let right: Vec<T> = parts.filter_map(|part| problems.take(part)).collect();
        problems.end().map(|()| right)
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// An error, if there are any.
    pub(super) fn end(self) -> Result<(), ConfigError> {
        match self.0.is_empty() {
            true => Ok(()),
            false => Err(ConfigError(self.0)),
        }
    }
}

/// The key that a problem begins with; `""` without one.
fn key_of(problem: &str) -> &str {
    let problem = problem.strip_prefix("unknown setting ").unwrap_or(problem);
    let is_key = |c: char| c.is_ascii_alphanumeric() || "._-[]".contains(c);
    let end = problem.find(|c| !is_key(c)).unwrap_or(problem.len());
    &problem[..end]
}

/// The variable that sets a key.
fn variable_of<'a>(key: &str, environment: &'a BTreeMap<String, String>) -> Option<&'a str> {
    let mut ours = environment.keys().filter(|name| {
        let ours = name.strip_prefix(PREFIX);
        ours.is_some_and(|name| path(name) == key)
    });
    ours.next().map(String::as_str)
}

/// What is wrong with the syntax of a file, each with its line and column. The library's own text
/// would quote the line, which may hold a secret.
pub(super) fn check_syntax(name: &str, text: &str) -> Result<(), ConfigError> {
    let mut problems = Problems::default();
    for error in DeTable::parse_recoverable(text).1 {
        let (line, column) = line_and_column(text, error.span().unwrap_or_default());
        problems.add(format!("{name}:{line}:{column}: {}", error.message()));
    }
    problems.end()
}

/// The line and the column of a key in a file; of its table, where the key is the one that is missing.
fn position(text: &str, key: &str, is_missing: bool) -> Option<(usize, usize)> {
    let document = DeTable::parse(text).ok()?;
    let mut table = Some(document.get_ref());
    let mut value: Option<&DeValue<'_>> = None;
    let mut found: Option<Range<usize>> = None;
    let mut segments = key.split(['.', '[']).map(|part| part.trim_end_matches(']')).peekable();
    while let Some(segment) = segments.next() {
        let next = match (table, value) {
            (Some(table), _) => {
                let mut entries = table.iter();
                let entry = entries.find(|(name, _)| name.get_ref().as_ref() == segment);
                entry.map(|(name, value)| (name.span(), value.get_ref()))
            }
            (None, Some(DeValue::Array(all))) => {
                let at = segment.parse::<usize>().ok();
                let item = at.and_then(|at| all.get(at));
                item.map(|item| (item.span(), item.get_ref()))
            }
            _ => None,
        };
        let Some((span, inner)) = next else {
            let is_last = segments.peek().is_none();
            return found
                .filter(|_| is_missing && is_last)
                .map(|span| line_and_column(text, span));
        };
        found = Some(span);
        (table, value) = match inner {
            DeValue::Table(table) => (Some(table), None),
            other => (None, Some(other)),
        };
    }
    found.map(|span| line_and_column(text, span))
}

/// Both from 1; the column in characters.
fn line_and_column(text: &str, span: Range<usize>) -> (usize, usize) {
    let before = text.get(..span.start).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    let line = before.matches('\n').count() + 1;
    (line, before[line_start..].chars().count() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_where_it_is_written() {
        let text = "default_agent = \"a\"\n[runs]\n  deadline = 5\n[[auth.keys]]\nname = \"x\"\n[agents.a]\nsettings = { top_p = 2 }\n";
        for (key, is_missing, place) in [
            ("default_agent", false, Some((1, 1))),
            ("runs", false, Some((2, 2))),
            ("runs.deadline", false, Some((3, 3))),
            ("auth.keys[0].name", false, Some((5, 1))),
            ("auth.keys[0].sha256", true, Some((4, 1))),
            ("auth.keys[1].name", false, None),
            ("agents.a.settings.top_p", false, Some((7, 14))),
            ("agents.a.model", true, Some((6, 9))),
            ("agents.a.model", false, None),
            ("limits.memory", false, None),
            ("", false, None),
        ] {
            assert_eq!(position(text, key, is_missing), place, "{key}");
        }
    }

    #[test]
    fn syntax_is_told_by_line_and_column_and_not_quoted() {
        let text = "[runs]\ndeadline = \"5s\"\napi_key = canary\n";
        let error = check_syntax("a.toml", text).unwrap_err().to_string();
        assert!(
            error.starts_with("a.toml:3:11: ") && !error.contains("canary"),
            "{error}"
        );
    }
}
