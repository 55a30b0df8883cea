//! Results of runs whose logs are gone: read from the store once for all who ask for them at the same time, and only as far
//! as there is memory for them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use super::Runs;
use crate::{
    chat::{Done, RunId},
    error::Error,
    limit::{MemoryUse, Reservation},
    store::RunRecord,
};

/// A result that was read from the store, and the memory that it takes as long as somebody holds it.
#[derive(Debug)]
pub struct StoredResult {
    done: Box<Done>,
    _memory: Reservation,
}

/// The place of a result: whoever loads it holds the lock meanwhile.
type Slot = Arc<tokio::sync::Mutex<Weak<StoredResult>>>;

/// The results that somebody holds, or loads.
#[derive(Default)]
pub(super) struct StoredResults(Mutex<HashMap<RunId, Slot>>);

impl StoredResults {
    fn slot(&self, run: RunId) -> Slot {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slots.retain(|_, slot| {
            let held = || slot.try_lock().is_ok_and(|result| result.strong_count() > 0);
            Arc::strong_count(slot) > 1 || held()
        });
        slots.entry(run).or_default().clone()
    }
}

impl Runs {
    /// Puts the result into a run's record, if it has one. Whoever uses it must hold what this returns.
    ///
    /// # Errors
    /// The store's, and `overloaded`.
    pub(super) async fn load_result(&self, record: &mut RunRecord) -> Result<Option<Arc<StoredResult>>, Error> {
        let Some((end, bytes)) = record
            .end
            .as_mut()
            .and_then(|end| end.result_bytes.map(|bytes| (end, bytes)))
        else {
            return Ok(None);
        };
        let slot = self.results.slot(record.id);
        let mut known = slot.lock().await;
        let result = match known.upgrade() {
            Some(result) => result,
            None => {
                let mut memory = self.memory.reserve_nothing(&record.principal);
                let bytes = usize::try_from(bytes).unwrap_or(usize::MAX).min(memory.most());
                // While it is read it is there three times: as a row, as text, and as what is made of it.
                let reading = bytes.saturating_mul(3).min(memory.most());
                memory.grow_to(reading, MemoryUse::Stored).await?;
                let Some(done) = self.store.result(&record.principal, record.id).await? else {
                    return Ok(None); // erased meanwhile
                };
                memory.shrink_to(bytes);
                let result = Arc::new(StoredResult {
                    done: Box::new(done.sharing()),
                    _memory: memory,
                });
                *known = Arc::downgrade(&result);
                result
            }
        };
        end.done = Some(result.done.clone());
        Ok(Some(result))
    }
}
