//! One piece of work for all that ask for it at the same time.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex},
};

use tokio::sync::OnceCell;

use super::held;

/// Work under way, by what it is about.
#[derive(Debug)]
pub(in crate::run) struct Flights<K, T>(Mutex<HashMap<K, Arc<OnceCell<T>>>>);

impl<K, T> Default for Flights<K, T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Clone + Eq + Hash, T: Clone> Flights<K, T> {
    /// Does the work, or waits for somebody who does the same. If the one who does it is dropped,
    /// another one begins it again. Who comes after the work is done does it anew.
    pub(in crate::run) async fn join<F: Future<Output = T>>(&self, key: K, work: impl FnOnce() -> F) -> T {
        let cell = held(&self.0).entry(key.clone()).or_default().clone();
        let passenger = Passenger {
            flights: self,
            key,
            cell,
        };
        passenger.cell.get_or_init(work).await.clone()
    }
}

struct Passenger<'a, K: Eq + Hash, T> {
    flights: &'a Flights<K, T>,
    key: K,
    cell: Arc<OnceCell<T>>,
}

impl<K: Eq + Hash, T> Drop for Passenger<'_, K, T> {
    fn drop(&mut self) {
        let mut flights = held(&self.flights.0);
        let ours = flights.get(&self.key).is_some_and(|cell| Arc::ptr_eq(cell, &self.cell));
        // The map has one, and this is the last one beside it.
        if ours && (self.cell.initialized() || Arc::strong_count(&self.cell) == 2) {
            flights.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    use futures_util::future::join_all;
    use tokio::time::{sleep, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn work_is_done_once_for_all_that_ask_at_the_same_time() {
        let (flights, done) = (Flights::default(), AtomicUsize::new(0));
        let work = || async {
            sleep(Duration::from_millis(10)).await;
            done.fetch_add(1, Ordering::SeqCst)
        };
        let one = |key: u8| flights.join(key, work);
        assert_eq!(join_all([one(1), one(1), one(1)]).await, [0, 0, 0]);
        assert_eq!(one(1).await, 1, "anew");
        // Whoever began it goes, and the next one does it.
        let (gone, stays) = tokio::join!(timeout(Duration::from_millis(5), one(2)), one(2));
        assert!(gone.is_err());
        assert_eq!(stays, 2);
        let _ = timeout(Duration::from_millis(5), one(3)).await;
        assert!(held(&flights.0).is_empty(), "nothing is left behind");
    }
}
