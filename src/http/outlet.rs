//! Where a connection's answers leave it: what the server holds that the kernel has not taken, and whether the client is
//! lost.

use std::{
    cell::Cell,
    future::poll_fn,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http_body::{Body, Frame, SizeHint};
use hyper::rt::Executor;
use hyper_util::rt::TokioExecutor;
use tokio::time::Instant;

use super::silence::{Ends, Presence};
use crate::{meters::Meters, patience::Patience};

/// While the server holds more than this, in bytes, nothing is handed to it: what a client has no room for waits in the
/// run's log, which has it anyway. One who had none lately gets the next piece when the last is gone.
const ENOUGH: usize = 32 << 10;
const ENOUGH_FOR_SLOW: usize = 0;

/// What is handed over at once, in bytes, of an answer that is there whole: it is not to be copied whole. One that is
/// made as it goes comes in pieces that mean something.
const PIECE: usize = 16 << 10;

/// How often it is looked whether a client has left that is not listened to.
const UNHEARD: Duration = Duration::from_secs(1);

tokio::task_local! {
    /// The connection that the task writes to.
    static OUTLET: Arc<Outlet>;
    /// Since when what the task handed over last has not been taken, where each answer has a task of its own.
    static HANDED: Cell<Option<Instant>>;
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
    /// Whether the server waits for the client to say something, and so hears it leave.
    listens: AtomicBool,
    /// How long one of several answers may not be taken.
    write_timeout: Duration,
    meters: Arc<Meters>,
}

impl Outlet {
    /// Of a connection whose answers come one after the other, or side by side, each with a window of its own.
    pub(super) fn new(side_by_side: bool, write_timeout: Duration, meters: Arc<Meters>) -> Arc<Self> {
        Arc::new(Self {
            waits: !side_by_side,
            unsent: AtomicUsize::new(0),
            enough: AtomicUsize::new(ENOUGH),
            room: AtomicWaker::new(),
            lost: AtomicBool::new(false),
            listens: AtomicBool::new(true),
            write_timeout,
            meters,
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

    /// Whether the server waits for the client to say something.
    pub(super) fn listen(&self, listens: bool) {
        self.listens.store(listens, Relaxed);
    }

    /// Waits until the client has left unheard. The server has something of it that it cannot use yet (a request too many,
    /// or a stray byte), so it reads no further, and would not see the end. Who leaves with all it wanted said may have a
    /// moment to be answered. To be asked after the connection, in the same task.
    pub(super) async fn left(&self, ends: Ends) {
        let (mut known, mut look) = (Presence::Unknown, None::<Patience>);
        poll_fn(|cx| {
            if self.listens.load(Relaxed) {
                look = None;
                return Poll::Pending;
            }
            let look = look.get_or_insert_with(|| {
                known = ends.presence();
                Patience::new(UNHEARD)
            });
            while look.poll_over(cx).is_ready() {
                match ends.presence() {
                    Presence::Here => known = Presence::Here,
                    Presence::Unknown if known == Presence::Unknown => {}
                    Presence::Left | Presence::Unknown => return Poll::Ready(()),
                }
                look.extend(UNHEARD);
            }
            Poll::Pending
        })
        .await;
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

/// An answer that is handed over as the client takes it, in pieces.
pub(super) struct Measured<B> {
    body: B,
    /// Whether it is there from the start.
    whole: bool,
    /// What the body gave and was too much at once.
    rest: Bytes,
    outlet: Option<Arc<Outlet>>,
}

impl<B: Body> Measured<B> {
    /// For the connection that this task writes to.
    pub(super) fn new(body: B) -> Self {
        let outlet = OUTLET.try_with(|outlet| outlet.waits.then(|| outlet.clone()));
        Self {
            whole: body.size_hint().exact().is_some(),
            body,
            rest: Bytes::new(),
            outlet: outlet.ok().flatten(),
        }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Measured<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let Self {
            body,
            whole,
            rest,
            outlet,
        } = &mut *self;
        let handed = |since| HANDED.try_with(|handed| handed.set(since)).unwrap_or_default();
        handed(None); // whoever asks for more has room
        if let Some(outlet) = outlet {
            ready!(outlet.poll_room(cx));
        }
        if rest.is_empty() {
            let frame = ready!(Pin::new(body).poll_frame(cx));
            match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => *rest = data,
                Some(Ok(Err(other))) => return Poll::Ready(Some(Ok(other))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
        let piece = match *whole {
            true => rest.split_to(rest.len().min(PIECE)),
            false => std::mem::take(rest),
        };
        if let Some(outlet) = outlet {
            outlet.unsent.fetch_add(piece.len(), Relaxed);
        }
        handed(Some(Instant::now()));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (body, rest) = (self.body.size_hint(), self.rest.len() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(body.lower() + rest);
        if let Some(upper) = body.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

/// Writes one of several answers, as long as its client takes some of it now and then.
async fn taken(what: impl Future, outlet: &Outlet) {
    let (mut what, mut over) = (pin!(what), None::<Patience>);
    let done = poll_fn(|cx| {
        if what.as_mut().poll(cx).is_ready() {
            return Poll::Ready(true);
        }
        let Some(since) = HANDED.with(Cell::get) else {
            over = None;
            return Poll::Pending;
        };
        let rest = outlet.write_timeout.saturating_sub(since.elapsed());
        let over = over.get_or_insert_with(|| Patience::new(rest));
        over.extend(rest);
        over.poll_over(cx).map(|()| false)
    });
    if !done.await {
        outlet.meters.slow_client();
        tracing::debug!("an answer was cut: its client takes nothing of it");
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
            Ok(outlet) => {
                let told = outlet.clone();
                let taken = async move { taken(what, &told).await };
                self.0.execute(outlet.serving(HANDED.scope(Cell::new(None), taken)));
            }
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

    fn outlet(side_by_side: bool) -> Arc<Outlet> {
        Outlet::new(side_by_side, Duration::from_secs(60), Arc::default())
    }

    /// Pieces of that many bytes without end.
    fn endless(piece: usize) -> Measured<impl Body<Data = Bytes> + Unpin> {
        let piece = move || Ok::<_, Infallible>(Frame::data(Bytes::from(vec![0; piece])));
        Measured::new(StreamBody::new(repeat_with(piece)))
    }

    #[tokio::test]
    async fn an_answer_waits_while_enough_is_unsent() {
        let outlet = outlet(false);
        let told = Arc::clone(&outlet);
        outlet
            .serving(async move {
                let mut answer = endless(PIECE);
                let mut cx = Context::from_waker(Waker::noop());
                let mut poll = || Pin::new(&mut answer).poll_frame(&mut cx).is_ready();
                assert!(poll() && poll() && poll(), "there is room for more than enough");
                assert!(!poll(), "and then for no more");
                told.sent(PIECE);
                assert!(poll());
                assert!(!poll());
                told.sent_all();
                assert!(poll());
                told.sent_all();
                told.slow(true);
                assert!(poll(), "who is slow gets one as well");
                told.sent(PIECE - 1);
                assert!(!poll(), "and the next when all of that is gone");
                told.sent(1);
                assert!(poll());
            })
            .await;
    }

    #[tokio::test]
    async fn answers_side_by_side_do_not_wait_for_each_other() {
        let outlet = outlet(true);
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
    async fn what_is_there_whole_goes_in_pieces_and_is_announced_whole() {
        use http_body_util::BodyExt;
        let whole: Bytes = (0..100_000_u32).flat_map(u32::to_ne_bytes).collect();
        let mut body = Measured::new(http_body_util::Full::new(whole.clone()));
        let mut told = Vec::new();
        loop {
            assert_eq!(body.size_hint().exact(), Some((whole.len() - told.len()) as u64));
            assert_eq!(body.is_end_stream(), told.len() == whole.len());
            let Some(frame) = body.frame().await else { break };
            let piece = frame.unwrap().into_data().unwrap();
            assert!((1..=PIECE).contains(&piece.len()));
            told.extend_from_slice(&piece);
        }
        assert_eq!(told, whole);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_side_by_side_that_nobody_takes_is_cut_and_one_that_waits_for_words_is_not() {
        let outlet = outlet(true);
        let began = Instant::now();
        let hands_over = async {
            let mut answer = endless(1);
            poll_fn(|cx| Pin::new(&mut answer).poll_frame(cx)).await;
            std::future::pending::<()>().await; // no room, so nobody asks for more
        };
        HANDED.scope(Cell::new(None), taken(hands_over, &outlet)).await;
        assert_eq!(began.elapsed().as_secs(), 60);
        let silent = async {
            tokio::time::sleep(Duration::from_secs(600)).await;
        };
        HANDED.scope(Cell::new(None), taken(silent, &outlet)).await;
        assert_eq!(began.elapsed().as_secs(), 660);
    }

    #[tokio::test]
    async fn what_is_done_beside_a_connection_knows_when_its_client_is_lost() {
        assert!(!lost(), "no connection, nobody to lose");
        let outlet = outlet(true);
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
