//! What gateways count together, as long as the tally answers. While it does not, each counts by itself: a caller then has
//! its limit at every gateway. Nobody waits for a tally for long, and nobody waits twice for one that was slow.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout},
};

use crate::{
    chat::RunId,
    error::Error,
    store::tally::{Counting, Place, Tally},
};

/// How long a request waits for the tally: longer than a machine that is busy takes to answer, because who does not wait
/// lets in as many again.
const PATIENCE: Duration = Duration::from_millis(250);
/// How long a place is kept for a gateway that says nothing any more, and how often it is asked for again.
const KEEP: Duration = Duration::from_secs(15);
const RENEW: Duration = Duration::from_secs(5);
/// How long to wait before a tally that failed once more is tried again, at first and at most: one that was well for as long
/// as the most is tried at once.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// How long the start waits for the tally.
const START: Duration = Duration::from_millis(250);

/// What is counted together.
pub struct Common {
    tally: Arc<dyn Tally>,
    /// Whether it answered last.
    well: AtomicBool,
    /// Rung when it did not, and when places are to be given back.
    bell: Notify,
    places: Mutex<Places>,
}

#[derive(Default)]
struct Places {
    /// Of the runs of this gateway whose callers may have so many.
    held: HashMap<RunId, Place>,
    /// To be given back.
    left: Vec<Place>,
}

impl Common {
    /// Counts with this tally, which need not be there yet.
    #[must_use]
    pub fn new(tally: Arc<dyn Tally>) -> Self {
        Self {
            tally,
            well: AtomicBool::new(false),
            bell: Notify::new(),
            places: Mutex::default(),
        }
    }

