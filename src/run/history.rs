//! The part of a session's history that a run sends to its model: read newest first, no more of it than is sent, and only
//! as far as there is memory for it.

use super::Runs;
use crate::{
    chat::{Message, Principal, SessionId, history::Newest},
    error::Error,
    limit::{MemoryUse, Reservation},
    store::{ReadFrom, ReadLimit, Session},
};

/// How many bytes are read at first, which is all there is of most histories, and at a time from then on.
const FIRST: usize = 64 << 10;
const NEXT: usize = 512 << 10;
/// How many messages are read at a time.
const ROWS: u32 = 256;

/// A session and its newest turns.
#[derive(Debug)]
pub(super) struct History {
    /// The session as of the first read.
    pub(super) session: Session,
    /// The turns, oldest message first.
    pub(super) messages: Vec<Message>,
    /// Whether older turns are left out.
    pub(super) truncated: bool,
}

impl Runs {
    /// Reads the newest turns that a model can be sent. `memory` holds what they take from then on, beside what it held.
    ///
    /// # Errors
    /// The store's, and `overloaded`.
    pub(super) async fn history(
        &self,
        principal: &Principal,
        id: &SessionId,
        memory: &mut Reservation,
    ) -> Result<Option<History>, Error> {
        let before = memory.bytes();
        let mut newest = Newest::new(self.limits.max_history_tokens);
        let mut known: Option<Session> = None;
        let (mut at, mut part, mut left) = (ReadFrom::Newest, FIRST, self.limits.max_history_bytes);
        loop {
            part = part.min(left);
            // What is read is there twice for a moment: as a row, and as a value.
            let needed = before + newest.memory() + 2 * part;
            if known.is_some() && needed > memory.most() {
                newest.cut();
                break;
            }
            memory.grow_to(needed, MemoryUse::Stored).await?;
            let limit = ReadLimit {
                rows: ROWS,
                bytes: part as u64,
            };
            let Some(page) = self.store.messages(principal, id, at, limit).await? else {
                return Ok(None);
            };
            let session = known.get_or_insert_with(|| page.session.clone());
            // A turn that is written meanwhile makes the version of the first read a conflict: nothing is gone on with.
            let same = session.version == page.session.version;
            let wanted = same
                && page
                    .messages
                    .into_iter()
                    .rev()
                    .all(|stored| newest.push(stored.message));
            left = left.saturating_sub(usize::try_from(page.bytes).unwrap_or(usize::MAX));
            let next = page.next_bytes.map(|next| usize::try_from(next).unwrap_or(usize::MAX));
            match next {
                None if wanted => break,
                Some(next) if wanted && next <= left => {
                    (at, part) = (ReadFrom::Before(page.first), next.max(NEXT));
                }
                _ => {
                    newest.cut();
                    break;
                }
            }
        }
        memory.shrink_to(before + newest.memory());
        let (messages, truncated) = newest.finish();
        Ok(known.map(|session| History {
            session,
            messages,
            truncated,
        }))
    }
}
