//! The ids of tool calls as one request may write them.
//!
//! A session may move between providers, and each accepts its own form of ids only. Ids that do not
//! fit are replaced in the request, the same id by the same one in a call and in its result.

use std::collections::{HashMap, HashSet};

use aws_lc_rs::digest::{SHA256, digest};

/// A form of ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IdForm {
    /// Letters, digits, `_` and `-`, at most 64, no two alike: Anthropic's
    /// (`^[a-zA-Z0-9_-]+$`; Bedrock limits the length).
    Unique,
    /// At most so many bytes without control characters: 40 for OpenAI's Chat Completions, 64 for
    /// its Responses.
    Short(usize),
    /// Exactly nine letters and digits: Mistral's.
    Nine,
    /// That of a server about which nothing is known: its own ids unchanged, and those of others if
    /// they are at most forty letters, digits, `_` and `-`; else nine letters and digits, because every
    /// known server takes these.
    Unknown,
    /// Anything.
    Any,
}

/// The most bytes of [`IdForm::Unique`].
const MAX_UNIQUE: usize = 64;
/// The most bytes of [`IdForm::Unknown`].
const MAX_UNKNOWN: usize = 40;
/// The characters of replacements.
const LETTERS: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

impl IdForm {
    fn fits(self, id: &str) -> bool {
        match self {
            IdForm::Unique => {
                let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
                (1..=MAX_UNIQUE).contains(&id.len()) && id.bytes().all(allowed)
            }
            IdForm::Short(max) => (1..=max).contains(&id.len()) && !id.contains(char::is_control),
            IdForm::Unknown => id.len() <= MAX_UNKNOWN && IdForm::Unique.fits(id),
            IdForm::Nine => id.len() == 9 && id.bytes().all(|b| b.is_ascii_alphanumeric()),
            IdForm::Any => !id.is_empty(),
        }
    }

    /// An id of this form in the place of one that is not: a readable one where the characters
    /// alone are at fault, else a digest. The same for every request, so that prompt caches hit.
    fn replace(self, id: &str, attempt: u32) -> String {
        match self {
            IdForm::Unique if id.len() < MAX_UNIQUE => {
                let allowed = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
                let mut replaced: String = id.chars().map(allowed).collect();
                replaced.extend((0..attempt + u32::from(id.is_empty())).map(|_| '_'));
                match replaced.len() {
                    ..=MAX_UNIQUE => replaced,
                    _ => digest_id(id, attempt),
                }
            }
            _ => digest_id(id, attempt),
        }
    }
}

/// Nine letters and digits that depend on the id and the attempt alone.
fn digest_id(id: &str, attempt: u32) -> String {
    let digest = digest(&SHA256, format!("{attempt}:{id}").as_bytes());
    let letter = |byte: &u8| char::from(LETTERS[usize::from(*byte) % LETTERS.len()]);
    digest.as_ref().iter().take(9).map(letter).collect()
}

/// The ids of one request.
pub(super) struct CallIds<'a> {
    form: IdForm,
    /// The ids that the request has so far.
    taken: HashSet<String>,
    /// The id that the last call of that name has in this request.
    sent: HashMap<&'a str, String>,
}

impl<'a> CallIds<'a> {
    /// The ids of a request in this form.
    pub(super) fn new(form: IdForm) -> Self {
        Self {
            form,
            taken: HashSet::new(),
            sent: HashMap::new(),
        }
    }

    /// The id of a call.
    pub(super) fn of_call(&mut self, id: &'a str) -> String {
        self.in_form(id, self.form)
    }

    /// The id of a call that this very provider made: unchanged where its form is not known.
    pub(super) fn of_own_call(&mut self, id: &'a str) -> String {
        match self.form {
            IdForm::Unknown => self.in_form(id, IdForm::Any),
            form => self.in_form(id, form),
        }
    }

    fn in_form(&mut self, id: &'a str, form: IdForm) -> String {
        let again = self.sent.get(id).filter(|_| form != IdForm::Unique);
        let mut own = match again {
            Some(own) => own.clone(), // a second call of that id, which only some servers refuse
            None if form.fits(id) => id.to_owned(),
            None => form.replace(id, 0),
        };
        let changed = own != id;
        let mut attempt = 0;
        while again.is_none() && (changed || form == IdForm::Unique) && self.taken.contains(&own) {
            attempt += 1;
            own = form.replace(id, attempt);
        }
        self.taken.insert(own.clone());
        self.sent.insert(id, own.clone());
        own
    }

    /// The id of the call that a result answers.
    pub(super) fn of_result(&self, id: &str) -> String {
        match self.sent.get(id) {
            Some(own) => own.clone(),
            None if self.form.fits(id) => id.to_owned(),
            None => self.form.replace(id, 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ODD: [&str; 5] = [
        "call_0123456789abcdef0123456789abcdef",
        "functions.weather:0",
        "chatcmpl-tool-0123456789abcdef0123456789abcdef",
        "é\n",
        "",
    ];

    #[test]
    fn every_id_fits_its_form_and_a_result_has_its_call_s() {
        for form in [
            IdForm::Unique,
            IdForm::Short(40),
            IdForm::Short(64),
            IdForm::Nine,
            IdForm::Unknown,
        ] {
            let mut ids = CallIds::new(form);
            let mut seen = HashSet::new();
            for id in ODD.into_iter().chain(["aB3dE6gH9", "toolu_01"]) {
                let own = ids.of_call(id);
                assert!(form.fits(&own), "{form:?}: {id:?} became {own:?}");
                assert_eq!(ids.of_result(id), own);
                assert_eq!(own == id, form.fits(id), "{form:?}: {id:?} became {own:?}");
                assert!(seen.insert(own), "{form:?}: two ids became one: {id:?}");
            }
        }
    }

    #[test]
    fn an_id_is_replaced_alike_in_every_request() {
        let replaced = |form| CallIds::new(form).of_call(ODD[0]);
        assert_eq!(replaced(IdForm::Nine), replaced(IdForm::Nine));
        assert_eq!(replaced(IdForm::Short(40)), ODD[0]);
    }

    #[test]
    fn an_id_used_twice_is_told_apart_where_the_server_insists() {
        let mut ids = CallIds::new(IdForm::Unique);
        assert_eq!((ids.of_call("a.b"), ids.of_call("a_b")), ("a_b".into(), "a_b_".into()));
        assert_eq!(
            (ids.of_result("a.b"), ids.of_result("a_b")),
            ("a_b".into(), "a_b_".into())
        );
        assert_eq!(
            (ids.of_call("a.b"), ids.of_result("a.b")),
            ("a_b__".into(), "a_b__".into())
        );
        let mut ids = CallIds::new(IdForm::Nine);
        assert_eq!(ids.of_call("x"), ids.of_call("x"));
    }

    #[test]
    fn a_provider_s_own_ids_go_back_unchanged_where_its_form_is_unknown() {
        let mut ids = CallIds::new(IdForm::Unknown);
        assert_eq!(ids.of_own_call(ODD[1]), ODD[1]);
        assert_eq!(ids.of_result(ODD[1]), ODD[1]);
        assert_ne!(ids.of_call(ODD[2]), ODD[2]);
    }
}
