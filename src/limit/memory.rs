//! The memory of requests: one budget for the whole gateway, from which everything is reserved whose size a caller
//! chooses. Request bodies, histories, pages and stored results wait for their part of it, or are refused with
//! `503 overloaded`, so that no caller can make the process end.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use tokio::sync::Semaphore;

use crate::{
    chat::Principal,
    error::{Error, ErrorCode},
    meters::{Meters, Shed},
};

/// The bytes of each reservation that are not counted: as much as a connection takes anyway. Most requests need no more.
const FREE: usize = 16 << 10;
/// The unit of the budget, in bytes.
const UNIT: usize = 1 << 10;
/// How long a body waits for memory. Its sender is still sending, so that a refusal must come soon.
const BODY_PATIENCE: Duration = Duration::from_millis(40);
/// How long a read from the store waits for memory.
const READ_PATIENCE: Duration = Duration::from_secs(1);

/// The budget. One caller can reserve half of it, so that no caller keeps the others out.
#[derive(Clone)]
pub struct MemoryBudget(Arc<Inner>);

struct Inner {
    all: Arc<Semaphore>,
    /// How many units one caller may hold.
    share: usize,
    /// The shares of the callers that hold something.
    shares: Mutex<HashMap<Principal, Weak<Semaphore>>>,
    meters: Arc<Meters>,
}

/// The purpose of a reservation: how long it waits, and how its refusal is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryUse {
    /// A request's body that is being received.
    Body,
    /// Data that is read from the store: a history, a page, a result.
    Stored,
}

impl MemoryBudget {
    /// A budget of so many bytes.
    #[must_use]
    pub fn new(bytes: usize, meters: Arc<Meters>) -> Self {
        let units = (bytes / UNIT).min(Semaphore::MAX_PERMITS);
        Self(Arc::new(Inner {
            all: Arc::new(Semaphore::new(units)),
            share: (units / 2).max(1),
            shares: Mutex::default(),
            meters,
        }))
    }

    /// A reservation of nothing, for this caller.
    #[must_use]
    pub fn reserve_nothing(&self, principal: &Principal) -> Reservation {
        Reservation {
            budget: self.clone(),
            principal: principal.clone(),
            share: None,
            units: 0,
            bytes: 0,
        }
    }

    fn share_of(&self, principal: &Principal) -> Arc<Semaphore> {
        let mut shares = self.0.shares.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = shares.get(principal).and_then(Weak::upgrade) {
            return share;
        }
        shares.retain(|_, share| share.strong_count() > 0);
        let share = Arc::new(Semaphore::new(self.0.share));
        shares.insert(principal.clone(), Arc::downgrade(&share));
        share
    }
}

impl fmt::Debug for MemoryBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryBudget")
            .field("free_units", &self.0.all.available_permits())
            .finish_non_exhaustive()
    }
}

/// Memory that is reserved for one request or run. Dropping it gives it back.
#[derive(Debug)]
pub struct Reservation {
    budget: MemoryBudget,
    principal: Principal,
    /// The caller's share, once something of it is held.
    share: Option<Arc<Semaphore>>,
    /// How many units of the share, and of the whole budget, are held.
    units: usize,
    /// What was asked for.
    bytes: usize,
}

impl Reservation {
    /// How many bytes are reserved, those that are not counted among them.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The most bytes that this caller may have reserved at all.
    #[must_use]
    pub fn most(&self) -> usize {
        self.budget.0.share * UNIT + FREE
    }

    /// Reserves what lacks to so many bytes. Waits a moment where others hold it.
    ///
    /// # Errors
    /// `overloaded`; what was reserved before stays reserved.
    pub async fn grow_to(&mut self, bytes: usize, purpose: MemoryUse) -> Result<(), Error> {
        let due = bytes.saturating_sub(FREE).div_ceil(UNIT);
        let lacking = due.saturating_sub(self.units);
        if lacking > 0 {
            let (patience, shed) = match purpose {
                MemoryUse::Body => (BODY_PATIENCE, Shed::Bodies),
                MemoryUse::Stored => (READ_PATIENCE, Shed::Budget),
            };
            let share = self.share.get_or_insert_with(|| self.budget.share_of(&self.principal));
            let (share, all) = (share.clone(), self.budget.0.all.clone());
            // The own share first, so that a caller who has enough does not stand in the line for what is everybody's.
            let taken = async {
                let permits = u32::try_from(lacking).ok()?;
                let own = share.acquire_many(permits).await.ok()?;
                let of_all = all.acquire_many(permits).await.ok()?;
                own.forget();
                of_all.forget();
                Some(())
            };
            let fits = due <= self.budget.0.share; // otherwise the wait would be in vain
            let taken = async { if fits { taken.await } else { None } };
            if !matches!(tokio::time::timeout(patience, taken).await, Ok(Some(()))) {
                self.budget.0.meters.shed(shed);
                let message = "This gateway holds as much for its callers, or for this caller, as it may.";
                let full = Error::new(ErrorCode::Overloaded, message);
                return Err(full.retry_after(Duration::from_secs(1)));
            }
            self.units += lacking;
        }
        self.bytes = self.bytes.max(bytes);
        Ok(())
    }

