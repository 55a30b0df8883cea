//! A deadline that moves often and is looked at seldom.
//!
//! Resetting a timer for every token costs more than the token. [`Patience`] only notes when patience will end, and
//! lets the timer find out, when it fires, that it has been given longer.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep};

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
        let until = Instant::now() + patience;
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

    /// Whether it will have ended at that moment.
    #[must_use]
    pub fn ends_before(&self, moment: Instant) -> bool {
        self.until <= moment
    }

    /// Ready once patience has ended.
    pub fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            std::task::ready!(self.sleep.as_mut().poll(cx));
            if self.until <= Instant::now() {
                return Poll::Ready(());
            }
            self.sleep.as_mut().reset(self.until);
        }
    }

    /// Waits until patience has ended.
    pub async fn over(&mut self) {
        std::future::poll_fn(|cx| self.poll_over(cx)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