    /// What to ask.
    pub(super) fn tally(&self) -> &dyn Tally {
        &*self.tally
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects, so that the first request is counted by all; a tally that is not there is not waited for.
    pub async fn begin(&self) {
        let cause = match timeout(START, self.tally.ready()).await {
            Ok(Ok(())) => return self.well.store(true, Ordering::Release),
            Ok(Err(error)) => error.causes(),
            Err(_) => "no answer in time".to_owned(),
        };
        tracing::warn!(
            cause,
            "limits are counted by each gateway for itself until Redis can be used"
        );
    }

    /// What the tally says, if it does so in time.
    pub(super) async fn ask<T>(&self, asked: impl Future<Output = Result<T, Error>>) -> Option<T> {
        if !self.well.load(Ordering::Acquire) {
            return None;
        }
        match timeout(PATIENCE, asked).await {
            Ok(Ok(told)) => return Some(told),
            Ok(Err(error)) => self.lost(&error.causes()),
            Err(_) => self.lost("no answer in time"),
        }
        None
    }

    /// A run asks to be let in: whether other gateways have not let in all that may be. Until [`Common::leave`] or
    /// [`Common::drop_out`] its place is held, whether the tally was there or not.
    pub async fn enter(&self, place: Place, limit: usize, counting: Counting) -> bool {
        self.places().held.insert(place.run, place.clone());
        let entered = self.ask(self.tally.enter(&place, limit, counting, KEEP)).await;
        if entered == Some(false) {
            self.places().held.remove(&place.run);
        }
        entered.unwrap_or(true)
    }

    /// A run ends: its place is free when this returns, or a little later.
    pub async fn leave(&self, run: RunId) {
        let place = self.places().held.remove(&run);
        if let Some(place) = place {
            self.ask(self.tally.leave(&[place])).await;
        }
    }

    /// The same, without waiting for it.
    pub fn drop_out(&self, run: RunId) {
        let mut places = self.places();
        // One that is away forgets it by itself.
        if let Some(place) = places.held.remove(&run)
            && self.well.load(Ordering::Acquire)
        {
            places.left.push(place);
            self.bell.notify_one();
        }
    }

    fn lost(&self, cause: &str) {
        if self.well.swap(false, Ordering::AcqRel) {
            tracing::warn!(
                cause,
                "limits are counted by each gateway for itself until Redis can be used"
            );
            self.bell.notify_one();
        }
    }

    /// Keeps the places of this gateway's runs, and tries to reach a tally that is away, for ever.
    pub async fn tend(&self) {
        let (mut pause, mut since, mut renewed) = (Duration::ZERO, Instant::now(), Instant::now());
        loop {
            if !self.well.load(Ordering::Acquire) {
                if since.elapsed() >= BACK_OFF.1 {
                    pause = Duration::ZERO;
                }
                self.found(&mut pause).await;
                since = Instant::now();
                renewed = since - RENEW; // whatever the tally has lost is said again
            }
            let left = std::mem::take(&mut self.places().left);
            if !left.is_empty()
                && let Err(error) = self.tally.leave(&left).await
            {
                self.lost(&error.causes());
                continue;
            }
            if renewed.elapsed() >= RENEW {
                renewed = Instant::now();
                if let Err(error) = self.renew().await {
                    self.lost(&error.causes());
                    continue;
                }
            }
            let _ = timeout(RENEW.saturating_sub(renewed.elapsed()), self.bell.notified()).await;
        }
    }

    /// Waits until the tally answers, and quickly.
    async fn found(&self, pause: &mut Duration) {
        loop {
            sleep(*pause).await;
            *pause = (*pause * 2).clamp(BACK_OFF.0, BACK_OFF.1);
            // The first answer may take as long as a connection does, the next one not.
            if self.tally.ready().await.is_ok() && matches!(timeout(PATIENCE, self.tally.ready()).await, Ok(Ok(()))) {
                self.well.store(true, Ordering::Release);
                tracing::info!("limits are counted together with the other gateways");
                return;
            }
        }
    }

    async fn renew(&self) -> Result<(), Error> {
        let held: Vec<Place> = self.places().held.values().cloned().collect();
        if held.is_empty() {
            return Ok(());
        }
        self.tally.stay(&held, KEEP).await?;
        // A run that ended meanwhile may have given its place back before it was asked for again.
        let gone: Vec<Place> = {
            let places = self.places();
            held.into_iter()
                .filter(|place| !places.held.contains_key(&place.run))
                .collect()
        };
        if gone.is_empty() {
            Ok(())
        } else {
            self.tally.leave(&gone).await
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use futures_util::future::BoxFuture;

    use super::*;
    use crate::{
        chat::Principal,
        error::ErrorCode,
        limit::{Errand, Limiter, window::Window},
        store::tally::Counted,
    };

    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Mood {
        Well,
        Stalled,
        Away,
    }

    /// A tally for one caller, in whatever mood.
    struct Fake {
        mood: Mutex<Mood>,
        asked: AtomicUsize,
        window: Mutex<Window>,
        places: Mutex<HashMap<RunId, Place>>,
    }

    impl Fake {
        fn new() -> Arc<Self> {
            Arc::new(Self {
                mood: Mutex::new(Mood::Well),
                asked: AtomicUsize::new(0),
                window: Mutex::default(),
                places: Mutex::default(),
            })
        }

        fn feels(&self, mood: Mood) {
            *self.mood.lock().unwrap() = mood;
        }

        async fn answer<T>(&self, what: impl FnOnce() -> T) -> Result<T, Error> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            let mood = *self.mood.lock().unwrap();
            match mood {
                Mood::Well => Ok(what()),
                Mood::Stalled => std::future::pending().await,
                Mood::Away => Err(Error::new(ErrorCode::StoreUnavailable, "away")),
            }
        }
    }

    impl Tally for Fake {
        fn ready(&self) -> BoxFuture<'_, Result<(), Error>> {
            Box::pin(async {
                let answer = timeout(Duration::from_secs(1), self.answer(|| ())).await;
                answer.unwrap_or_else(|_| Err(Error::new(ErrorCode::StoreUnavailable, "slow")))
            })
        }

        fn count<'a>(
            &'a self,
            _who: &'a Principal,
            limit: u32,
            _window: Duration,
        ) -> BoxFuture<'a, Result<Counted, Error>> {
            Box::pin(self.answer(move || {
                let (mut window, now) = (self.window.lock().unwrap(), Instant::now());
                match window.admit(now, limit) {
                    Ok(()) => {
                        let standing = window.standing(now, limit);
                        Counted::In {
                            remaining: standing.remaining,
                            reset: standing.reset,
                        }
                    }
                    Err(wait) => Counted::Out(wait),
                }
            }))
        }

