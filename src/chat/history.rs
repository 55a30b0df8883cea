//! What of a long conversation is sent: whole turns, the newest that fit.

use super::{Message, Role, message::members, usage};

/// How many bytes of an image's base64 are estimated as a token, and the least that an image counts. Providers count
/// pixels, which are not known here; a photo of 500 KB is some thousand tokens at most of them.
const IMAGE_TOKENS: (u64, u64) = (512, 1_000);

/// The newest turns of a conversation, which is handed over backwards, as many as are estimated at no more than a number
/// of tokens. The last turn is kept whatever its tokens.
#[derive(Debug)]
pub struct Newest {
    limit: u64,
    tokens: u64,
    /// Newest first.
    messages: Vec<Message>,
    /// How many of them are whole turns: up to a user's message.
    whole: usize,
    full: bool,
}

impl Newest {
    /// Nothing yet, of `limit` tokens.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self {
            limit,
            tokens: 0,
            messages: Vec::new(),
            whole: 0,
            full: false,
        }
    }

    /// Takes the message before those that it has. False once nothing more is wanted.
    pub fn push(&mut self, message: Message) -> bool {
        if self.full {
            return false;
        }
        self.tokens += tokens(&message);
        self.full = self.tokens > self.limit && self.whole > 0;
        if !self.full {
            let turn = message.role == Role::User;
            self.messages.push(message);
            if turn {
                self.whole = self.messages.len();
            }
        }
        !self.full
    }

    /// Says that there are older messages which are not handed over.
    pub fn cut(&mut self) {
        self.full = true;
    }

    /// The memory of the messages taken so far, in bytes.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.messages.iter().map(memory).sum()
    }

    /// The turns that are kept, oldest message first, and whether older messages are left out.
    #[must_use]
    pub fn finish(mut self) -> (Vec<Message>, bool) {
        let all = !self.full && self.whole == 0; // no user's message begins a turn
        let truncated = self.full || (!all && self.whole < self.messages.len());
        if !all {
            self.messages.truncate(self.whole);
        }
        self.messages.reverse();
        (self.messages, truncated)
    }
}

/// A message's size in tokens, estimated.
#[must_use]
pub fn tokens(message: &Message) -> u64 {
    let calls: usize = message
        .tool_calls
        .iter()
        .map(|call| {
            call.name.len()
                + call
                    .arguments
                    .iter()
                    .map(|(k, v)| k.len() + v.to_string().len())
                    .sum::<usize>()
        })
        .sum();
    let (bytes, least) = IMAGE_TOKENS;
    let images = message.attachments.iter();
    let images: u64 = images.map(|image| (image.data.len() as u64 / bytes).max(least)).sum();
    usage::estimate(message.content.len() + calls) + images
}

/// The memory that a message of a request takes, in bytes: its images once, and everything else twice, because it is
/// there as a value and in the encoded request.
#[must_use]
pub fn memory(message: &Message) -> usize {
    let calls = message.tool_calls.iter().map(|call| members(&call.arguments));
    let carried = message.carry.iter().map(|carry| super::message::held(&carry.data));
    let text = message.content.len() + calls.sum::<usize>() + carried.sum::<usize>();
    let images = message.attachments.iter().map(|image| image.data.len());
    size_of::<Message>() + 2 * text + images.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::Image;

    fn talk() -> Vec<Message> {
        let words = "x".repeat(40); // ten tokens
        vec![
            Message::user(words.clone(), vec![]),
            Message::assistant(words.clone(), vec![]),
            Message::user(words.clone(), vec![]),
            Message::assistant("", vec![]),
            Message::tool("c", words.clone()),
            Message::assistant(words.clone(), vec![]),
            Message::user(words, vec![]),
        ]
    }

    /// Where what is kept begins; `None` if nothing is left out.
    fn cut(talk: &[Message], limit: u64) -> Option<usize> {
        let mut newest = Newest::new(limit);
        let _ = talk.iter().rev().cloned().all(|message| newest.push(message));
        let (kept, truncated) = newest.finish();
        assert_eq!(kept, talk[talk.len() - kept.len()..]);
        truncated.then_some(talk.len() - kept.len())
    }

    #[test]
    fn whole_turns_go_oldest_first_and_the_last_one_stays() {
        let talk = talk();
        assert_eq!(cut(&talk, 60), None);
        assert_eq!(cut(&talk, 59), Some(2));
        assert_eq!(cut(&talk, 40), Some(2));
        assert_eq!(cut(&talk, 39), Some(6));
        assert_eq!(cut(&talk, 1), Some(6));
        assert_eq!(cut(&[], 1), None);
        // What follows no user's message is no turn.
        assert_eq!(cut(&talk[1..], 100), Some(1));
        assert_eq!(cut(&talk[1..2], 100), None);
    }

    #[test]
    fn a_turn_that_is_not_handed_over_whole_is_left_out() {
        let mut newest = Newest::new(100);
        for message in talk()[3..].iter().rev() {
            assert!(newest.push(message.clone()));
        }
        newest.cut();
        let (kept, truncated) = newest.finish();
        assert_eq!((kept.as_slice(), truncated), (&talk()[6..], true));
        let mut none = Newest::new(100);
        assert!(none.push(Message::assistant("Half", vec![])));
        none.cut();
        assert_eq!(none.finish(), (vec![], true));
    }

    #[test]
    fn an_image_counts_by_its_size() {
        let image = |bytes: usize| Image {
            media_type: "image/png".into(),
            data: "A".repeat(bytes).into(),
        };
        let asked = |images: Vec<Image>| tokens(&Message::user("", images));
        assert_eq!(asked(vec![image(4)]), 1_000);
        assert_eq!(asked(vec![image(4), image(512 * 5_000)]), 6_000);
        let message = Message::user("x".repeat(100), vec![image(1_000)]);
        assert_eq!(memory(&message), size_of::<Message>() + 1_200);
    }
}
