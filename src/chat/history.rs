//! What of a long conversation is sent: whole turns, the newest that fit.

use super::{Message, Role, usage};

/// Where to begin so that what follows is estimated at no more than `limit` tokens: the start of a turn (a user's
/// message). The last turn is always sent, whatever its size. 0 means: all of it.
#[must_use]
pub fn fit(messages: &[Message], limit: u64) -> usize {
    let mut start = messages.len();
    let mut total = 0;
    for (at, message) in messages.iter().enumerate().rev() {
        total += tokens(message);
        if total > limit && start < messages.len() {
            break;
        }
        if message.role == Role::User {
            start = at;
        }
    }
    if start == messages.len() { 0 } else { start }
}

/// A message's size in tokens, estimated; an image counts as a thousand.
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
    usage::estimate(message.content.len() + calls) + 1_000 * message.attachments.len() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn whole_turns_go_oldest_first_and_the_last_one_stays() {
        let talk = talk();
        assert_eq!(fit(&talk, 60), 0);
        assert_eq!(fit(&talk, 59), 2);
        assert_eq!(fit(&talk, 40), 2);
        assert_eq!(fit(&talk, 39), 6);
        assert_eq!(fit(&talk, 1), 6);
        assert_eq!(fit(&[], 1), 0);
    }
}
