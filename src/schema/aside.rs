//! What takes time, done where nobody waits for it who does not want it, and only a little of it at a time: such work
//! cannot be stopped, and what asked for it may be gone long before it is done.

use std::sync::{Arc, LazyLock};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Where values are checked.
pub static CHECKING: LazyLock<Aside> = LazyLock::new(|| Aside::new(few()));
/// Where schemas are compiled. Apart, so that a run can begin while others' answers are checked.
pub static COMPILING: LazyLock<Aside> = LazyLock::new(|| Aside::new(few()));

/// Half of the processors, but two at least.
fn few() -> usize {
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    (all / 2).max(2)
}

/// Threads on which so much is done at a time; the rest waits its turn without one.
#[derive(Debug)]
pub struct Aside {
    room: Arc<Semaphore>,
}

impl Aside {
    fn new(room: usize) -> Self {
        let room = Arc::new(Semaphore::new(room));
        Self { room }
    }

    /// Waits for a place. Dropping the future leaves the queue.
    pub async fn place(&self) -> Place {
        Place(self.room.clone().acquire_owned().await.ok())
    }
}

/// A place where something can be done.
#[derive(Debug)]
pub struct Place(Option<OwnedSemaphorePermit>);

impl Place {
    /// Does it; `None` if it broke. The place is taken until it is done, whether or not somebody still waits for that.
    pub async fn run<T: Send + 'static>(self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let Self(held) = self;
        let work = tokio::task::spawn_blocking(move || {
            let done = work();
            drop(held);
            done
        });
        work.await.ok()
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, task::Poll};

    use super::*;

    #[tokio::test]
    async fn what_is_over_the_room_waits_and_leaves_nothing_when_it_goes() {
        let aside = Aside::new(1);
        let (go, gone) = mpsc::sync_channel::<()>(1);
        let first = aside.place().await;
        let mut first = Box::pin(first.run(move || gone.recv().is_ok()));
        assert!(futures_util::poll!(&mut first).is_pending());
        assert_eq!(aside.room.available_permits(), 0);

        let mut second = Box::pin(aside.place());
        let mut third = Box::pin(aside.place());
        assert!(futures_util::poll!(&mut second).is_pending() && futures_util::poll!(&mut third).is_pending());
        drop(second);

        // Nobody waits for the first any more, but it is still being done.
        drop(first);
        assert!(futures_util::poll!(&mut third).is_pending());

        go.send(()).unwrap();
        let place = third.await;
        assert_eq!(aside.room.available_permits(), 0);
        drop(place);
        assert_eq!(aside.room.available_permits(), 1);
    }

    #[tokio::test]
    async fn what_breaks_leaves_its_place() {
        let aside = Aside::new(1);
        assert_eq!(aside.place().await.run(|| panic!("on purpose")).await, None::<()>);
        assert_eq!(aside.place().await.run(|| 7).await, Some(7));
        let waits = futures_util::poll!(Box::pin(aside.place()));
        assert!(matches!(waits, Poll::Ready(Place(Some(_)))));
    }
}