    /// Gives back what is reserved beyond so many bytes.
    pub fn shrink_to(&mut self, bytes: usize) {
        if bytes >= self.bytes {
            return;
        }
        self.bytes = bytes;
        let due = bytes.saturating_sub(FREE).div_ceil(UNIT);
        let surplus = self.units.saturating_sub(due);
        if let Some(share) = self.share.as_ref().filter(|_| surplus > 0) {
            self.units -= surplus;
            share.add_permits(surplus);
            self.budget.0.all.add_permits(surplus);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(bytes: usize) -> MemoryBudget {
        MemoryBudget::new(bytes, Arc::default())
    }

    fn free(budget: &MemoryBudget) -> usize {
        budget.0.all.available_permits() * UNIT
    }

    #[tokio::test(start_paused = true)]
    async fn one_caller_gets_half_and_leaves_the_other_half_to_others() {
        let budget = budget(8 << 20);
        let (ada, bob) = (Principal::named("ada"), Principal::named("bob"));
        let mut first = budget.reserve_nothing(&ada);
        first.grow_to(3 << 20, MemoryUse::Stored).await.unwrap();
        let mut second = budget.reserve_nothing(&ada);
        let refused = second.grow_to(2 << 20, MemoryUse::Body).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::Overloaded);
        assert!(refused.retry_after.is_some());
        second.grow_to(1 << 20, MemoryUse::Body).await.unwrap();
        let mut other = budget.reserve_nothing(&bob);
        other.grow_to(4 << 20, MemoryUse::Stored).await.unwrap();
        drop((first, second, other));
        assert_eq!(free(&budget), 8 << 20);
        assert!(
            budget
                .0
                .shares
                .lock()
                .unwrap()
                .values()
                .all(|share| share.strong_count() == 0)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_gets_what_is_given_back_in_time() {
        let budget = budget(4 << 20);
        let ada = Principal::named("ada");
        let mut first = budget.reserve_nothing(&ada);
        first.grow_to(2 << 20, MemoryUse::Stored).await.unwrap();
        let mut second = budget.reserve_nothing(&ada);
        let (grown, ()) = tokio::join!(second.grow_to(1 << 20, MemoryUse::Stored), async {
            tokio::time::sleep(READ_PATIENCE / 2).await;
            first.shrink_to(1 << 20);
        });
        grown.unwrap();
        assert_eq!((first.bytes(), second.bytes()), (1 << 20, 1 << 20));
        // A future that is dropped while it waits holds nothing.
        let mut third = budget.reserve_nothing(&ada);
        let waiting = third.grow_to(1 << 20, MemoryUse::Stored);
        assert!(tokio::time::timeout(Duration::from_millis(1), waiting).await.is_err());
        drop((first, second, third));
        assert_eq!(free(&budget), 4 << 20);
    }

    #[tokio::test(start_paused = true)]
    async fn a_small_reservation_is_free_and_more_than_a_share_is_refused_at_once() {
        let budget = budget(1 << 20);
        let ada = Principal::named("ada");
        let mut small = budget.reserve_nothing(&ada);
        small.grow_to(FREE, MemoryUse::Body).await.unwrap();
        assert_eq!(free(&budget), 1 << 20);
        let began = tokio::time::Instant::now();
        let refused = small.grow_to(1 << 20, MemoryUse::Stored).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::Overloaded);
        assert_eq!(began.elapsed(), Duration::ZERO);
        assert_eq!(small.bytes(), FREE);
    }
}
