//! Where a connection's answers leave it: what the server holds that the kernel has not taken, and whether the client is
//! lost.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use futures_util::task::AtomicWaker;
use http_body::{Body, Frame, SizeHint};
use hyper::rt::Executor;
use hyper_util::rt::TokioExecutor;

/// While the server holds more than this, in bytes, nothing is handed to it: what a client has no room for waits in the
/// run's log, which has it anyway. One who had none lately gets the next piece when the last is gone.
const ENOUGH: usize = 32 << 10;
const ENOUGH_FOR_SLOW: usize = 0;

tokio::task_local! {
    /// The connection that the task writes to.
    static OUTLET: Arc<Outlet>;
}

/// What a connection and the answers on it tell each other.
#[derive(Debug)]
pub(super) struct Outlet {
    /// Whether answers wait until there is room. Those of HTTP/2 have a window each instead.
    waits: bool,
    /// Bytes that the server was handed and the kernel has not taken; about, for a chunk's frame counts only when it goes.
    unsent: AtomicUsize,
    /// How many of them are enough.
    enough: AtomicUsize,
    room: AtomicWaker,
    lost: AtomicBool,
}

impl Outlet {
    /// Of a connection whose answers come one after the other, or side by side, each with a window of its own.
    pub(super) fn new(side_by_side: bool) -> Arc<Self> {
        Arc::new(Self {
            waits: !side_by_side,
            unsent: AtomicUsize::new(0),
            enough: AtomicUsize::new(ENOUGH),
            room: AtomicWaker::new(),
            lost: AtomicBool::new(false),
        })
    }

    /// Does something for this connection.
    pub(super) async fn serving<T>(self: Arc<Self>, what: impl Future<Output = T>) -> T {
        OUTLET.scope(self, what).await
    }

    /// The kernel took so many bytes.
    pub(super) fn sent(&self, bytes: usize) {
        let before = self.unsent.load(Relaxed);
        self.hold(before.saturating_sub(bytes));
    }

    /// The kernel has taken all.
    pub(super) fn sent_all(&self) {
        self.hold(0);
    }

    fn hold(&self, unsent: usize) {
        self.unsent.store(unsent, Relaxed);
        if self.has_room() {
            self.room.wake(); // nobody, mostly
        }
    }

    fn has_room(&self) -> bool {
        self.unsent.load(Relaxed) <= self.enough.load(Relaxed)
    }

    /// Whether the client has had no room lately.
    pub(super) fn slow(&self, slow: bool) {
        self.enough.store(if slow { ENOUGH_FOR_SLOW } else { ENOUGH }, Relaxed);
    }

    /// The client will not be heard of again.
    pub(super) fn lose(&self) {
        self.lost.store(true, Relaxed);
    }

    fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.has_room() {
            return Poll::Ready(());
        }
        self.room.register(cx.waker());
        if self.has_room() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

/// Whether the client that this task writes to is lost: it did not leave, it was never heard of again.
pub(super) fn lost() -> bool {
    OUTLET.try_with(|outlet| outlet.lost.load(Relaxed)).unwrap_or(false)
}

/// An answer that is handed over as the client takes it.
pub(super) struct Measured<B> {
    body: B,
    outlet: Option<Arc<Outlet>>,
}

impl<B> Measured<B> {
    /// For the connection that this task writes to.
    pub(super) fn new(body: B) -> Self {
        let outlet = OUTLET.try_with(|outlet| outlet.waits.then(|| outlet.clone()));
        Self {
            body,
            outlet: outlet.ok().flatten(),
        }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Measured<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let Self { body, outlet } = &mut *self;
        if let Some(outlet) = outlet {
            ready!(outlet.poll_room(cx));
        }
        let frame = ready!(Pin::new(body).poll_frame(cx));
        if let (Some(outlet), Some(Ok(frame))) = (outlet, &frame)
            && let Some(data) = frame.data_ref()
        {
            outlet.unsent.fetch_add(data.remaining(), Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Runs what a connection needs done beside it, for that connection.
#[derive(Clone, Debug)]
pub(super) struct Beside(pub(super) TokioExecutor);

impl<F> Executor<F> for Beside
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, what: F) {
        match OUTLET.try_with(Arc::clone) {
            Ok(outlet) => self.0.execute(outlet.serving(what)),
            Err(_) => self.0.execute(what),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, task::Waker};

    use futures_util::stream::repeat_with;
    use http_body_util::StreamBody;

    use super::*;

    /// Pieces of that many bytes without end.
    fn endless(piece: usize) -> Measured<impl Body<Data = Bytes> + Unpin> {
        let piece = move || Ok::<_, Infallible>(Frame::data(Bytes::from(vec![0; piece])));
        Measured::new(StreamBody::new(repeat_with(piece)))
    }

    #[tokio::test]
    async fn an_answer_waits_while_enough_is_unsent() {
        let outlet = Outlet::new(false);
        let told = Arc::clone(&outlet);
        outlet
            .serving(async move {
                let mut answer = endless(ENOUGH + 1);
                let mut cx = Context::from_waker(Waker::noop());
                let mut poll = || Pin::new(&mut answer).poll_frame(&mut cx).is_ready();
                assert!(poll(), "there is room for one piece");
                assert!(!poll(), "and then for no more");
                told.sent(1);
                assert!(poll());
                told.sent(ENOUGH);
                assert!(!poll());
                told.sent_all();
                assert!(poll());
                told.sent_all();
                told.slow(true);
                assert!(poll(), "who is slow gets one as well");
                told.sent(ENOUGH);
                assert!(!poll(), "and the next when all of that is gone");
                told.sent(1);
                assert!(poll());
            })
            .await;
    }

    #[tokio::test]
    async fn answers_side_by_side_do_not_wait_for_each_other() {
        let outlet = Outlet::new(true);
        outlet
            .serving(async move {
                let mut cx = Context::from_waker(Waker::noop());
                let mut answers = [endless(2 * ENOUGH), endless(2 * ENOUGH)];
                for answer in answers.iter_mut() {
                    assert!(Pin::new(&mut *answer).poll_frame(&mut cx).is_ready());
                    assert!(Pin::new(answer).poll_frame(&mut cx).is_ready());
                }
            })
            .await;
    }

    #[tokio::test]
    async fn what_is_done_beside_a_connection_knows_when_its_client_is_lost() {
        assert!(!lost(), "no connection, nobody to lose");
        let outlet = Outlet::new(true);
        outlet.lose();
        let (tell, told) = tokio::sync::oneshot::channel();
        outlet
            .serving(async {
                Beside(TokioExecutor::new()).execute(async move {
                    let _ = tell.send(lost()); // whoever asks waits for it
                });
            })
            .await;
        assert!(told.await.unwrap());
    }
}
