//! Words of a message that is sent whole in a stream: once at its end, again and again as it grows,
//! or in pieces although it is called a message.

use crate::{
    meters::Tolerated,
    provider::{ProviderError, deviations::Deviations, error::Kind},
};

/// The words so far.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    text: String,
    form: Form,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Form {
    #[default]
    Unknown,
    /// Each message has more words.
    Pieces,
    /// Each message has all words so far.
    Growing,
}

impl Snapshot {
    /// The part of these words that is new, if any is. Where deltas had words, none is.
    ///
    /// # Errors
    /// Words that take others back, because these have been passed on.
    pub(super) fn take<'t>(
        &mut self,
        words: &'t str,
        by_delta: bool,
        odd: &mut Deviations,
    ) -> Result<Option<&'t str>, ProviderError> {
        let news = if by_delta { "" } else { self.news(words)? };
        odd.add_if(news.is_empty() && !words.is_empty(), Tolerated::Repeated);
        Ok(Some(news).filter(|news| !news.is_empty()))
    }

    fn news<'t>(&mut self, words: &'t str) -> Result<&'t str, ProviderError> {
        if words == self.text {
            return Ok("");
        }
        let longer = words.strip_prefix(self.text.as_str());
        let (form, news) = match (self.form, longer) {
            _ if self.text.is_empty() => (self.form, words),
            (Form::Unknown | Form::Growing, Some(news)) => (Form::Growing, news),
            (Form::Unknown | Form::Pieces, _) => (Form::Pieces, words),
            (Form::Growing, None) => {
                return Err(ProviderError::new(Kind::Protocol, "a message whose words changed"));
            }
        };
        self.form = form;
        self.text.push_str(news);
        Ok(news)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(messages: &[&str]) -> Result<String, Kind> {
        let mut snapshot = Snapshot::default();
        let news = messages
            .iter()
            .map(|words| snapshot.news(words).map_err(|error| error.kind));
        news.collect()
    }

    #[test]
    fn words_are_told_once_in_every_form() {
        assert_eq!(joined(&["Hello"]).unwrap(), "Hello");
        assert_eq!(joined(&["Hello", "Hello"]).unwrap(), "Hello");
        assert_eq!(
            joined(&["", "Hel", "Hello", "Hello wo", "Hello wo"]).unwrap(),
            "Hello wo"
        );
        assert_eq!(joined(&["Hel", "lo", " wo", "lo", "Hello wolo"]).unwrap(), "Hello wolo");
        assert_eq!(joined(&["Hel", "Hello", "Howdy"]), Err(Kind::Protocol));
    }
}