        fn enter<'a>(
            &'a self,
            place: &'a Place,
            limit: usize,
            _counting: Counting,
            _keep: Duration,
        ) -> BoxFuture<'a, Result<bool, Error>> {
            Box::pin(self.answer(move || {
                let mut places = self.places.lock().unwrap();
                let room = places.len() < limit;
                if room {
                    places.insert(place.run, place.clone());
                }
                room
            }))
        }

        fn stay<'a>(&'a self, places: &'a [Place], _keep: Duration) -> BoxFuture<'a, Result<(), Error>> {
            Box::pin(self.answer(move || {
                let kept = places.iter().map(|place| (place.run, place.clone()));
                self.places.lock().unwrap().extend(kept);
            }))
        }

        fn leave<'a>(&'a self, places: &'a [Place]) -> BoxFuture<'a, Result<(), Error>> {
            Box::pin(self.answer(move || {
                let mut all = self.places.lock().unwrap();
                places.iter().for_each(|place| drop(all.remove(&place.run)));
            }))
        }
    }

    async fn gateway(tally: &Arc<Fake>) -> (Limiter, Arc<Common>) {
        let common = Arc::new(Common::new(tally.clone()));
        common.begin().await;
        let tended = common.clone();
        tokio::spawn(async move { tended.tend().await });
        (Limiter::new(Some(common.clone())), common)
    }

    /// How many of so many are admitted.
    async fn admitted(limiter: &Limiter, limit: u32, of: usize) -> usize {
        let (who, mut admitted) = (Principal::named("a"), 0);
        for _ in 0..of {
            let verdict = limiter.admit(&who, limit, Errand::Ask).await.unwrap();
            admitted += usize::from(verdict.outcome.is_ok());
        }
        admitted
    }

    fn place() -> Place {
        Place {
            principal: Principal::named("a"),
            run: RunId::new(),
            session: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn two_gateways_admit_what_one_would_and_remember_what_is_refused() {
        let tally = Fake::new();
        let ((one, _), (other, _)) = (gateway(&tally).await, gateway(&tally).await);
        for _ in 0..5 {
            assert_eq!(admitted(&one, 10, 7).await, 7);
            assert_eq!(admitted(&other, 10, 7).await, 3);
            let asked = tally.asked.load(Ordering::SeqCst);
            assert_eq!(admitted(&one, 10, 500).await + admitted(&other, 10, 500).await, 0);
            assert!(
                tally.asked.load(Ordering::SeqCst) <= asked + 2,
                "a flood reaches the tally"
            );
            tokio::time::advance(crate::limit::MINUTE).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_tally_that_stalls_is_waited_for_once() {
        let tally = Fake::new();
        let ((one, _), (other, _)) = (gateway(&tally).await, gateway(&tally).await);
        assert_eq!(admitted(&one, 10, 2).await, 2);
        tally.feels(Mood::Stalled);
        let begun = Instant::now();
        assert_eq!(admitted(&one, 10, 30).await, 8, "each has the limit for itself");
        assert_eq!(admitted(&other, 10, 30).await, 10);
        assert_eq!(begun.elapsed(), PATIENCE * 2);
        tally.feels(Mood::Well);
        sleep(Duration::from_secs(65)).await;
        assert_eq!(
            admitted(&one, 10, 8).await + admitted(&other, 10, 8).await,
            10,
            "together again"
        );
        tally.feels(Mood::Away);
        tokio::time::advance(crate::limit::MINUTE).await;
        let begun = Instant::now();
        assert_eq!(admitted(&one, 10, 30).await + admitted(&other, 10, 30).await, 20);
        assert!(begun.elapsed().is_zero());
    }

    #[tokio::test(start_paused = true)]
    async fn places_outlive_a_tally_that_loses_them() {
        let tally = Fake::new();
        let ((_, one), (_, other)) = (gateway(&tally).await, gateway(&tally).await);
        let (first, second) = (place(), place());
        assert!(one.enter(first.clone(), 2, Counting::All).await);
        assert!(other.enter(second.clone(), 2, Counting::All).await);
        assert!(!one.enter(place(), 2, Counting::All).await);
        tally.places.lock().unwrap().clear();
        sleep(RENEW * 2).await;
        assert!(!one.enter(place(), 2, Counting::All).await, "they were asked for again");
        tally.feels(Mood::Away);
        let third = place();
        assert!(one.enter(third.clone(), 2, Counting::All).await, "nobody knows better");
        one.leave(first.run).await;
        tally.feels(Mood::Well);
        tally.places.lock().unwrap().clear();
        sleep(RENEW * 2).await;
        let held = |run: RunId| tally.places.lock().unwrap().contains_key(&run);
        assert!(held(second.run) && held(third.run) && !held(first.run));
        one.drop_out(third.run);
        other.leave(second.run).await;
        sleep(Duration::from_millis(1)).await;
        assert!(tally.places.lock().unwrap().is_empty());
    }
}
