//! A deadline that moves often and is looked at seldom.
//!
//! Resetting a timer for every token costs more than the token. [`Patience`] only notes when patience will end, and
//! lets the timer find out, when it fires, that it has been given longer.
//!
//! A timer that fires much too late was not looked at in time: the process was stopped, or had no processor. What was
//! waited for may have arrived meanwhile and only not have been read yet, so there is a moment more for that.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep};

/// By how much a timer fires too late if nothing was looked at in between.
const LATE: Duration = Duration::from_millis(250);
/// How long it may then take to read what arrived meanwhile.
const AFTERWARDS: Duration = Duration::from_millis(500);

/// Waits until nothing happened for as long as it was told.
#[derive(Debug)]
pub struct Patience {
    sleep: Pin<Box<Sleep>>,
    until: Instant,
}

impl Patience {
    /// Ends `patience` from now, unless extended.
    #[must_use]
    pub fn new(patience: Duration) -> Self {
        Self::until(Instant::now() + patience)
    }

    /// Ends at that moment, unless extended.
    #[must_use]
    pub fn until(until: Instant) -> Self {
        Self {
            sleep: Box::pin(tokio::time::sleep_until(until)),
            until,
        }
    }

    /// Something happened: ends `patience` from now. Cheap when that is later than before; right when it is earlier.
    pub fn extend(&mut self, patience: Duration) {
        self.until = Instant::now() + patience;
        if self.until < self.sleep.deadline() {
            self.sleep.as_mut().reset(self.until);
        }
    }

    /// Whether it had ended at that moment, which is now or was just now.
    pub fn ended_before(&mut self, moment: Instant) -> bool {
        match moment.checked_duration_since(self.until) {
            None => false,
            Some(late) if late >= LATE => {
                self.extend(AFTERWARDS);
                false
            }
            Some(_) => true,
        }
    }

    /// Ready once patience has ended.
    pub fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            std::task::ready!(self.sleep.as_mut().poll(cx));
            let now = Instant::now();
            match now.checked_duration_since(self.until) {
                None => {}
                Some(late) if late >= LATE => self.until = now + AFTERWARDS,
                Some(_) => return Poll::Ready(()),
            }
            self.sleep.as_mut().reset(self.until);
        }
    }

    /// Waits until patience has ended.
    pub async fn over(&mut self) {
        std::future::poll_fn(|cx| self.poll_over(cx)).await;
    }
}

/// The time was over.
#[derive(Debug, thiserror::Error)]
#[error("the time was over")]
pub struct Elapsed;

/// Waits for something, but not for longer than this.
///
/// # Errors
/// It took longer.
pub async fn timeout<T>(patience: Duration, work: impl Future<Output = T>) -> Result<T, Elapsed> {
    let mut patience = Patience::new(patience);
    tokio::select! {
        biased;
        done = work => Ok(done),
        () = patience.over() => Err(Elapsed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The clock jumps, as after a stop of the process: what was there to be read is read first.
    #[tokio::test(start_paused = true)]
    async fn after_a_jump_there_is_a_moment_to_read_what_came() {
        for (jump, more) in [(1_000, 0), (1_200, 0), (1_300, 500), (60_000, 500)] {
            let start = Instant::now();
            let mut patience = Patience::new(Duration::from_secs(1));
            assert!(!patience.ended_before(start));
            let mut over = std::pin::pin!(patience.over());
            assert!(futures_util::poll!(&mut over).is_pending());
            tokio::time::advance(Duration::from_millis(jump)).await;
            over.await;
            let took = start.elapsed().as_millis();
            let expected = u128::from(jump + more);
            assert!((expected..=expected + 2).contains(&took), "{jump}: {took}");
        }
        let mut patience = Patience::new(Duration::from_secs(1));
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(!patience.ended_before(Instant::now()), "nobody has looked for a minute");
        tokio::time::advance(Duration::from_millis(400)).await;
        assert!(!patience.ended_before(Instant::now()));
        tokio::time::advance(Duration::from_millis(101)).await;
        assert!(patience.ended_before(Instant::now()), "and there was nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_there_after_a_jump_counts_as_in_time() {
        let (say, heard) = tokio::sync::oneshot::channel();
        let waits = tokio::spawn(timeout(Duration::from_secs(1), heard));
        tokio::task::yield_now().await;
        tokio::time::advance(Duration::from_secs(60)).await;
        tokio::task::yield_now().await; // its timer has fired, and nothing was read yet
        say.send("word").unwrap();
        assert_eq!(waits.await.unwrap().unwrap().unwrap(), "word");
        let start = Instant::now();
        let never = std::future::pending::<()>();
        assert!(timeout(Duration::from_secs(1), never).await.is_err());
        assert_eq!(start.elapsed().as_secs(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn patience_can_be_given_and_taken() {
        let start = Instant::now();
        let mut patience = Patience::new(Duration::from_secs(1));
        tokio::time::advance(Duration::from_millis(900)).await;
        patience.extend(Duration::from_secs(1));
        patience.over().await;
        assert!((1900..=1901).contains(&start.elapsed().as_millis()));
        patience.extend(Duration::from_secs(60));
        patience.extend(Duration::from_millis(50));
        patience.over().await;
        assert!(
            (1950..=1951).contains(&start.elapsed().as_millis()),
            "a shorter wait is kept too"
        );
    }
}
